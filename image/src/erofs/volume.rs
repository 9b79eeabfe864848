//! Reads the files of an image, for [`super::unpack`] and [`super::merge`].
//!
//! Reads only the forms that [`super::image`] writes. An image is checked against its digest before it is in the store, but a
//! disk can fail: nothing that is read here is trusted, and what makes no sense is [`ReadError::Damaged`].

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{FileType, Mode, Timespec};

use super::limits::{MAX_FILE, MAX_NAME, MAX_SYMLINK};
use super::ondisk::{BLOCK, DIRENT_SIZE, INODE_SIZE, MAGIC, NO_BLOCK, SLOT, XATTR_ENTRY_SIZE, XATTR_HEADER_SIZE};
use super::xattr::{is_opaque_mark, prefix_of};

/// Why an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Its bytes make no sense.
    #[error("the layer is damaged ({0}); `podvm image verify` tells which, and importing the image again mends it")]
    Damaged(&'static str),
    /// Reading failed.
    #[error("reading the layer: {0}")]
    Io(#[from] io::Error),
}

type Result<T> = std::result::Result<T, ReadError>;

fn damaged<T>(what: &'static str) -> Result<T> {
    Err(ReadError::Damaged(what))
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

/// An opened image.
pub struct Volume<'a> {
    file: &'a File,
    size: u64,
    /// Where inode 0 would be.
    meta: u64,
    root: u64,
}

/// An inode as it is read.
#[derive(Debug, Clone)]
pub struct Inode {
    layout: u16,
    mode: u16,
    pub size: u64,
    union: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timespec,
    pub links: u32,
    /// Where its attributes begin and end; what is behind them is its data or map.
    attributes: (u64, u64),
}

impl Inode {
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(u32::from(self.mode))
    }

    pub fn is_directory(&self) -> bool {
        self.kind() == FileType::Directory
    }

    /// Whether it hides what has its name in the layers below.
    pub fn is_whiteout(&self) -> bool {
        self.kind() == FileType::CharacterDevice && self.union == 0
    }

    pub fn permissions(&self) -> Mode {
        Mode::from_raw_mode(u32::from(self.mode) & 0o7777)
    }

    /// Major and minor number (`new_decode_dev`).
    pub fn device(&self) -> (u32, u32) {
        ((self.union >> 8) & 0xfff, (self.union & 0xff) | ((self.union >> 12) & !0xff))
    }
}

/// The extended attributes of a file.
#[derive(Debug, Default)]
pub struct Attributes {
    /// Full name and value of each, without overlayfs's marks.
    pub own: Vec<(Vec<u8>, Vec<u8>)>,
    /// Overlayfs's marks of a directory that hides those of its name below.
    pub marks: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<'a> Volume<'a> {
    pub fn open(file: &'a File) -> Result<Self> {
        let size = file.metadata()?.len();
        let mut volume = Self { file, size, meta: 0, root: 0 };
        let mut superblock = [0; 128];
        volume.read_at(&mut superblock, 1024)?;
        if u32_at(&superblock, 0) != MAGIC {
            return damaged("it has no superblock");
        }
        volume.meta = u64::from(u32_at(&superblock, 40)) * BLOCK as u64;
        volume.root = u64::from(u16_at(&superblock, 14));
        Ok(volume)
    }

    /// The number of the root directory's inode.
    pub fn root(&self) -> u64 {
        self.root
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        match self.file.read_exact_at(buffer, offset) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => damaged("it is cut short"),
            other => Ok(other?),
        }
    }

    pub fn inode(&self, nid: u64) -> Result<Inode> {
        let Some(at) = nid.checked_mul(SLOT).and_then(|offset| offset.checked_add(self.meta)) else {
            return damaged("a file is beyond its end");
        };
        let mut bytes = [0; INODE_SIZE];
        self.read_at(&mut bytes, at)?;
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
        let inode = Inode {
            layout: format >> 1,
            mode: u16_at(&bytes, 4),
            size: u64_at(&bytes, 8),
            union: u32_at(&bytes, 16),
            uid: u32_at(&bytes, 24),
            gid: u32_at(&bytes, 28),
            mtime: Timespec { tv_sec: seconds, tv_nsec: i64::from(nanos).min(999_999_999) },
            links: u32_at(&bytes, 44),
            attributes: (behind, behind + attributes),
        };
        match inode.kind() {
            FileType::Directory if inode.size > self.size => damaged("a directory is larger than all"),
            FileType::RegularFile if inode.size > MAX_FILE => damaged("a file is too large"),
            FileType::Symlink if inode.size > MAX_SYMLINK as u64 => damaged("a link is too long"),
            _ => Ok(inode),
        }
    }

