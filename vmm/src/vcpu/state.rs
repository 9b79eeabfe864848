//! A CPU's saved state: everything KVM knows of it, in the order that KVM wants it back.

use kvm_bindings::{
    Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

/// Most CPUID leaves KVM handles (KVM_MAX_CPUID_ENTRIES).
const MAX_CPUID_ENTRIES: usize = 256;

/// The time-stamp counter's MSR, restored before the deadline that is measured by it.
const MSR_TSC: u32 = 0x10;
const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// The state of one CPU.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuState {
    cpuid: Vec<kvm_cpuid_entry2>,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debugregs: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

/// Reads a CPU's state. It must not be inside KVM_RUN, nor have an unfinished I/O access.
///
/// # Errors
/// KVM's error.
pub fn save(vcpu: &VcpuFd, msr_indices: &[u32]) -> Result<VcpuState, kvm_ioctls::Error> {
    // Reading the MP state first makes KVM take in pending INIT and SIPI; the events come last because
    // reading other state may move an exception from pending to injected.
    Ok(VcpuState {
        mp_state: vcpu.get_mp_state()?,
        cpuid: vcpu.get_cpuid2(MAX_CPUID_ENTRIES)?.as_slice().to_vec(),
        regs: vcpu.get_regs()?,
        sregs: vcpu.get_sregs()?,
        xsave: vcpu.get_xsave()?,
        xcrs: vcpu.get_xcrs()?,
        debugregs: vcpu.get_debug_regs()?,
        lapic: vcpu.get_lapic()?,
        msrs: save_msrs(vcpu, msr_indices)?,
        events: vcpu.get_vcpu_events()?,
    })
}

/// Reads the MSRs that can be read. KVM stops at the first one it refuses, which is then left out.
fn save_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, kvm_ioctls::Error> {
    let mut saved = Vec::new();
    let mut rest = indices;
    while !rest.is_empty() {
        let entries: Vec<_> = rest.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
        let mut msrs = Msrs::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
        let read = vcpu.get_msrs(&mut msrs)?.min(rest.len());
        saved.extend_from_slice(&msrs.as_slice()[..read]);
        rest = rest.get(read + 1..).unwrap_or_default();
    }
    Ok(saved)
}

/// Writes a CPU's state back.
///
/// # Errors
/// KVM's error, if the state is not one of a CPU like this.
pub fn restore(vcpu: &VcpuFd, state: &VcpuState) -> Result<(), kvm_ioctls::Error> {
    let too_big = |_| kvm_ioctls::Error::new(libc::E2BIG);
    vcpu.set_cpuid2(&kvm_bindings::CpuId::from_entries(&state.cpuid).map_err(too_big)?)?;
    vcpu.set_mp_state(state.mp_state)?;
    vcpu.set_regs(&state.regs)?;
    vcpu.set_sregs(&state.sregs)?;
    // SAFETY: the plain structure is complete; only buffers with dynamically enabled features are longer,
    // and such features are not offered to guests.
    unsafe { vcpu.set_xsave(&state.xsave) }?;
    vcpu.set_xcrs(&state.xcrs)?;
    vcpu.set_debug_regs(&state.debugregs)?;
    vcpu.set_lapic(&state.lapic)?;
    let (late, early): (Vec<&kvm_msr_entry>, Vec<&kvm_msr_entry>) =
        state.msrs.iter().partition(|msr| msr.index == MSR_TSC_DEADLINE);
    let (first, early): (Vec<_>, Vec<_>) = early.into_iter().partition(|msr| msr.index == MSR_TSC);
    let ordered: Vec<_> = first.into_iter().chain(early).chain(late).copied().collect();
    let msrs = Msrs::from_entries(&ordered).map_err(too_big)?;
    if vcpu.set_msrs(&msrs)? != ordered.len() {
        return Err(kvm_ioctls::Error::new(libc::EINVAL));
    }
    vcpu.set_vcpu_events(&state.events)
}
