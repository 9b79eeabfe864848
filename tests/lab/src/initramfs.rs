//! Initramfs archives (cpio, "newc"; Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Written plain: a kernel unpacks that by copying, where any compression costs it more than it saves.

use std::io;

use cpio::newc;

const DIRECTORY: u32 = 0o040_755;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive under construction. Every entry belongs to root and has no date, so equal content gives equal bytes.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory; its parents come first.
    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        self.add(newc::Builder::new(path).mode(DIRECTORY), &[])
    }

    /// Adds a file with these permission bits.
    pub fn file(&mut self, path: &str, permissions: u32, content: &[u8]) -> io::Result<()> {
        self.add(newc::Builder::new(path).mode(REGULAR | permissions), content)
    }

    /// Adds a character device.
    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) -> io::Result<()> {
        self.add(newc::Builder::new(path).mode(CHARACTER_DEVICE).rdev_major(major).rdev_minor(minor), &[])
    }

    /// The whole archive.
    pub fn finish(self) -> io::Result<Vec<u8>> {
        newc::trailer(self.bytes)
    }

    fn add(&mut self, entry: newc::Builder, content: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let length = u32::try_from(content.len()).map_err(io::Error::other)?;
        // Entries with the same inode would be taken for hard links of each other.
        let mut writer = entry.ino(self.entries).nlink(1).write(&mut self.bytes, length);
        io::Write::write_all(&mut writer, content)?;
        writer.finish().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_read_back_entry_by_entry() {
        let mut archive = Archive::default();
        archive.directory("dev").unwrap();
        archive.character_device("dev/console", 5, 1).unwrap();
        archive.file("init", 0o755, b"odd").unwrap();
        let bytes = archive.finish().unwrap();
        let mut seen = Vec::new();
        let mut reader = newc::Reader::new(bytes.as_slice()).unwrap();
        while !reader.entry().is_trailer() {
            let entry = reader.entry();
            seen.push((entry.name().to_owned(), entry.mode(), entry.file_size()));
            reader = newc::Reader::new(reader.finish().unwrap()).unwrap();
        }
        let expected = [("dev", 0o040_755, 0), ("dev/console", 0o020_600, 0), ("init", 0o100_755, 3)]
            .map(|(n, m, s)| (n.to_owned(), m, s));
        assert_eq!(seen, expected);
    }
}
