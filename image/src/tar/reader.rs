//! Walks an archive's entries, joining extension headers to the entry they belong to.

use std::io;

use super::header::Header;
use super::input::TarInput;
use super::pax::Pax;
use super::sparse::{SparseMap, read_map_1_0};
use super::{BLOCK, Entry, Kind, MAX_EXTENSION_BYTES, MAX_EXTENSIONS, Segment, TarError};

/// Reads an archive entry by entry.
pub struct TarReader<I> {
    input: I,
    /// Bytes taken from the input so far.
    offset: u64,
    /// Bytes of the current entry's data not yet read, and the padding after them.
    remaining: u64,
    padding: u64,
    ended: bool,
}

/// The extension headers seen before an entry.
struct Extensions {
    pax: Pax,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    count: usize,
}

impl<I: TarInput> TarReader<I> {
    pub fn new(input: I) -> Self {
        Self { input, offset: 0, remaining: 0, padding: 0, ended: false }
    }

    /// The input, wherever it stands: after the last entry, right behind the end marker.
    pub fn into_input(self) -> I {
        self.input
    }

    /// Where in the input the current entry's data goes on.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next entry, or `None` at the end of the archive. Data not read is passed over.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        self.skip_data()?;
        let mut extensions = Extensions { pax: Pax::default(), long_name: None, long_link: None, count: 0 };
        loop {
            let start = self.offset;
            let mut block = [0; BLOCK];
            if self.ended || !self.read_header(&mut block, extensions.count > 0)? {
                self.ended = true;
                return Ok(None);
            }
            let header = Header::new(&block).map_err(|reason| TarError::Header { offset: start, reason })?;
            if !self.take_extension(&header, start, &mut extensions)? {
                return self.entry(&header, start, extensions).map(Some);
            }
        }
    }

    /// Reads the current entry's data. Zero means all of it has been read.
    pub fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let most = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let n = self.read_some(&mut buffer[..most])?;
        self.remaining -= n as u64;
        Ok(n)
    }

    /// Reads at least a byte.
    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        loop {
            match self.input.read(buffer) {
                Ok(0) => return Err(TarError::Truncated { offset: self.offset }),
                Ok(n) => {
                    self.offset += n as u64;
                    return Ok(n);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(TarError::Io { offset: self.offset, source }),
            }
        }
    }

    fn read_block(&mut self, block: &mut [u8; BLOCK]) -> Result<(), TarError> {
        let mut filled = 0;
        while filled < BLOCK {
            filled += self.read_some(&mut block[filled..])?;
        }
        Ok(())
    }

    /// Reads a header block. False at the end: two blocks of zeros, or no more bytes between two entries.
    fn read_header(&mut self, block: &mut [u8; BLOCK], extended: bool) -> Result<bool, TarError> {
        let start = self.offset;
        match self.read_block(block) {
            Err(TarError::Truncated { offset }) if offset == start && !extended => return Ok(false),
            other => other?,
        }
        if block.iter().any(|&b| b != 0) {
            return Ok(true);
        }
        if extended {
            return Err(TarError::Header { offset: start, reason: "an entry ends after its extension" });
        }
        let mut second = [0; BLOCK];
        match self.read_block(&mut second) {
            Err(TarError::Truncated { offset }) if offset == start + BLOCK as u64 => Ok(false),
            Err(other) => Err(other),
            Ok(()) if second.iter().all(|&b| b == 0) => Ok(false),
            Ok(()) => Err(TarError::Header { offset: start, reason: "a block of zeros between entries" }),
        }
    }

    fn skip_data(&mut self) -> Result<(), TarError> {
        let count = self.remaining.saturating_add(self.padding);
        if count == 0 {
            return Ok(());
        }
        let skipped = self.input.skip(count).map_err(|source| TarError::Io { offset: self.offset, source })?;
        self.offset += skipped;
        // Padding may be missing at the very end: every byte of the entry itself was there.
        if skipped < self.remaining {
            return Err(TarError::Truncated { offset: self.offset });
        }
        self.ended |= skipped < count;
        (self.remaining, self.padding) = (0, 0);
        Ok(())
    }

    fn begin_data(&mut self, size: u64) {
        self.remaining = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    /// Reads the whole data of an extension header.
    fn read_extension(&mut self, size: u64, start: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_EXTENSION_BYTES {
            return Err(TarError::Extension { offset: start, reason: "it is larger than 4 MiB" });
        }
        self.begin_data(size);
        let mut data = vec![0; size as usize];
        let mut filled = 0;
        while filled < data.len() {
            filled += self.read_data(&mut data[filled..])?;
        }
        self.skip_data()?;
        Ok(data)
    }

    /// Takes the header in if it extends the entry to come.
    fn take_extension(
        &mut self,
        header: &Header<'_>,
        start: u64,
        extensions: &mut Extensions,
    ) -> Result<bool, TarError> {
        let bad = |reason| TarError::Extension { offset: start, reason };
        let kind = header.kind();
        if !matches!(kind, b'x' | b'X' | b'g' | b'L' | b'K' | b'V') {
            return Ok(false);
        }
        extensions.count += 1;
        if extensions.count > MAX_EXTENSIONS {
            return Err(bad("too many extension headers before one entry"));
        }
        let size = header.size().ok_or(bad("its size is not a number"))?;
        let data = self.read_extension(size, start)?;
        match kind {
            b'x' | b'X' => extensions.pax.merge(&data).map_err(bad)?,
            b'L' => extensions.long_name = Some(until_nul(data)),
            b'K' => extensions.long_link = Some(until_nul(data)),
            // A volume label names the archive, not a file. What a global header says of all entries after it, other
            // runtimes pass over in images, and so it is here. Either may be the archive's last.
            _ => extensions.count -= 1,
        }
        Ok(true)
    }

    /// Joins a header and its extensions.
    fn entry(&mut self, header: &Header<'_>, start: u64, extensions: Extensions) -> Result<Entry, TarError> {
        let Extensions { mut pax, long_name, long_link, .. } = extensions;
        let plain = pax.path.take().or(long_name).unwrap_or_else(|| header.path());
        let path = pax.sparse.name.take().unwrap_or(plain);
        let bad = |reason: &str| TarError::Entry { path: path.clone(), reason: reason.to_owned() };
        let id = |pax: Option<u64>, own: Option<u64>, what| {
            let id = pax.or(own).and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| bad(what))
        };
        let uid = id(pax.uid, header.uid(), "its owner is not a 32-bit number")?;
        let gid = id(pax.gid, header.gid(), "its group is not a 32-bit number")?;
        let mode = header.mode().ok_or_else(|| bad("its mode is not a number"))?;
        let mtime = pax.mtime.or(header.mtime()).ok_or_else(|| bad("its time is not a number"))?;
        let size = pax.size.or(header.size()).ok_or_else(|| bad("its size is not a number"))?;
        let link = pax.link.take().or(long_link).unwrap_or_else(|| header.link());
        let device = || header.device().ok_or_else(|| bad("its device number is not a number"));
        let kind = match header.kind() {
            // Before ustar, which has types for both, a name with a final slash was a directory.
            0 if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' => {
                self.begin_data(size);
                self.file(size, &pax).map_err(|error| sparse_error(error, &path))?
            }
            b'S' => {
                self.begin_data(size);
                self.old_sparse(header, size).map_err(|error| sparse_error(error, &path))?
            }
            b'1' => Kind::HardLink(link),
            b'2' => Kind::Symlink(link),
            b'3' => device().map(|(major, minor)| Kind::CharDevice(major, minor))?,
            b'4' => device().map(|(major, minor)| Kind::BlockDevice(major, minor))?,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'D' => {
                // GNU's incremental dumps list the directory's content as data.
                self.begin_data(size);
                Kind::Directory
            }
            other => {
                let other = (other as char).escape_default();
                return Err(bad(&format!("entries of type '{other}' are not supported (byte {start})")));
            }
        };
        let (xattrs, unknown_attributes) = (pax.xattrs.into_iter().collect(), pax.unknown_attributes);
        Ok(Entry { path, kind, mode, uid, gid, mtime, xattrs, unknown_attributes })
    }

    /// A regular file, perhaps in one of the pax sparse formats.
    fn file(&mut self, size: u64, pax: &Pax) -> Result<Kind, SparseError> {
        let sparse = &pax.sparse;
        if !sparse.is_used() {
            return Ok(Kind::File { size, segments: None });
        }
        let real_size = sparse.real_size.ok_or("a sparse file has no size")?;
        let map = match (sparse.major.unwrap_or(0), sparse.minor.unwrap_or(0)) {
            (1, 0) => read_map_1_0(|block| self.read_map_block(block))?,
            (0, _) => {
                let mut map = SparseMap::default();
                map.push_pax(sparse)?;
                map
            }
            _ => return Err("an unknown version of GNU's sparse format".into()),
        };
        self.sparse_file(map, real_size)
    }

    /// A block of the map that format 1.0 keeps at the start of the data.
    fn read_map_block(&mut self, block: &mut [u8; BLOCK]) -> Result<(), SparseError> {
        if self.remaining < BLOCK as u64 {
            return Err("the sparse map is longer than the stored data".into());
        }
        self.read_block(block)?;
        self.remaining -= BLOCK as u64;
        Ok(())
    }

    /// A file in GNU tar's old sparse format, whose map goes on in blocks after the header.
    fn old_sparse(&mut self, header: &Header<'_>, size: u64) -> Result<Kind, SparseError> {
        let (pairs, mut more, real_size) = header.old_sparse().ok_or("a sparse file's size is not a number")?;
        let mut map = SparseMap::default();
        map.push_old(pairs)?;
        while more {
            let mut block = [0; BLOCK];
            self.read_block(&mut block)?;
            let full = map.push_old(&block[..504])?;
            more = block[504] != 0;
            if more && !full {
                return Err("the sparse map goes on after its end".into());
            }
        }
        self.begin_data(size);
        self.sparse_file(map, real_size)
    }

    fn sparse_file(&self, map: SparseMap, size: u64) -> Result<Kind, SparseError> {
        let segments: Vec<Segment> = map.finish(size, self.remaining)?;
        Ok(Kind::File { size, segments: Some(segments) })
    }
}

/// What can go wrong while a sparse map is read: the map's text or the archive under it.
enum SparseError {
    Map(&'static str),
    Tar(TarError),
}

impl From<&'static str> for SparseError {
    fn from(reason: &'static str) -> Self {
        Self::Map(reason)
    }
}

impl From<TarError> for SparseError {
    fn from(error: TarError) -> Self {
        Self::Tar(error)
    }
}

fn sparse_error(error: SparseError, path: &[u8]) -> TarError {
    match error {
        SparseError::Map(reason) => TarError::Entry { path: path.to_vec(), reason: reason.to_owned() },
        SparseError::Tar(error) => error,
    }
}

fn until_nul(mut data: Vec<u8>) -> Vec<u8> {
    if let Some(end) = data.iter().position(|&b| b == 0) {
        data.truncate(end);
    }
    data
}
