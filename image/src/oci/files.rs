//! The files of an image as it is handed over: a directory, or a tar archive that is read in place.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::error::{OciError, harmless};
use crate::decode::{Compression, decode};
use crate::erofs::MAX_PATH;
use crate::tar::{Kind, Seekable, TarError, TarReader, show};

/// Most files of an archive of images.
const MAX_FILES: usize = 200_000;
/// Most links followed from one name of an archive to its file.
const MAX_LINKS: usize = 8;
/// Largest compressed archive when unpacked, which needs so much scratch space.
const MAX_UNPACKED: u64 = 512 << 30;

/// Size of a tar header.
const BLOCK: u64 = crate::tar::BLOCK as u64;

/// Named files, opened by name.
#[derive(Debug)]
pub enum Files {
    /// A directory.
    Directory(PathBuf),
    /// A tar archive.
    Archive {
        /// For messages.
        path: PathBuf,
        /// The archive, or its plain form.
        file: Arc<File>,
        /// What it holds.
        members: HashMap<Vec<u8>, Member>,
    },
}

/// A file of an archive.
#[derive(Debug, Clone)]
pub enum Member {
    /// Offset and size.
    File(u64, u64),
    /// Stands for another file: Docker's old archives name equal layers so.
    Link(Vec<u8>),
}

/// One opened file, or the part of an archive that it is.
#[derive(Debug, Clone)]
pub struct Slice {
    file: Arc<File>,
    position: u64,
    end: u64,
}

impl Slice {
    /// A whole file.
    pub(crate) fn whole(file: File) -> io::Result<Self> {
        let end = file.metadata()?.len();
        Ok(Self { file: Arc::new(file), position: 0, end })
    }

    /// Bytes not yet read.
    pub fn remaining(&self) -> u64 {
        self.end.saturating_sub(self.position)
    }
}

impl Read for Slice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self.remaining().min(buffer.len() as u64) as usize;
        let n = self.file.read_at(&mut buffer[..most], self.position)?;
        if n == 0 && most > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter"));
        }
        self.position += n as u64;
        Ok(n)
    }
}

impl Files {
    /// Opens a directory or an archive. A compressed archive is unpacked into a file that `scratch` makes.
    pub fn open(path: &Path, scratch: &dyn Fn() -> io::Result<File>) -> Result<Self, OciError> {
        let io_error = |source| OciError::Io { path: path.to_owned(), source };
        let file = open_without_waiting(path).map_err(io_error)?;
        let metadata = file.metadata().map_err(io_error)?;
        if metadata.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        if !metadata.is_file() {
            return Err(OciError::NotAnImage { path: path.to_owned() });
        }
        Self::archive(unpacked(file, scratch).map_err(io_error)?, path)
    }

    /// Opens an archive that arrives as a stream, which goes into a file that `scratch` makes.
    pub fn from_stream(
        stream: &mut dyn Read,
        path: &Path,
        scratch: &dyn Fn() -> io::Result<File>,
    ) -> Result<Self, OciError> {
        let stored = scratch().and_then(|plain| store_plain(stream, plain));
        Self::archive(stored.map_err(|source| OciError::Io { path: path.to_owned(), source })?, path)
    }

    fn archive(file: File, path: &Path) -> Result<Self, OciError> {
        let members = index(&file, path)?;
        Ok(Self::Archive { path: path.to_owned(), file: Arc::new(file), members })
    }

    /// The file of this name, or `None` when there is none.
    pub fn find(&self, name: &str) -> Result<Option<Slice>, OciError> {
        match self {
            Self::Directory(directory) => {
                let is_inside = Path::new(name).components().all(|c| matches!(c, Component::Normal(_)));
                if !is_inside {
                    return Ok(None);
                }
                let path = directory.join(name);
                let io_error = |source| OciError::Io { path: path.clone(), source };
                let file = match open_without_waiting(&path) {
                    Ok(file) => file,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(io_error(error)),
                };
                let metadata = file.metadata().map_err(io_error)?;
                if !metadata.is_file() {
                    return Err(io_error(io::Error::other("not a regular file")));
                }
                Ok(Some(Slice { file: Arc::new(file), position: 0, end: metadata.len() }))
            }
            Self::Archive { file, members, .. } => {
                let mut name = clean(name.as_bytes());
                for _ in 0..MAX_LINKS {
                    match members.get(&name) {
                        Some(&Member::File(offset, size)) => {
                            let file = Arc::clone(file);
                            return Ok(Some(Slice { file, position: offset, end: offset + size }));
                        }
                        Some(Member::Link(target)) => name.clone_from(target),
                        None => return Ok(None),
                    }
                }
                Ok(None)
            }
        }
    }

    /// The file of this name, which must be there.
    pub fn get(&self, name: &str) -> Result<Slice, OciError> {
        self.find(name)?.ok_or_else(|| OciError::MissingFile { file: self.describe(name) })
    }

    /// All of a small file.
    pub fn read(&self, name: &str, most: u64) -> Result<Vec<u8>, OciError> {
        let slice = self.get(name)?;
        if slice.remaining() > most {
            return Err(OciError::TooLarge { file: self.describe(name), size: slice.remaining(), most });
        }
        let mut bytes = Vec::with_capacity(slice.remaining() as usize);
        let mut slice = slice;
        slice.read_to_end(&mut bytes).map_err(|source| OciError::Io { path: self.describe(name).into(), source })?;
        Ok(bytes)
    }

