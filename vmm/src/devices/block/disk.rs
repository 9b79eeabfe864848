//! What a disk is made of: one file or block device that may be written, or pieces of several that are only read.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::SECTOR_BYTES;
use crate::virtio::chain::Buffers;

/// Most bytes written at once where the host's filesystem cannot make zeroes itself.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Why files do not make a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The size of a file cannot be told.
    #[error("a disk's file cannot be measured: {0}")]
    Size(#[from] io::Error),
    /// Not whole sectors.
    #[error("a writable disk must be whole sectors of {SECTOR_BYTES} bytes, but has {0} bytes")]
    NotWholeSectors(u64),
    /// Two pieces want the same place, or are not in order.
    #[error("the piece of the disk at byte {start} begins before the one before it ends")]
    Overlap {
        /// Where the later one begins.
        start: u64,
    },
}

/// A piece of a read-only disk. Between pieces the disk is zeroes.
#[derive(Debug, Clone)]
pub struct Extent {
    /// Where on the disk it begins, in bytes.
    pub start: u64,
    /// How many bytes it has.
    pub length: u64,
    content: Content,
}

/// What a piece is.
#[derive(Debug, Clone)]
pub(in crate::devices) enum Content {
    Bytes(Arc<[u8]>),
    File(Arc<File>),
}

impl Extent {
    /// These bytes, from `start` on.
    pub fn bytes(start: u64, bytes: impl Into<Arc<[u8]>>) -> Self {
        let bytes = bytes.into();
        Self { start, length: bytes.len() as u64, content: Content::Bytes(bytes) }
    }

    /// A whole file, as long as it is now, from `start` on.
    ///
    /// # Errors
    /// [`DiskError::Size`].
    pub fn file(start: u64, file: File) -> Result<Self, DiskError> {
        let length = size_of_file(&file)?;
        Ok(Self { start, length, content: Content::File(Arc::new(file)) })
    }

    pub(in crate::devices) fn end(&self) -> u64 {
        self.start.saturating_add(self.length)
    }

    pub(in crate::devices) fn content(&self) -> &Content {
        &self.content
    }
}

