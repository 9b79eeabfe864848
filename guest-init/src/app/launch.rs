//! Making an app's process, on the supervisor's side.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use nix::fcntl::OFlag;
use nix::unistd::{Pid, pipe2};
use podvm_pod::archive::Archived;
use podvm_pod::fault::{FaultPoint, reach};

use super::child::{self, Child, Pipes};
use super::{Job, Pod, socket};
use crate::cgroup::AppCgroup;
use crate::step::{Step, StepError};
use crate::sys::process::{Cloned, clone_process, join_namespaces};
use crate::sys::socket::{message_pair, set_nonblocking};

/// A process that was made and now sets itself up.
#[derive(Debug)]
pub struct Launched {
    /// Its number, as the supervisor sees it.
    pub pid: Pid,
    /// A handle on it.
    pub pidfd: OwnedFd,
    /// The socket it reports over ([`super::control`]).
    pub control: OwnedFd,
    /// The supervisor's ends of its pipes.
    pub pipes: Pipes,
}

/// Makes a process for `job` in the pod's app number `index`; for [`Job::Exec`] it joins the app's main process `target`.
///
/// # Errors
/// When the system refuses another process, pipe or socket, or the target has ended.
///
/// # Safety
/// The calling process must have no other thread.
pub unsafe fn launch(
    pod: &Pod,
    index: usize,
    job: &Job,
    target: Option<BorrowedFd<'_>>,
    cgroup: Option<&AppCgroup>,
) -> Result<Launched, StepError> {
    let app = &pod.spec.apps[index].app;
    let (terminal, stdin) = match job {
        Job::Main => (app.terminal, app.stdin),
        Job::PostStop => (app.terminal, false),
        Job::Exec(spec) => (spec.terminal, spec.stdin),
        Job::Archive(what) => (false, matches!(what, Archived::In { .. })),
    };
    let (ours, theirs) = pipes(terminal, stdin).step(|| "make pipes")?;
    let (control, their_control) = message_pair().step(|| "make a control socket")?;
    // It must last until the program is executed, and so not have the number of one of the app's sockets.
    let beyond = socket::FIRST + pod.sockets[index].len() as RawFd;
    let their_control = rustix::io::fcntl_dupfd_cloexec(&their_control, beyond).step(|| "make a control socket")?;
    let cgroup = cgroup.map(AsFd::as_fd);
    let cloned = match target {
        // SAFETY: the caller promises that there is no other thread.
        None => unsafe { clone_process(libc::CLONE_NEWNS | libc::CLONE_NEWPID, cgroup) },
        // SAFETY: as above.
        Some(target) => unsafe { clone_into_pid_namespace(target, cgroup) },
    };
    match cloned.step(|| format!("make a process for app {}", app.name))? {
        Cloned::Parent { pid, pidfd } => Ok(Launched { pid, pidfd, control, pipes: ours }),
        Cloned::Child => {
            reach(FaultPoint::AppCloned);
            let child = Child { pod, index, job, target, control: their_control, pipes: theirs };
            // SAFETY: this process was just cloned from a single-threaded one.
            unsafe { child::run(child) }
        }
    }
}

/// Clones into the PID namespace of `target`: the supervisor's own children go there for a moment, so that it is itself the
/// new process's parent, and need not ask another for its end.
///
/// # Safety
/// As [`clone_process`].
unsafe fn clone_into_pid_namespace(target: BorrowedFd<'_>, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let own: OwnedFd = std::fs::File::open("/proc/self/ns/pid")?.into();
    join_namespaces(target, libc::CLONE_NEWPID)?;
    // SAFETY: the caller's promise.
    let cloned = unsafe { clone_process(0, cgroup) };
    if !matches!(cloned, Ok(Cloned::Child)) {
        join_namespaces(own.as_fd(), libc::CLONE_NEWPID)?;
    }
    cloned
}

/// The supervisor's and the process's ends.
fn pipes(terminal: bool, stdin: bool) -> io::Result<(Pipes, Pipes)> {
    let (mut ours, mut theirs) = (Pipes::default(), Pipes::default());
    if terminal {
        return Ok((ours, theirs));
    }
    if stdin {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        (ours.stdin, theirs.stdin) = (Some(write), Some(read));
    }
    for (our, their) in [(&mut ours.stdout, &mut theirs.stdout), (&mut ours.stderr, &mut theirs.stderr)] {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        (*our, *their) = (Some(read), Some(write));
    }
    for end in [&ours.stdin, &ours.stdout, &ours.stderr].into_iter().flatten() {
        set_nonblocking(end.as_fd(), true)?;
    }
    Ok((ours, theirs))
}
