//! The kernel's descriptor-based mount interface: a mount is made detached, set up, and then put in its place, so that
//! no path is looked up twice and a symbolic link cannot lead elsewhere.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
pub use rustix::mount::MountAttrFlags;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

/// A mount that is not in any place yet; undone when dropped.
#[derive(Debug)]
pub struct Detached(OwnedFd);

/// An option of a filesystem: a key, and a value if it has one.
pub type MountOption<'a> = (&'a str, Option<&'a str>);

impl Detached {
    /// A new mount of a filesystem (fsopen(2) to fsmount(2)).
    ///
    /// # Errors
    /// Those of these calls.
    pub fn new(filesystem: &str, options: &[MountOption<'_>], attributes: MountAttrFlags) -> io::Result<Self> {
        let context = fsopen(filesystem, FsOpenFlags::FSOPEN_CLOEXEC)?;
        if !options.iter().any(|(key, _)| *key == "source") {
            // What /proc/mounts shows as its device.
            fsconfig_set_string(&context, "source", filesystem)?;
        }
        for (key, value) in options {
            match value {
                Some(value) => fsconfig_set_string(&context, *key, *value)?,
                None => fsconfig_set_flag(&context, *key)?,
            }
        }
        fsconfig_create(&context)?;
        Ok(Self(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?))
    }

    /// Another mount of what is open as `what` (open_tree(2)), with everything mounted below when `recursive`.
    ///
    /// # Errors
    /// Those of open_tree(2).
    pub fn bind(what: BorrowedFd<'_>, recursive: bool) -> io::Result<Self> {
        let mut flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        if recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        Ok(Self(open_tree(what, "", flags)?))
    }

    /// As [`Self::bind`] of a path.
    ///
    /// # Errors
    /// Those of open_tree(2).
    pub fn bind_path(path: &Path, recursive: bool) -> io::Result<Self> {
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        if recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        Ok(Self(open_tree(CWD, path, flags)?))
    }

    /// Adds attributes to the mount, and to those below it when `recursive`.
    ///
    /// # Errors
    /// Those of mount_setattr(2).
    pub fn restrict(&self, attributes: MountAttrFlags, recursive: bool) -> io::Result<()> {
        restrict(self.0.as_fd(), attributes, recursive)
    }

    /// Puts the mount on top of what is open as `place`.
    ///
    /// # Errors
    /// Those of move_mount(2).
    pub fn attach(self, place: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&self.0, "", place, "", flags)?;
        Ok(self.0)
    }

    /// Puts the mount on top of a directory, following symbolic links.
    ///
    /// # Errors
    /// Those of move_mount(2).
    pub fn attach_at(self, path: &Path) -> io::Result<OwnedFd> {
        move_mount(&self.0, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        Ok(self.0)
    }
}

impl AsFd for Detached {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Adds attributes to the mount whose root is open as `mount` (mount_setattr(2)).
///
/// # Errors
/// Those of mount_setattr(2).
pub fn restrict(mount: BorrowedFd<'_>, attributes: MountAttrFlags, recursive: bool) -> io::Result<()> {
    /// `struct mount_attr` of linux/mount.h.
    #[repr(C)]
    struct MountAttr {
        set: u64,
        clear: u64,
        propagation: u64,
        userns_fd: u64,
    }
    let attr = MountAttr { set: attributes.bits().into(), clear: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, and the structure is as long as said.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// mount(2) with options as one text: for overlayfs, whose list of layers is too long for one option of fsconfig(2).
///
/// # Errors
/// Those of mount(2); an invalid argument when the text has a NUL.
pub fn mount_with_text(filesystem: &str, at: &Path, options: &str) -> io::Result<()> {
    let options = CString::new(options).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(rustix::mount::mount(filesystem, at, filesystem, MountFlags::empty(), Some(options.as_c_str()))?)
}