/// The size of a regular file or a block device, in bytes.
fn size_of_file(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// A disk.
#[derive(Debug)]
pub struct Disk {
    size: u64,
    backing: Backing,
}

#[derive(Debug)]
enum Backing {
    Writable(File),
    ReadOnly(Vec<Extent>),
}

impl Disk {
    /// A disk that is this file or block device, and can be written.
    ///
    /// # Errors
    /// [`DiskError::Size`], [`DiskError::NotWholeSectors`].
    pub fn writable(file: File) -> Result<Self, DiskError> {
        let size = size_of_file(&file)?;
        if !size.is_multiple_of(SECTOR_BYTES) {
            return Err(DiskError::NotWholeSectors(size));
        }
        Ok(Self { size, backing: Backing::Writable(file) })
    }

    /// A disk of these pieces, which are in order of their places; its size is where the last one ends, in whole sectors.
    ///
    /// # Errors
    /// [`DiskError::Overlap`].
    pub fn read_only(extents: Vec<Extent>) -> Result<Self, DiskError> {
        let mut end = 0;
        for extent in &extents {
            if extent.start < end {
                return Err(DiskError::Overlap { start: extent.start });
            }
            end = extent.end();
        }
        Ok(Self { size: end.next_multiple_of(SECTOR_BYTES), backing: Backing::ReadOnly(extents) })
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether it cannot be written.
    pub fn is_read_only(&self) -> bool {
        matches!(self.backing, Backing::ReadOnly(_))
    }

    /// Fills the buffers from the disk. The caller has checked that they lie within it.
    pub(super) fn read(&self, offset: u64, mut buffers: Buffers<'_>) -> io::Result<()> {
        match &self.backing {
            Backing::Writable(file) => read_file(file, offset, buffers),
            Backing::ReadOnly(extents) => {
                let end = offset + buffers.len() as u64;
                let mut at = offset;
                let first = extents.partition_point(|extent| extent.end() <= offset);
                for extent in extents[first..].iter().take_while(|extent| extent.start < end) {
                    fill_with_zeroes(&buffers.take(extent.start.saturating_sub(at) as usize));
                    at = at.max(extent.start);
                    let piece = buffers.take((extent.end().min(end) - at) as usize);
                    let within = at - extent.start;
                    at += piece.len() as u64;
                    match &extent.content {
                        Content::Bytes(bytes) => {
                            piece.copy_from(bytes.get(within as usize..).unwrap_or_default());
                        }
                        Content::File(file) => read_file(file, within, piece)?,
                    }
                }
                fill_with_zeroes(&buffers);
                Ok(())
            }
        }
    }

    /// Writes the buffers to the disk. The caller has checked that they lie within it.
    pub(super) fn write(&self, offset: u64, buffers: Buffers<'_>) -> io::Result<()> {
        let file = self.writable_file()?;
        move_all(buffers, offset, |vectors, at| {
            // SAFETY: the vectors point into guest memory, which outlives the call, and the kernel only reads them.
            unsafe { libc::pwritev(file.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int, at) }
        })
    }

    /// Makes what was written survive a crash of the host.
    pub(super) fn flush(&self) -> io::Result<()> {
        match &self.backing {
            Backing::Writable(file) => file.sync_data(),
            Backing::ReadOnly(_) => Ok(()),
        }
    }

    /// Gives a range's room back to the host where that can be done. It reads as zeroes then, or else as before.
    pub(super) fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.punch(offset, length).map(drop)
    }

    /// Makes a range zeroes, and gives its room back to the host where that can be done.
    pub(super) fn zero(&self, offset: u64, length: u64) -> io::Result<()> {
        if self.punch(offset, length)? { Ok(()) } else { write_zeroes(self.writable_file()?, offset, length) }
    }

    /// Makes a hole; false where the host's filesystem has none.
    fn punch(&self, offset: u64, length: u64) -> io::Result<bool> {
        let file = self.writable_file()?;
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: the call takes no pointers.
        let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, length as i64) };
        if result == 0 {
            return Ok(true);
        }
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
            error => Err(error),
        }
    }

    fn writable_file(&self) -> io::Result<&File> {
        match &self.backing {
            Backing::Writable(file) => Ok(file),
            Backing::ReadOnly(_) => Err(io::Error::from_raw_os_error(libc::EROFS)),
        }
    }
}

fn read_file(file: &File, offset: u64, buffers: Buffers<'_>) -> io::Result<()> {
    move_all(buffers, offset, |vectors, at| {
        // SAFETY: the vectors point into guest memory, which outlives the call, and nothing here holds references to it.
        unsafe { libc::preadv(file.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int, at) }
    })
}

/// Calls `transfer` until all buffers are moved.
fn move_all(mut buffers: Buffers<'_>, offset: u64, transfer: impl Fn(&[libc::iovec], i64) -> isize) -> io::Result<()> {
    let mut at = offset;
    while !buffers.is_empty() {
        match transfer(&buffers.iovecs(), at as i64) {
            // The file has become shorter than the disk.
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            moved if moved > 0 => {
                at += moved as u64;
                buffers.take(moved as usize);
            }
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}

fn fill_with_zeroes(buffers: &Buffers<'_>) {
    for slice in buffers.slices() {
        for start in (0..slice.len()).step_by(ZEROES.len()) {
            if let Ok(part) = slice.offset(start) {
                part.copy_from(&ZEROES[..ZEROES.len().min(part.len())]);
            }
        }
    }
}

fn write_zeroes(file: &File, offset: u64, length: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;

    let mut done = 0;
    while done < length {
        let count = (length - done).min(ZEROES.len() as u64);
        file.write_all_at(&ZEROES[..count as usize], offset + done)?;
        done += count;
    }
    Ok(())
}
