//! Makes a tar stream of an EROFS image that [`super::build`] has made: the way back, for exports.
//!
//! Reads only what that writes. The images lie in the store, where only root writes; still, nothing in them is
//! trusted to be in bounds.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;

use super::limits::{MAX_NAME, MAX_PATH, MAX_SYMLINK};
use super::ondisk::{
    BLOCK, DIRENT_SIZE, INODE_SIZE, MAGIC, NO_BLOCK, SLOT, SUPER_OFFSET, XATTR_ENTRY_SIZE, XATTR_HEADER_SIZE,
};
use super::xattr::{is_opaque_mark, prefix_of};
use crate::tar::{Entry, Kind, TarWriter, Timestamp};

/// Largest directory that is read; a name has at most 255 bytes.
const MAX_DIRECTORY: u64 = 1 << 30;
/// What stands before the name of something that is hidden in the layers below, and for all of a directory.
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

const EXTENDED: u16 = 1;
const PLAIN: u16 = 0;
const INLINE: u16 = 2;
const CHUNKS: u16 = 4;

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the layer's EROFS image is damaged: {what}"))
}

/// Writes all files of an image, directories before what is in them, names sorted.
pub fn write_tar(image: &File, output: impl Write) -> io::Result<()> {
    let mut tar = TarWriter::new(output);
    write_part(image, &mut tar, &Part { prefix: b"", keep: &|_, _| true })?;
    tar.finish()?.flush()
}

/// Which of an image's files are written, and under which names.
pub struct Part<'a> {
    /// Stands before all names.
    pub prefix: &'a [u8],
    /// Whether the file of this path, or the directory, is among them. Of a directory that is not, nothing is.
    pub keep: &'a dyn Fn(&[u8], bool) -> bool,
}

/// Adds files of an image to an archive, as [`write_tar`] does. What hides files of layers below cannot be told apart from what
/// is there under a prefix, and is for whole layers only.
pub fn write_part(image: &File, tar: &mut TarWriter<impl Write>, part: &Part<'_>) -> io::Result<()> {
    let size = image.metadata()?.len();
    let mut head = [0; 128];
    image.read_exact_at(&mut head, SUPER_OFFSET as u64)?;
    if u32_at(&head, 0) != MAGIC {
        return Err(broken("no superblock"));
    }
    let meta = u64::from(u32_at(&head, 40)) * BLOCK as u64;
    let mut unpacker = Unpacker { image: Image { file: image, size, meta }, tar, part, seen: HashMap::new() };
    unpacker.all(u64::from(u16_at(&head, 14)))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// An inode, and where what belongs to it lies.
struct Inode {
    mode: u16,
    layout: u16,
    size: u64,
    union: u32,
    uid: u32,
    gid: u32,
    mtime: Timestamp,
    links: u32,
    /// Full name, value.
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    is_opaque: bool,
    /// Behind the inode and its attributes.
    behind: u64,
}

struct Image<'a> {
    file: &'a File,
    size: u64,
    /// Where the metadata area begins.
    meta: u64,
}

impl Image<'_> {
    fn bytes(&self, at: u64, length: usize) -> io::Result<Vec<u8>> {
        if at.checked_add(length as u64).is_none_or(|end| end > self.size) {
            return Err(broken("something lies outside"));
        }
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    /// Where an inode lies.
    fn inode_at(&self, nid: u64) -> io::Result<u64> {
        let at = nid.checked_mul(SLOT).and_then(|offset| offset.checked_add(self.meta));
        at.ok_or_else(|| broken("an inode's number"))
    }

    fn is_directory(&self, nid: u64) -> io::Result<bool> {
        Ok(u16_at(&self.bytes(self.inode_at(nid)?, INODE_SIZE)?, 4) >> 12 == 0o04)
    }

    fn inode(&self, nid: u64) -> io::Result<Inode> {
        let at = self.inode_at(nid)?;
        let bytes = self.bytes(at, INODE_SIZE)?;
        let format = u16_at(&bytes, 0);
        if format & 1 != EXTENDED {
            return Err(broken("an inode's form"));
        }
        let xattr_size = match usize::from(u16_at(&bytes, 2)) {
            0 => 0,
            count => XATTR_HEADER_SIZE + 4 * (count - 1),
        };
        let (xattrs, is_opaque) = xattrs(&self.bytes(at + INODE_SIZE as u64, xattr_size)?)?;
        Ok(Inode {
            mode: u16_at(&bytes, 4),
            layout: format >> 1,
            size: u64_at(&bytes, 8),
            union: u32_at(&bytes, 16),
            uid: u32_at(&bytes, 24),
            gid: u32_at(&bytes, 28),
            mtime: Timestamp { seconds: u64_at(&bytes, 32).cast_signed(), nanos: u32_at(&bytes, 40) },
            links: u32_at(&bytes, 44),
            xattrs,
            is_opaque,
            behind: at + (INODE_SIZE + xattr_size) as u64,
        })
    }

    /// The data of a directory or link.
    fn small_data(&self, inode: &Inode, most: u64) -> io::Result<Vec<u8>> {
        if inode.size > most.min(self.size) {
            return Err(broken("a directory or link is too large"));
        }
        let mut data = Vec::new();
        Data { image: self, inode, done: 0 }.read_to_end(&mut data)?;
        Ok(data)
    }
}

