//! The supervisor's process: made in the pod's namespaces, watched, ended.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use podvm_pod::PodManifest;
use podvm_pod::directory::RunningPod;
use podvm_pod::exit;
use podvm_pod::fault::{FaultPoint, reach};
use podvm_pod::manifest::{IpcMode, NetworkMode};
use podvm_pod::runner;
use podvm_pod::sockets::AppSocket;
use podvm_pod::status::PodReport;

use crate::handover::{Handover, Part};
use crate::inside::{Inherited, Inside};
use crate::mount::{MountAttrFlags, bind, restrict};

/// Why the walls do not stand.
#[derive(Debug, thiserror::Error)]
pub enum WallsError {
    /// A namespace was refused.
    #[error("the pod's namespaces cannot be made: {0}; run as root, and see `podvm doctor`")]
    Namespaces(#[source] io::Error),
    /// The supervisor's program is not there.
    #[error("the supervisor {path} cannot be opened: {source}; install podvm with its files", path = .path.display())]
    Supervisor {
        /// Its path.
        path: std::path::PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A step inside them failed.
    #[error("the pod's walls cannot be built: {0}")]
    Inside(String),
    /// A socket or file of the pod directory.
    #[error("the pod's sockets and files cannot be made: {0}")]
    Io(#[from] io::Error),
}

/// Namespaces that stand, with a process in them that waits for the parts of the pod's tree.
pub struct Walls {
    supervisor: Supervisor,
    handover: Handover,
    primary: UnixStream,
}

impl Walls {
    /// Makes the namespaces; a network namespace unless the pod shares the host's, and a user namespace if it has users of its
    /// own. `is_unprivileged` says that this process is in a user namespace itself. The process is made in `cgroup`, and inherits
    /// `sockets`.
    ///
    /// # Errors
    /// [`WallsError`]; nothing is left then.
    pub fn build(
        program: &Path,
        pod: &RunningPod,
        is_unprivileged: bool,
        cgroup: Option<BorrowedFd<'_>>,
        sockets: &[AppSocket],
    ) -> Result<Self, WallsError> {
        let listener = pod.dir().bind_supervisor_socket()?;
        reach(FaultPoint::SocketBound);
        let (primary, inner) = UnixStream::pair()?;
        let (handover, taker) = Handover::pair()?;
        let notes = pod.dir().path().join("console.log");
        let notes = OpenOptions::new().append(true).create(true).mode(0o600).open(notes)?;
        let program = read_only(program).map_err(|source| WallsError::Supervisor { path: program.into(), source })?;
        let manifest = pod.manifest();
        let inherited = Inherited {
            program: program.as_fd(),
            notes: notes.as_fd(),
            primary: inner.as_fd(),
            listener: listener.as_fd(),
            lock: pod.lock_fd(),
            sockets,
        };
        // SAFETY: the stage1 is called in a process of one thread.
        match unsafe { clone_process(namespaces(manifest), cgroup) }.map_err(WallsError::Namespaces)? {
            None => {
                drop(handover);
                let (has_users, mounts_sysfs) = (manifest.private_users, is_unprivileged || manifest.private_users);
                Inside { inherited, handover: taker, has_users, mounts_sysfs }.enter();
                // SAFETY: ends the process without running anything of the process it was cloned from.
                unsafe { libc::_exit(exit::PODVM_ERROR.into()) }
            }
            Some((pid, pidfd)) => {
                reach(FaultPoint::SupervisorCloned);
                let supervisor = Supervisor { pid, pidfd, is_reaped: Mutex::new(false) };
                Ok(Self { supervisor, handover, primary })
            }
        }
    }

    /// The process that will be the supervisor.
    pub fn process(&self) -> Pid {
        self.supervisor.pid
    }

    /// One of its namespaces, by its name in `/proc/PID/ns`.
    ///
    /// # Errors
    /// [`WallsError::Io`].
    pub fn namespace(&self, name: &str) -> Result<OwnedFd, WallsError> {
        Ok(File::open(format!("/proc/{}/ns/{name}", self.supervisor.pid))?.into())
    }

    /// Hands over the parts of the pod's tree and waits until the supervisor is executed. Returns this end of its primary
    /// connection, too.
    ///
    /// # Errors
    /// [`WallsError`]; nothing is left then.
    pub fn complete(self, parts: &[Part]) -> Result<(Arc<Supervisor>, UnixStream), WallsError> {
        let Self { supervisor, handover, primary } = self;
        // What is wrong inside is told by the process there, and better.
        let given = parts.iter().try_for_each(|part| handover.give(part)).and_then(|()| handover.complete());
        match (handover.failure(), given) {
            (Some(failure), _) => Err(WallsError::Inside(failure)),
            (None, Err(error)) => Err(error.into()),
            (None, Ok(())) => Ok((Arc::new(supervisor), primary)),
        }
    }
}

fn namespaces(manifest: &PodManifest) -> libc::c_int {
    let mut flags = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUTS;
    if manifest.network != NetworkMode::Host {
        flags |= libc::CLONE_NEWNET;
    }
    if manifest.ipc != IpcMode::Host {
        flags |= libc::CLONE_NEWIPC;
    }
    if manifest.private_users {
        flags |= libc::CLONE_NEWUSER;
    }
    flags
}

/// The program on a read-only mount of its own: an app that gets hold of `/proc/PID/exe` cannot write to the host's file.
fn read_only(program: &Path) -> io::Result<OwnedFd> {
    let program = bind(program, false)?;
    restrict(program.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID)?;
    Ok(program)
}

/// Makes a process as fork(2) does, with `CLONE_*` flags, within `cgroup` if given (clone3(2)). Returns nothing in the new
/// process.
///
/// # Safety
/// The calling process must have no other thread.
unsafe fn clone_process(flags: libc::c_int, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Option<(Pid, OwnedFd)>> {
    /// `CLONE_INTO_CGROUP` of linux/sched.h, which needs more than 32 bits.
    const INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut pidfd: RawFd = -1;
    // SAFETY: all zeroes are a valid clone_args.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = (flags | libc::CLONE_PIDFD) as u64;
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        arguments.flags |= INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: the arguments are valid; without CLONE_VM the child has its own copy of all memory.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of_val(&arguments)) };
    match pid {
        ..0 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        // SAFETY: the kernel stored a new descriptor here, which nobody else knows of.
        pid => Ok(Some((Pid::from_raw(pid as libc::pid_t), unsafe { OwnedFd::from_raw_fd(pidfd) }))),
    }
}

/// The pod's supervisor, as its parent sees it. Dropped, it is ended.
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
            let message = format!("the pod's supervisor {ended} before it reported the pod's end");
            PodReport::failure(exit::NO_REPORT, message)
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

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.end();
    }
}
