//! Boot files of all kinds, good and bad, placed into guest memory.

use std::io::Write;

use super::*;
use crate::memory::map_ram;
use proptest::prelude::*;
use tempfile::NamedTempFile;

/// A minimal ELF: one code segment at 16 MiB with two pages of file and one more of zeroes, one note.
fn elf_with(pvh: bool) -> Vec<u8> {
    let mut elf = vec![0; 0x3000];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[18] = 62;
    elf[32] = 64;
    elf[54] = 56;
    elf[56] = 2;
    let put = |elf: &mut Vec<u8>, at: usize, value: u64| {
        elf[at..at + 8].copy_from_slice(&value.to_le_bytes());
    };
    elf[64] = 1;
    put(&mut elf, 64 + 8, 0x1000);
    put(&mut elf, 64 + 24, 0x100_0000);
    put(&mut elf, 64 + 32, 0x1800);
    put(&mut elf, 64 + 40, 0x3000);
    elf[120] = 4;
    put(&mut elf, 120 + 8, 0x200);
    put(&mut elf, 120 + 32, 24);
    elf[0x200..0x20c].copy_from_slice(&[4, 0, 0, 0, 8, 0, 0, 0, if pvh { 18 } else { 17 }, 0, 0, 0]);
    elf[0x20c..0x210].copy_from_slice(b"Xen\0");
    put(&mut elf, 0x210, 0x100_0010);
    elf[0x1000..0x3000].fill(0xcc);
    elf
}

fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn source(kernel: &NamedTempFile, initramfs: Option<&NamedTempFile>) -> BootSource {
    BootSource {
        kernel: BootFile::kernel(kernel.path()).unwrap(),
        initramfs: initramfs.map(|file| BootFile::initramfs(file.path()).unwrap()),
        command_line: "quiet".into(),
    }
}

fn error_of(kernel: &[u8]) -> String {
    let kernel = file(kernel);
    let memory = map_ram(64 << 20).unwrap();
    load(&memory, &source(&kernel, None), 1).unwrap_err().to_string()
}

#[test]
fn an_elf_kernel_is_placed_with_zeroes_behind_its_bytes_and_the_initramfs_behind_it() {
    let (kernel, initramfs) = (file(&elf_with(true)), file(&[7; 5000]));
    let memory = map_ram(64 << 20).unwrap();
    let entry = load(&memory, &source(&kernel, Some(&initramfs)), 2).unwrap();
    assert_eq!(entry, Entry::Pvh { address: 0x100_0010 });
    let byte = |at| memory.read_obj::<u8>(GuestAddress(at)).unwrap();
    assert_eq!(byte(0x100_0000), 0xcc);
    assert_eq!(byte(0x100_17ff), 0xcc);
    assert_eq!(byte(0x100_1800), 0, "beyond the segment's file bytes");
    let initramfs_at = 0x100_3000;
    assert_eq!(byte(initramfs_at), 7);
    assert_eq!(byte(initramfs_at + 4999), 7);
    assert_eq!(byte(initramfs_at + 5000), 0);
    let module: u64 = memory.read_obj(GuestAddress(layout::MODULES)).unwrap();
    assert_eq!(module, initramfs_at);
}

#[test]
fn the_memory_map_leaves_out_the_first_megabytes_end_and_the_hole() {
    let memory = map_ram((3 << 30) + (1 << 20)).unwrap();
    assert_eq!(
        memory_map(&memory),
        [
            (0, 0x9_f000, true),
            (0x9_f000, 0x6_1000, false),
            (0x10_0000, (3 << 30) - 0x10_0000, true),
            (4 << 30, 1 << 20, true),
        ]
    );
}

#[test]
fn a_text_file_is_not_a_kernel() {
    let message = error_of(&[b'x'; 4096]);
    assert!(message.contains("neither an ELF file nor a bzImage"), "{message}");
}

#[test]
fn an_empty_file_is_not_a_kernel() {
    assert!(error_of(b"").contains("cut short"));
}

#[test]
fn an_elf_without_pvh_entry_names_the_option_to_build_with() {
    assert!(error_of(&elf_with(false)).contains("CONFIG_PVH=y"));
}

#[test]
fn an_elf_for_another_machine_is_refused() {
    let mut elf = elf_with(true);
    elf[18] = 183;
    assert!(error_of(&elf).contains("not for x86-64"));
}

#[test]
fn a_missing_kernel_is_named() {
    let error = BootFile::kernel(Path::new("/nowhere/vmlinux")).unwrap_err().to_string();
    assert!(error.contains("kernel /nowhere/vmlinux cannot be opened"), "{error}");
}

#[test]
fn too_little_memory_names_both_sizes() {
    let kernel = file(&elf_with(true));
    let memory = map_ram(20 << 20).unwrap();
    let error = load(&memory, &source(&kernel, None), 1).unwrap_err().to_string();
    assert!(error.contains("20 MiB of memory") && error.contains("at least 41 MiB"), "{error}");
}

#[test]
fn a_long_command_line_is_refused_with_its_length() {
    let kernel = file(&elf_with(true));
    let memory = map_ram(64 << 20).unwrap();
    let mut source = source(&kernel, None);
    source.command_line = "x".repeat(2048);
    let error = load(&memory, &source, 1).unwrap_err().to_string();
    assert!(error.contains("2048 bytes") && error.contains("2047"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn damaged_kernels_are_errors_not_panics(
        damage in prop::collection::vec((0_usize..0x220, any::<u8>()), 1..12),
    ) {
        let mut elf = elf_with(true);
        for (at, byte) in damage {
            elf[at] = byte;
        }
        let kernel = file(&elf);
        let memory = map_ram(64 << 20).unwrap();
        let _ = load(&memory, &source(&kernel, None), 1);
    }
}
