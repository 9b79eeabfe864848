//! Machines that run hand-made guests of a few instructions: how each kind of end is reported, control from outside, and
//! going on from a saved state. Skipped, with the reason, where KVM runs no guests.

use std::io::Write;
use std::time::{Duration, Instant};

use podvm_vmm::boot::BootFile;
use podvm_vmm::devices::block::Extent;
use podvm_vmm::devices::pmem::ReadOnlyFiles;
use podvm_vmm::devices::rng::Rng;
use podvm_vmm::machine::{Device, Vm, VmConfig, VmState};
use podvm_vmm::memory::{SharedMemory, map_ram};
use podvm_vmm::persist;
use podvm_vmm::probe::probe;
use podvm_vmm::vcpu::exit::VmExit;
use vm_memory::{Bytes, GuestAddress};

const MEMORY_BYTES: u64 = 32 << 20;
/// Where the guest's code is, and where its message.
const CODE: u32 = 0x10_0000;
const MESSAGE: u32 = CODE + 0x800;
/// Words that guest and test share.
const COUNTER: u64 = 0x20_0000;
const FLAG: u64 = COUNTER + 4;

/// Resets the machine: mov al, 0xfe; out 0x64, al; hlt.
const RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xf4];

/// A vmlinux as small as they come: an ELF header, one segment, one PVH note.
fn kernel(code: &[u8], message: &[u8]) -> tempfile::NamedTempFile {
    let mut elf = vec![0; 0x2000];
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(18, &62_u16.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(54, &[56, 0, 2, 0]);
    let header = |kind: u32, offset: u64, address: u64, size: u64| {
        [u64::from(kind) | 7 << 32, offset, address, address, size, size, 0].map(u64::to_le_bytes).concat()
    };
    put(64, &header(1, 0x1000, CODE.into(), 0x1000));
    put(120, &header(4, 0x200, 0, 20));
    put(0x200, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0, b'X', b'e', b'n', 0]);
    put(0x210, &CODE.to_le_bytes());
    put(0x1000, code);
    put(0x1800, message);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&elf).unwrap();
    file
}

/// Writes the message to the serial port, in 32-bit code: esi, ecx, edx; rep outsb.
fn say(length: usize) -> Vec<u8> {
    let mut code = vec![0xbe];
    code.extend(MESSAGE.to_le_bytes());
    code.push(0xb9);
    code.extend((length as u32).to_le_bytes());
    code.extend([0xba, 0xf8, 0x03, 0, 0, 0xf3, 0x6e]);
    code
}

fn config(kernel: &tempfile::NamedTempFile) -> VmConfig {
    VmConfig::new(BootFile::kernel(kernel.path()).unwrap(), MEMORY_BYTES)
}

/// Runs a guest to its end; `None` where that is not possible.
fn run(code: &[u8], message: &[u8]) -> Option<VmExit> {
    can_run().then(|| Vm::build(config(&kernel(code, message))).unwrap().start().unwrap().wait())
}

fn can_run() -> bool {
    match probe() {
        Ok(()) => true,
        Err(reason) => {
            println!("skipped: {reason}");
            false
        }
    }
}

