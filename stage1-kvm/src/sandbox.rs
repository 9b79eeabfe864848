//! What is left to the process once the machine is built: no path of the host, no capability, no way to gain one.
//!
//! Everything privileged is open by then (KVM, tap, sockets, disks, shared directories). [`leave_host_root`] is called before
//! the device threads exist, so that they all live in the empty root. Capabilities and system calls go after that, thread by
//! thread ([`podvm_vmm::sandbox`]): the threads that serve shared directories keep a few, the main thread
//! ([`crate::profile::MAIN`]) keeps none.

use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Why the process could not be walled off.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} ({source}); podvm must run as root to wall a VM in")]
pub struct SandboxError {
    what: &'static str,
    source: std::io::Error,
}

fn step<T, E: Into<std::io::Error>>(what: &'static str, result: Result<T, E>) -> Result<T, SandboxError> {
    result.map_err(|source| SandboxError { what, source: source.into() })
}

/// Exchanges the filesystem root for an empty, read-only one that nobody else sees. `any_directory` of the host is covered for
/// a moment, in this process alone.
///
/// # Errors
/// [`SandboxError`]; the process should end then.
pub fn leave_host_root(any_directory: &Path) -> Result<(), SandboxError> {
    const NOTHING: Option<&str> = None;
    step("make a mount namespace", unshare(CloneFlags::CLONE_NEWNS))?;
    step("make mounts private", mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING))?;
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
    let options = Some("size=4k,nr_inodes=2,mode=0");
    step("mount an empty root", mount(Some("empty"), any_directory, Some("tmpfs"), flags, options))?;
    step("enter the empty root", nix::unistd::chdir(any_directory))?;
    // The old root is then mounted on top of the new one (pivot_root(2), "pivot_root(".", ".")").
    step("change the root", nix::unistd::pivot_root(".", "."))?;
    step("leave the host's root", umount2(".", MntFlags::MNT_DETACH))?;
    step("enter the empty root", nix::unistd::chdir("/"))
}

/// Forbids everyone to trace or dump this process: the guest's memory is in it.
///
/// # Errors
/// [`SandboxError`]; the process should end then.
pub fn forbid_tracing() -> Result<(), SandboxError> {
    step("forbid tracing", nix::sys::prctl::set_dumpable(false))
}

/// Lets the process open as many files as the host allows: each file that a guest knows in a shared directory is one.
pub fn raise_open_files_limit() {
    const WANTED: u64 = 1 << 20;
    let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    // Raising the hard limit takes CAP_SYS_RESOURCE; without it the soft one goes as far as it may.
    let _ = setrlimit(Resource::RLIMIT_NOFILE, WANTED.max(hard), WANTED.max(hard))
        .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
}