    /// Names and inodes of a directory, in its order, without itself and the one above it.
    pub fn entries(&self, directory: &Inode) -> Result<Vec<(Vec<u8>, u64)>> {
        let mut all = Vec::new();
        for block in 0..directory.size.div_ceil(BLOCK as u64) {
            let mut bytes = vec![0; (directory.size - block * BLOCK as u64).min(BLOCK as u64) as usize];
            self.read_data(directory, block * BLOCK as u64, &mut bytes)?;
            entries(&bytes, &mut all)?;
        }
        Ok(all)
    }

    /// Where a symbolic link leads.
    pub fn target(&self, link: &Inode) -> Result<Vec<u8>> {
        let mut target = vec![0; link.size as usize];
        self.read_data(link, 0, &mut target)?;
        Ok(target)
    }

    /// How far the piece at `offset` of a file's data goes, and whether it is a hole.
    pub fn extent(&self, inode: &Inode, offset: u64) -> Result<(u64, bool)> {
        let left = inode.size - offset;
        if inode.layout != 4 {
            return Ok((left, false));
        }
        let chunk = chunk_size(inode)?;
        Ok(((chunk - offset % chunk).min(left), self.chunk_block(inode, offset / chunk)? == NO_BLOCK))
    }

    fn chunk_block(&self, inode: &Inode, number: u64) -> Result<u32> {
        let mut entry = [0; 4];
        self.read_at(&mut entry, inode.attributes.1 + number * 4)?;
        Ok(u32::from_le_bytes(entry))
    }

    /// Reads data of a file that lies in one extent.
    pub fn read_data(&self, inode: &Inode, offset: u64, buffer: &mut [u8]) -> Result<()> {
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
            Some(at) if at <= self.size => self.read_at(buffer, at),
            _ => damaged("a file's data is beyond its end"),
        }
    }

    pub fn attributes(&self, inode: &Inode) -> Result<Attributes> {
        let (start, end) = inode.attributes;
        let mut bytes = vec![0; (end - start) as usize];
        self.read_at(&mut bytes, start)?;
        let mut attributes = Attributes::default();
        let mut rest = bytes.get(XATTR_HEADER_SIZE..).unwrap_or_default();
        while rest.len() >= XATTR_ENTRY_SIZE {
            let (length, value, index) = (usize::from(rest[0]), usize::from(u16_at(rest, 2)), rest[1]);
            let end = XATTR_ENTRY_SIZE + length + value;
            let Some(prefix) = prefix_of(index).filter(|_| end <= rest.len()) else {
                return damaged("an extended attribute makes no sense");
            };
            let name = &rest[XATTR_ENTRY_SIZE..XATTR_ENTRY_SIZE + length];
            let whole = [prefix, name].concat();
            if whole.contains(&0) {
                return damaged("an extended attribute's name makes no sense");
            }
            let list = if is_opaque_mark(index, name) { &mut attributes.marks } else { &mut attributes.own };
            list.push((whole, rest[end - value..end].to_vec()));
            rest = rest.get(end.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(attributes)
    }
}

fn chunk_size(inode: &Inode) -> Result<u64> {
    match inode.union {
        bits @ 0..=0x1f => Ok((BLOCK as u64) << bits),
        _ => damaged("a file's chunks have a form that is not written"),
    }
}

/// Names and inodes of one block of a directory.
fn entries(block: &[u8], all: &mut Vec<(Vec<u8>, u64)>) -> Result<()> {
    const WRONG: &str = "a directory makes no sense";
    if block.len() < DIRENT_SIZE {
        return damaged(WRONG);
    }
    let offset = |entry: usize| usize::from(u16_at(block, entry * DIRENT_SIZE + 8));
    let count = offset(0) / DIRENT_SIZE;
    if count == 0 || count * DIRENT_SIZE > block.len() {
        return damaged(WRONG);
    }
    for entry in 0..count {
        let end = if entry + 1 < count { offset(entry + 1) } else { block.len() };
        let Some(name) = block.get(offset(entry)..end) else { return damaged(WRONG) };
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        match name {
            b"." | b".." => {}
            name if name.is_empty() || name.len() > MAX_NAME || name.contains(&b'/') => return damaged(WRONG),
            name => all.push((name.to_vec(), u64_at(block, entry * DIRENT_SIZE))),
        }
    }
    Ok(())
}
