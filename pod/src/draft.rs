//! Files that appear whole or not at all, and of which nothing is left when their maker dies (open(2), `O_TMPFILE`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::unistd::linkat;

/// A file in the making, without a name; only where the filesystem has no such files, with one.
#[derive(Debug)]
pub struct Draft {
    file: File,
    name: Option<PathBuf>,
}

impl Draft {
    /// A new, empty file that is to get a name in `folder`, and permissions `mode` less the umask.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn new(folder: &Path, mode: u32) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(mode);
        match options.clone().custom_flags(OFlag::O_TMPFILE.bits()).open(folder) {
            Ok(file) => return Ok(Self { file, name: None }),
            // What filesystems and kernels without such files say.
            Err(error) if matches!(error.raw_os_error(), Some(nix::libc::EOPNOTSUPP | nix::libc::EISDIR)) => {}
            Err(error) => return Err(error),
        }
        let name = hidden_name(folder);
        let file = options.create_new(true).open(&name)?;
        Ok(Self { file, name: Some(name) })
    }

    /// A new, empty file that is to get the name `path`, or another in the same folder.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn of(path: &Path, mode: u32) -> io::Result<Self> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        Self::new(folder.unwrap_or(Path::new(".")), mode)
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// A path under which other processes can open the file while this one lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()))
    }

    /// Gives the file its name, in place of what has it: at each moment one of both is there.
    ///
    /// # Errors
    /// Those of linkat(2) and rename(2); nothing is left then.
    pub fn keep(mut self, path: &Path) -> io::Result<()> {
        let name = match self.name.take() {
            Some(name) => name,
            None => match self.link(path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    let name = hidden_name(path.parent().unwrap_or(Path::new("")));
                    self.link(&name)?;
                    name
                }
                other => return other,
            },
        };
        fs::rename(&name, path).inspect_err(|_| drop(fs::remove_file(&name)))
    }

    fn link(&self, path: &Path) -> io::Result<()> {
        Ok(linkat(AT_FDCWD, &self.path(), AT_FDCWD, path, AtFlags::AT_SYMLINK_FOLLOW)?)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(name) = self.name.take() {
            let _ = fs::remove_file(name);
        }
    }
}

fn hidden_name(folder: &Path) -> PathBuf {
    folder.join(format!(".new-{}", uuid::Uuid::new_v4()))
}

/// A file that a user has named for output. One that is there is replaced when all is written, where a link leads to it;
/// what is no file, such as a device or a pipe, is written to.
#[derive(Debug)]
pub enum Output {
    /// A file in the making, and its name.
    File(Draft, PathBuf),
    /// What is no file.
    Special(File),
}

impl Output {
    /// Opens it; a new file gets permissions `mode` less the umask.
    ///
    /// # Errors
    /// Those of open(2) and stat(2).
    pub fn open(path: &Path, mode: u32) -> io::Result<Self> {
        match fs::metadata(path) {
            Ok(metadata) if !metadata.is_file() => Ok(Self::Special(OpenOptions::new().write(true).open(path)?)),
            Ok(_) => {
                let path = fs::canonicalize(path)?;
                Ok(Self::File(Draft::of(&path, mode)?, path))
            }
            Err(_) => Ok(Self::File(Draft::of(path, mode)?, path.into())),
        }
    }

    /// What is written to.
    pub fn file(&self) -> &File {
        match self {
            Self::File(draft, _) => draft.file(),
            Self::Special(file) => file,
        }
    }

    /// Waits until a file is on its disk.
    ///
    /// # Errors
    /// Those of fsync(2).
    pub fn sync(&self) -> io::Result<()> {
        match self {
            Self::File(draft, _) => draft.file().sync_all(),
            Self::Special(_) => Ok(()),
        }
    }

    /// All is written.
    ///
    /// # Errors
    /// Those of [`Draft::keep`].
    pub fn keep(self) -> io::Result<()> {
        match self {
            Self::File(draft, path) => draft.keep(&path),
            Self::Special(_) => Ok(()),
        }
    }
}

/// Writes a file so that nobody ever reads a part of it.
///
/// # Errors
/// Those of [`Draft`], and of write(2).
pub fn write_whole(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let draft = Draft::of(path, mode)?;
    draft.file().write_all(content)?;
    draft.keep(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_replaces_the_one_before_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for content in ["one", "other"] {
            write_whole(&path, content.as_bytes(), 0o600).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        drop(Draft::new(folder.path(), 0o600).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn of_many_writers_at_once_one_comes_last_and_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..50 {
                        write_whole(path, format!("writer {writer}").as_bytes(), 0o600).unwrap();
                    }
                });
            }
        });
        assert_eq!(fs::read_to_string(&path).unwrap().len(), "writer 0".len());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_file_is_written_to_and_links_stay() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &Path, text: &str| {
            let output = Output::open(path, 0o600).unwrap();
            output.file().write_all(text.as_bytes()).unwrap();
            output.keep().unwrap();
        };
        let (pipe, file, link) = (folder.path().join("pipe"), folder.path().join("file"), folder.path().join("link"));
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut reader = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&pipe).unwrap();
        write(&pipe, "piped");
        let mut piped = [0; 5];
        io::Read::read_exact(&mut reader, &mut piped).unwrap();
        assert_eq!(&piped, b"piped");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for text in ["one", "other"] {
            fs::write(&file, "before").unwrap();
            write(&link, text);
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
            assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        }
        assert!(Output::open(folder.path(), 0o600).is_err());
    }

    #[test]
    fn a_directory_in_its_place_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("directory");
        fs::create_dir(&path).unwrap();
        assert!(write_whole(&path, b"x", 0o600).is_err());
        assert!(path.is_dir());
    }
}
