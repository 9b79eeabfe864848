//! A directory of the host that is walled off for sharing: a mount tree of its own.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Why a directory cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// It cannot be opened.
    #[error("{path} cannot be opened as a directory to share: {source}", path = .path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// A link has taken its place, or that of a directory above it.
    #[error("a symbolic link is now on the way to {path}, and is not followed; name the directory that is meant", path = .0.display())]
    Moved(PathBuf),
    /// The walls around it cannot be made.
    #[error("{path} cannot be walled off for sharing ({source}); this needs root and Linux 5.12 or newer", path = .path.display())]
    Wall {
        /// The directory.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
}

/// An open directory that is the root of a mount tree of its own, not attached anywhere.
#[derive(Debug)]
pub struct SharedDirectory {
    tree: OwnedFd,
}

impl SharedDirectory {
    /// Clones the mount of the directory at `path` together with the mounts below it. The path was resolved before: a symbolic link
    /// on the way was put there since, perhaps by somebody who is not to have what it leads to, and is refused. No device file can be opened and no
    /// set-user-ID program gains anything in the clone; with `read_only` nothing can be written.
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub fn open(path: &Path, read_only: bool) -> Result<Self, DirectoryError> {
        let open = |source: io::Error| match source.raw_os_error() {
            Some(libc::ELOOP) => DirectoryError::Moved(path.into()),
            _ => DirectoryError::Open { path: path.into(), source },
        };
        let wall = |source| DirectoryError::Wall { path: path.into(), source };
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|error| open(error.into()))?;
        let directory = open_resolved(&name).map_err(open)?;
        let tree = clone_tree(&directory).map_err(wall)?;
        let mut attributes = libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID;
        if read_only {
            attributes |= libc::MOUNT_ATTR_RDONLY;
        }
        set_attributes(&tree, attributes).map_err(wall)?;
        make_private(&tree).map_err(wall)?;
        Ok(Self { tree })
    }
}

impl AsRawFd for SharedDirectory {
    fn as_raw_fd(&self) -> RawFd {
        self.tree.as_raw_fd()
    }
}

/// openat2(2): a directory, as a place only, without following a link.
fn open_resolved(path: &CString) -> io::Result<OwnedFd> {
    // SAFETY: all zeroes are a valid open_how.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_NO_SYMLINKS;
    // SAFETY: the path is a valid C string that outlives the call, and the structure's size is given with it.
    let fd = unsafe {
        libc::syscall(libc::SYS_openat2, libc::AT_FDCWD, path.as_ptr(), &raw const how, size_of::<libc::open_how>())
    };
    // SAFETY: the kernel just gave us this descriptor, if it did.
    unsafe { owned(fd) }
}

/// open_tree(2): a detached, recursive clone of the mount at this directory.
fn clone_tree(directory: &OwnedFd) -> io::Result<OwnedFd> {
    let flags =
        libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_RECURSIVE as u32 | libc::AT_EMPTY_PATH as u32;
    // SAFETY: the empty path is a valid C string.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, directory.as_raw_fd(), c"".as_ptr(), flags) };
    // SAFETY: the kernel just gave us this descriptor, if it did.
    unsafe { owned(fd) }
}

/// The descriptor that a system call returned.
///
/// # Safety
/// It is an error, or a new descriptor that nobody else has.
unsafe fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: promised by the caller.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// mount_setattr(2) on the whole tree.
fn mount_setattr(tree: &OwnedFd, attributes: &libc::mount_attr) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the empty path is a valid C string, and the structure's size is given with it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn set_attributes(tree: &OwnedFd, attributes: u64) -> io::Result<()> {
    mount_setattr(tree, &libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 })
}

/// What is mounted or unmounted at the host later does not appear in the clone, nor the other way round.
fn make_private(tree: &OwnedFd) -> io::Result<()> {
    let propagation = libc::MS_PRIVATE;
    mount_setattr(tree, &libc::mount_attr { attr_set: 0, attr_clr: 0, propagation, userns_fd: 0 })
}
