//! From a tar stream to a tree.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, chownat, fchmod, fchown, futimens, linkat,
    makedev, mkdirat, mknodat, openat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tar::{Archive, Entry, EntryType, PaxExtensions};

use super::{ArchiveError, at, directory_within, io_at};

/// Longest header that gives a name: several paths of the greatest length.
const MAX_HEADER: u64 = 64 << 10;
/// Most names of skipped files that are told.
const MAX_TOLD: usize = 16;

/// What is taken from a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy<'a> {
    /// Everything: into an app, which has no more of it than its walls allow.
    IntoApp,
    /// From an app, which may mean harm: no device files, no file that runs with its owner's privileges, and no first name
    /// but this one, so that the app does not choose what is replaced in a directory. Directories that are there stay as they are.
    OntoHost(&'a OsStr),
}

/// Where a stream goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Destination {
    /// As cp(1): into the directory if there is one, else under that name.
    Copy,
    /// What is below the stream's first name goes into the directory; it is made if it is not there.
    Contents,
    /// Into the directory, which must be there.
    Inside,
}

/// What became of a stream.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// How many files were left out by the [`Policy`].
    pub skipped: usize,
    /// Some of them.
    pub names: Vec<PathBuf>,
}

/// Unpacks a stream at `path` within `root`.
///
/// # Errors
/// [`ArchiveError`]; what was unpacked before stays.
pub fn unpack(
    root: BorrowedFd<'_>,
    path: &Path,
    destination: Destination,
    policy: Policy<'_>,
    from: impl Read,
) -> Result<Unpacked, ArchiveError> {
    let (base, top) = match (directory_within(root, path)?, destination) {
        (Some(directory), _) => (directory, None),
        (None, Destination::Inside) => return Err(ArchiveError::NoDirectory(path.into())),
        (None, Destination::Copy | Destination::Contents) => {
            let is_directory = destination == Destination::Copy && path.as_os_str().as_bytes().ends_with(b"/");
            let name = path.file_name().filter(|_| !is_directory);
            let name = name.ok_or_else(|| ArchiveError::NoDirectory(path.into()))?;
            let parent = path.parent().unwrap_or(Path::new("."));
            let parent = directory_within(root, parent)?.ok_or_else(|| ArchiveError::NoDirectory(parent.into()))?;
            (parent, Some(name.to_owned()))
        }
    };
    let mut unpacker = Unpacker { base, destination, top, policy, done: Unpacked::default() };
    let mut archive = Archive::new(from);
    let mut long = LongNames::default();
    for entry in archive.entries().map_err(ArchiveError::Stream)?.raw(true) {
        let mut entry = entry.map_err(ArchiveError::Stream)?;
        if !long.take(&mut entry)? {
            let names = std::mem::take(&mut long);
            unpacker.entry(&mut entry, names)?;
        }
    }
    // What is behind the last entry is read, so that who writes it sees no broken pipe.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(ArchiveError::Stream)?;
    Ok(unpacker.done)
}

