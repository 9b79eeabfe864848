//! From a tree to a tar stream.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat};
use tar::{Builder, EntryType, Header};

use super::{ArchiveError, at, io_at, open_within, reopen};

/// Most levels of directories: each takes a descriptor and some stack while it is walked.
const MAX_DEPTH: usize = 400;

/// Packs the file or tree at `path` within `root`, its first name being `top`; returns the stream. A link at the very end of the
/// path is packed as a link. Owners, modes and times are kept, hard links too; sockets are left out.
///
/// # Errors
/// [`ArchiveError`]; the stream is then broken off.
pub fn pack<W: Write>(root: BorrowedFd<'_>, path: &Path, top: &Path, to: W) -> Result<W, ArchiveError> {
    let mut builder = Builder::new(to);
    builder.mode(tar::HeaderMode::Complete);
    let found = open_within(root, path, OFlags::PATH | OFlags::NOFOLLOW)?;
    let stat = fstat(&found).map_err(at(path))?;
    let mut packer = Packer { builder, linked: HashMap::new() };
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        let directory = open_within(root, path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        packer.directory(directory.as_fd(), &stat, top, 0)?;
    } else {
        // Opened again by name in its directory, for what is open as a path can be neither read nor read as a link.
        let (parent, name) = (path.parent().unwrap_or(Path::new("/")), path.file_name().unwrap_or_default());
        let parent_fd = open_within(root, parent, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let name = std::ffi::CString::new(name.as_bytes()).unwrap_or_default();
        packer.entry(parent_fd.as_fd(), &name, top, 0)?;
    }
    packer.builder.into_inner().map_err(ArchiveError::Stream)
}

struct Packer<W: Write> {
    builder: Builder<W>,
    /// Where files with several names were packed first, by device and inode.
    linked: HashMap<(u64, u64), PathBuf>,
}

impl<W: Write> Packer<W> {
    fn directory(
        &mut self,
        directory: BorrowedFd<'_>,
        stat: &Stat,
        name: &Path,
        depth: usize,
    ) -> Result<(), ArchiveError> {
        if depth > MAX_DEPTH {
            return Err(ArchiveError::TooDeep(name.into()));
        }
        self.append(&mut header(stat, EntryType::Directory), name, io::empty())?;
        let mut names = Vec::new();
        for entry in Dir::new(reopen(directory).map_err(at(name))?).map_err(at(name))? {
            let entry = entry.map_err(at(name))?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
        }
        names.sort();
        names.iter().try_for_each(|entry| {
            let inner = name.join(OsStr::from_bytes(entry.to_bytes()));
            self.entry(directory, entry, &inner, depth + 1)
        })
    }

    fn entry(
        &mut self,
        directory: BorrowedFd<'_>,
        entry: &CStr,
        name: &Path,
        depth: usize,
    ) -> Result<(), ArchiveError> {
        let found = match openat(directory, entry, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            // Removed since the directory was read.
            Err(rustix::io::Errno::NOENT) if depth > 0 => return Ok(()),
            other => other.map_err(at(name))?,
        };
        let stat = fstat(&found).map_err(at(name))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Directory && stat.st_nlink > 1 {
            let first = self.linked.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| name.into()).clone();
            if first != name {
                return self.append_link(&mut header(&stat, EntryType::Link), name, &first);
            }
        }
        let open = |flags| openat(directory, entry, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
        match kind {
            FileType::Directory => {
                let inner = open(OFlags::RDONLY | OFlags::DIRECTORY).map_err(at(name))?;
                self.directory(inner.as_fd(), &stat, name, depth)
            }
            FileType::RegularFile => {
                // It may have become something whose opening waits, or whose reading never ends.
                let file = File::from(open(OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY).map_err(at(name))?);
                let stat = fstat(&file).map_err(at(name))?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    return Ok(());
                }
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                let mut header = header(&stat, EntryType::Regular);
                header.set_size(size);
                // A file that shrinks meanwhile is filled up: the stream has promised its length.
                self.append(&mut header, name, file.take(size).chain(io::repeat(0)).take(size))
            }
            FileType::Symlink => {
                let target = readlinkat(directory, entry, Vec::new()).map_err(at(name))?;
                let target = PathBuf::from(OsStr::from_bytes(target.to_bytes()));
                self.append_link(&mut header(&stat, EntryType::Symlink), name, &target)
            }
            FileType::Fifo => self.append(&mut header(&stat, EntryType::Fifo), name, io::empty()),
            FileType::CharacterDevice => self.append_device(&stat, EntryType::Char, name),
            FileType::BlockDevice => self.append_device(&stat, EntryType::Block, name),
            // A socket means nothing without who listens.
            _ => Ok(()),
        }
    }

    fn append_device(&mut self, stat: &Stat, kind: EntryType, name: &Path) -> Result<(), ArchiveError> {
        let mut header = header(stat, kind);
        header.set_device_major(rustix::fs::major(stat.st_rdev)).map_err(io_at(name))?;
        header.set_device_minor(rustix::fs::minor(stat.st_rdev)).map_err(io_at(name))?;
        self.append(&mut header, name, io::empty())
    }

    fn append(&mut self, header: &mut Header, name: &Path, content: impl Read) -> Result<(), ArchiveError> {
        self.builder.append_data(header, name, content).map_err(io_at(name))
    }

    fn append_link(&mut self, header: &mut Header, name: &Path, target: &Path) -> Result<(), ArchiveError> {
        self.builder.append_link(header, name, target).map_err(io_at(name))
    }
}

fn header(stat: &Stat, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(0);
    header.set_mode(stat.st_mode & 0o7777);
    // An ordinary user is the root of the user's pods.
    let of_user = |id: u32| if rustix::process::geteuid().is_root() { id.into() } else { 0 };
    header.set_uid(of_user(stat.st_uid));
    header.set_gid(of_user(stat.st_gid));
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header
}
