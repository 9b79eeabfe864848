//! Small files of a pod directory, replaced in one step.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::fcntl::{OFlag, RenameFlags, openat, renameat, renameat2};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde::Serialize;

use super::{DirectoryError, PodDir, io_error};

impl PodDir {
    pub(super) fn read_json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T, DirectoryError> {
        let path = self.path.join(name);
        serde_json::from_slice(&self.read(&path)?).map_err(|source| DirectoryError::Damaged { path, source })
    }

    pub(super) fn read(&self, path: &Path) -> Result<Vec<u8>, DirectoryError> {
        fs::read(path).map_err(|error| match fs::symlink_metadata(&self.path) {
            Ok(found) if !found.is_dir() => DirectoryError::NoDirectory { path: self.path.clone() },
            Ok(_) if error.kind() == io::ErrorKind::NotFound => DirectoryError::Missing { path: path.into() },
            // A pod that is gone lacks no file.
            _ => io_error(path)(error),
        })
    }

    pub(super) fn write_json(&self, name: &str, content: &impl Serialize) -> Result<(), DirectoryError> {
        let directory = File::open(&self.path).map_err(io_error(&self.path))?;
        replace_json_at(directory.as_fd(), name, content).map_err(io_error(&self.path.join(name)))
    }
}

/// Replaces a file in an open directory in one step: readers see the old content or the new, whatever is killed when.
///
/// Nothing waits for the disk, which would take longer than all else that starting a pod does: once the host itself has gone down,
/// a file may be as it was before, or empty. Who needs more syncs it.
///
/// On a full disk a file that is there is written over instead, which takes no more room: that a pod's end is told matters more
/// than that a crash at that very moment leaves a readable file.
pub(super) fn replace_json_at(directory: BorrowedFd<'_>, name: &str, content: &impl Serialize) -> io::Result<()> {
    let mut bytes = serde_json::to_vec_pretty(content)?;
    bytes.push(b'\n');
    match write_and_rename(directory, name, &bytes) {
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {
            overwrite(directory, name, bytes).map_err(|_| error)
        }
        other => other,
    }
}

fn write_and_rename(directory: BorrowedFd<'_>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = format!(".{name}.new");
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_CLOEXEC;
    let mut file = File::from(openat(directory, temporary.as_str(), flags, Mode::from_bits_truncate(0o600))?);
    file.write_all(bytes)?;
    // A file that takes another's place is written to the disk at once by ext4; one that changes places with it is not.
    match renameat2(directory, temporary.as_str(), directory, name, RenameFlags::RENAME_EXCHANGE) {
        Ok(()) => Ok(unlinkat(directory, temporary.as_str(), UnlinkatFlags::NoRemoveDir)?),
        // Nothing to change places with, or a filesystem that cannot do it.
        Err(_) => Ok(renameat(directory, temporary.as_str(), directory, name)?),
    }
}

fn overwrite(directory: BorrowedFd<'_>, name: &str, mut bytes: Vec<u8>) -> io::Result<()> {
    let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut file = File::from(openat(directory, name, flags, Mode::empty())?);
    // What was longer before is covered with blanks, which JSON allows.
    let length = usize::try_from(file.metadata()?.len()).unwrap_or_default();
    bytes.resize(bytes.len().max(length), b' ');
    file.write_all(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_file_that_is_written_over_reads_as_the_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let directory = File::open(folder.path()).unwrap();
        let path = folder.path().join("f.json");
        for (before, after) in [("[1,2,3,4,5]", "[6]"), ("[1]", "[2,3,4,5,6]")] {
            fs::write(&path, before).unwrap();
            overwrite(directory.as_fd(), "f.json", after.into()).unwrap();
            let read: Vec<u8> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            assert_eq!(read, serde_json::from_str::<Vec<u8>>(after).unwrap());
        }
    }
}
