//! What the supervisor's process does before it is the supervisor: from the host's filesystem tree to the pod's own.
//!
//! The pod's tree is a small one in memory, in which there is nothing of the host but what the pod was given
//! ([`crate::tree`]). The host's tree is then let go of as a whole.

use std::convert::Infallible;
use std::ffi::CStr;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid};
use podvm_pod::fault::{self, FaultPoint, reach};
use podvm_pod::sockets::AppSocket;
use rustix::mount::{MountPropagationFlags, mount_change};

use crate::handover::{Handover, Part};
use crate::mount::{attach, virtual_filesystem};
use crate::spec::{CGROUP, SCRATCH};

/// Numbers of the descriptors the supervisor gets after the standard streams, as words.
const PRIMARY: &CStr = c"3";
const LISTENER: &CStr = c"4";
/// Number of the first of the apps' sockets. The descriptors behind the last one end when the supervisor is executed.
pub const FIRST_SOCKET: RawFd = 6;
/// A directory that every host has and every user may look at; covered for a moment, in the supervisor's process alone.
const COVERED: &str = "/proc";

/// A step that failed, in words.
type Failure = String;

/// What was tried, before what came of it.
trait Step<T> {
    fn step(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| {
            let error: io::Error = error.into();
            format!("cannot {}: {error}", what())
        })
    }
}

/// The descriptors that the supervisor takes over.
#[derive(Debug, Clone, Copy)]
pub struct Inherited<'a> {
    /// The supervisor's program.
    pub program: BorrowedFd<'a>,
    /// Where it says what is of no pod's concern.
    pub notes: BorrowedFd<'a>,
    /// The primary connection.
    pub primary: BorrowedFd<'a>,
    /// Where requests are taken.
    pub listener: BorrowedFd<'a>,
    /// The pod's lock: a pod is alive until its supervisor is gone, too.
    pub lock: BorrowedFd<'a>,
    /// The apps' sockets.
    pub sockets: &'a [AppSocket],
}

impl Inherited<'_> {
    /// The first number that none of them gets.
    fn first_private(&self) -> RawFd {
        FIRST_SOCKET + self.sockets.len() as RawFd
    }
}

/// The supervisor's process, in its own mount and PID namespaces, which has yet to become the supervisor.
#[derive(Debug)]
pub struct Inside<'a> {
    /// What it inherited.
    pub inherited: Inherited<'a>,
    /// Where the parts of its tree come from.
    pub handover: Handover,
    /// Whether it is in a user namespace of its own, and nobody in it yet.
    pub has_users: bool,
    /// Whether apps can mount a sysfs only where one is seen already (user namespaces).
    pub mounts_sysfs: bool,
}

impl Inside<'_> {
    /// Enters the pod's tree and executes the supervisor. Returns only when that failed, and has said so then.
    pub fn enter(mut self) {
        // Out of the way of the numbers that are filled last.
        let failure = match self.handover.moved_beyond(self.inherited.first_private()) {
            Ok(handover) => {
                self.handover = handover;
                let Err(failure) = self.enter_and_execute();
                failure
            }
            Err(error) => format!("cannot copy descriptors: {error}"),
        };
        self.handover.fail(&failure);
    }

    fn enter_and_execute(&self) -> Result<Infallible, Failure> {
        // Whatever ends the pod's process ends everything in the pod.
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).step(|| "be bound to the pod's process".into())?;
        nix::unistd::setsid().step(|| "leave the terminal".into())?;
        reach(FaultPoint::InsideBegun);
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .step(|| "keep the pod's mounts to itself".into())?;
        let null = File::options().read(true).write(true).open("/dev/null").step(|| "open /dev/null".into())?;
        let mut parts = Vec::new();
        while let Some(part) = self.handover.take().step(|| "take what the pod is made of".into())? {
            parts.push(part);
        }
        if self.has_users {
            become_root_of_pod()?;
        }
        if self.mounts_sysfs {
            let sysfs = virtual_filesystem("sysfs", &[]);
            parts.extend(sysfs.ok().map(|mount| Part::directory("/sys", mount)));
        }
        // Of the PID namespace this process is the first of.
        let proc = virtual_filesystem("proc", &[]).step(|| "mount /proc".into())?;
        parts.push(Part::directory("/proc", proc));
        let has_cgroup = parts.iter().any(|part| part.place == Path::new(CGROUP));
        reach(FaultPoint::InsideMountsMade);
        enter_tree(parts)?;
        reach(FaultPoint::InsideRootChanged);
        self.execute(null.as_fd(), has_cgroup)
    }

    fn execute(&self, null: BorrowedFd<'_>, has_cgroup: bool) -> Result<Infallible, Failure> {
        let Inherited { program, notes, primary, listener, lock, sockets } = self.inherited;
        let first_private = self.inherited.first_private();
        // All copies are made beyond the numbers that are to be filled, so that none is overwritten before its turn.
        let copy = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, first_private);
        let wanted = [null, notes, notes, primary, listener, lock];
        let wanted = wanted.into_iter().chain(sockets.iter().map(|socket| socket.socket.as_fd())).map(copy);
        let copies = wanted.collect::<Result<Vec<_>, _>>().step(|| "copy descriptors".into())?;
        let program = copy(program).step(|| "copy descriptors".into())?;
        for (number, fd) in (0..).zip(&copies) {
            // SAFETY: whoever owned this number in this process does not use it again: the program is executed, or the
            // process ends by _exit(2).
            if unsafe { libc::dup2(fd.as_raw_fd(), number) } < 0 {
                return Err(io::Error::last_os_error()).step(|| "place descriptors".into());
            }
        }
        // SAFETY: sets a flag only.
        let marked =
            unsafe { libc::syscall(libc::SYS_close_range, first_private, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
        if marked < 0 {
            return Err(io::Error::last_os_error()).step(|| "keep the host's files from the supervisor".into());
        }
        Err(execute(&program, has_cgroup)).step(|| "execute the supervisor".into())
    }
}

