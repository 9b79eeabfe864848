#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| podvm_image::fuzz::signed_message(bytes));
