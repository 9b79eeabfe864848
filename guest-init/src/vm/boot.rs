//! The mounts of a system that has only just begun.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};

use crate::step::{Step, StepError};
use crate::sys::mount::{Detached, MountAttrFlags, MountOption, restrict};

const NOSUID: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID;
const NODEV: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV;
const NOEXEC: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOEXEC;

/// Size of the supervisor's own filesystem, in memory that is taken only as it is filled.
const ROOT_SIZE: &str = "16m";

/// Replaces the initial root, which cannot be left by pivot_root(2), and mounts `/proc`, `/sys`, `/dev` and the cgroups;
/// makes `scratch`.
///
/// # Errors
/// What could not be mounted.
pub fn mount_system(scratch: &Path) -> Result<(), StepError> {
    replace_root().step(|| "replace the initial root filesystem")?;
    mount("proc", "/proc", &[], NOSUID | NODEV | NOEXEC)?;
    mount("sysfs", "/sys", &[], NOSUID | NODEV | NOEXEC)?;
    mount("devtmpfs", "/dev", &[], NOSUID | NOEXEC)?;
    // Controllers that are compiled in are all there from the start; nothing else uses them.
    mount("cgroup2", "/sys/fs/cgroup", &[("nsdelegate", None)], NOSUID | NODEV | NOEXEC)?;
    fs::create_dir_all(scratch).step(|| format!("make {}", scratch.display()))
}

/// Puts a small filesystem in memory on top of the initial one, which is made read-only: the supervisor's own program is
/// there, and nobody is to change it.
fn replace_root() -> std::io::Result<()> {
    let initial = open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let options = [("size", Some(ROOT_SIZE)), ("mode", Some("755"))];
    let root = Detached::new("tmpfs", &options, NODEV | NOSUID)?.attach(initial.as_fd())?;
    restrict(initial.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY, false)?;
    rustix::process::fchdir(&root)?;
    rustix::process::chroot(".")?;
    Ok(())
}

fn mount(filesystem: &str, at: &str, options: &[MountOption<'_>], attributes: MountAttrFlags) -> Result<(), StepError> {
    match fs::create_dir(at) {
        // Some are directories of the filesystem mounted before.
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(error).step(|| format!("make {at}"));
        }
        _ => {}
    }
    Detached::new(filesystem, options, attributes)
        .and_then(|mount| mount.attach_at(Path::new(at)))
        .map(drop)
        .step(|| format!("mount {filesystem} at {at}"))
}
