//! The lock that says that a pod is alive: an exclusive flock(2) on its directory.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};

use super::{DirectoryError, PodDir, io_error};

/// How often, and how long after, a lock that is held is tried for again: those who only look hold it for a moment, too.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(1);

/// How often it is looked whether a pod that is about to end is gone: less than a person notices.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// What came of trying for a lock.
#[derive(Debug)]
pub(super) enum Locking {
    /// It is this process's.
    Taken(Flock<File>),
    /// Another process has it.
    Held,
    /// There is no such directory, or not the same any more.
    Gone,
}

/// Opens a directory that is really there, not a link to one.
fn open(path: &Path) -> Result<Option<File>, DirectoryError> {
    let flags = (OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits();
    match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(directory) => Ok(Some(directory)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            Err(DirectoryError::NoDirectory { path: path.into() })
        }
        Err(error) => Err(io_error(path)(error)),
    }
}

/// Tries for a directory's lock. Who gets it has the directory that is at `path`, and not one that was just removed from there.
pub(super) fn lock_exclusive(path: &Path) -> Result<Locking, DirectoryError> {
    for _ in 0..ATTEMPTS {
        let Some(directory) = open(path)? else { return Ok(Locking::Gone) };
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                let own = lock.metadata().map_err(io_error(path))?;
                let is_same =
                    fs::symlink_metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (own.dev(), own.ino()));
                return Ok(if is_same { Locking::Taken(lock) } else { Locking::Gone });
            }
            Err((_, Errno::EWOULDBLOCK)) => std::thread::sleep(PAUSE),
            Err((_, errno)) => return Err(io_error(path)(errno.into())),
        }
    }
    Ok(Locking::Held)
}

/// Waits until a file, or a directory's list of names, is on disk.
pub(super) fn sync(path: &Path) -> Result<(), DirectoryError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(io_error(path))
}

impl PodDir {
    /// Whether some process holds the pod's lock.
    ///
    /// # Errors
    /// [`DirectoryError::Io`], [`DirectoryError::NoDirectory`]; a directory that is gone is not alive.
    pub fn is_alive(&self) -> Result<bool, DirectoryError> {
        let Some(directory) = open(&self.path)? else { return Ok(false) };
        // A shared lock is refused exactly while someone has the exclusive one, and lookers do not disturb each other.
        match Flock::lock(directory, FlockArg::LockSharedNonblock) {
            Ok(_) => Ok(false),
            Err((_, Errno::EWOULDBLOCK)) => Ok(true),
            Err((_, errno)) => Err(io_error(&self.path)(errno.into())),
        }
    }

    /// Whether a process has the pod's directory open, as the one that holds its lock has; none when that may not be seen, as of
    /// another user's process (proc_pid_fd(5)).
    pub fn is_open_in(&self, pid: i32) -> Option<bool> {
        let own = fs::symlink_metadata(&self.path).ok()?;
        let mut open = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
        Some(open.any(|entry| {
            fs::metadata(entry.path()).is_ok_and(|other| (other.dev(), other.ino()) == (own.dev(), own.ino()))
        }))
    }

    /// Waits until no process holds the pod's lock, at most until `latest`; returns whether none does.
    ///
    /// # Errors
    /// Those of [`Self::is_alive`].
    pub fn is_dead_by(&self, latest: Instant) -> Result<bool, DirectoryError> {
        while self.is_alive()? {
            if Instant::now() >= latest {
                return Ok(false);
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        Ok(true)
    }

    /// Waits until no process holds the pod's lock, however long that is.
    ///
    /// # Errors
    /// [`DirectoryError::Io`], [`DirectoryError::NoDirectory`]; a directory that is gone is not alive.
    pub fn wait_until_dead(&self) -> Result<(), DirectoryError> {
        let Some(directory) = open(&self.path)? else { return Ok(()) };
        match Flock::lock(directory, FlockArg::LockShared) {
            Ok(_) => Ok(()),
            Err((_, errno)) => Err(io_error(&self.path)(errno.into())),
        }
    }
}