/// Names of the next entry that do not fit into its header.
#[derive(Default)]
struct LongNames {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl LongNames {
    /// Reads an entry that only tells of the next; false when it is one of its own.
    fn take(&mut self, entry: &mut Entry<'_, impl Read>) -> Result<bool, ArchiveError> {
        let kind = entry.header().entry_type();
        match kind {
            EntryType::GNULongName => self.path = Some(text(content(entry)?)),
            EntryType::GNULongLink => self.link = Some(text(content(entry)?)),
            EntryType::XHeader => {
                let records = content(entry)?;
                for record in PaxExtensions::new(&records) {
                    let record = record.map_err(ArchiveError::Stream)?;
                    match record.key_bytes() {
                        b"path" => self.path = Some(record.value_bytes().to_vec()),
                        b"linkpath" => self.link = Some(record.value_bytes().to_vec()),
                        // A length that the header does not have would be read past.
                        b"size" => return Err(ArchiveError::Stream(io::ErrorKind::Unsupported.into())),
                        _ => {}
                    }
                }
            }
            EntryType::XGlobalHeader => drop(content(entry)?),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn content(entry: &mut Entry<'_, impl Read>) -> Result<Vec<u8>, ArchiveError> {
    let size = entry.header().entry_size().map_err(ArchiveError::Stream)?;
    if size > MAX_HEADER {
        return Err(ArchiveError::Header(size));
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(ArchiveError::Stream)?;
    Ok(bytes)
}

/// A C string's bytes.
fn text(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
    bytes
}

struct Unpacker<'a> {
    base: OwnedFd,
    destination: Destination,
    /// What the stream's first name becomes.
    top: Option<OsString>,
    policy: Policy<'a>,
    done: Unpacked,
}

impl Unpacker<'_> {
    fn entry(&mut self, entry: &mut Entry<'_, impl Read>, names: LongNames) -> Result<(), ArchiveError> {
        let path = names.path.unwrap_or_else(|| entry.path_bytes().into_owned());
        let path = self.placed(&path)?;
        // The directory that everything goes into is there already, and stays as it is.
        let (Some(name), parent) = (path.file_name(), path.parent().unwrap_or(Path::new(""))) else { return Ok(()) };
        let parent = self.parent(parent, true)?;
        let link = || names.link.clone().or_else(|| entry.link_name_bytes().map(|name| name.into_owned()));
        let header = entry.header();
        let owner = Owner::of(entry, self.policy)?;
        match header.entry_type() {
            EntryType::Directory => {
                return make_directory(parent.as_fd(), name, &owner, self.policy).map_err(|errno| match errno {
                    Errno::NOTDIR | Errno::LOOP => ArchiveError::NoDirectory(path),
                    errno => at(&path)(errno),
                });
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                if header.entry_type() == EntryType::GNUSparse {
                    return Err(ArchiveError::Stream(io::ErrorKind::Unsupported.into()));
                }
                return write_file(parent.as_fd(), name, &owner, entry, &path);
            }
            EntryType::Symlink => {
                let target = OsString::from_vec(link().unwrap_or_default());
                make_room(parent.as_fd(), name)
                    .and_then(|()| symlinkat(&target, &parent, name))
                    .and_then(|()| owner.give_link(parent.as_fd(), name))
            }
            EntryType::Link => {
                let target = self.placed(&link().unwrap_or_default())?;
                let (from, target_name) =
                    (target.parent().unwrap_or(Path::new("")), target.file_name().unwrap_or_default());
                let from = self.parent(from, false)?;
                make_room(parent.as_fd(), name)
                    .and_then(|()| linkat(&from, target_name, &parent, name, AtFlags::empty()))
            }
            EntryType::Fifo => make_node(parent.as_fd(), name, FileType::Fifo, 0, &owner),
            kind @ (EntryType::Char | EntryType::Block) if self.policy == Policy::IntoApp => {
                let number = |number: io::Result<Option<u32>>| number.map(Option::unwrap_or_default);
                let major = number(header.device_major()).map_err(ArchiveError::Stream)?;
                let minor = number(header.device_minor()).map_err(ArchiveError::Stream)?;
                let kind = if kind == EntryType::Char { FileType::CharacterDevice } else { FileType::BlockDevice };
                make_node(parent.as_fd(), name, kind, makedev(major, minor), &owner)
            }
            _ => {
                self.done.skipped += 1;
                if self.done.names.len() < MAX_TOLD {
                    self.done.names.push(path);
                }
                return Ok(());
            }
        }
        .map_err(at(&path))
    }

    /// Where a name of the stream is, below [`Self::base`].
    fn placed(&self, name: &[u8]) -> Result<PathBuf, ArchiveError> {
        let wrong = || ArchiveError::Name(String::from_utf8_lossy(name).into_owned());
        let mut parts = Vec::new();
        for component in Path::new(OsStr::from_bytes(name)).components() {
            match component {
                Component::Normal(part) if !part.as_bytes().contains(&0) => parts.push(part),
                Component::CurDir => {}
                _ => return Err(wrong()),
            }
        }
        self.check_first(parts.first().copied().unwrap_or_default())?;
        if self.destination == Destination::Inside || (self.destination == Destination::Copy && self.top.is_none()) {
            return Ok(parts.iter().collect());
        }
        if parts.is_empty() {
            return Err(wrong());
        }
        Ok(self.top.as_deref().into_iter().chain(parts.into_iter().skip(1)).collect())
    }

    fn check_first(&self, name: &OsStr) -> Result<(), ArchiveError> {
        match self.policy {
            Policy::OntoHost(asked) if self.destination != Destination::Inside && name != asked => {
                let shown = |name: &OsStr| name.to_string_lossy().into_owned();
                Err(ArchiveError::Unasked { name: shown(name), asked: shown(asked) })
            }
            _ => Ok(()),
        }
    }

    /// The directory at a path below the base; made where it is missing, if wanted. No symbolic link is followed.
    fn parent(&self, path: &Path, make: bool) -> Result<OwnedFd, ArchiveError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut here = self.base.try_clone().map_err(io_at(path))?;
        for name in path {
            let opened = match openat(&here, name, flags, Mode::empty()) {
                Err(Errno::NOENT) if make => {
                    mkdirat(&here, name, Mode::from_raw_mode(0o755)).map_err(at(path))?;
                    openat(&here, name, flags, Mode::empty())
                }
                other => other,
            };
            here = match opened {
                Err(Errno::NOTDIR | Errno::LOOP | Errno::NOENT) => return Err(ArchiveError::NoDirectory(path.into())),
                other => other.map_err(at(path))?,
            };
        }
        Ok(here)
    }
}

/// Owner, mode and time of an entry.
struct Owner {
    uid: u32,
    gid: u32,
    mode: Mode,
    time: i64,
}

impl Owner {
    fn of(entry: &Entry<'_, impl Read>, policy: Policy<'_>) -> Result<Self, ArchiveError> {
        let header = entry.header();
        let invalid = || ArchiveError::Stream(io::ErrorKind::InvalidData.into());
        let number = |number: io::Result<u64>| number.ok().and_then(|number| u32::try_from(number).ok());
        let mode = header.mode().map_err(ArchiveError::Stream)?;
        let allowed = match policy {
            Policy::IntoApp => 0o7777,
            // What runs with its owner's privileges would be the app's hand at the host.
            Policy::OntoHost(_) => 0o1777,
        };
        Ok(Self {
            uid: number(header.uid()).filter(|uid| *uid != u32::MAX).ok_or_else(invalid)?,
            gid: number(header.gid()).filter(|gid| *gid != u32::MAX).ok_or_else(invalid)?,
            mode: Mode::from_raw_mode(mode & allowed),
            time: header.mtime().ok().and_then(|time| i64::try_from(time).ok()).unwrap_or(0),
        })
    }