/// Waits for the guest's counter to pass `value`.
fn await_counter(memory: &SharedMemory, value: u32) -> u32 {
    let start = Instant::now();
    loop {
        let counter: u32 = memory.read_obj(GuestAddress(COUNTER)).unwrap();
        if counter > value {
            return counter;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "the guest does not count");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Counts until the flag is set: inc [COUNTER]; cmp [FLAG], 0; je back.
fn count_until_flag() -> Vec<u8> {
    let mut code = vec![0xff, 0x05];
    code.extend((COUNTER as u32).to_le_bytes());
    code.extend([0x83, 0x3d]);
    code.extend((FLAG as u32).to_le_bytes());
    code.extend([0x00, 0x74, 0xf1]);
    code
}

#[test]
fn a_guest_that_resets_ends_so() {
    if let Some(exit) = run(RESET, b"") {
        assert_eq!(exit, VmExit::Reset);
    }
}

#[test]
fn a_panic_report_on_the_console_is_a_panic() {
    let message = b"Kernel panic - not syncing: on purpose\n";
    let code = [say(message.len()), RESET.to_vec()].concat();
    if let Some(exit) = run(&code, message) {
        assert_eq!(exit, VmExit::Panic { message: "on purpose".into() });
    }
}

#[test]
fn a_triple_fault_tells_where_it_happened_and_the_last_console_line() {
    // There is no interrupt table: int3 faults, and so does handling that.
    let message = b"about to fault\n";
    let code = [say(message.len()), vec![0xcc]].concat();
    let Some(exit) = run(&code, message) else { return };
    assert!(matches!(exit, VmExit::TripleFault(_)), "{exit}");
    let text = exit.to_string();
    // Intel's processors keep the CPU's state; on AMD's it is reset.
    let told = text.contains("32-bit kernel mode at rip 0x1000") || text.contains("has been reset since");
    assert!(told, "{text}");
    assert!(text.ends_with("last console line: about to fault"), "{text}");
}

#[test]
fn code_that_kvm_cannot_emulate_is_an_internal_error() {
    // Jumps to where there is no memory: mov eax, 0xd0800000; jmp eax.
    let Some(exit) = run(&[0xb8, 0, 0, 0x80, 0xd0, 0xff, 0xe0], b"") else { return };
    assert!(matches!(exit, VmExit::InternalError { suberror: 1, .. }), "{exit}");
    assert!(exit.to_string().contains("rip 0xd0800000"), "{exit}");
}

#[test]
fn a_spinning_guest_can_be_stopped_from_outside() {
    if !can_run() {
        return;
    }
    let kernel = kernel(&count_until_flag(), b"");
    let running = Vm::build(config(&kernel)).unwrap().start().unwrap();
    let handle = running.handle();
    let stopper = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        handle.stop();
    });
    assert_eq!(running.wait(), VmExit::Stopped);
    stopper.join().unwrap();
}

#[test]
fn a_paused_guest_stands_still_until_it_is_resumed() {
    if !can_run() {
        return;
    }
    let kernel = kernel(&[count_until_flag(), RESET.to_vec()].concat(), b"");
    let mut config = config(&kernel);
    config.vcpus = 3;
    let vm = Vm::build(config).unwrap();
    let memory = vm.memory().clone();
    let running = vm.start().unwrap();
    let handle = running.handle();
    await_counter(&memory, 0);
    handle.pause();
    let stood = memory.read_obj::<u32>(GuestAddress(COUNTER)).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(memory.read_obj::<u32>(GuestAddress(COUNTER)).unwrap(), stood);
    handle.resume();
    await_counter(&memory, stood);
    memory.write_obj(1_u32, GuestAddress(FLAG)).unwrap();
    assert_eq!(running.wait(), VmExit::Reset);
}

#[test]
fn a_saved_machine_goes_on_in_another() {
    if !can_run() {
        return;
    }
    let message = b"resumed\n";
    let code = [count_until_flag(), say(message.len()), RESET.to_vec()].concat();
    let kernel = kernel(&code, message);
    let mut first = config(&kernel);
    first.vcpus = 2;
    first.add_device(Rng::new()).unwrap();
    let vm = Vm::build(first).unwrap();
    let memory = vm.memory().clone();
    let running = vm.start().unwrap();
    let handle = running.handle();
    await_counter(&memory, 1000);
    handle.pause();
    let bytes = persist::encode(&handle.save().unwrap()).unwrap();
    let counted: u32 = memory.read_obj(GuestAddress(COUNTER)).unwrap();
    let mut contents = vec![0; MEMORY_BYTES as usize];
    memory.read_slice(&mut contents, GuestAddress(0)).unwrap();
    drop(running);

    let state: VmState = persist::decode(&bytes).unwrap();
    assert_eq!(persist::encode(&state).unwrap(), bytes, "the state survives its encoding");
    let copy = map_ram(MEMORY_BYTES).unwrap();
    copy.write_slice(&contents, GuestAddress(0)).unwrap();
    let mut second = config(&kernel);
    second.vcpus = 2;
    second.devices.push(Device::restore::<Rng>((), &state.transports()[0]).unwrap());
    let running = Vm::restore(second, copy.clone(), state).unwrap().start().unwrap();
    let handle = running.handle();
    await_counter(&copy, counted);
    copy.write_obj(1_u32, GuestAddress(FLAG)).unwrap();
    assert_eq!(running.wait(), VmExit::Reset);
    assert_eq!(handle.console().last_line().as_deref(), Some("resumed"));
}

