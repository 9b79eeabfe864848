//! Unpacks an image into a directory, for hosts that cannot mount it: those whose kernel lacks EROFS, and ordinary users.
//!
//! Reads only the forms that [`super::image`] writes. An image is checked against its digest before it is in the store, but a
//! disk can fail: nothing that is read here is trusted, and what makes no sense is [`UnpackError::Damaged`].

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::limits::MAX_NAME;
use super::ondisk::{BLOCK, DIRENT_SIZE, INODE_SIZE, NO_BLOCK, SLOT, XATTR_ENTRY_SIZE, XATTR_HEADER_SIZE};

/// Most directories in one another: their paths would be longer than any that the format's writer takes.
const MAX_DEPTH: usize = 2048;
/// Most bytes copied at once.
const PIECE: usize = 1 << 20;

/// Why an image was not unpacked. What was unpacked so far is left.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The image's bytes make no sense.
    #[error("the layer is damaged ({0}); `podvm image verify` tells which, and importing the image again mends it")]
    Damaged(&'static str),
    /// A file could not be made as it should be.
    #[error("{path:?}: {what}: {source}")]
    Io {
        /// Its path in the layer.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// An owner that this user has no ID for.
    #[error(
        "{path:?} belongs to user {uid} and group {gid}, which are not among this user's IDs; give the user more in /etc/subuid and /etc/subgid"
    )]
    Owner {
        /// Its path in the layer.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
    },
}

type Result<T> = std::result::Result<T, UnpackError>;

fn damaged<T>(what: &'static str) -> Result<T> {
    Err(UnpackError::Damaged(what))
}