    /// How messages name a file: its path, or the archive and the name within.
    pub fn describe(&self, name: &str) -> String {
        match self {
            Self::Directory(directory) => directory.join(harmless(name)).display().to_string(),
            Self::Archive { path, .. } => format!("{} in {}", harmless(name), path.display()),
        }
    }
}

/// Opens for reading; a pipe without a writer does not make it wait.
pub(crate) fn open_without_waiting(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

/// The archive itself, or its plain form in a scratch file.
fn unpacked(mut file: File, scratch: &dyn Fn() -> io::Result<File>) -> io::Result<File> {
    let mut start = [0; 6];
    let n = file.read_at(&mut start, 0)?;
    if Compression::of(&start[..n]) == Compression::None {
        return Ok(file);
    }
    file.rewind()?;
    store_plain(&mut file, scratch()?)
}

/// Writes a stream's plain form to a file.
fn store_plain(stream: &mut dyn Read, mut plain: File) -> io::Result<File> {
    let mut stream = decode(BufReader::with_capacity(256 * 1024, stream))?.take(MAX_UNPACKED + 1);
    if io::copy(&mut stream, &mut plain)? > MAX_UNPACKED {
        return Err(io::Error::other(format!("it unpacks to more than {} GiB", MAX_UNPACKED >> 30)));
    }
    Ok(plain)
}

/// A name without `.` components and leading slashes, as members are looked up.
fn clean(name: &[u8]) -> Vec<u8> {
    let parts = name.split(|&b| b == b'/').filter(|part| !matches!(*part, b"" | b"."));
    parts.collect::<Vec<_>>().join(&b'/')
}

/// Where a symbolic link in an archive leads, `..` taken by name only.
fn link_target(name: &[u8], target: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    if !target.starts_with(b"/") {
        parts.extend(name.split(|&b| b == b'/'));
        parts.pop();
    }
    for part in target.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

fn index(file: &File, path: &Path) -> Result<HashMap<Vec<u8>, Member>, OciError> {
    let tar_error = |source| match source {
        // Not even one entry: it is no archive at all.
        TarError::Header { offset: 0, .. } | TarError::Truncated { offset: 0..BLOCK } => {
            OciError::NotAnImage { path: path.to_owned() }
        }
        source => OciError::Archive { path: path.to_owned(), source },
    };
    let input = Seekable::new(file).map_err(|source| OciError::Io { path: path.to_owned(), source })?;
    let mut reader = TarReader::new(input);
    let mut members = HashMap::new();
    while let Some(entry) = reader.next_entry().map_err(tar_error)? {
        let name = clean(&entry.path);
        let is_too_long = |name: &[u8]| name.len() > MAX_PATH;
        if is_too_long(&name) || matches!(&entry.kind, Kind::Symlink(to) | Kind::HardLink(to) if is_too_long(to)) {
            continue;
        }
        let member = match entry.kind {
            Kind::File { segments: Some(_), .. } => {
                return Err(OciError::SparseMember { path: path.to_owned(), name: show(&name) });
            }
            Kind::File { size, .. } => Member::File(reader.offset(), size),
            Kind::Symlink(target) => Member::Link(link_target(&name, &target)),
            Kind::HardLink(target) => Member::Link(clean(&target)),
            _ => continue,
        };
        members.insert(name, member);
        if members.len() > MAX_FILES {
            return Err(OciError::TooManyFiles { path: path.to_owned(), most: MAX_FILES });
        }
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tar::builder::{Member as TarMember, archive};

    #[test]
    fn links_of_an_archive_lead_to_files_of_the_archive_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.tar");
        let members = [
            TarMember::file("./a/layer.tar", "data"),
            TarMember::symlink("b/layer.tar", "../a/layer.tar"),
            TarMember::symlink("out", "../../../etc/passwd"),
            TarMember::symlink("loop", "loop"),
        ];
        std::fs::write(&path, archive(&members)).unwrap();
        let files = Files::open(&path, &tempfile::tempfile).unwrap();
        assert_eq!(files.read("b/layer.tar", 10).unwrap(), b"data");
        assert!(matches!(files.read("a/layer.tar", 3), Err(OciError::TooLarge { .. })));
        assert!(files.find("out").unwrap().is_none());
        assert!(files.find("loop").unwrap().is_none());
        let error = files.get("none").unwrap_err().to_string();
        assert!(error.contains("none in ") && error.contains("a.tar"), "{error}");
    }

    #[test]
    fn names_do_not_lead_out_of_a_directory() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("secret"), "x").unwrap();
        std::fs::create_dir(directory.path().join("layout")).unwrap();
        let files = Files::open(&directory.path().join("layout"), &tempfile::tempfile).unwrap();
        for name in ["../secret", "/etc/passwd", "./../secret"] {
            assert!(files.find(name).unwrap().is_none(), "{name}");
        }
    }

    #[test]
    fn a_directory_may_hold_no_pipes() {
        let directory = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&directory.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let files = Files::open(directory.path(), &tempfile::tempfile).unwrap();
        assert!(files.find("pipe").unwrap_err().to_string().contains("not a regular file"));
        assert!(matches!(
            Files::open(&directory.path().join("pipe"), &tempfile::tempfile),
            Err(OciError::NotAnImage { .. })
        ));
    }
}
