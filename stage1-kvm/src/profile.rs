//! What the main thread may still do while the guest runs: carry the apps' streams, keep the pod's records, wait.
//!
//! The threads it makes for the streams inherit this filter. Files can be opened only through the pod directory's
//! descriptor, for the process has no other root by then.

use podvm_vmm::sandbox::Allow::{self, Call, CallWith};
use podvm_vmm::sandbox::Profile;

/// Terminal requests: read and set its mode, read its size.
const TERMINAL_REQUESTS: &[u32] = &[
    libc::TCGETS as u32,
    libc::TCSETS as u32,
    libc::TCSETSW as u32,
    libc::TCSETSF as u32,
    libc::TIOCGWINSZ as u32,
    libc::TIOCGPGRP as u32,
];

const SYSTEM_CALLS: &[Allow] = &[
    // Threads.
    Call(libc::SYS_clone3),
    Call(libc::SYS_clone),
    Call(libc::SYS_sched_getaffinity),
    Call(libc::SYS_set_tid_address),
    Call(libc::SYS_prlimit64),
    // Streams.
    Call(libc::SYS_poll),
    Call(libc::SYS_ppoll),
    Call(libc::SYS_readv),
    Call(libc::SYS_writev),
    Call(libc::SYS_sendto),
    Call(libc::SYS_recvfrom),
    Call(libc::SYS_sendmsg),
    Call(libc::SYS_recvmsg),
    Call(libc::SYS_accept4),
    Call(libc::SYS_shutdown),
    Call(libc::SYS_setsockopt),
    Call(libc::SYS_getsockopt),
    Call(libc::SYS_pipe2),
    CallWith(libc::SYS_socketpair, 0, &[libc::AF_UNIX as u32]),
    CallWith(libc::SYS_ioctl, 1, TERMINAL_REQUESTS),
    // The pod's records and logs.
    Call(libc::SYS_openat),
    Call(libc::SYS_renameat),
    Call(libc::SYS_renameat2),
    Call(libc::SYS_unlinkat),
    Call(libc::SYS_fstat),
    Call(libc::SYS_newfstatat),
    Call(libc::SYS_statx),
    Call(libc::SYS_fdatasync),
    Call(libc::SYS_fsync),
    Call(libc::SYS_ftruncate),
    Call(libc::SYS_lseek),
    Call(libc::SYS_getdents64),
    Call(libc::SYS_flock),
    // Signals to itself, as abort(3) sends.
    Call(libc::SYS_rt_sigtimedwait),
    Call(libc::SYS_kill),
];

/// The main thread's profile.
pub const MAIN: Profile = Profile { name: "pod runner", system_calls: SYSTEM_CALLS, capabilities: &[] };
