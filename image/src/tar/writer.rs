//! Writes tar archives: ustar headers, with pax headers (POSIX.1-2001) for what does not fit into them.
//!
//! The same entries always give the same bytes.

use std::io::{self, Read, Write};

use super::{BLOCK, Entry, Kind, Timestamp};

/// Longest name and link target of a header without extension.
const MAX_TEXT: usize = 100;
/// Largest owner that a header's seven octal digits hold, and size and time that eleven do.
const MAX_SEVEN: u64 = 0o777_7777;
const MAX_ELEVEN: u64 = 0o777_7777_7777;

/// Writes an archive, entry by entry.
pub struct TarWriter<W> {
    output: W,
}

impl<W: Write> TarWriter<W> {
    pub fn new(output: W) -> Self {
        Self { output }
    }

    /// Writes an entry; `data` gives a file's bytes, as many as its size says.
    pub fn entry(&mut self, entry: &Entry, mut data: impl Read) -> io::Result<()> {
        let header = Header::of(entry)?;
        if !header.records.is_empty() {
            let size = header.records.len() as u64;
            let extension = Header { name: b"pax", link: b"", kind: b'x', mode: 0o644, size, ..Header::default() };
            self.output.write_all(&extension.encode())?;
            self.output.write_all(&header.records)?;
            self.pad(size)?;
        }
        self.output.write_all(&header.encode())?;
        let copied = io::copy(&mut data.by_ref().take(header.size), &mut self.output)?;
        if copied != header.size {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter"));
        }
        self.pad(header.size)
    }

    /// Ends the archive.
    pub fn finish(mut self) -> io::Result<W> {
        self.output.write_all(&[0; 2 * BLOCK])?;
        Ok(self.output)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let rest = (size % BLOCK as u64) as usize;
        if rest == 0 { Ok(()) } else { self.output.write_all(&[0; BLOCK][rest..]) }
    }
}

#[derive(Default)]
struct Header<'a> {
    name: &'a [u8],
    link: &'a [u8],
    kind: u8,
    mode: u32,
    uid: u64,
    gid: u64,
    size: u64,
    mtime: u64,
    device: (u32, u32),
    /// The pax records of what does not fit.
    records: Vec<u8>,
}