/// Unpacks the image into `directory`, which must be empty and nobody else's to write to; it becomes the image's root directory.
///
/// Devices are left out where the process may make none, but for whiteouts, which everybody may make.
///
/// # Errors
/// [`UnpackError`].
pub fn unpack(image: &File, directory: &Path) -> Result<()> {
    let size = image.metadata().map_err(|source| io_error(Path::new("/"), "read", source))?.len();
    let mut superblock = [0; 128];
    read_at(image, &mut superblock, 1024)?;
    let meta = u64::from(u32_at(&superblock, 40)) * BLOCK as u64;
    let root = u64::from(u16_at(&superblock, 14));
    let at = File::open(directory).map_err(|source| io_error(Path::new("/"), "open", source))?;
    let mut unpacker =
        Unpacker { image, size, meta, root: at.into(), links: HashMap::new(), directories: HashSet::new() };
    let inode = unpacker.inode(root)?;
    if inode.kind() != FileType::Directory {
        return damaged("its root is no directory");
    }
    let root = rustix::fs::openat(&unpacker.root, ".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| io_error(Path::new("/"), "open", errno.into()))?;
    unpacker.fill(root, &inode, Path::new(""), 0)
}

fn io_error(path: &Path, what: &'static str, source: io::Error) -> UnpackError {
    UnpackError::Io { path: Path::new("/").join(path), what, source }
}

fn read_at(image: &File, buffer: &mut [u8], offset: u64) -> Result<()> {
    match image.read_exact_at(buffer, offset) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => damaged("it is cut short"),
        other => other.map_err(|source| io_error(Path::new(""), "read the layer", source)),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

struct Unpacker<'a> {
    image: &'a File,
    size: u64,
    /// Where inode 0 would be.
    meta: u64,
    root: OwnedFd,
    /// Where the first name of a file with several is.
    links: HashMap<u64, PathBuf>,
    /// The directories made so far: each has one place.
    directories: HashSet<u64>,
}

/// An inode as it is read.
struct Inode {
    layout: u16,
    mode: u16,
    size: u64,
    union: u32,
    uid: u32,
    gid: u32,
    mtime: Timespec,
    links: u32,
    /// Where its attributes begin and end; what is behind them is its data or map.
    attributes: (u64, u64),
}

impl Inode {
    fn kind(&self) -> FileType {
        FileType::from_raw_mode(u32::from(self.mode))
    }

    fn permissions(&self) -> Mode {
        Mode::from_raw_mode(u32::from(self.mode) & 0o7777)
    }

    /// Major and minor number (`new_decode_dev`).
    fn device(&self) -> (u32, u32) {
        ((self.union >> 8) & 0xfff, (self.union & 0xff) | ((self.union >> 12) & !0xff))
    }
}

impl Unpacker<'_> {
    fn inode(&self, nid: u64) -> Result<Inode> {
        let Some(at) = nid.checked_mul(SLOT).and_then(|offset| offset.checked_add(self.meta)) else {
            return damaged("a file is beyond its end");
        };
        let mut bytes = [0; INODE_SIZE];
        read_at(self.image, &mut bytes, at)?;
        let format = u16_at(&bytes, 0);
        if format & 1 != 1 {
            return damaged("a file has a form that is not written");
        }
        let attributes = match u64::from(u16_at(&bytes, 2)) {
            0 => 0,
            count => XATTR_HEADER_SIZE as u64 + 4 * (count - 1),
        };
        let behind = at + INODE_SIZE as u64;
        let (seconds, nanos) = (u64_at(&bytes, 32).cast_signed(), u32_at(&bytes, 40));
        Ok(Inode {
            layout: format >> 1,
            mode: u16_at(&bytes, 4),
            size: u64_at(&bytes, 8),
            union: u32_at(&bytes, 16),
            uid: u32_at(&bytes, 24),
            gid: u32_at(&bytes, 28),
            mtime: Timespec { tv_sec: seconds, tv_nsec: i64::from(nanos).min(999_999_999) },
            links: u32_at(&bytes, 44),
            attributes: (behind, behind + attributes),
        })
    }

    /// Makes what is in the directory `inode`, whose place is open as `directory`, and then gives it its own attributes.
    fn fill(&mut self, directory: OwnedFd, inode: &Inode, path: &Path, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return damaged("its directories have no end");
        }
        for block in 0..inode.size.div_ceil(BLOCK as u64) {
            let mut bytes = vec![0; (inode.size - block * BLOCK as u64).min(BLOCK as u64) as usize];
            self.read_data(inode, block * BLOCK as u64, &mut bytes)?;
            for (name, nid) in entries(&bytes)? {
                let path = path.join(std::ffi::OsStr::from_bytes(&name));
                self.make(&directory, &name, nid, &path, depth)?;
            }
        }
        self.dress(&directory, inode, path)
    }

    fn make(&mut self, directory: &OwnedFd, name: &[u8], nid: u64, path: &Path, depth: usize) -> Result<()> {
        let failed = |what| move |errno: Errno| io_error(path, what, errno.into());
        if let Some(first) = self.links.get(&nid) {
            return rustix::fs::linkat(&self.root, first, directory, name, AtFlags::empty()).map_err(failed("link"));
        }
        let inode = self.inode(nid)?;
        // Nobody but this process sees it before it has its own mode.
        let mode = Mode::RUSR | Mode::WUSR | Mode::XUSR;
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match inode.kind() {
            FileType::Directory if !self.directories.insert(nid) => return damaged("a directory is in two places"),
            FileType::Directory => {
                rustix::fs::mkdirat(directory, name, mode).map_err(failed("make the directory"))?;
                let opened = rustix::fs::openat(directory, name, flags | OFlags::DIRECTORY, Mode::empty());
                return self.fill(opened.map_err(failed("open the directory"))?, &inode, path, depth + 1);
            }
            FileType::RegularFile => {
                let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
                let file = rustix::fs::openat(directory, name, flags, mode).map_err(failed("make the file"))?;
                let file = File::from(file);
                self.copy(&inode, &file, path)?;
                self.dress(&file.into(), &inode, path)?;
            }
            FileType::Symlink => {
                let mut target = vec![0; inode.size.min(BLOCK as u64) as usize];
                self.read_data(&inode, 0, &mut target)?;
                rustix::fs::symlinkat(target.as_slice(), directory, name).map_err(failed("make the link"))?;
                self.dress_link(directory, name, &inode, path)?;
            }
            kind @ (FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo) => {
                let (major, minor) = inode.device();
                let device = rustix::fs::makedev(major, minor);
                match rustix::fs::mknodat(directory, name, kind, inode.permissions(), device) {
                    Err(Errno::PERM) => return Ok(()),
                    other => other.map_err(failed("make the device"))?,
                }
                self.dress_link(directory, name, &inode, path)?;
                if inode.union != 0 || kind == FileType::Fifo {
                    rustix::fs::chmodat(directory, name, inode.permissions(), AtFlags::empty())
                        .map_err(failed("set the mode"))?;
                }
            }
            _ => return damaged("a file is of no known kind"),
        }
        if inode.links > 1 {
            self.links.insert(nid, path.into());
        }
        Ok(())
    }

    /// Gives what is open its owner, attributes, mode and time: the mode after the owner, whose change takes set-user-ID away,
    /// and the time last.
    fn dress(&self, file: &OwnedFd, inode: &Inode, path: &Path) -> Result<()> {
        let failed = |what| move |errno: Errno| io_error(path, what, errno.into());
        let (uid, gid) = (rustix::fs::Uid::from_raw(inode.uid), rustix::fs::Gid::from_raw(inode.gid));
        rustix::fs::fchown(file, Some(uid), Some(gid)).map_err(|errno| owner_error(errno, inode, path))?;
        for (name, value) in self.attributes(inode)? {
            match rustix::fs::fsetxattr(file, name.as_slice(), &value, XattrFlags::empty()) {
                // Those only the host's root may set mean nothing to a pod of anyone else.
                Err(Errno::PERM) if name.starts_with(b"trusted.") => {}
                other => other.map_err(failed("set an extended attribute"))?,
            }
        }
        rustix::fs::fchmod(file, inode.permissions()).map_err(failed("set the mode"))?;
        rustix::fs::futimens(file, &times(inode)).map_err(failed("set the time"))
    }

    /// As [`Self::dress`] of what cannot be opened, without mode and attributes.
    fn dress_link(&self, directory: &OwnedFd, name: &[u8], inode: &Inode, path: &Path) -> Result<()> {
        let (uid, gid) = (rustix::fs::Uid::from_raw(inode.uid), rustix::fs::Gid::from_raw(inode.gid));
        rustix::fs::chownat(directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| owner_error(errno, inode, path))?;
        rustix::fs::utimensat(directory, name, &times(inode), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| io_error(path, "set the time", errno.into()))
    }

    /// Copies a file's data; holes stay holes.
    fn copy(&self, inode: &Inode, file: &File, path: &Path) -> Result<()> {
        file.set_len(inode.size).map_err(|source| io_error(path, "write", source))?;
        let mut buffer = vec![0; PIECE.min(inode.size as usize)];
        let mut at = 0;
        while at < inode.size {
            let (length, is_hole) = self.extent(inode, at)?;
            let length = length.min(inode.size - at).min(PIECE as u64);
            if !is_hole {
                let piece = &mut buffer[..length as usize];
                self.read_data(inode, at, piece)?;
                file.write_all_at(piece, at).map_err(|source| io_error(path, "write", source))?;
            }
            at += length;
        }
        Ok(())
    }

    /// How far the piece at `offset` of a file's data goes, and whether it is a hole.
    fn extent(&self, inode: &Inode, offset: u64) -> Result<(u64, bool)> {
        if inode.layout != 4 {
            return Ok((inode.size - offset, false));
        }
        let chunk = chunk_size(inode)?;
        Ok((chunk - offset % chunk, self.chunk_block(inode, offset / chunk)? == NO_BLOCK))
    }

    fn chunk_block(&self, inode: &Inode, number: u64) -> Result<u32> {
        let mut entry = [0; 4];
        read_at(self.image, &mut entry, inode.attributes.1 + number * 4)?;
        Ok(u32::from_le_bytes(entry))
    }

    /// Reads data of a file that lies in one extent.
    fn read_data(&self, inode: &Inode, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let block = |number: u32| u64::from(number) * BLOCK as u64;
        let start = match inode.layout {
            0 => block(inode.union),
            2 => inode.attributes.1,
            4 => {
                let chunk = chunk_size(inode)?;
                let first = block(self.chunk_block(inode, offset / chunk)?);
                return self.read_within(buffer, first, offset % chunk);
            }
            _ => return damaged("a file's data has a form that is not written"),
        };
        self.read_within(buffer, start, offset)
    }

    fn read_within(&self, buffer: &mut [u8], start: u64, offset: u64) -> Result<()> {
        match start.checked_add(offset) {
            Some(at) if at <= self.size => read_at(self.image, buffer, at),
            _ => damaged("a file's data is beyond its end"),
        }
    }

    fn attributes(&self, inode: &Inode) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let (start, end) = inode.attributes;
        let mut bytes = vec![0; (end - start) as usize];
        read_at(self.image, &mut bytes, start)?;
        let mut attributes = Vec::new();
        let mut rest = bytes.get(XATTR_HEADER_SIZE..).unwrap_or_default();
        while rest.len() >= XATTR_ENTRY_SIZE {
            let (name, value) = (usize::from(rest[0]), usize::from(u16_at(rest, 2)));
            let end = XATTR_ENTRY_SIZE + name + value;
            let Some(prefix) = super::xattr::prefix(rest[1]).filter(|_| end <= rest.len()) else {
                return damaged("an extended attribute makes no sense");
            };
            let name = [prefix, &rest[XATTR_ENTRY_SIZE..XATTR_ENTRY_SIZE + name]].concat();
            attributes.push((name, rest[end - value..end].to_vec()));
            rest = rest.get(end.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(attributes)
    }
}

