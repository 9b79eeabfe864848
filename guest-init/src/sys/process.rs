//! Making processes, joining namespaces, capabilities, and what a process is before it executes a program.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;
use podvm_pod::status::ExitStatus;

/// What [`clone_process`] returned as, and where.
pub enum Cloned {
    /// In the new process.
    Child,
    /// In the calling process.
    Parent {
        /// The new process.
        pid: Pid,
        /// A handle on it that outlives its number.
        pidfd: OwnedFd,
    },
}

/// `CLONE_INTO_CGROUP` of linux/sched.h, which needs more than 32 bits.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Makes a process as fork(2) does, with `CLONE_*` flags, within `cgroup` if given (clone3(2)).
///
/// # Safety
/// The calling process must have no other thread: the new one gets only a copy of the calling thread, and locks held by
/// others would stay locked in it.
///
/// # Errors
/// Those of clone3(2).
pub unsafe fn clone_process(flags: libc::c_int, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    // SAFETY: all zeroes are a valid clone_args.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = (flags | libc::CLONE_PIDFD) as u64;
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: the arguments are valid; without CLONE_VM the child has its own copy of all memory, and the caller promises
    // to be the only thread.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of_val(&arguments)) })?;
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    // SAFETY: the kernel stored a new descriptor here, which nobody else knows of.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Cloned::Parent { pid: Pid::from_raw(pid as libc::pid_t), pidfd })
}

/// Joins namespaces of the process or namespace that `target` is (setns(2)).
///
/// # Errors
/// Those of setns(2); `ESRCH` when the process has ended.
pub fn join_namespaces(target: BorrowedFd<'_>, kinds: libc::c_int) -> io::Result<()> {
    // SAFETY: takes two integers.
    check(unsafe { libc::setns(target.as_raw_fd(), kinds) }.into()).map(drop)
}

/// Reaps one child that has ended, of any kind; none when no other has.
pub fn reap() -> Option<(Pid, ExitStatus)> {
    loop {
        let mut status = 0;
        // SAFETY: the status is a valid place for an int.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) };
        let ended = if libc::WIFEXITED(status) {
            ExitStatus::Exited(libc::WEXITSTATUS(status) as u8)
        } else if libc::WIFSIGNALED(status) {
            ExitStatus::Signaled(libc::WTERMSIG(status))
        } else {
            continue;
        };
        return (pid > 0).then_some((Pid::from_raw(pid), ended));
    }
}

/// Closes every descriptor that is not in `keep`.
///
/// # Safety
/// What else owns descriptors in this process must never be used or dropped afterwards.
///
/// # Errors
/// Those of close_range(2).
pub unsafe fn close_all_but(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().map(|fd| *fd as u32).collect();
    keep.sort_unstable();
    let mut first = 0u32;
    for fd in keep.into_iter().chain([u32::MAX]) {
        if fd > first {
            // SAFETY: the caller promises that nobody uses the descriptors in the gap any more.
            check(unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0) })?;
        }
        first = fd.saturating_add(1);
    }
    Ok(())
}

/// Has every descriptor from `first` on closed when a program is executed.
///
/// # Errors
/// Those of close_range(2).
pub fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    // SAFETY: sets a flag only.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) }).map(drop)
}

/// Lets the calling process have as many descriptors as it may give itself.
///
/// # Errors
/// Those of setrlimit(2).
pub fn raise_open_files_limit() -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// Gives every signal its default action and lets all through, as a program expects to find it.
pub fn reset_signals() {
    for signal in 1..=64 {
        if signal != libc::SIGKILL && signal != libc::SIGSTOP {
            // SAFETY: SIG_DFL is a valid action for every signal; numbers that are reserved are refused.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
    // SAFETY: the set is initialized before it is used.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// prctl(2) for options that take one number.
///
/// # Errors
/// Those of prctl(2).
pub fn set_process_option(option: libc::c_int, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the options used here take an integer and touch no memory.
    check(unsafe { libc::prctl(option, value, 0 as libc::c_ulong, 0 as libc::c_ulong, 0 as libc::c_ulong) }.into())
        .map(drop)
}

/// Gives the calling process a session keyring of its own, so that it does not share the keys of who started it
/// (keyctl(2)). A kernel without keyrings has nothing to share.
pub fn leave_session_keyring() {
    /// `KEYCTL_JOIN_SESSION_KEYRING` of linux/keyctl.h.
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: without a name no memory is read.
    unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
}

/// Sets the calling thread's permitted and effective capabilities, a bit each, and empties the inheritable ones.
///
/// # Errors
/// Those of capset(2).
pub fn set_capabilities(bits: u64) -> io::Result<()> {
    /// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h: two words of bits.
    const VERSION_3: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION_3, 0];
    let (low, high) = (bits as u32, (bits >> 32) as u32);
    let data: [u32; 6] = [low, low, 0, high, high, 0];
    // SAFETY: header and data have the layout of struct __user_cap_header_struct and two __user_cap_data_struct.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) }).map(drop)
}

/// The calling thread's permitted capabilities, a bit each.
///
/// # Errors
/// Those of capget(2).
pub fn permitted_capabilities() -> io::Result<u64> {
    const VERSION_3: u32 = 0x2008_0522;
    let mut header: [u32; 2] = [VERSION_3, 0];
    let mut data = [0u32; 6];
    // SAFETY: header and data have the layout of struct __user_cap_header_struct and two __user_cap_data_struct.
    check(unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), data.as_mut_ptr()) })?;
    Ok(u64::from(data[1]) | u64::from(data[4]) << 32)
}

/// Puts a filter before all later system calls of this process and what it executes (seccomp(2)).
///
/// # Errors
/// Those of seccomp(2).
pub fn install_seccomp_filter(program: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: the program lives through the call, and the kernel only reads and checks it.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) }).map(drop)
}
