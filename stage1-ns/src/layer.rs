//! Layers as mounts: an EROFS image from its file, or, before Linux 6.12, from a loop device; or a directory as it is.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen, open_tree,
};

use crate::loop_device::LoopDevice;

/// Whether this host's kernel mounts EROFS; a module that can be loaded is.
pub fn host_mounts_erofs() -> bool {
    fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC).is_ok()
}

/// A mount of the layer at `path`, in no place yet.
///
/// # Errors
/// Those of fsopen(2), fsconfig(2) and fsmount(2), of loop devices, or of open_tree(2).
pub fn mount(path: &Path) -> io::Result<OwnedFd> {
    if path.is_dir() {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        return Ok(open_tree(CWD, path, flags)?);
    }
    match mount_source("erofs", path, true) {
        // This kernel wants a block device.
        Err(Errno::NOTBLK) => mount_looped("erofs", path, true),
        other => Ok(other?),
    }
}

/// As [`mount`], of a file with any filesystem, through a loop device.
///
/// # Errors
/// Those of the file, the loop device, and the mount.
pub fn mount_looped(filesystem: &str, path: &Path, read_only: bool) -> io::Result<OwnedFd> {
    let file = File::options().read(true).write(!read_only).open(path)?;
    let device = LoopDevice::attach(&file, read_only)?;
    Ok(mount_source(filesystem, &device.path, read_only)?)
}

fn mount_source(filesystem: &str, source: &Path, read_only: bool) -> Result<OwnedFd, Errno> {
    let context = fsopen(filesystem, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", source)?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOATIME;
    if read_only {
        fsconfig_set_flag(&context, "ro")?;
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}