    fn ids(&self) -> (Option<Uid>, Option<Gid>) {
        (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
    }

    /// The owner first: a change of it takes away modes.
    fn give(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        if is_privileged() {
            let (uid, gid) = self.ids();
            fchown(file, uid, gid)?;
        }
        fchmod(file, self.mode)
    }

    fn give_link(&self, directory: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
        if !is_privileged() {
            return Ok(());
        }
        let (uid, gid) = self.ids();
        chownat(directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
    }
}

/// Whether files can be given to others. What an ordinary user copies is that user's.
fn is_privileged() -> bool {
    rustix::process::geteuid().is_root()
}

/// A file takes the place of a file or a link. Replacing a device, a pipe or a socket would take it from those who use it.
fn refuse_special(directory: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    let there = match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        other => FileType::from_raw_mode(other?.st_mode),
    };
    let is_replaced = matches!(there, FileType::RegularFile | FileType::Symlink | FileType::Directory);
    if is_replaced { Ok(()) } else { Err(Errno::EXIST) }
}

/// Removes what has the name, unless it is a directory.
fn make_room(directory: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    match unlinkat(directory, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

fn make_directory(parent: BorrowedFd<'_>, name: &OsStr, owner: &Owner, policy: Policy<'_>) -> Result<(), Errno> {
    let is_there = match mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
        Err(Errno::EXIST) => true,
        other => other.map(|()| false)?,
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(parent, name, flags, Mode::empty())?;
    match policy {
        // Who may enter a directory of the host is not the app's to say.
        Policy::OntoHost(_) if is_there => Ok(()),
        _ => owner.give(directory.as_fd()),
    }
}

fn make_node(parent: BorrowedFd<'_>, name: &OsStr, kind: FileType, device: u64, owner: &Owner) -> Result<(), Errno> {
    make_room(parent, name)?;
    mknodat(parent, name, kind, owner.mode, device)?;
    owner.give_link(parent, name)
}

fn write_file(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    owner: &Owner,
    content: &mut impl Read,
    path: &Path,
) -> Result<(), ArchiveError> {
    refuse_special(parent, name).map_err(at(path))?;
    make_room(parent, name).map_err(at(path))?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(parent, name, flags, Mode::from_raw_mode(0o600)).map_err(at(path))?);
    io::copy(content, &mut file).map_err(io_at(path))?;
    let time = Timespec { tv_sec: owner.time, tv_nsec: 0 };
    let given = owner.give(file.as_fd());
    // Of another age it is still the same file.
    let _ = futimens(&file, &Timestamps { last_access: time, last_modification: time });
    given.map_err(at(path))
}
