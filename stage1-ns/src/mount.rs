//! Mounts that are in no place yet: filesystems, and other mounts of what is there (fsopen(2), open_tree(2)). Nobody else sees
//! them, and the kernel undoes one when the last descriptor of it is closed.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
pub use rustix::mount::MountAttrFlags;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen, move_mount, open_tree,
};

use crate::loop_device::LoopDevice;

/// Whether this host's kernel mounts EROFS; a module that can be loaded is.
pub fn host_mounts_erofs() -> bool {
    fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC).is_ok()
}

/// Whether overlayfs takes a directory of this filesystem as its upper one (Linux Documentation/filesystems/overlayfs.rst,
/// "Upper and Lower"). What is not known to be refused is tried.
pub fn can_be_upper(directory: &Path) -> bool {
    use nix::sys::statfs::{FUSE_SUPER_MAGIC, FsType, NFS_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC, statfs};
    /// `V9FS_MAGIC` of linux/magic.h.
    const V9FS_MAGIC: FsType = FsType(0x0102_1997);
    let refused = [OVERLAYFS_SUPER_MAGIC, NFS_SUPER_MAGIC, FUSE_SUPER_MAGIC, V9FS_MAGIC];
    statfs(directory).is_ok_and(|found| !refused.contains(&found.filesystem_type()))
}

/// A layer: an EROFS image from its file, or, before Linux 6.12, from a loop device; or a directory as it is.
///
/// # Errors
/// Those of fsopen(2), fsconfig(2) and fsmount(2), of loop devices, or of open_tree(2).
pub fn layer(path: &Path) -> io::Result<OwnedFd> {
    if path.is_dir() {
        return bind(path, false);
    }
    // A mount's source holds no more than 255 bytes (fsconfig(2)), and the pod need not see the path.
    let file = File::open(path)?;
    match from_source("erofs", Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())), true) {
        // This kernel wants a block device.
        Err(Errno::NOTBLK) => looped("erofs", path, true),
        other => Ok(other?),
    }
}

/// A file with a filesystem, through a loop device.
///
/// # Errors
/// Those of the file, the loop device, and the mount.
pub fn looped(filesystem: &str, path: &Path, read_only: bool) -> io::Result<OwnedFd> {
    let file = File::options().read(true).write(!read_only).open(path)?;
    let device = LoopDevice::attach(&file, read_only)?;
    Ok(from_source(filesystem, &device.path, read_only)?)
}

fn from_source(filesystem: &str, source: &Path, read_only: bool) -> Result<OwnedFd, Errno> {
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

/// A filesystem without a source, in which there are neither programs nor devices.
///
/// # Errors
/// Those of fsopen(2), fsconfig(2) and fsmount(2).
pub fn virtual_filesystem(name: &str, options: &[(&str, &str)]) -> io::Result<OwnedFd> {
    let context = fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(&context, *key, *value)?;
    }
    fsconfig_create(&context)?;
    let attributes =
        MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// Another mount of a directory or file, with everything mounted below it if `recursive`.
///
/// # Errors
/// Those of open_tree(2).
pub fn bind(source: &Path, recursive: bool) -> io::Result<OwnedFd> {
    Ok(open_tree(CWD, source, clone_flags(recursive))?)
}

/// As [`bind`], of a directory whose path was resolved before: a symbolic link on the way was put there since, perhaps by somebody
/// who is not to have what it leads to, and is refused (`ELOOP`).
///
/// # Errors
/// Those of openat2(2) and open_tree(2).
pub fn bind_resolved(source: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat2(CWD, source, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    Ok(open_tree(directory, "", clone_flags(recursive) | OpenTreeFlags::AT_EMPTY_PATH)?)
}

fn clone_flags(recursive: bool) -> OpenTreeFlags {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive { flags | OpenTreeFlags::AT_RECURSIVE } else { flags }
}

/// Adds attributes to a mount and all below it.
///
/// # Errors
/// Those of mount_setattr(2).
pub fn restrict(mount: BorrowedFd<'_>, attributes: MountAttrFlags) -> io::Result<()> {
    set_attributes(mount, attributes.bits().into(), None)
}

/// Shows the files of a mount as those of the users that `users`, a user namespace, maps their owners to.
///
/// # Errors
/// Those of mount_setattr(2); an invalid argument when the filesystem cannot do this.
pub fn map_owners(mount: BorrowedFd<'_>, users: BorrowedFd<'_>) -> io::Result<()> {
    set_attributes(mount, libc::MOUNT_ATTR_IDMAP, Some(users))
}

fn set_attributes(mount: BorrowedFd<'_>, attributes: u64, users: Option<BorrowedFd<'_>>) -> io::Result<()> {
    // SAFETY: all zeroes are a valid mount_attr.
    let mut attr: libc::mount_attr = unsafe { std::mem::zeroed() };
    attr.attr_set = attributes;
    attr.userns_fd = users.map_or(0, |users| users.as_raw_fd() as u64);
    let recursive = if users.is_some() { 0 } else { libc::AT_RECURSIVE };
    // SAFETY: the path is an empty C string, and the structure is as long as said.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            &raw const attr,
            size_of_val(&attr),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Puts a mount in its place.
///
/// # Errors
/// Those of move_mount(2).
pub fn attach(mount: impl AsFd, place: &Path) -> io::Result<()> {
    Ok(move_mount(mount, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_link_that_took_a_directorys_place_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let (sub, other) = (root.join("d/sub"), root.join("other"));
        fs::create_dir_all(&sub).unwrap();
        fs::create_dir(&other).unwrap();
        match bind_resolved(&sub, true) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => return eprintln!("skipped: {error}"),
            bound => drop(bound.unwrap()),
        }
        fs::remove_dir(&sub).unwrap();
        symlink(&other, &sub).unwrap();
        assert_eq!(bind_resolved(&sub, true).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        // Nor one on the way.
        fs::create_dir(other.join("sub")).unwrap();
        fs::remove_file(&sub).unwrap();
        fs::remove_dir(root.join("d")).unwrap();
        symlink(&other, root.join("d")).unwrap();
        assert_eq!(bind_resolved(&sub, true).unwrap_err().raw_os_error(), Some(libc::ELOOP));
    }
}
