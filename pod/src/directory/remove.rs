//! Taking pods away: removal in an order that a crash at any point leaves to be finished, and the finishing.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::Flock;

use super::lock::{Locking, lock_exclusive};
use super::{DirectoryError, PodDir, PodsRoot, io_error};
use crate::fault::{FaultPoint, reach};

impl PodsRoot {
    /// Removes what crashed preparations and removals left. Returns how many it removed.
    ///
    /// # Errors
    /// [`DirectoryError::Io`].
    pub fn sweep(&self) -> Result<usize, DirectoryError> {
        let pods = self.pods();
        let entries = match fs::read_dir(&pods) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            other => other.map_err(io_error(&pods))?,
        };
        let mut swept = 0;
        for entry in entries {
            let path = entry.map_err(io_error(&pods))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if !name.starts_with(".new-") && !name.starts_with(".old-") {
                continue;
            }
            let lock = match lock_exclusive(&path) {
                Ok(Locking::Taken(lock)) => Some(lock),
                // Somebody works on it, or has finished meanwhile.
                Ok(Locking::Held | Locking::Gone) => continue,
                Err(DirectoryError::NoDirectory { .. }) => None,
                Err(error) => return Err(error),
            };
            remove_tree(&path)?;
            drop(lock);
            swept += 1;
        }
        Ok(swept)
    }
}

impl PodDir {
    /// Removes a pod that is not alive, and all it wrote. Removing one that is gone does nothing.
    ///
    /// # Errors
    /// [`DirectoryError::Alive`], [`DirectoryError::Io`].
    pub fn remove(&self) -> Result<(), DirectoryError> {
        self.retire_after(|_| Ok::<_, DirectoryError>(()))?.remove()
    }

    /// Takes a pod that is not alive out of the list of pods, once `undo` has given back what it had outside its directory. The pod's lock
    /// is held from before that until its files are removed, or left to [`PodsRoot::sweep`].
    ///
    /// # Errors
    /// Those of [`Self::remove`], and those of `undo`; the directory, which says what is to be undone, is left then.
    pub fn retire_after<E: From<DirectoryError>>(
        &self,
        undo: impl FnOnce(&Self) -> Result<(), E>,
    ) -> Result<RetiredPod, E> {
        let nothing = RetiredPod { path: None, _lock: None };
        let Some(parent) = self.path.parent() else { return Ok(nothing) };
        let lock = match lock_exclusive(&self.path) {
            Ok(Locking::Taken(lock)) => lock,
            Ok(Locking::Held) => return Err(DirectoryError::Alive(self.uuid).into()),
            Ok(Locking::Gone) => return Ok(nothing),
            // Somebody's hand put it here: only itself is removed, not what a link leads to.
            Err(DirectoryError::NoDirectory { path }) => return Ok(RetiredPod { path: Some(path), _lock: None }),
            Err(error) => return Err(error.into()),
        };
        reach(FaultPoint::RemovalLocked);
        undo(self)?;
        reach(FaultPoint::RemovalUndone);
        let old = parent.join(format!(".old-{}", self.uuid));
        fs::rename(&self.path, &old).map_err(io_error(&self.path))?;
        reach(FaultPoint::RemovalRenamed);
        Ok(RetiredPod { path: Some(old), _lock: Some(lock) })
    }
}

impl PodDir {
    /// Removes all files and folders of the directory but these.
    pub(super) fn remove_all_but(&self, kept: &[&str]) -> Result<(), DirectoryError> {
        for entry in fs::read_dir(&self.path).map_err(io_error(&self.path))? {
            let entry = entry.map_err(io_error(&self.path))?;
            if !kept.iter().any(|name| entry.file_name() == *name) {
                remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// What is left of a pod that is no more: its files.
#[derive(Debug)]
#[must_use = "the files are removed by a call"]
pub struct RetiredPod {
    path: Option<PathBuf>,
    _lock: Option<Flock<File>>,
}

impl RetiredPod {
    /// Removes the files.
    ///
    /// # Errors
    /// [`DirectoryError::Io`].
    pub fn remove(self) -> Result<(), DirectoryError> {
        self.path.as_deref().map_or(Ok(()), remove_tree)?;
        reach(FaultPoint::RemovalDone);
        Ok(())
    }
}

/// Removes a directory with all in it, or a file. What another process removes at the same time is no error.
fn remove_tree(path: &Path) -> Result<(), DirectoryError> {
    let is_directory = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    match if is_directory { fs::remove_dir_all(path) } else { fs::remove_file(path) } {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(io_error(path)),
    }
}