impl<'a> Header<'a> {
    fn of(entry: &'a Entry) -> io::Result<Self> {
        let mut header = Self {
            name: &entry.path,
            mode: entry.mode,
            uid: u64::from(entry.uid),
            gid: u64::from(entry.gid),
            ..Self::default()
        };
        header.kind = match &entry.kind {
            Kind::File { .. } => b'0',
            Kind::HardLink(_) => b'1',
            Kind::Symlink(_) => b'2',
            Kind::CharDevice(..) => b'3',
            Kind::BlockDevice(..) => b'4',
            Kind::Directory => b'5',
            Kind::Fifo => b'6',
        };
        match &entry.kind {
            Kind::File { size, .. } => header.size = *size,
            Kind::HardLink(target) | Kind::Symlink(target) => header.link = target,
            Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor) => header.device = (*major, *minor),
            Kind::Directory | Kind::Fifo => {}
        }
        let mut records = Vec::new();
        if header.name.len() > MAX_TEXT {
            record(&mut records, b"path", header.name);
        }
        if header.link.len() > MAX_TEXT {
            record(&mut records, b"linkpath", header.link);
        }
        for (key, value, most) in
            [("uid", header.uid, MAX_SEVEN), ("gid", header.gid, MAX_SEVEN), ("size", header.size, MAX_ELEVEN)]
        {
            if value > most {
                record(&mut records, key.as_bytes(), value.to_string().as_bytes());
            }
        }
        header.mtime = u64::try_from(entry.mtime.seconds).unwrap_or(0).min(MAX_ELEVEN);
        if entry.mtime.nanos != 0 || header.mtime.cast_signed() != entry.mtime.seconds {
            record(&mut records, b"mtime", decimal(entry.mtime).as_bytes());
        }
        for (name, value) in &entry.xattrs {
            if name.contains(&b'=') {
                let name = super::show(name);
                return Err(io::Error::other(format!("the attribute {name} has no form in a tar archive")));
            }
            record(&mut records, &[b"SCHILY.xattr.", &name[..]].concat(), value);
        }
        header.records = records;
        Ok(header)
    }

    fn encode(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut text = |at: usize, bytes: &[u8]| {
            let bytes = &bytes[..bytes.len().min(MAX_TEXT)];
            block[at..at + bytes.len()].copy_from_slice(bytes);
        };
        text(0, self.name);
        text(157, self.link);
        text(257, b"ustar\x0000");
        block[156] = self.kind;
        // Numbers too large are in the records; their fields then hold what fits.
        let mut octal = |at: usize, digits: usize, value: u64| {
            let most = (1 << (3 * digits)) - 1;
            block[at..at + digits].copy_from_slice(format!("{:0digits$o}", value.min(most)).as_bytes());
        };
        octal(100, 7, u64::from(self.mode));
        octal(108, 7, self.uid);
        octal(116, 7, self.gid);
        octal(124, 11, self.size);
        octal(136, 11, self.mtime);
        octal(329, 7, u64::from(self.device.0));
        octal(337, 7, u64::from(self.device.1));
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

/// Appends a pax record, whose length counts its own digits.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} ").as_bytes());
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// A time as a decimal number; nanoseconds count upwards also before 1970.
fn decimal(time: Timestamp) -> String {
    let all = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
    let (sign, all) = (if all < 0 { "-" } else { "" }, all.unsigned_abs());
    let text = format!("{sign}{}.{:09}", all / 1_000_000_000, all % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tar::{Streamed, TarReader, parse_time};

    #[test]
    fn what_is_written_is_read_back() {
        let base = Entry {
            path: b"dir/name".to_vec(),
            kind: Kind::Directory,
            mode: 0o7755,
            uid: 7,
            gid: 8,
            mtime: Timestamp { seconds: 5, nanos: 0 },
            xattrs: Vec::new(),
            unknown_attributes: 0,
        };
        let entries = [
            base.clone(),
            Entry { kind: Kind::File { size: 5, segments: None }, uid: u32::MAX, gid: 1 << 21, ..base.clone() },
            Entry { path: vec![b'n'; 300], kind: Kind::Symlink(vec![b't'; 101]), ..base.clone() },
            Entry { kind: Kind::HardLink(b"x".to_vec()), mtime: Timestamp { seconds: -2, nanos: 1 }, ..base.clone() },
            Entry {
                kind: Kind::CharDevice(4095, 0xfffff),
                mtime: Timestamp { seconds: 1 << 34, nanos: 9 },
                ..base.clone()
            },
            Entry { kind: Kind::Fifo, xattrs: vec![(b"user.a".to_vec(), b"1=2\n\0".to_vec())], ..base.clone() },
        ];
        let mut writer = TarWriter::new(Vec::new());
        for entry in &entries {
            writer.entry(entry, &b"12345"[..]).unwrap();
        }
        let archive = writer.finish().unwrap();
        let mut reader = TarReader::new(Streamed::new(&archive[..]));
        for entry in entries {
            assert_eq!(reader.next_entry().unwrap(), Some(entry));
        }
        assert_eq!(reader.next_entry().unwrap(), None);
    }

    #[test]
    fn times_are_exact() {
        for (seconds, nanos, text) in
            [(0, 0, "0"), (1, 500_000_000, "1.5"), (-2, 500_000_000, "-1.5"), (-1, 999_999_999, "-0.000000001")]
        {
            let time = Timestamp { seconds, nanos };
            assert_eq!(decimal(time), text);
            assert_eq!(parse_time(text.as_bytes()), Some(time));
        }
    }

    #[test]
    fn a_file_that_is_shorter_than_its_size_is_an_error() {
        let entry = Entry {
            path: b"f".to_vec(),
            kind: Kind::File { size: 5, segments: None },
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            xattrs: Vec::new(),
            unknown_attributes: 0,
        };
        assert!(TarWriter::new(Vec::new()).entry(&entry, &b"1"[..]).is_err());
    }
}
