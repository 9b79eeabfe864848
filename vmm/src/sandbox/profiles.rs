//! What each kind of thread may do. Every entry is there because a test fails without it.

use super::{Allow, Profile};
use crate::devices::DeviceKind;
use Allow::{Call, CallWith, CallWithout};

/// What every thread needs: memory, locks, clocks, its event loop, its end.
pub const COMMON: &[Allow] = &[
    Call(libc::SYS_read),
    Call(libc::SYS_write),
    Call(libc::SYS_close),
    Call(libc::SYS_futex),
    Call(libc::SYS_epoll_create1),
    Call(libc::SYS_epoll_ctl),
    Call(libc::SYS_epoll_pwait),
    #[cfg(target_arch = "x86_64")]
    Call(libc::SYS_epoll_wait),
    Call(libc::SYS_eventfd2),
    Call(libc::SYS_fcntl),
    Call(libc::SYS_brk),
    CallWithout(libc::SYS_mmap, 2, libc::PROT_EXEC as u32),
    CallWithout(libc::SYS_mprotect, 2, libc::PROT_EXEC as u32),
    Call(libc::SYS_mremap),
    Call(libc::SYS_munmap),
    Call(libc::SYS_madvise),
    Call(libc::SYS_getrandom),
    Call(libc::SYS_clock_gettime),
    Call(libc::SYS_clock_nanosleep),
    Call(libc::SYS_nanosleep),
    Call(libc::SYS_restart_syscall),
    Call(libc::SYS_sched_yield),
    Call(libc::SYS_getpid),
    Call(libc::SYS_gettid),
    Call(libc::SYS_tgkill),
    Call(libc::SYS_rt_sigaction),
    Call(libc::SYS_rt_sigprocmask),
    Call(libc::SYS_rt_sigreturn),
    Call(libc::SYS_sigaltstack),
    Call(libc::SYS_rseq),
    Call(libc::SYS_set_robust_list),
    CallWith(libc::SYS_prctl, 0, &[libc::PR_GET_NAME as u32, libc::PR_SET_NAME as u32]),
    Call(libc::SYS_exit),
    Call(libc::SYS_exit_group),
];

/// KVM's requests on a vCPU: run it, and read its state when it is saved or has failed.
const VCPU_REQUESTS: &[u32] = &[
    0x0000_ae80, // KVM_RUN
    0x0000_aead, // KVM_KVMCLOCK_CTRL
    0x8090_ae81, // KVM_GET_REGS
    0x8138_ae83, // KVM_GET_SREGS
    0xc008_ae88, // KVM_GET_MSRS
    0x8400_ae8e, // KVM_GET_LAPIC
    0xc008_ae91, // KVM_GET_CPUID2
    0x8004_ae98, // KVM_GET_MP_STATE
    0x8040_ae9f, // KVM_GET_VCPU_EVENTS
    0x8080_aea1, // KVM_GET_DEBUGREGS
    0x9000_aea4, // KVM_GET_XSAVE
    0x8188_aea6, // KVM_GET_XCRS
];

/// A thread that runs a vCPU.
pub const VCPU: Profile =
    Profile { name: "vcpu", system_calls: &[CallWith(libc::SYS_ioctl, 1, VCPU_REQUESTS)], capabilities: &[] };

const RNG: Profile = Profile { name: "rng", system_calls: &[], capabilities: &[] };

const PMEM: Profile = Profile { name: "pmem", system_calls: &[], capabilities: &[] };

const BLOCK: Profile = Profile {
    name: "block",
    system_calls: &[
        Call(libc::SYS_preadv),
        Call(libc::SYS_pwritev),
        Call(libc::SYS_fdatasync),
        Call(libc::SYS_fallocate),
    ],
    capabilities: &[],
};

/// The profile of a device's thread.
pub fn device(kind: DeviceKind) -> &'static Profile {
    match kind {
        DeviceKind::Rng => &RNG,
        DeviceKind::Block => &BLOCK,
        DeviceKind::Net => &net::PROFILE,
        DeviceKind::Vsock => &vsock::PROFILE,
        DeviceKind::Fs => &fs::PROFILE,
        DeviceKind::Pmem => &PMEM,
    }
}

mod fs;
mod net;
mod vsock;