/// Until its IDs are mapped, the process is nobody in the pod.
fn become_root_of_pod() -> Result<(), Failure> {
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    nix::unistd::setgroups(&[]).step(|| "leave the host's groups".into())?;
    nix::unistd::setresgid(gid, gid, gid).step(|| "become the pod's root group".into())?;
    nix::unistd::setresuid(uid, uid, uid).step(|| "become the pod's root".into())?;
    // Changing users takes both away.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).step(|| "be bound to the pod's process".into())
}

/// Exchanges the host's tree for one of these parts.
fn enter_tree(parts: Vec<Part>) -> Result<(), Failure> {
    let options = [("source", "pod"), ("size", "1m"), ("mode", "0700")];
    let root = virtual_filesystem("tmpfs", &options).step(|| "make the pod's root".into())?;
    attach(&root, Path::new(COVERED)).step(|| "mount the pod's root".into())?;
    nix::unistd::fchdir(&root).step(|| "enter the pod's root".into())?;
    for part in parts {
        let place = part.place.strip_prefix("/").unwrap_or(&part.place);
        make_place(place, part.is_file).step(|| format!("make /{}", place.display()))?;
        attach(&part.mount, place).step(|| format!("mount /{}", place.display()))?;
    }
    make_place(Path::new(SCRATCH.trim_start_matches('/')), false).step(|| format!("make {SCRATCH}"))?;
    reach(FaultPoint::InsideMountsPlaced);
    // The old root is then mounted on top of the new one (pivot_root(2), "pivot_root(".", ".")").
    nix::unistd::pivot_root(".", ".").step(|| "change the root".into())?;
    nix::mount::umount2(".", nix::mount::MntFlags::MNT_DETACH).step(|| "let go of the host's root".into())?;
    nix::unistd::chdir("/").step(|| "enter the pod's root".into())
}

fn make_place(path: &Path, is_file: bool) -> io::Result<()> {
    let directory = if is_file { path.parent().unwrap_or(path) } else { path };
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    if is_file {
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    }
    Ok(())
}

/// Executes the supervisor; returns why that failed.
fn execute(program: &OwnedFd, has_cgroup: bool) -> io::Error {
    let [scratch, cgroup] = [SCRATCH, CGROUP].map(|path| std::ffi::CString::new(path).unwrap_or_default());
    let mut arguments: Vec<&CStr> = vec![c"podvm-supervisor", c"namespaces", PRIMARY, LISTENER, &scratch];
    if has_cgroup {
        arguments.push(&cgroup);
    }
    let fault = fault::inherited().and_then(|variable| std::ffi::CString::new(variable).ok());
    let environment: Vec<&CStr> = fault.iter().map(AsRef::as_ref).collect();
    reach(FaultPoint::InsideExecuting);
    let flags = nix::fcntl::AtFlags::AT_EMPTY_PATH;
    let Err(errno) = nix::unistd::execveat(program, c"", &arguments, &environment, flags);
    errno.into()
}
