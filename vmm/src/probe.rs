//! Whether this host's KVM really runs guests.
//!
//! That /dev/kvm opens proves nothing: some KVM modules interpret ring-0 code instruction by instruction, and end with
//! `KVM_EXIT_INTERNAL_ERROR` at the first one they do not know, which a kernel reaches early in its boot. So the probe
//! makes a tiny machine and runs a few instructions of 64-bit ring-0 code in it that every kernel needs. It takes a few
//! milliseconds and leaves nothing behind.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};

use kvm_bindings::{KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemory as _, GuestMemoryRegion as _, MemoryRegionAddress};

use crate::memory::{SharedMemory, map_ram};

/// Where KVM is.
pub const KVM_DEVICE: &str = "/dev/kvm";

/// What KVM must be able to do for a machine of this crate (Linux Documentation/virt/kvm/api.rst).
const NEEDED: [(Cap, &str); 6] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
];

/// Why this host runs no guests, and what helps.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No device.
    #[error(
        "there is no /dev/kvm; enable virtualization in the firmware and load kvm_intel or kvm_amd (inside a VM: nested virtualization)"
    )]
    Missing,
    /// The device is there, but not for this user.
    #[error("/dev/kvm may not be opened by this user; run as root, or join the group that owns it (usually kvm)")]
    NoPermission,
    /// The device cannot be opened for another reason.
    #[error("/dev/kvm cannot be opened: {0}")]
    Open(#[source] io::Error),
    /// KVM's interface is not the one there has been since Linux 2.6.22.
    #[error("/dev/kvm speaks version {0} of its interface, not {KVM_API_VERSION}; use another kernel")]
    ApiVersion(i32),
    /// KVM lacks something.
    #[error("this host's KVM lacks {0}; use a newer kernel")]
    Lacks(&'static str),
    /// A call of KVM's failed.
    #[error("this host's KVM cannot {what}: {source}")]
    Call {
        /// What it was to do.
        what: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// KVM took the machine and could not run its code.
    #[error(
        "/dev/kvm opens, but cannot run guests: {how}{module}; use a host with hardware virtualization (kvm_intel or kvm_amd)",
        module = .module.as_ref().map(|name| format!(" (its module is {name})")).unwrap_or_default()
    )]
    CannotRun {
        /// What happened to the test code.
        how: String,
        /// The kernel module behind /dev/kvm, where it can be told.
        module: Option<String>,
    },
}

impl From<(&'static str, kvm_ioctls::Error)> for ProbeError {
    fn from((what, error): (&'static str, kvm_ioctls::Error)) -> Self {
        Self::Call { what, source: io::Error::from_raw_os_error(error.errno()) }
    }
}

/// Says whether this host's KVM runs guests.
///
/// # Errors
/// [`ProbeError`]: the reason, and the cure.
pub fn probe() -> Result<(), ProbeError> {
    let kvm = open_kvm()?;
    if let Some((_, name)) = NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        return Err(ProbeError::Lacks(name));
    }
    let (_vm, mut vcpu, memory) = build(&kvm)?;
    run(&mut vcpu)?;
    verify(&memory)
}

/// Opens KVM and checks its version, as the probe and every machine do.
pub(crate) fn open_kvm() -> Result<Kvm, ProbeError> {
    let kvm = open(KVM_DEVICE)?;
    match kvm.get_api_version() {
        version if version == KVM_API_VERSION as i32 => Ok(kvm),
        version => Err(ProbeError::ApiVersion(version)),
    }
}

fn open(path: &str) -> Result<Kvm, ProbeError> {
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => ProbeError::Missing,
        io::ErrorKind::PermissionDenied => ProbeError::NoPermission,
        _ => match error.raw_os_error() {
            Some(libc::ENXIO | libc::ENODEV) => ProbeError::Missing,
            _ => ProbeError::Open(error),
        },
    })?;
    Ok(kvm_of(file))
}

fn kvm_of(file: File) -> Kvm {
    // SAFETY: the descriptor is an open one of /dev/kvm, and ours to give away.
    unsafe { Kvm::from_raw_fd(file.into_raw_fd()) }
}

