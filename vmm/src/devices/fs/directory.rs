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
    /// Clones the mount of the directory at `path` together with the mounts below it. No device file can be opened and no
    /// set-user-ID program gains anything in the clone; with `read_only` nothing can be written.
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub fn open(path: &Path, read_only: bool) -> Result<Self, DirectoryError> {
        let open = |source| DirectoryError::Open { path: path.into(), source };
        let wall = |source| DirectoryError::Wall { path: path.into(), source };
        if !std::fs::metadata(path).map_err(open)?.is_dir() {
            return Err(open(io::Error::from_raw_os_error(libc::ENOTDIR)));
        }
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|error| open(error.into()))?;
        let tree = open_tree(&name).map_err(wall)?;
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

/// open_tree(2): a detached, recursive clone of the mount at this path.
fn open_tree(path: &CString) -> io::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_RECURSIVE as u32;
    // SAFETY: the path is a valid C string that outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor, and nobody else has it.
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
