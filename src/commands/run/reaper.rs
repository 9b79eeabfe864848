//! `--rm`: a small process of its own that removes the pod when it has ended, also when its process was killed.
//!
//! The pod's process has given up its privileges and the host's root by the time it ends, and could not.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, anyhow};
use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{ForkResult, fork, pipe2, read, setsid, write};
use podvm_pod::PodDir;
use podvm_pod::directory::Phase;
use podvm_pod::fault::{FaultPoint, reach};

use crate::commands::retire;

/// The process that removes a pod when it has ended, as the pod's process sees it.
pub struct Reaper {
    /// Open until this process ends, whatever ends it, or asks for the removal.
    alive: OwnedFd,
    /// Gives a byte when of the pod nothing is left but files that nobody sees.
    retired: File,
}

impl Reaper {
    /// Forks the process, which removes the pod only if this process has started it. Must be called before the pod is locked, so that
    /// the lock that says that the pod lives is not inherited, and while the process has one thread.
    pub fn fork(pod: PodDir) -> Result<Self> {
        let (until, alive) = pipe2(OFlag::O_CLOEXEC)?;
        let (retired, tell) = pipe2(OFlag::O_CLOEXEC)?;
        let starter = std::process::id() as i32;
        // SAFETY: the process has one thread, so the child may do all that this process could.
        match unsafe { fork() }.context("the process that is to remove the pod cannot be made")? {
            ForkResult::Parent { .. } => Ok(Self { alive, retired: retired.into() }),
            ForkResult::Child => {
                // A signal from the terminal is the pod's to obey, and one to a whole service is no reason to leave the pod there.
                let _ = setsid();
                let _ = obeyed_by_the_pod().thread_block();
                let removed = keep_only([&until, &tell]).and_then(|()| {
                    reach(FaultPoint::ReaperWaits);
                    let _ = read(&until, &mut [0]);
                    pod.wait_until_dead()?;
                    if !was_started_by(&pod, starter) {
                        return Ok(());
                    }
                    reach(FaultPoint::ReaperRemoves);
                    let files = retire(&pod)?;
                    // Nobody may listen any more.
                    let _ = write(&tell, &[1]);
                    // This takes a busy disk a while, and `podvm gc` does it if this process is killed.
                    Ok(files.remove()?)
                });
                std::process::exit(i32::from(removed.is_err()));
            }
        }
    }

    /// Has the pod removed, whose lock this process has let go of, and waits until it is gone but for its files: whoever waits for this
    /// process finds no pod, and a service manager that kills what a service leaves behind cannot keep it.
    pub fn finish(mut self) -> Result<()> {
        drop(self.alive);
        self.retired.read_exact(&mut [0]).map_err(|_| anyhow!("it could not be removed; `podvm gc` tries again"))
    }
}

fn obeyed_by_the_pod() -> SigSet {
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT])
}

/// Whether a pod that is not alive was this process's: one that was prepared before and could not be started is so still, or another
/// process has started it.
fn was_started_by(pod: &PodDir, starter: i32) -> bool {
    match pod.state() {
        Ok((_, Phase::Prepared { stage1 })) => stage1.is_none(),
        Ok((_, phase)) => phase.pid() == Some(starter),
        // It is gone, or so damaged that there is nothing to lose.
        Err(_) => true,
    }
}

/// Gives up everything that is open but two descriptors: locks must not outlive the process that took them, nor whoever
/// reads this process's output wait for this child.
fn keep_only(kept: [&OwnedFd; 2]) -> Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    drop(null);
    let mut kept = kept.map(|descriptor| descriptor.as_raw_fd() as libc::c_uint);
    kept.sort_unstable();
    for (first, last) in [(3, kept[0] - 1), (kept[0] + 1, kept[1] - 1), (kept[1] + 1, libc::c_uint::MAX)] {
        if first <= last {
            // SAFETY: nothing in this process uses the descriptors that are closed: it only waits, removes and exits.
            let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
            nix::errno::Errno::result(result)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use podvm_pod::{PodsRoot, Stage1Kind};

    use super::*;
    use crate::commands::pod_without_apps;

    #[test]
    fn a_pod_that_is_prepared_or_another_process_started_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let pods = PodsRoot::new(folder.path());
        let starter = std::process::id() as i32;
        // One that `podvm run` made and could not start.
        let cut_short = pods.prepare(pod_without_apps()).unwrap().dir().clone();
        assert!(was_started_by(&cut_short, starter));
        let dir = pods.prepare(pod_without_apps()).unwrap().leave(Stage1Kind::Ns).unwrap();
        assert!(!was_started_by(&dir, starter));
        drop(dir.claim().unwrap().0.start(Stage1Kind::Ns).unwrap());
        assert!(was_started_by(&dir, starter));
        assert!(!was_started_by(&dir, starter + 1));
    }
}