// Where things are in the probe's guest, which has 2 MiB of memory, identity-mapped by one huge page.
const MEMORY_BYTES: u64 = 2 << 20;
const PAGE_TABLES: [u64; 3] = [0x1000, 0x2000, 0x3000];
const OPERAND: u64 = 0x5000;
const FLOATING_POINT: u64 = 0x6000;
const STACK: u64 = 0x8000;
const CODE: u64 = 0x9000;
/// Port that the test code says it is done at.
const DONE_PORT: u16 = 0x60d0;
/// What `lock cmpxchg16b` must leave behind at [`OPERAND`].
const EXCHANGED: [u64; 2] = [0x1111, 0x2222];

// What every kernel does before it has a console: saves floating-point state, asks for the processor's kind, reads and writes
// a model-specific register and CR3, drops a translation, exchanges 16 bytes atomically.
#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    ".pushsection .rodata.podvm_probe",
    ".globl podvm_probe_code, podvm_probe_code_end",
    "podvm_probe_code:",
    "fxsave64 [{floating_point}]",
    "xorps xmm0, xmm0",
    "fxrstor64 [{floating_point}]",
    "xor eax, eax",
    "cpuid",
    "mov ecx, 0xc0000080", // EFER
    "rdmsr",
    "wrmsr",
    "mov rax, cr3",
    "mov cr3, rax",
    "invlpg [{operand}]",
    "xor eax, eax",
    "xor edx, edx",
    "mov ebx, 0x1111",
    "mov ecx, 0x2222",
    "lock cmpxchg16b [{operand}]",
    "mov dx, {done}",
    "out dx, al",
    "2: hlt",
    "jmp 2b",
    "podvm_probe_code_end:",
    ".popsection",
    floating_point = const FLOATING_POINT,
    operand = const OPERAND,
    done = const DONE_PORT,
);

unsafe extern "C" {
    static podvm_probe_code: u8;
    static podvm_probe_code_end: u8;
}

/// The test code's bytes.
fn code() -> &'static [u8] {
    let (start, end) = (&raw const podvm_probe_code, &raw const podvm_probe_code_end);
    // SAFETY: the two symbols enclose the code above, which is constant data of this program.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

fn build(kvm: &Kvm) -> Result<(VmFd, VcpuFd, SharedMemory), ProbeError> {
    let memory = map_ram(MEMORY_BYTES)
        .map_err(|error| ProbeError::Call { what: "get memory for a guest", source: io::Error::other(error) })?;
    fill(&memory)
        .map_err(|error| ProbeError::Call { what: "fill a guest's memory", source: io::Error::other(error) })?;
    let vm = kvm.create_vm().map_err(|error| ("make a machine", error))?;
    for region in memory.iter() {
        let host = region
            .get_host_address(MemoryRegionAddress(0))
            .map_err(|error| ProbeError::Call { what: "address a guest's memory", source: io::Error::other(error) })?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY_BYTES,
            userspace_addr: host as u64,
        };
        // SAFETY: the region is mapped until `memory` is dropped, after the machine.
        unsafe { vm.set_user_memory_region(region) }.map_err(|error| ("give a machine memory", error))?;
    }
    let vcpu = vm.create_vcpu(0).map_err(|error| ("make a virtual CPU", error))?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(|error| ("tell its CPUID", error))?;
    vcpu.set_cpuid2(&cpuid).map_err(|error| ("set a CPUID", error))?;
    set_registers(&vcpu)?;
    Ok((vm, vcpu, memory))
}

fn fill(memory: &SharedMemory) -> Result<(), vm_memory::GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const HUGE: u64 = 1 << 7;
    memory.write_obj(PAGE_TABLES[1] | PRESENT_WRITABLE, GuestAddress(PAGE_TABLES[0]))?;
    memory.write_obj(PAGE_TABLES[2] | PRESENT_WRITABLE, GuestAddress(PAGE_TABLES[1]))?;
    memory.write_obj(PRESENT_WRITABLE | HUGE, GuestAddress(PAGE_TABLES[2]))?;
    memory.write_slice(code(), GuestAddress(CODE))
}

