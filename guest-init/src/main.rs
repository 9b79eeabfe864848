//! The supervisor's program: `/init` of the VM, or the first process of a pod's namespaces.
//!
//! In a VM it takes no arguments; behind namespaces the stage1 executes it as
//! `guest-init namespaces PRIMARY LISTENER SCRATCH [CGROUP]`: the numbers of two inherited descriptors, an empty directory,
//! and the directory of the pod's own cgroup where there is one.

use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::exit;

use guest_init::namespaces::Namespaces;
use guest_init::step::{Step, StepError, note};
use guest_init::supervisor::{Supervisor, SupervisorError, panic::report_panics};
use guest_init::vm::{self, Vm};
use guest_init::walls::{Connections, Walls};
use podvm_pod::exit::PODVM_ERROR;

fn main() {
    // What is made in the pod is the same whoever has started it.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    match words.as_slice() {
        ["namespaces", primary, listener, scratch, cgroup @ ..] if cgroup.len() <= 1 => {
            let cgroup = cgroup.first().map(Path::new);
            if let Err(error) = behind_namespaces(primary, listener, Path::new(scratch), cgroup) {
                note(&error);
                exit(PODVM_ERROR.into());
            }
        }
        _ if std::process::id() == 1 => {
            if let Err(error) = in_vm() {
                note(&error);
                vm::power_off();
            }
        }
        _ => {
            note("this is no command: it is started inside a pod's walls, by podvm run");
            exit(PODVM_ERROR.into());
        }
    }
}

fn in_vm() -> Result<(), SupervisorError> {
    let (vm, connections) = Vm::boot()?;
    supervise(Box::new(vm), connections, vm::power_off)
}

fn behind_namespaces(
    primary: &str,
    listener: &str,
    scratch: &Path,
    cgroup: Option<&Path>,
) -> Result<(), SupervisorError> {
    let connections = Connections { primary: inherited(primary)?, listener: inherited(listener)? };
    supervise(Box::new(Namespaces::enter(scratch, cgroup)?), connections, || exit(PODVM_ERROR.into()))
}

fn supervise(walls: Box<dyn Walls>, connections: Connections, leave: fn() -> !) -> Result<(), SupervisorError> {
    let copy = connections.primary.as_fd().try_clone_to_owned().step(|| "copy the primary connection")?;
    report_panics(copy, leave);
    Supervisor::new(walls, connections)?.run();
    Ok(())
}

/// Takes over a descriptor that was inherited.
fn inherited(number: &str) -> Result<OwnedFd, StepError> {
    let what = || format!("use the inherited descriptor {number:?}");
    let fd: RawFd = number.parse().map_err(|_| StepError::because(what(), "that is no number"))?;
    if fd <= 2 {
        return Err(StepError::because(what(), "it must not be a standard stream"));
    }
    // SAFETY: who started this program gave the descriptor over to it; the call only sets a flag and fails if there is none.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(std::io::Error::last_os_error()).step(what);
    }
    // SAFETY: it is open, as was just seen, and nobody else in this program knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
