//! Where an archive's bytes come from: a stream, or a file in which data can be jumped over.

use std::io::{self, Read, Seek, SeekFrom};

/// Buffer in front of the source; data is read past it in larger pieces.
const BUFFER: usize = 64 * 1024;

/// A source of archive bytes.
pub trait TarInput: Read {
    /// Passes over `count` bytes. Returns how many there were: fewer than `count` only at the end.
    fn skip(&mut self, count: u64) -> io::Result<u64>;
}

/// A stream: bytes passed over are read and dropped, so that digests see all of it.
pub struct Streamed<R>(io::BufReader<R>);

impl<R: Read> Streamed<R> {
    pub fn new(inner: R) -> Self {
        Self(io::BufReader::with_capacity(BUFFER, inner))
    }

    pub fn into_inner(self) -> io::BufReader<R> {
        self.0
    }
}

impl<R: Read> Read for Streamed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R: Read> TarInput for Streamed<R> {
    fn skip(&mut self, count: u64) -> io::Result<u64> {
        io::copy(&mut (&mut self.0).take(count), &mut io::sink())
    }
}

/// A file: bytes passed over are not read.
pub struct Seekable<R> {
    inner: io::BufReader<R>,
    position: u64,
    size: u64,
}

impl<R: Read + Seek> Seekable<R> {
    pub fn new(mut inner: R) -> io::Result<Self> {
        let size = inner.seek(SeekFrom::End(0))?;
        inner.rewind()?;
        Ok(Self { inner: io::BufReader::with_capacity(BUFFER, inner), position: 0, size })
    }
}

impl<R: Read> Read for Seekable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.position += n as u64;
        Ok(n)
    }
}

impl<R: Read + Seek> TarInput for Seekable<R> {
    fn skip(&mut self, count: u64) -> io::Result<u64> {
        let count = count.min(self.size.saturating_sub(self.position));
        let step = i64::try_from(count).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        self.inner.seek_relative(step)?;
        self.position += count;
        Ok(count)
    }
}