/// Reads a file's bytes, holes as zeros.
struct Data<'a> {
    image: &'a Image<'a>,
    inode: &'a Inode,
    done: u64,
}

impl Data<'_> {
    /// Where the next bytes lie, none for a hole, and how many they are at most.
    fn place(&self) -> io::Result<(Option<u64>, u64)> {
        let Self { image, inode, done } = self;
        let left = inode.size - done;
        match inode.layout {
            PLAIN => Ok((Some(u64::from(inode.union) * BLOCK as u64 + done), left)),
            INLINE => Ok((Some(inode.behind + done), left)),
            CHUNKS => {
                let bits = inode.union & 0x1f;
                let chunk = (BLOCK as u64) << bits;
                let (number, within) = (done / chunk, done % chunk);
                let entry = image.bytes(inode.behind + number * 4, 4)?;
                let most = left.min(chunk - within);
                match u32_at(&entry, 0) {
                    NO_BLOCK => Ok((None, most)),
                    block => Ok((Some(u64::from(block) * BLOCK as u64 + within), most)),
                }
            }
            _ => Err(broken("an inode's layout")),
        }
    }
}

impl Read for Data<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.done >= self.inode.size || buffer.is_empty() {
            return Ok(0);
        }
        let (place, most) = self.place()?;
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(buffer.len());
        let n = match place {
            None => {
                buffer[..most].fill(0);
                most
            }
            Some(at) => match self.image.file.read_at(&mut buffer[..most], at)? {
                0 => return Err(broken("a file's data lies outside")),
                n => n,
            },
        };
        self.done += n as u64;
        Ok(n)
    }
}

/// The attributes that an inode had in its archive, and whether it is a directory that hides all below it.
#[expect(clippy::type_complexity, reason = "names and values, as entries have them")]
fn xattrs(bytes: &[u8]) -> io::Result<(Vec<(Vec<u8>, Vec<u8>)>, bool)> {
    let (mut found, mut is_opaque) = (Vec::new(), false);
    let mut rest = bytes.get(XATTR_HEADER_SIZE..).unwrap_or_default();
    while !rest.is_empty() {
        let cut = || broken("an attribute is cut off");
        let header = rest.get(..XATTR_ENTRY_SIZE).ok_or_else(cut)?;
        let (index, name_length, value_length) = (header[1], usize::from(header[0]), usize::from(u16_at(header, 2)));
        let name = rest.get(XATTR_ENTRY_SIZE..XATTR_ENTRY_SIZE + name_length).ok_or_else(cut)?;
        let value_at = XATTR_ENTRY_SIZE + name_length;
        let value = rest.get(value_at..value_at + value_length).ok_or_else(cut)?;
        if is_opaque_mark(index, name) {
            is_opaque = true;
        } else {
            let prefix = prefix_of(index).ok_or_else(|| broken("an attribute's prefix"))?;
            found.push(([prefix, name].concat(), value.to_vec()));
        }
        rest = rest.get((value_at + value_length).next_multiple_of(4)..).unwrap_or_default();
    }
    Ok((found, is_opaque))
}

/// Names and inodes of a directory, without `.` and `..`.
fn names(data: &[u8]) -> io::Result<Vec<(Vec<u8>, u64)>> {
    let cut = || broken("a directory's entry is cut off");
    let mut found = Vec::new();
    for block in data.chunks(BLOCK) {
        let entry = |number: usize| block.get(number * DIRENT_SIZE..(number + 1) * DIRENT_SIZE).ok_or_else(cut);
        let offset = |number: usize| entry(number).map(|entry| usize::from(u16_at(entry, 8)));
        let count = offset(0)? / DIRENT_SIZE;
        for number in 0..count {
            let end = if number + 1 < count { offset(number + 1)? } else { block.len() };
            let name = block.get(offset(number)?..end).ok_or_else(cut)?;
            let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
            if name.len() > MAX_NAME || name.contains(&b'/') || name.is_empty() {
                return Err(broken("a name"));
            }
            if !matches!(name, b"." | b"..") {
                found.push((name.to_vec(), u64_at(entry(number)?, 0)));
            }
        }
    }
    Ok(found)
}

