//! A strict, streaming reader of tar archives, for layers and for archives of images.
//!
//! It reads ustar, pax (POSIX.1-2001, with star's keys for attributes and ACLs), the GNU formats and v7, from
//! anything that reads, with bounded memory. Nothing is ever extracted: entries are handed out as values,
//! names as the bytes they are. What it does not know it refuses, because a file that is
//! silently left out of a root is worse than a message.

#[cfg(test)]
pub(crate) mod builder;
mod header;
mod input;
mod pax;
mod reader;
mod sparse;
mod writer;

use std::io;

pub(crate) use input::{Seekable, Streamed, TarInput};
#[cfg(test)]
pub(crate) use pax::parse_time;
pub(crate) use reader::TarReader;
pub use sparse::Segment;
pub(crate) use writer::TarWriter;

use self::header::Header;
use crate::decode::Compression;

/// Size of a tar block: a header, and the unit that data is padded to.
pub(crate) const BLOCK: usize = 512;

/// Largest pax header, GNU long name or sparse map, in bytes. Real ones are a few KiB.
pub const MAX_EXTENSION_BYTES: u64 = 4 << 20;
/// Most extension headers before one entry. Real archives have at most four.
pub const MAX_EXTENSIONS: usize = 32;
/// Most bytes of one entry's extended attributes, those included that are set again; Linux takes 64 KiB for a value.
pub const MAX_ATTRIBUTE_BYTES: usize = 4 << 20;
/// Most segments of a sparse file.
pub const MAX_SPARSE_SEGMENTS: usize = 1 << 18;

/// A point in time: seconds since 1970 (negative before), and nanoseconds after that second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// Nanoseconds after `seconds`, less than 10^9.
    pub nanos: u32,
}

/// One file, directory or link of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name as the archive has it, unchecked.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// The twelve permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last change.
    pub mtime: Timestamp,
    /// Extended attributes by name: full name, value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Attributes of the archive that have no form here, such as ACLs of users without a number.
    pub unknown_attributes: u32,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file of this size. Its data follows in the archive.
    File {
        /// Size in bytes, holes included.
        size: u64,
        /// Where the data that follows belongs, when the file has holes.
        segments: Option<Vec<Segment>>,
    },
    /// Another name of an earlier entry.
    HardLink(Vec<u8>),
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// A character device: major and minor number.
    CharDevice(u32, u32),
    /// A block device: major and minor number.
    BlockDevice(u32, u32),
}

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// Reading failed.
    #[error("reading the archive at byte {offset}: {source}")]
    Io {
        /// Where.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// The archive ends in the middle of an entry.
    #[error("the archive is truncated: it ends at byte {offset}, in the middle of an entry")]
    Truncated {
        /// Where it ends.
        offset: u64,
    },
    /// No tar header where one must be.
    #[error("not a tar header at byte {offset}: {reason}")]
    Header {
        /// Where the header begins.
        offset: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A header field that says something impossible.
    #[error("{}: {reason}", show(.path))]
    Entry {
        /// The entry's name.
        path: Vec<u8>,
        /// What is wrong with it.
        reason: String,
    },
    /// An extension header that cannot be understood.
    #[error("extension header at byte {offset}: {reason}")]
    Extension {
        /// Where it begins.
        offset: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// Whether a stream that begins so may be an archive, packed or not; of random bytes and zeros none is.
pub(crate) fn begins_archive(start: &[u8]) -> bool {
    let is_header = || start.try_into().is_ok_and(|block: &[u8; BLOCK]| Header::new(block).is_ok());
    Compression::of(start) != Compression::None || is_header()
}

/// A name that may hold any bytes, made fit for a message.
pub(crate) fn show(path: &[u8]) -> String {
    const MOST: usize = 200;
    if path.len() > MOST { format!("{}…", path[..MOST].escape_ascii()) } else { path.escape_ascii().to_string() }
}

#[cfg(test)]
mod tests {
    use super::builder::{Member, archive};
    use super::*;

    #[test]
    fn junk_begins_no_archive() {
        let tar = archive(&[Member::file("a", "x")]);
        assert!(begins_archive(&tar[..BLOCK]));
        assert!(begins_archive(&[0x1f, 0x8b, 8, 0]));
        for junk in [&[0; BLOCK][..], &[0xa5; BLOCK], b"<html>", b""] {
            assert!(!begins_archive(junk));
        }
    }
}
