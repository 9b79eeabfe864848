//! `--rm`: a small process of its own that outlives the pod and removes it.
//!
//! The pod's process has given up its privileges and the host's root by the time it ends, and could not.

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::unistd::{ForkResult, fork, setsid};
use podvm_pod::PodDir;
use podvm_pod::fault::{FaultPoint, reach};

use crate::commands::remove;

/// Forks the process that removes the pod when it has ended. Must be called before the pod is prepared, so that the lock
/// that says that the pod lives is not inherited, and while the process has one thread.
pub fn fork_reaper(pod: PodDir) -> Result<()> {
    let (until, alive) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    // SAFETY: the process has one thread, so the child may do all that this process could.
    match unsafe { fork() }.context("the process that is to remove the pod cannot be made")? {
        ForkResult::Parent { .. } => {
            drop(until);
            // Open until this process ends, whatever ends it.
            std::mem::forget(alive);
            Ok(())
        }
        ForkResult::Child => {
            // A signal from the terminal is the pod's to obey.
            let _ = setsid();
            let removed = keep_only(&until).and_then(|()| {
                reach(FaultPoint::ReaperWaits);
                let _ = nix::unistd::read(&until, &mut [0]);
                pod.wait_until_dead()?;
                reach(FaultPoint::ReaperRemoves);
                Ok(remove(&pod)?)
            });
            std::process::exit(i32::from(removed.is_err()));
        }
    }
}

/// Gives up everything that is open but one descriptor: locks must not outlive the process that took them, nor whoever
/// reads this process's output wait for this child.
fn keep_only(kept: &OwnedFd) -> Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    drop(null);
    let kept = kept.as_raw_fd() as libc::c_uint;
    for (first, last) in [(3, kept - 1), (kept + 1, libc::c_uint::MAX)] {
        if first <= last {
            // SAFETY: nothing in this process uses the descriptors that are closed: it only waits, removes and exits.
            let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
            nix::errno::Errno::result(result)?;
        }
    }
    Ok(())
}
