//! The supervisor's process: made in the pod's namespaces, watched, ended.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use podvm_pod::directory::RunningPod;
use podvm_pod::exit;
use podvm_pod::runner;
use podvm_pod::status::PodReport;

use crate::inside::{Inherited, Tree};

/// Longest text of why the supervisor could not start.
const MAX_FAILURE_BYTES: u64 = 4096;

/// Why the walls do not stand.
#[derive(Debug, thiserror::Error)]
pub enum WallsError {
    /// A namespace was refused.
    #[error("the pod's namespaces cannot be made: {0}; run as root, and see `podvm doctor`")]
    Namespaces(#[source] io::Error),
    /// A step inside them failed.
    #[error("the pod's walls cannot be built: {0}")]
    Inside(String),
    /// A socket, pipe or file of the pod directory.
    #[error("the pod's sockets and files cannot be made: {0}")]
    Io(#[source] io::Error),
}

/// Walls that stand, with a supervisor coming up inside.
pub struct Walls {
    /// This end of the primary connection.
    pub primary: UnixStream,
    /// The supervisor.
    pub supervisor: Arc<Supervisor>,
}

impl Walls {
    /// Makes the namespaces and starts the supervisor in them.
    ///
    /// # Errors
    /// [`WallsError`]; nothing is left then.
    pub fn build(tree: &Tree, pod: &RunningPod) -> Result<Self, WallsError> {
        let listener = UnixListener::bind(pod.dir().supervisor_socket()).map_err(WallsError::Io)?;
        let (primary, inner) = UnixStream::pair().map_err(WallsError::Io)?;
        let (failure, failed) =
            nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|e| WallsError::Io(e.into()))?;
        let inherited = Inherited { primary: inner.as_fd(), listener: listener.as_fd(), lock: pod.lock_fd() };
        let namespaces = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;
        // SAFETY: the stage1 is called in a process of one thread.
        match unsafe { clone_process(namespaces) }.map_err(WallsError::Namespaces)? {
            None => become_supervisor(tree, inherited, failed),
            Some((pid, pidfd)) => {
                drop(failed);
                let supervisor = Supervisor { pid, pidfd, is_reaped: Mutex::new(false) };
                match read_failure(failure) {
                    None => Ok(Self { primary, supervisor: Arc::new(supervisor) }),
                    Some(message) => {
                        supervisor.end();
                        Err(WallsError::Inside(message))
                    }
                }
            }
        }
    }
}

/// What the process says before it is the supervisor; nothing when it is.
fn read_failure(pipe: OwnedFd) -> Option<String> {
    let mut bytes = Vec::new();
    let _ = File::from(pipe).take(MAX_FAILURE_BYTES).read_to_end(&mut bytes);
    if bytes.is_empty() { None } else { Some(String::from_utf8_lossy(&bytes).into_owned()) }
}

fn become_supervisor(tree: &Tree, inherited: Inherited<'_>, failed: OwnedFd) -> ! {
    let prepared = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).and_then(|()| nix::unistd::setsid());
    let failure = match prepared {
        Ok(_) => tree.enter(inherited),
        Err(errno) => format!("cannot be bound to the pod's process: {errno}"),
    };
    let _ = File::from(failed).write_all(failure.as_bytes());
    // SAFETY: ends the process without running anything of the process it was cloned from.
    unsafe { libc::_exit(exit::PODVM_ERROR.into()) }
}

/// Makes a process as fork(2) does, with `CLONE_*` flags (clone3(2)). Returns nothing in the new process.
///
/// # Safety
/// The calling process must have no other thread.
unsafe fn clone_process(flags: libc::c_int) -> io::Result<Option<(Pid, OwnedFd)>> {
    let mut pidfd: RawFd = -1;
    // SAFETY: all zeroes are a valid clone_args.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = (flags | libc::CLONE_PIDFD) as u64;
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: the arguments are valid; without CLONE_VM the child has its own copy of all memory.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of_val(&arguments)) };
    match pid {
        ..0 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        // SAFETY: the kernel stored a new descriptor here, which nobody else knows of.
        pid => Ok(Some((Pid::from_raw(pid as libc::pid_t), unsafe { OwnedFd::from_raw_fd(pidfd) }))),
    }
}

/// The pod's supervisor, as its parent sees it.
#[derive(Debug)]
pub struct Supervisor {
    pid: Pid,
    pidfd: OwnedFd,
    is_reaped: Mutex<bool>,
}

impl Supervisor {
    /// Waits for the supervisor's end, which is the end of everything in the pod.
    pub fn watch(self: &Arc<Self>) -> runner::Walls {
        let supervisor = Arc::clone(self);
        Box::new(move || {
            supervisor.wait_for_end();
            let ended = match supervisor.reap() {
                Some(WaitStatus::Signaled(_, signal, _)) => format!("was killed by {signal}"),
                Some(WaitStatus::Exited(_, code)) => format!("exited with {code}"),
                _ => "ended".into(),
            };
            PodReport::failure(
                exit::NO_REPORT,
                format!("the pod's supervisor {ended} before it reported the pod's end"),
            )
        })
    }

    /// Kills the supervisor, and with it what is left in the pod, and waits until all are gone.
    pub fn end(&self) {
        // SAFETY: the descriptor is open, and no further information is passed.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                libc::SIGKILL,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        self.wait_for_end();
        self.reap();
    }

    fn wait_for_end(&self) {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        while let Err(nix::errno::Errno::EINTR) =
            poll(&mut [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)
        {}
    }

    /// How it ended, told once.
    fn reap(&self) -> Option<WaitStatus> {
        let mut is_reaped = self.is_reaped.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_reaped {
            return None;
        }
        *is_reaped = true;
        waitpid(self.pid, Some(WaitPidFlag::__WALL)).ok()
    }
}
