//! The registers that a CPU starts with: for PVH in 32-bit protected mode, for Linux's 64-bit protocol in
//! long mode over identity-mapped page tables; MSRs, FPU and local APIC as firmware would leave them.

use kvm_bindings::{
    Msrs, kvm_cpuid_entry2, kvm_dtable, kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs,
    kvm_xcrs,
};
use vm_memory::{Bytes, GuestAddress};

use crate::boot::{Entry, layout};
use crate::memory::GuestMemory;

const CR0_PROTECTED: u64 = 1 << 0;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const EFER_LONG_MODE: u64 = 1 << 8 | 1 << 10;
const RFLAGS_RESERVED: u64 = 1 << 1;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEFAULT_TYPE: u32 = 0x2ff;
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// Local vector table entries for the two interrupt pins.
const APIC_LVT0: usize = 0x350;
const APIC_LVT1: usize = 0x360;
const MODE_NMI: u32 = 4;
const MODE_EXTERNAL: u32 = 7;

/// General registers at the entry.
pub fn general(entry: Entry) -> kvm_regs {
    match entry {
        Entry::Pvh { address } => {
            kvm_regs { rip: address, rbx: layout::START_INFO, rflags: RFLAGS_RESERVED, ..Default::default() }
        }
        Entry::Linux64 { address } => {
            kvm_regs { rip: address, rsi: layout::ZERO_PAGE, rflags: RFLAGS_RESERVED, ..Default::default() }
        }
    }
}

/// A flat segment of 4 GiB (limits count pages).
fn flat(kind: u8, selector: u16, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_: kind,
        present: 1,
        s: 1,
        g: 1,
        db: u8::from(!long),
        l: u8::from(long),
        ..Default::default()
    }
}

/// A GDT descriptor as memory holds it.
fn descriptor(segment: &kvm_segment) -> u64 {
    let flags = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7
        | u64::from(segment.l) << 13
        | u64::from(segment.db) << 14
        | u64::from(segment.g) << 15;
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let base = segment.base;
    limit & 0xffff | (base & 0x00ff_ffff) << 16 | flags << 40 | (limit >> 16 & 0xf) << 48 | (base >> 24 & 0xff) << 56
}

/// Sets segments, control registers and descriptor tables for the entry, and writes the GDT to guest memory.
///
/// # Errors
/// The error of guest memory, if it is too small for a GDT.
pub fn set_up_system(
    sregs: &mut kvm_sregs,
    entry: Entry,
    memory: &GuestMemory,
) -> Result<(), vm_memory::GuestMemoryError> {
    const CODE: u8 = 0xb;
    const DATA: u8 = 0x3;
    const TASK_BUSY: u8 = 0xb;
    let long = matches!(entry, Entry::Linux64 { .. });
    // Linux's protocol wants selectors 0x10 and 0x18; PVH leaves them open.
    let (code, data) = (flat(CODE, 0x10, long), flat(DATA, 0x18, false));
    let task = kvm_segment { limit: 0x67, type_: TASK_BUSY, present: 1, selector: 0x20, ..Default::default() };
    let gdt = [0, 0, descriptor(&code), descriptor(&data), descriptor(&task)];
    for (entry, at) in gdt.iter().zip((layout::GDT..).step_by(8)) {
        memory.write_obj(*entry, GuestAddress(at))?;
    }
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = task;
    sregs.gdt = kvm_dtable { base: layout::GDT, limit: (gdt.len() * 8 - 1) as u16, ..Default::default() };
    sregs.idt = kvm_dtable::default();
    sregs.cr0 = CR0_PROTECTED | CR0_EXTENSION_TYPE;
    sregs.cr4 = 0;
    if long {
        sregs.cr0 |= CR0_PAGING;
        sregs.cr3 = layout::PAGE_TABLES;
        sregs.cr4 |= CR4_PHYSICAL_ADDRESS_EXTENSION;
        sregs.efer |= EFER_LONG_MODE;
    }
    Ok(())
}

/// FPU and SSE control words after reset.
pub fn fpu() -> kvm_fpu {
    kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() }
}

/// XCR0 with all extended state that the CPU's leaves offer; `None` if they offer none.
///
/// A kernel sets it itself, after it has read from CPUID how large that state is. But where this host is itself emulated
/// KVM may not see the guest set it, and would go on with a size and a register that do not fit; so it starts complete.
pub fn extended_state(cpuid: &[kvm_cpuid_entry2]) -> Option<kvm_xcrs> {
    const LEAF_1_ECX_XSAVE: u32 = 1 << 26;
    let has_xsave = cpuid.iter().any(|leaf| leaf.function == 1 && leaf.ecx & LEAF_1_ECX_XSAVE != 0);
    let leaf = cpuid.iter().find(|leaf| leaf.function == 0xd && leaf.index == 0).filter(|_| has_xsave)?;
    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
    xcrs.xcrs[0].value = u64::from(leaf.eax) | u64::from(leaf.edx) << 32;
    Some(xcrs)
}

/// MSRs that firmware sets: memory is write-back, string moves are fast.
pub fn msrs() -> Result<Msrs, vmm_sys_util::fam::Error> {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    Msrs::from_entries(&[
        entry(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        entry(MSR_MTRR_DEFAULT_TYPE, MTRR_ENABLED_WRITE_BACK),
    ])
}

/// Routes the interrupt pins as a PC does: external interrupts to pin 0, NMI to pin 1.
pub fn wire_interrupt_pins(lapic: &mut kvm_lapic_state) {
    for (at, mode) in [(APIC_LVT0, MODE_EXTERNAL), (APIC_LVT1, MODE_NMI)] {
        let bytes = [lapic.regs[at], lapic.regs[at + 1], lapic.regs[at + 2], lapic.regs[at + 3]];
        let word = u32::from_le_bytes(bytes.map(|byte| byte as u8)) & !0x700 | mode << 8;
        for (n, byte) in word.to_le_bytes().into_iter().enumerate() {
            lapic.regs[at + n] = byte as _;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_have_the_well_known_values() {
        assert_eq!(descriptor(&flat(0xb, 0x10, false)), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&flat(0xb, 0x10, true)), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&flat(0x3, 0x18, false)), 0x00cf_9300_0000_ffff);
    }

    #[test]
    fn pins_are_wired_to_external_interrupts_and_nmi() {
        let mut lapic = kvm_lapic_state::default();
        lapic.regs[APIC_LVT0 + 2] = 1;
        wire_interrupt_pins(&mut lapic);
        assert_eq!(lapic.regs[APIC_LVT0 + 1], 7);
        assert_eq!(lapic.regs[APIC_LVT1 + 1], 4);
        assert_eq!(lapic.regs[APIC_LVT0 + 2], 1, "the mask bit is kept");
    }
}
