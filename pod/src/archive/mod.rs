//! Files on their way into an app and out of it: a tree as a tar stream (POSIX.1-2001 pax, GNU's numbers), and back.
//!
//! Both ends are here. The supervisor packs and unpacks inside the app's root, `podvm cp` and `podvm export` at the host.
//! Neither trusts the other: names lead nowhere but downwards, no symbolic link of the tree is followed, and what a stream
//! says is bounded before it is believed.

mod pack;
mod unpack;

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

pub use pack::pack;
pub use unpack::{Destination, Policy, Unpacked, unpack};

/// How often a path is looked up again that the kernel could not follow: for half a second together.
const MAX_ATTEMPTS: u64 = 300;

/// Why a tree could not be packed or unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// A file operation failed.
    #[error("{path}: {source}", path = .path.display())]
    File {
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The stream broke off, or is no tar stream.
    #[error("the stream of files cannot be read or written: {0}")]
    Stream(#[source] io::Error),
    /// A name that leads upwards, or nowhere.
    #[error("the stream of files holds the name {0:?}, which leads out of its place; it was refused")]
    Name(String),
    /// A first name that was not asked for.
    #[error(
        "the stream of files holds the name {name:?}, but {asked:?} was asked for; it was refused, and the app is not to be trusted"
    )]
    Unasked {
        /// The name.
        name: String,
        /// What was asked for.
        asked: String,
    },
    /// Something on the way is no directory.
    #[error("{path}: there is no directory of that name, or a symbolic link is on the way, which is not followed", path = .0.display())]
    NoDirectory(PathBuf),
    /// The kernel cannot tell where `..` leads while something is renamed.
    #[error("{path}: names kept changing while it was looked up; try again", path = .0.display())]
    Disturbed(PathBuf),
    /// More levels than are walked.
    #[error("{path}: directories are nested too deeply here", path = .0.display())]
    TooDeep(PathBuf),
    /// Headers that are longer than any sensible name.
    #[error("the stream of files holds a header of {0} bytes; it was refused")]
    Header(u64),
}

fn at(path: &Path) -> impl FnOnce(Errno) -> ArchiveError + '_ {
    move |errno| ArchiveError::File { path: path.into(), source: errno.into() }
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> ArchiveError + '_ {
    move |source| ArchiveError::File { path: path.into(), source }
}

/// What is to be packed or unpacked inside an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Archived {
    /// The file or tree at this path goes to the standard output.
    Out(PathBuf),
    /// The app's whole root, without what is mounted in it, goes to the standard output.
    Root,
    /// The stream on the standard input goes to a path.
    In {
        /// The path.
        path: PathBuf,
        /// How it is understood.
        destination: Destination,
    },
}

/// The first name of the stream that a path is packed into.
pub fn first_name(path: &Path) -> &OsStr {
    /// Of a path that ends without a name.
    const NAMELESS: &str = "files";
    path.file_name().unwrap_or(OsStr::new(NAMELESS))
}

/// A directory that is the root of all paths.
///
/// # Errors
/// Those of open(2).
pub fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Opens a path a user named: links within `root` are followed but for the last one unless it must be a directory; nothing
/// leads out of `root`, nor through links that only /proc has.
fn open_within(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, ArchiveError> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let open = || openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve);
    until_undisturbed(open).map_err(|errno| match errno {
        Errno::AGAIN => ArchiveError::Disturbed(path.into()),
        errno => at(path)(errno),
    })
}

/// Repeats what the kernel gave up because something was renamed or mounted meanwhile, anywhere (openat2(2), `EAGAIN`),
/// with growing pauses.
fn until_undisturbed<T>(mut attempt: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for pause_us in (0..MAX_ATTEMPTS).map(|number| number * 10) {
        match attempt() {
            Err(Errno::AGAIN) => std::thread::sleep(Duration::from_micros(pause_us)),
            other => return other,
        }
    }
    attempt()
}

/// The directory at a path a user named, if there is one.
fn directory_within(root: BorrowedFd<'_>, path: &Path) -> Result<Option<OwnedFd>, ArchiveError> {
    match open_within(root, path, OFlags::RDONLY | OFlags::DIRECTORY) {
        Ok(directory) => Ok(Some(directory)),
        Err(ArchiveError::File { source, .. })
            if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Another descriptor of a directory, which can be listed from its beginning.
fn reopen(directory: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(directory.as_fd(), ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests;