/// 64-bit ring 0, with paging on and floating point allowed.
fn set_registers(vcpu: &VcpuFd) -> Result<(), ProbeError> {
    const CR0: u64 = 1 << 31 | 1 << 5 | 1 << 4 | 1 << 1 | 1; // PG, NE, ET, MP, PE
    const CR4: u64 = 1 << 10 | 1 << 9 | 1 << 5; // OSXMMEXCPT, OSFXSR, PAE
    const EFER: u64 = 1 << 10 | 1 << 8; // LMA, LME
    let mut special = vcpu.get_sregs().map_err(|error| ("tell its registers", error))?;
    let data = kvm_segment {
        limit: u32::MAX,
        type_: 3,
        present: 1,
        s: 1,
        g: 1,
        db: 1,
        selector: 16,
        ..kvm_segment::default()
    };
    special.cs = kvm_segment { type_: 11, l: 1, db: 0, selector: 8, ..data };
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
    (special.cr0, special.cr3, special.cr4, special.efer) = (CR0, PAGE_TABLES[0], CR4, EFER);
    vcpu.set_sregs(&special).map_err(|error| ("set registers", error))?;
    let registers = kvm_regs { rip: CODE, rsp: STACK, rflags: 2, ..kvm_regs::default() };
    Ok(vcpu.set_regs(&registers).map_err(|error| ("set registers", error))?)
}

/// Runs the test code until it says that it is done, or KVM gives up.
fn run(vcpu: &mut VcpuFd) -> Result<(), ProbeError> {
    let how = loop {
        break match vcpu.run() {
            Ok(VcpuExit::IoOut(DONE_PORT, _)) => return Ok(()),
            Ok(VcpuExit::InternalError) => "it fails at an instruction that every kernel needs".to_owned(),
            Ok(VcpuExit::FailEntry(reason, _)) => {
                format!("the processor refuses to enter a guest (reason {reason:#x})")
            }
            Ok(VcpuExit::Shutdown) => "a guest's first instructions end in a triple fault".to_owned(),
            Ok(other) => format!("a guest's first instructions end in {other:?}"),
            Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => continue,
            Err(error) => io::Error::from_raw_os_error(error.errno()).to_string(),
        };
    };
    Err(ProbeError::CannotRun { how, module: kvm_module() })
}

/// Looks at what the code did, for an interpreter may also go on with a wrong result.
fn verify(memory: &SharedMemory) -> Result<(), ProbeError> {
    let result: [u64; 2] = memory.read_obj(GuestAddress(OPERAND)).unwrap_or_default();
    if result == EXCHANGED {
        return Ok(());
    }
    let how = "it executes an instruction that every kernel needs wrongly".to_owned();
    Err(ProbeError::CannotRun { how, module: kvm_module() })
}

/// Name of the module that does the work behind /dev/kvm.
fn kvm_module() -> Option<String> {
    let modules = std::fs::read_dir("/sys/module").ok()?;
    let names = modules.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with("kvm_")).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_and_a_file_that_is_none_are_told_apart() {
        assert!(matches!(open("/dev/there-is-no-such-device"), Err(ProbeError::Missing)));
        assert!(matches!(open("/"), Err(ProbeError::Open(_))));
    }

    #[test]
    fn the_answer_fits_the_module_behind_the_device() {
        if !std::path::Path::new(KVM_DEVICE).exists() {
            assert!(matches!(probe(), Err(ProbeError::Missing)));
            return;
        }
        match kvm_module().as_deref() {
            // It interprets ring-0 code, and does not know `lock cmpxchg16b`.
            Some("kvm_pvm") => {
                let message = probe().unwrap_err().to_string();
                assert!(message.contains("kvm_pvm") && message.contains("cannot run guests"), "{message}");
            }
            Some("kvm_amd" | "kvm_intel") => probe().unwrap(),
            other => eprintln!("skipped: no expectation for the module {other:?}"),
        }
    }
}
