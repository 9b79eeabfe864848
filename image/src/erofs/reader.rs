//! A small reader of EROFS images for tests and fuzzers, written from the format's description and not from the writer.

use std::collections::BTreeMap;

use crate::tar::Timestamp;

/// All of one file that a user can see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    pub links: u32,
    pub nid: u64,
    pub xattrs: BTreeMap<(u8, Vec<u8>), Vec<u8>>,
    /// Data of files, target of links, number of devices; empty for directories.
    pub data: Vec<u8>,
    /// Bytes of data that the image really holds.
    pub layout: u16,
}

/// Files by path, the root being the empty path.
pub type Files = BTreeMap<Vec<u8>, File>;

struct Image<'a> {
    bytes: &'a [u8],
    meta: usize,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Reads all files of an image; panics at anything that the kernel would not accept.
pub fn read(bytes: &[u8]) -> Files {
    let sb = &bytes[1024..1152];
    assert_eq!(u32_at(sb, 0), 0xE0F5_E1E2);
    assert_eq!(sb[12], 12);
    assert_eq!(u32_at(sb, 36) as usize * 4096, bytes.len());
    assert_eq!(u32_at(sb, 80) & !4, 0, "only the chunk feature is known");
    let image = Image { bytes, meta: u32_at(sb, 40) as usize * 4096 };
    let mut files = Files::new();
    let root = u64::from(u16_at(sb, 14));
    image.walk(root, root, Vec::new(), &mut files);
    let inodes: std::collections::BTreeSet<u64> = files.values().map(|file| file.nid).collect();
    assert_eq!(u64_at(sb, 16), inodes.len() as u64);
    files
}

impl Image<'_> {
    fn walk(&self, nid: u64, parent: u64, path: Vec<u8>, files: &mut Files) {
        let mut file = self.inode(nid);
        if file.mode & 0o170_000 == 0o040_000 {
            let data = std::mem::take(&mut file.data);
            let mut previous: Option<Vec<u8>> = None;
            for (name, child, file_type) in directory(&data) {
                assert!(previous.as_ref() < Some(&name), "names are sorted");
                previous = Some(name.clone());
                assert_eq!(self.file_type(child), file_type);
                match name.as_slice() {
                    b"." => assert_eq!(child, nid),
                    b".." => assert_eq!(child, parent),
                    name => {
                        let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                        self.walk(child, nid, [&path, slash, name].concat(), files);
                    }
                }
            }
        }
        files.insert(path, file);
    }

    fn file_type(&self, nid: u64) -> u8 {
        match u16_at(self.bytes, self.meta + nid as usize * 32 + 4) >> 12 {
            0o10 => 1,
            0o04 => 2,
            0o02 => 3,
            0o06 => 4,
            0o01 => 5,
            0o12 => 7,
            other => panic!("file type {other:o}"),
        }
    }

    fn inode(&self, nid: u64) -> File {
        let at = self.meta + nid as usize * 32;
        let inode = &self.bytes[at..at + 64];
        let format = u16_at(inode, 0);
        assert_eq!(format & 1, 1, "extended inodes only");
        let xattr_size = match usize::from(u16_at(inode, 2)) {
            0 => 0,
            count => 12 + 4 * (count - 1),
        };
        let (size, union) = (u64_at(inode, 8) as usize, u32_at(inode, 16));
        let behind = at + 64 + xattr_size;
        let mode = u16_at(inode, 4);
        let layout = format >> 1;
        let data = match (mode >> 12, layout) {
            (0o02 | 0o06, 0) => union.to_le_bytes().to_vec(),
            (0o01, 0) => Vec::new(),
            (_, 0) if size == 0 => Vec::new(),
            (_, 0) => self.bytes[union as usize * 4096..][..size].to_vec(),
            (_, 2) => {
                assert_eq!(at / 4096, (behind + size - 1) / 4096, "inline data is in one block");
                self.bytes[behind..behind + size].to_vec()
            }
            (0o10, 4) => self.chunks(behind, size, union),
            other => panic!("mode and layout {other:?}"),
        };
        File {
            mode,
            uid: u32_at(inode, 24),
            gid: u32_at(inode, 28),
            mtime: Timestamp { seconds: u64_at(inode, 32).cast_signed(), nanos: u32_at(inode, 40) },
            links: u32_at(inode, 44),
            nid,
            xattrs: xattrs(&self.bytes[at + 64..behind]),
            data,
            layout,
        }
    }

    fn chunks(&self, map: usize, size: usize, format: u32) -> Vec<u8> {
        assert_eq!(format & !0x1f, 0);
        let chunk = 4096usize << format;
        let mut data = Vec::new();
        for number in 0..size.div_ceil(chunk) {
            let length = chunk.min(size - number * chunk);
            match u32_at(self.bytes, map + number * 4) {
                u32::MAX => data.resize(data.len() + length, 0),
                block => data.extend(&self.bytes[block as usize * 4096..][..length]),
            }
        }
        data
    }
}

fn xattrs(mut bytes: &[u8]) -> BTreeMap<(u8, Vec<u8>), Vec<u8>> {
    let mut xattrs = BTreeMap::new();
    if bytes.is_empty() {
        return xattrs;
    }
    assert_eq!(bytes[..12], [0; 12], "no shared attributes");
    bytes = &bytes[12..];
    while !bytes.is_empty() {
        let (name, value) = (usize::from(bytes[0]), usize::from(u16_at(bytes, 2)));
        let key = (bytes[1], bytes[4..4 + name].to_vec());
        assert!(xattrs.insert(key, bytes[4 + name..4 + name + value].to_vec()).is_none());
        bytes = &bytes[(4 + name + value).next_multiple_of(4)..];
    }
    xattrs
}

fn directory(data: &[u8]) -> Vec<(Vec<u8>, u64, u8)> {
    let mut entries = Vec::new();
    for block in data.chunks(4096) {
        let offset = |i: usize| usize::from(u16_at(block, i * 12 + 8));
        let count = offset(0) / 12;
        for i in 0..count {
            let end = if i + 1 < count { offset(i + 1) } else { block.len() };
            let name = &block[offset(i)..end];
            let end = name.iter().position(|&b| b == 0).unwrap_or(name.len());
            entries.push((name[..end].to_vec(), u64_at(block, i * 12), block[i * 12 + 10]));
        }
    }
    entries
}
