//! `/proc`, `/sys` and `/dev` of an app, as the OCI runtime specification wants them (config-linux.md, "Default Filesystems",
//! "Default Devices"), and what of them is hidden or read-only: the lists of podman.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, chmodat, makedev, mkdirat, mknodat, symlinkat};

use super::path::Root;
use crate::step::{Step, StepError};
use crate::sys::mount::{Detached, MountAttrFlags, MountOption, restrict};

const NOSUID: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID;
const NODEV: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV;
const NOEXEC: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOEXEC;
const RDONLY: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY;

/// Devices every app has: name, major and minor number (Linux Documentation/admin-guide/devices.txt).
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Links every app has in `/dev`.
const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

/// The group `tty`, which owns terminals on every distribution.
const TTY_GROUP: &str = "5";

/// Hidden from apps: they tell of, or reach, the whole machine.
const MASKED: [&str; 13] = [
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/dev/block",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/selinux",
];

/// Read-only for apps.
const READ_ONLY: [&str; 6] = ["/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Mounts `/proc`, `/sys` and `/dev` into a root. The calling process must be in the app's namespaces.
///
/// # Errors
/// What could not be mounted.
pub fn mount(root: &Root, shm: &Path, cgroups: bool) -> Result<(), StepError> {
    mount_at(root, "/proc", "proc", &[], NOSUID | NODEV | NOEXEC)?;
    mount_sysfs(root)?;
    if cgroups {
        mount_at(root, "/sys/fs/cgroup", "cgroup2", &[], NOSUID | NODEV | NOEXEC | RDONLY)?;
    }
    let options = [("mode", Some("755")), ("size", Some("65536k"))];
    mount_at(root, "/dev", "tmpfs", &options, NOSUID | MountAttrFlags::MOUNT_ATTR_STRICTATIME)?;
    let dev = root.directory(Path::new("/dev")).step(|| "open /dev")?;
    make_devices(root, dev.fd.as_fd())?;
    mount_terminals(root)?;
    mount_at(root, "/dev/mqueue", "mqueue", &[], NOSUID | NODEV | NOEXEC)?;
    let place = root.directory(Path::new("/dev/shm")).step(|| "make /dev/shm")?;
    let mount = || {
        let mount = Detached::bind_path(shm, false)?;
        mount.restrict(NOSUID | NODEV | NOEXEC, false)?;
        mount.attach(place.fd.as_fd())
    };
    mount().map(drop).step(|| "mount /dev/shm")
}

/// Keeps an app that may make device files from opening others than those of `/dev`: the host's devices would be its.
///
/// # Errors
/// What could not be mounted.
pub fn keep_to_devices(root: &Root) -> Result<(), StepError> {
    let dev = root.directory(Path::new("/dev")).step(|| "open /dev")?;
    for (name, _, _) in DEVICES {
        let keep = || {
            let place = root.file(&Path::new("/dev").join(name))?;
            Detached::bind(place.fd.as_fd(), false)?.attach(place.fd.as_fd())
        };
        keep().step(|| format!("keep /dev/{name}"))?;
    }
    restrict(dev.fd.as_fd(), NODEV, false).step(|| "restrict /dev")
}

fn mount_at(
    root: &Root,
    path: &str,
    filesystem: &str,
    options: &[MountOption<'_>],
    attributes: MountAttrFlags,
) -> Result<(), StepError> {
    let place = root.plain_mount_point(Path::new(path)).step(|| format!("make {path}"))?;
    Detached::new(filesystem, options, attributes)
        .and_then(|mount| mount.attach(place.fd.as_fd()))
        .map(drop)
        .step(|| format!("mount {filesystem} at {path}"))
}

fn make_devices(root: &Root, dev: BorrowedFd<'_>) -> Result<(), StepError> {
    let everyone = Mode::from_raw_mode(0o666);
    for (name, major, minor) in DEVICES {
        let make = || -> io::Result<()> {
            match mknodat(dev, name, FileType::CharacterDevice, everyone, makedev(major, minor)) {
                // In a user namespace none can be made, but the supervisor's own can be shown.
                Err(rustix::io::Errno::PERM) => {
                    let place = root.file(&Path::new("/dev").join(name))?;
                    Detached::bind_path(&Path::new("/dev").join(name), false)?.attach(place.fd.as_fd())?;
                    Ok(())
                }
                // The mode has gone through the umask.
                other => Ok(other.and_then(|()| chmodat(dev, name, everyone, AtFlags::empty()))?),
            }
        };
        make().step(|| format!("make /dev/{name}"))?;
    }
    for (name, target) in LINKS {
        symlinkat(target, dev, name).step(|| format!("make /dev/{name}"))?;
    }
    for name in ["pts", "mqueue", "shm"] {
        mkdirat(dev, name, Mode::from_raw_mode(0o755)).step(|| format!("make /dev/{name}"))?;
    }
    Ok(())
}

fn mount_sysfs(root: &Root) -> Result<(), StepError> {
    match mount_at(root, "/sys", "sysfs", &[], NOSUID | NODEV | NOEXEC | RDONLY) {
        // That of another user namespace's network cannot be mounted anew, but the supervisor's own can be shown.
        Err(error) if error.errno() == Some(libc::EPERM) => {
            let show = || -> io::Result<()> {
                let place = root.plain_mount_point(Path::new("/sys"))?;
                let mount = Detached::bind_path(Path::new("/sys"), true)?;
                mount.restrict(NOSUID | NODEV | NOEXEC | RDONLY, true)?;
                mount.attach(place.fd.as_fd()).map(drop)
            };
            show().step(|| "show /sys")
        }
        other => other,
    }
}

fn mount_terminals(root: &Root) -> Result<(), StepError> {
    let common = [("ptmxmode", Some("0666")), ("mode", Some("0620"))];
    let with_group: Vec<_> = common.iter().copied().chain([("gid", Some(TTY_GROUP))]).collect();
    match mount_at(root, "/dev/pts", "devpts", &with_group, NOSUID | NOEXEC) {
        // A user namespace that has no such group.
        Err(error) if error.errno() == Some(libc::EINVAL) => {
            mount_at(root, "/dev/pts", "devpts", &common, NOSUID | NOEXEC)
        }
        other => other,
    }
}

/// Hides and protects what apps may not see or change. To be called when all else is mounted.
///
/// # Errors
/// What could not be hidden or protected.
pub fn conceal(root: &Root) -> Result<(), StepError> {
    for path in READ_ONLY {
        let protect = || -> io::Result<()> {
            let Some(place) = root.existing(Path::new(path))? else { return Ok(()) };
            let mount = Detached::bind(place.as_fd(), true)?;
            mount.restrict(RDONLY | NOSUID | NODEV | NOEXEC, true)?;
            mount.attach(place.as_fd()).map(drop)
        };
        protect().step(|| format!("make {path} read-only"))?;
    }
    for path in MASKED {
        mask(root, path).step(|| format!("hide {path}"))?;
    }
    Ok(())
}

fn mask(root: &Root, path: &str) -> io::Result<()> {
    let Some(place) = root.existing(Path::new(path))? else { return Ok(()) };
    let is_directory = FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode) == FileType::Directory;
    let cover = if is_directory {
        Detached::new("tmpfs", &[("size", Some("0")), ("nr_inodes", Some("2"))], RDONLY | NOSUID | NODEV | NOEXEC)?
    } else {
        let null = root.existing(Path::new("/dev/null"))?.ok_or(io::ErrorKind::NotFound)?;
        Detached::bind(null.as_fd(), false)?
    };
    cover.attach(place.as_fd()).map(drop)
}
