//! Where the image goes: written once from front to back, block 0 last, and hashed on the way.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use sha2::{Digest as _, Sha256};

use super::ondisk::BLOCK;
use crate::digest::Digest;

/// Bytes gathered before they are hashed and written.
const BUFFER: usize = 256 * 1024;

/// The image file, from block 1 on.
pub struct Output<'a> {
    file: &'a File,
    buffer: Vec<u8>,
    /// Where in the file the buffer begins.
    position: u64,
    hasher: Sha256,
}

impl<'a> Output<'a> {
    pub fn new(file: &'a File) -> Self {
        let buffer = Vec::with_capacity(BUFFER);
        Self { file, buffer, position: BLOCK as u64, hasher: Sha256::new() }
    }

    /// Where the next byte goes.
    pub fn position(&self) -> u64 {
        self.position + self.buffer.len() as u64
    }

    fn flush(&mut self) -> io::Result<()> {
        self.hasher.update(&self.buffer);
        self.file.write_all_at(&self.buffer, self.position)?;
        self.position += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Writes `length` bytes that `read` gives, a piece at a time.
    pub fn fill<E: From<OutputError>>(
        &mut self,
        mut length: u64,
        mut read: impl FnMut(&mut [u8]) -> Result<usize, E>,
    ) -> Result<(), E> {
        while length > 0 {
            if self.buffer.len() == BUFFER {
                self.flush().map_err(OutputError)?;
            }
            let start = self.buffer.len();
            let piece = length.min((BUFFER - start) as u64) as usize;
            self.buffer.resize(start + piece, 0);
            let n = match read(&mut self.buffer[start..]) {
                Ok(n) => n.min(piece),
                Err(error) => {
                    self.buffer.truncate(start);
                    return Err(error);
                }
            };
            self.buffer.truncate(start + n);
            length -= n as u64;
            if n == 0 {
                return Err(OutputError(io::ErrorKind::UnexpectedEof.into()).into());
            }
        }
        Ok(())
    }

    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.buffer.len() == BUFFER {
                self.flush()?;
            }
            let (now, later) = bytes.split_at(bytes.len().min(BUFFER - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    pub fn zeros(&mut self, mut count: u64) -> io::Result<()> {
        while count > 0 {
            if self.buffer.len() == BUFFER {
                self.flush()?;
            }
            let now = count.min((BUFFER - self.buffer.len()) as u64);
            self.buffer.resize(self.buffer.len() + now as usize, 0);
            count -= now;
        }
        Ok(())
    }

    /// Fills the last block up. Returns the number of the block that comes next.
    pub fn end_block(&mut self) -> io::Result<u64> {
        let end = self.position().next_multiple_of(BLOCK as u64);
        self.zeros(end - self.position())?;
        Ok(end / BLOCK as u64)
    }

    /// Writes block 0, which `first_block` makes from the digest of all the others.
    ///
    /// Returns the digest of the image: of all blocks in the order they were written, block 0 last.
    pub fn finish(mut self, first_block: impl FnOnce(Digest) -> [u8; BLOCK]) -> io::Result<Digest> {
        self.flush()?;
        let block = first_block(Digest::from_hasher(self.hasher.clone()));
        self.file.write_all_at(&block, 0)?;
        self.hasher.update(block);
        Ok(Digest::from_hasher(self.hasher))
    }
}

/// A failed write of the image, as opposed to a failed read of the archive.
pub struct OutputError(pub io::Error);

/// The digest of a finished image, as [`Output::finish`] gave it.
pub fn image_digest(file: &File) -> io::Result<Digest> {
    let mut first = vec![0; BLOCK];
    file.read_exact_at(&mut first, 0)?;
    let (mut hasher, mut position) = (Sha256::new(), BLOCK as u64);
    let mut buffer = vec![0; BUFFER];
    loop {
        match file.read_at(&mut buffer, position) {
            Ok(0) => break,
            Ok(n) => {
                hasher.update(&buffer[..n]);
                position += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    hasher.update(&first);
    Ok(Digest::from_hasher(hasher))
}