fn owner_error(errno: Errno, inode: &Inode, path: &Path) -> UnpackError {
    match errno {
        Errno::INVAL => UnpackError::Owner { path: Path::new("/").join(path), uid: inode.uid, gid: inode.gid },
        errno => io_error(path, "set the owner", errno.into()),
    }
}

fn times(inode: &Inode) -> Timestamps {
    Timestamps { last_access: inode.mtime, last_modification: inode.mtime }
}

fn chunk_size(inode: &Inode) -> Result<u64> {
    match inode.union {
        bits @ 0..=0x1f => Ok((BLOCK as u64) << bits),
        _ => damaged("a file's chunks have a form that is not written"),
    }
}

/// Names and inodes of one block of a directory, without the directory itself and the one above it.
fn entries(block: &[u8]) -> Result<Vec<(Vec<u8>, u64)>> {
    const WRONG: &str = "a directory makes no sense";
    if block.len() < DIRENT_SIZE {
        return damaged(WRONG);
    }
    let offset = |entry: usize| usize::from(u16_at(block, entry * DIRENT_SIZE + 8));
    let count = offset(0) / DIRENT_SIZE;
    if count == 0 || count * DIRENT_SIZE > block.len() {
        return damaged(WRONG);
    }
    let mut entries = Vec::with_capacity(count);
    for entry in 0..count {
        let end = if entry + 1 < count { offset(entry + 1) } else { block.len() };
        let Some(name) = block.get(offset(entry)..end) else { return damaged(WRONG) };
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let nid = u64_at(block, entry * DIRENT_SIZE);
        match name {
            b"." | b".." => {}
            name if name.is_empty() || name.len() > MAX_NAME || name.contains(&b'/') => return damaged(WRONG),
            name => entries.push((name.to_vec(), nid)),
        }
    }
    Ok(entries)
}
