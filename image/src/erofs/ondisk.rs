//! The bytes of an EROFS image: superblock, inodes, directory entries, extended attributes.
//!
//! Follows Linux's `fs/erofs/erofs_fs.h` and Documentation/filesystems/erofs.rst. Only what every kernel since 5.10
//! mounts is written, but for [`FEATURE_CHUNKED_FILE`], which 5.15 brought and which is set only when
//! an image holds a file with holes.

use std::io;

use crate::tar::Timestamp;

/// Size of a block in bytes, and its power of two.
pub const BLOCK: usize = 1 << BLOCK_BITS;
pub const BLOCK_BITS: u32 = 12;
/// Inodes lie on multiples of this; their number (nid) counts in it.
pub const SLOT: u64 = 32;
/// Where the superblock lies within block 0.
pub const SUPER_OFFSET: usize = 1024;
const SUPER_SIZE: usize = 128;
pub const MAGIC: u32 = 0xE0F5_E1E2;
/// Compatible features: a checksum over the superblock; inode times are those of the last change.
const FEATURE_CHECKSUM: u32 = 0x1;
const FEATURE_MTIME: u32 = 0x2;
/// Incompatible feature: files made of chunks, some of which may be holes.
pub const FEATURE_CHUNKED_FILE: u32 = 0x4;
/// A block address that means "none" and, in a chunk map, "a hole".
pub const NO_BLOCK: u32 = u32::MAX;
/// Size of an extended inode.
pub const INODE_SIZE: usize = 64;
/// Size of a directory entry without its name.
pub const DIRENT_SIZE: usize = 12;
/// Size of what stands before an inode's extended attributes.
pub const XATTR_HEADER_SIZE: usize = 12;
/// Size of an attribute's own header.
pub const XATTR_ENTRY_SIZE: usize = 4;

/// How an inode's data is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Whole blocks, one after the other.
    Plain,
    /// Right behind the inode.
    Inline,
    /// By a map of chunks behind the inode; the number is the power of two of a chunk's blocks.
    Chunks(u32),
}

impl Layout {
    fn code(self) -> u16 {
        match self {
            Self::Plain => 0,
            Self::Inline => 2,
            Self::Chunks(_) => 4,
        }
    }
}

/// The file type that directory entries carry beside the inode number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FileType {
    Regular = 1,
    Directory = 2,
    CharDevice = 3,
    BlockDevice = 4,
    Fifo = 5,
    Symlink = 7,
}

impl FileType {
    /// The `S_IFMT` bits of the mode.
    fn mode_bits(self) -> u16 {
        match self {
            Self::Regular => 0o100_000,
            Self::Directory => 0o040_000,
            Self::CharDevice => 0o020_000,
            Self::BlockDevice => 0o060_000,
            Self::Fifo => 0o010_000,
            Self::Symlink => 0o120_000,
        }
    }
}

/// An inode in its extended (64-byte) form, which alone holds 32-bit owners and times.
#[derive(Debug, Clone)]
pub struct Inode {
    pub layout: Layout,
    pub file_type: FileType,
    /// The twelve permission bits.
    pub permissions: u16,
    /// Bytes of the attributes that follow, header included; zero for none.
    pub xattr_size: usize,
    pub size: u64,
    /// First block, device number or chunk format, by layout and type.
    pub union: u32,
    /// A number for `stat` on 32-bit systems; unique in the image.
    pub number: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    pub links: u32,
}

impl Inode {
    /// The inode's bytes; an error if it has more attributes than can be counted.
    pub fn encode(&self) -> io::Result<[u8; INODE_SIZE]> {
        let xattr_count = xattr_count(self.xattr_size)
            .ok_or_else(|| io::Error::other("a file has more extended attributes than an inode holds"))?;
        let mut bytes = [0; INODE_SIZE];
        let mut put = |offset: usize, value: &[u8]| {
            bytes[offset..offset + value.len()].copy_from_slice(value);
        };
        put(0, &(1 | self.layout.code() << 1).to_le_bytes());
        put(2, &xattr_count.to_le_bytes());
        put(4, &(self.file_type.mode_bits() | self.permissions).to_le_bytes());
        put(8, &self.size.to_le_bytes());
        put(16, &self.union.to_le_bytes());
        put(20, &self.number.to_le_bytes());
        put(24, &self.uid.to_le_bytes());
        put(28, &self.gid.to_le_bytes());
        put(32, &self.mtime.seconds.to_le_bytes());
        put(40, &self.mtime.nanos.to_le_bytes());
        put(44, &self.links.to_le_bytes());
        Ok(bytes)
    }
}

/// `i_xattr_icount`: four-byte units beyond the header, plus one; zero for no attributes. `None` if there are too many.
fn xattr_count(size: usize) -> Option<u16> {
    if size == 0 { Some(0) } else { u16::try_from((size - XATTR_HEADER_SIZE) / 4 + 1).ok() }
}

/// A device number as inodes hold it (`new_encode_dev`). `None` beyond 12-bit major and 20-bit minor.
pub fn encode_device(major: u32, minor: u32) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20).then_some((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// What the superblock says beyond constants.
#[derive(Debug, Clone)]
pub struct Superblock {
    pub root_nid: u16,
    pub inodes: u64,
    pub blocks: u32,
    pub meta_block: u32,
    pub uuid: [u8; 16],
    pub incompatible_features: u32,
}

impl Superblock {
    /// Block 0 of the image, the superblock in it.
    pub fn encode_block(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut put = |offset: usize, value: &[u8]| {
            let at = SUPER_OFFSET + offset;
            block[at..at + value.len()].copy_from_slice(value);
        };
        put(0, &MAGIC.to_le_bytes());
        put(8, &(FEATURE_CHECKSUM | FEATURE_MTIME).to_le_bytes());
        put(12, &[BLOCK_BITS as u8, 0]);
        put(14, &self.root_nid.to_le_bytes());
        put(16, &self.inodes.to_le_bytes());
        put(36, &self.blocks.to_le_bytes());
        put(40, &self.meta_block.to_le_bytes());
        put(48, &self.uuid);
        put(80, &self.incompatible_features.to_le_bytes());
        const { assert!(SUPER_OFFSET + SUPER_SIZE <= BLOCK) };
        let checksum = crc32c(&block[SUPER_OFFSET..]);
        block[SUPER_OFFSET + 4..SUPER_OFFSET + 8].copy_from_slice(&checksum.to_le_bytes());
        block
    }
}

/// CRC-32C as the kernel's crc32c(): seeded with all ones, not inverted at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 != 0 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_is_the_kernels() {
        // RFC 3720, appendix B.4, gives the inverted value.
        assert_eq!(!crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(!crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn more_attributes_than_can_be_counted_have_no_form() {
        assert_eq!(xattr_count(0), Some(0));
        assert_eq!(xattr_count(XATTR_HEADER_SIZE + 4 * 65_534), Some(u16::MAX));
        assert_eq!(xattr_count(XATTR_HEADER_SIZE + 4 * 65_535), None);
    }

    #[test]
    fn devices_beyond_what_linux_numbers_have_no_form() {
        assert_eq!(encode_device(1, 3), Some(0x103));
        assert_eq!(encode_device(0xfff, 0xfffff), Some(0xffff_ffff));
        assert_eq!(encode_device(0x1000, 0), None);
        assert_eq!(encode_device(0, 0x10_0000), None);
    }
}
