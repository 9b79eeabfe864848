//! Locks, and files in the making, so that crashes leave nothing and two writers do one work.
//!
//! Everything is made under `tmp/` and renamed to its place when whole and synced. Its maker holds it by
//! flock(2); what nobody holds is a crash's leftover and is swept by the next import or collection.

use std::fs::{self, File, TryLockError};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A lock that other processes see, held until dropped or the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

fn lock_file(path: &Path) -> io::Result<File> {
    File::options().create(true).truncate(false).write(true).mode(0o600).open(path)
}

impl Lock {
    /// Waits for the lock, which any number may hold at once.
    pub fn shared(path: &Path) -> io::Result<Self> {
        let file = lock_file(path)?;
        file.lock_shared()?;
        Ok(Self { _file: file })
    }

    /// Waits until nobody else holds the lock.
    pub fn exclusive(path: &Path) -> io::Result<Self> {
        let file = lock_file(path)?;
        file.lock()?;
        Ok(Self { _file: file })
    }

    /// Takes the lock if nobody else holds it.
    pub fn try_exclusive(path: &Path) -> io::Result<Option<Self>> {
        let file = lock_file(path)?;
        Ok(try_lock(&file)?.then_some(Self { _file: file }))
    }
}

fn try_lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// A file or directory in the making; removed when dropped before it is kept.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    /// The file, or the directory opened for its lock.
    file: File,
    kept: bool,
}

impl Scratch {
    /// A new empty file in `tmp`, held by this process.
    pub fn file(tmp: &Path) -> io::Result<Self> {
        Self::new(tmp, |path| File::options().read(true).write(true).create_new(true).mode(0o600).open(path))
    }

    /// A new empty directory in `tmp`, held by this process.
    pub fn directory(tmp: &Path) -> io::Result<Self> {
        Self::new(tmp, |path| {
            fs::DirBuilder::new().mode(0o700).create(path)?;
            File::open(path)
        })
    }

    fn new(tmp: &Path, create: impl Fn(&Path) -> io::Result<File>) -> io::Result<Self> {
        loop {
            let path = tmp.join(new_name());
            let file = match create(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                // Swept between its creation and its opening.
                Err(error) if error.kind() == io::ErrorKind::NotFound && tmp.exists() => continue,
                Err(error) => return Err(error),
            };
            file.lock()?;
            // Between creation and lock a sweeper may have taken it for a leftover.
            let same = fs::symlink_metadata(&path)
                .is_ok_and(|now| file.metadata().is_ok_and(|own| (own.dev(), own.ino()) == (now.dev(), now.ino())));
            if same {
                return Ok(Self { path, file, kept: false });
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file, or the open directory.
    pub fn handle(&self) -> &File {
        &self.file
    }

    /// Makes the content durable, and the file read-only.
    pub fn seal(&self) -> io::Result<()> {
        if self.file.metadata()?.is_file() {
            self.file.set_permissions(fs::Permissions::from_mode(0o400))?;
        }
        self.file.sync_all()
    }

    /// Moves it to its place, over what is there. The place's directory is still to be synced.
    pub fn keep(mut self, place: &Path) -> io::Result<()> {
        fs::rename(&self.path, place)?;
        self.kept = true;
        Ok(())
    }

    /// Takes the name away and gives the file, which the kernel removes when it is closed.
    pub fn anonymous(mut self) -> io::Result<File> {
        fs::remove_file(&self.path)?;
        self.kept = true;
        self.file.try_clone()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.kept {
            remove(&self.path);
        }
    }
}

/// Removes a file or a directory with all in it. What cannot be removed is swept another time.
fn remove(path: &Path) {
    let is_directory = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let _ = if is_directory { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}

/// Takes something out of sight at one stroke and removes it. Needs no room on the disk: it may be full, and this the cure.
pub fn discard(tmp: &Path, path: &Path) -> io::Result<()> {
    let hidden = tmp.join(new_name());
    fs::rename(path, &hidden)?;
    // What a sweeper is faster to remove is gone as well.
    remove(&hidden);
    Ok(())
}

/// A name that nothing else has.
pub fn new_name() -> String {
    format!("{:016x}", RandomState::new().build_hasher().finish())
}

/// Writes a small file so that it is there wholly or not at all.
pub fn write_atomically(tmp: &Path, place: &Path, content: &[u8]) -> io::Result<()> {
    let scratch = Scratch::file(tmp)?;
    scratch.handle().write_all(content)?;
    scratch.seal()?;
    scratch.keep(place)?;
    match place.parent() {
        Some(directory) => sync_directory(directory),
        None => Ok(()),
    }
}

/// Makes renames in a directory durable.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Removes what no process holds. Returns how many things that were.
pub fn sweep(tmp: &Path) -> io::Result<usize> {
    let mut swept = 0;
    for entry in fs::read_dir(tmp)? {
        let path = entry?.path();
        let options = || File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(&path);
        // Gone meanwhile: its maker kept it or took it away.
        let Ok(file) = options() else { continue };
        if try_lock(&file)? {
            remove(&path);
            swept += 1;
        }
    }
    Ok(swept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_holds_is_swept() {
        let tmp = tempfile::tempdir().unwrap();
        let held = Scratch::file(tmp.path()).unwrap();
        let held_directory = Scratch::directory(tmp.path()).unwrap();
        fs::write(tmp.path().join("left"), "x").unwrap();
        fs::create_dir_all(tmp.path().join("left-too/deep")).unwrap();
        assert_eq!(sweep(tmp.path()).unwrap(), 2);
        assert_eq!(sweep(tmp.path()).unwrap(), 0);
        assert!(held.path().exists() && held_directory.path().exists());
        drop((held, held_directory));
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 0);
    }

    #[test]
    fn makers_and_sweepers_at_once_lose_nothing() {
        let tmp = tempfile::tempdir().unwrap();
        let place = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let (tmp, place) = (tmp.path(), place.path());
                scope.spawn(move || {
                    for i in 0..100 {
                        let name = place.join(format!("{worker}-{i}"));
                        write_atomically(tmp, &name, b"whole").unwrap();
                        sweep(tmp).unwrap();
                    }
                });
            }
        });
        let files: Vec<_> = fs::read_dir(place.path()).unwrap().collect();
        assert_eq!(files.len(), 400);
        assert!(files.into_iter().all(|file| fs::read(file.unwrap().path()).unwrap() == b"whole"));
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 0);
    }
}