#[test]
fn a_state_of_another_shape_is_refused_with_both_shapes() {
    if !can_run() {
        return;
    }
    let kernel = kernel(&count_until_flag(), b"");
    let running = Vm::build(config(&kernel)).unwrap().start().unwrap();
    running.handle().pause();
    let state = running.handle().save().unwrap();
    let mut other = config(&kernel);
    other.vcpus = 2;
    let error = Vm::restore(other, map_ram(MEMORY_BYTES).unwrap(), state).err().unwrap().to_string();
    assert!(error.contains("1 CPUs and 0 devices, the configuration 2 and 0"), "{error}");
}

#[test]
fn impossible_numbers_of_cpus_are_refused_with_the_limit() {
    if !can_run() {
        return;
    }
    let kernel = kernel(RESET, b"");
    for vcpus in [0, 200] {
        let mut config = config(&kernel);
        config.vcpus = vcpus;
        let error = Vm::build(config).err().unwrap().to_string();
        assert!(error.starts_with(&format!("{vcpus} CPUs cannot be had")), "{error}");
    }
}

/// Where the mapped file is in the guest: below 4 GiB, for these guests have 32-bit code.
const FILES: u32 = 0x1000_0000;

#[test]
fn a_mapped_file_is_read_as_memory_and_cannot_be_written() {
    if !can_run() {
        return;
    }
    let file = tempfile::tempfile().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0x5a; 8192], 0).unwrap();
    // mov eax, [FILES]; mov [COUNTER], eax; mov dword [FILES], 1; mov esi, CODE; mov edi, FILES; mov ecx, 64; rep movsb;
    // mov eax, [FILES]; mov [FLAG], eax
    let mut code = vec![0xa1];
    code.extend(FILES.to_le_bytes());
    code.push(0xa3);
    code.extend((COUNTER as u32).to_le_bytes());
    code.extend([0xc7, 0x05]);
    code.extend(FILES.to_le_bytes());
    code.extend([1, 0, 0, 0, 0xbe]);
    code.extend(CODE.to_le_bytes());
    code.push(0xbf);
    code.extend(FILES.to_le_bytes());
    code.extend([0xb9, 64, 0, 0, 0, 0xf3, 0xa4, 0xa1]);
    code.extend(FILES.to_le_bytes());
    code.push(0xa3);
    code.extend((FLAG as u32).to_le_bytes());
    code.extend(RESET);
    let kernel = kernel(&code, b"");
    let mut config = config(&kernel);
    let pieces = [Extent::file(0, file.try_clone().unwrap()).unwrap()];
    config.add_pmem(ReadOnlyFiles::map(GuestAddress(FILES.into()), &pieces).unwrap()).unwrap();
    let vm = Vm::build(config).unwrap();
    let memory = vm.memory().clone();
    assert_eq!(vm.start().unwrap().wait(), VmExit::Reset);
    let seen: [u32; 2] = memory.read_obj(GuestAddress(COUNTER)).unwrap();
    assert_eq!(seen, [0x5a5a_5a5a; 2], "before the guest's writes, and after");
    let mut bytes = [0; 8192];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
    assert_eq!(bytes, [0x5a; 8192]);
}

#[test]
fn a_guest_that_reads_what_a_file_has_lost_ends_and_nobody_else() {
    if !can_run() {
        return;
    }
    let file = tempfile::tempfile().unwrap();
    file.set_len(8192).unwrap();
    let pieces = [Extent::file(0, file.try_clone().unwrap()).unwrap()];
    let files = ReadOnlyFiles::map(GuestAddress(FILES.into()), &pieces).unwrap();
    file.set_len(0).unwrap();
    let mut code = vec![0xa1];
    code.extend((FILES + 4096).to_le_bytes());
    code.extend(RESET);
    let kernel = kernel(&code, b"");
    let mut config = config(&kernel);
    config.add_pmem(files).unwrap();
    let exit = Vm::build(config).unwrap().start().unwrap().wait();
    assert!(matches!(exit, VmExit::RunFailed { .. }), "{exit:?}");
}