struct Unpacker<'a, W> {
    image: Image<'a>,
    tar: &'a mut TarWriter<W>,
    part: &'a Part<'a>,
    /// The first names of inodes that have several.
    seen: HashMap<u64, Vec<u8>>,
}

impl<W: Write> Unpacker<'_, W> {
    fn all(&mut self, root: u64) -> io::Result<()> {
        let mut waiting = vec![(b"./".to_vec(), root)];
        while let Some((path, nid)) = waiting.pop() {
            if path.len() > MAX_PATH + 2 {
                return Err(broken("a path is too long"));
            }
            let mut inside = self.one(&path, nid)?;
            // The last is taken first.
            inside.reverse();
            waiting.append(&mut inside);
        }
        Ok(())
    }

    /// Writes a file or directory; gives what is in it.
    fn one(&mut self, path: &[u8], nid: u64) -> io::Result<Vec<(Vec<u8>, u64)>> {
        let inode = self.image.inode(nid)?;
        let is_directory = inode.mode >> 12 == 0o04;
        if !is_directory && inode.links > 1 {
            if let Some(first) = self.seen.get(&nid) {
                let target = [self.part.prefix, first].concat();
                let entry = entry(&self.name(path), &inode, Kind::HardLink(target));
                self.tar.entry(&Entry { xattrs: Vec::new(), ..entry }, io::empty())?;
                return Ok(Vec::new());
            }
            self.seen.insert(nid, path.to_vec());
        }
        let device = (inode.union >> 8 & 0xfff, (inode.union & 0xff) | (inode.union >> 12 & 0xfff00));
        let kind = match inode.mode >> 12 {
            0o04 => Kind::Directory,
            0o10 => Kind::File { size: inode.size, segments: None },
            0o12 => Kind::Symlink(self.image.small_data(&inode, MAX_SYMLINK as u64)?),
            0o02 if inode.union == 0 => return self.whiteout(path, &inode),
            0o02 => Kind::CharDevice(device.0, device.1),
            0o06 => Kind::BlockDevice(device.0, device.1),
            0o01 => Kind::Fifo,
            _ => return Err(broken("an inode's type")),
        };
        self.tar.entry(&entry(&self.name(path), &inode, kind), Data { image: &self.image, inode: &inode, done: 0 })?;
        if !is_directory {
            return Ok(Vec::new());
        }
        if inode.is_opaque {
            self.mark(&[path, OPAQUE].concat(), &inode)?;
        }
        let data = self.image.small_data(&inode, MAX_DIRECTORY)?;
        let mut inside = Vec::new();
        for (name, child) in names(&data)? {
            let is_directory = self.image.is_directory(child)?;
            let mut inner = [if path == b"./" { b"" } else { path }, &name].concat();
            if !(self.part.keep)(&inner, is_directory) {
                continue;
            }
            if is_directory {
                inner.push(b'/');
            }
            inside.push((inner, child));
        }
        Ok(inside)
    }

    /// What a file is called in the archive.
    fn name(&self, path: &[u8]) -> Vec<u8> {
        match (self.part.prefix, path) {
            (b"", path) => path.to_vec(),
            (prefix, b"./") => prefix.to_vec(),
            (prefix, path) => [prefix, path].concat(),
        }
    }

    fn whiteout(&mut self, path: &[u8], inode: &Inode) -> io::Result<Vec<(Vec<u8>, u64)>> {
        let at = path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
        let (folder, name) = path.split_at(at);
        self.mark(&[folder, WHITEOUT, name].concat(), inode)?;
        Ok(Vec::new())
    }

    /// An empty file that says something of the layers below.
    fn mark(&mut self, path: &[u8], inode: &Inode) -> io::Result<()> {
        let mark = entry(path, inode, Kind::File { size: 0, segments: None });
        self.tar.entry(&Entry { mode: 0o600, xattrs: Vec::new(), ..mark }, io::empty())
    }
}

fn entry(path: &[u8], inode: &Inode, kind: Kind) -> Entry {
    Entry {
        path: path.to_vec(),
        kind,
        mode: u32::from(inode.mode) & 0o7777,
        uid: inode.uid,
        gid: inode.gid,
        mtime: inode.mtime,
        xattrs: inode.xattrs.clone(),
        unknown_attributes: 0,
    }
}
