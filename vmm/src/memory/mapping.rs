//! The host's mappings that guest memory is.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

use super::{HUGE_PAGE, PAGE_SIZE};

/// What the host should back a mapping by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pages {
    /// Pages of 2 MiB where it can: all will be used.
    Huge,
    /// Pages of 4 KiB: little of it is the mapping's own.
    Small,
}

/// A private anonymous mapping whose address is a multiple of 2 MiB.
#[derive(Debug)]
pub(super) struct AlignedMapping {
    address: *mut u8,
    length: usize,
}

// SAFETY: the struct only owns the mapping; all access goes through vm-memory's volatile slices.
unsafe impl Send for AlignedMapping {}
// SAFETY: as above.
unsafe impl Sync for AlignedMapping {}

impl AlignedMapping {
    /// Maps with room to spare, then gives back what lies before and behind the aligned part.
    pub(super) fn new(length: usize, pages: Pages) -> io::Result<Self> {
        let padded =
            length.checked_add(HUGE_PAGE as usize).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        // SAFETY: a new mapping at an address the kernel chooses touches nothing that exists.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                padded,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = base.cast::<u8>();
        let head = base.align_offset(HUGE_PAGE as usize);
        let address = base.wrapping_add(head);
        let tail = padded - head - length;
        let advice = if pages == Pages::Huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
        // SAFETY: both pieces are parts of the mapping just made, outside the aligned part that is kept;
        // the advice concerns that part only, and failing it costs speed or dump size, not correctness.
        unsafe {
            if head > 0 {
                libc::munmap(base.cast(), head);
            }
            if tail > 0 {
                libc::munmap(address.wrapping_add(length).cast(), tail);
            }
            libc::madvise(address.cast(), length, advice);
            libc::madvise(address.cast(), length, libc::MADV_DONTDUMP);
        }
        Ok(Self { address, length })
    }

    /// Where it begins.
    pub(super) fn address(&self) -> *mut u8 {
        self.address
    }

    /// How many bytes it has.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// Makes all of it read-only, for good.
    pub(super) fn forbid_writing(&self) -> io::Result<()> {
        // SAFETY: the mapping is ours, and nobody has a pointer to write by any more.
        let result = unsafe { libc::mprotect(self.address.cast(), self.length, libc::PROT_READ) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for AlignedMapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and the region that pointed into it is gone.
        unsafe { libc::munmap(self.address.cast(), self.length) };
    }
}

/// A read-only region while it gets its content, piece by piece, from its beginning to its end.
pub struct Filling<'a> {
    mapping: &'a AlignedMapping,
    /// Where the last piece ended; what lies before may be a file and not writable.
    end: u64,
}

impl<'a> Filling<'a> {
    pub(super) fn new(mapping: &'a AlignedMapping) -> Self {
        Self { mapping, end: 0 }
    }

    /// Copies bytes to an offset.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if they do not fit behind what is there.
    pub fn copy(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let target = self.place(offset, bytes.len() as u64)?;
        // SAFETY: the place is in the mapping, writable as yet, and nobody else's.
        unsafe { target.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    /// Maps the first `length` bytes of a file at an offset that begins a page; the rest of the last page reads as zeroes.
    /// The pages are the host's page cache itself: whoever maps the file shares them.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if it does not fit behind what is there, and those of mmap(2).
    pub fn map_file(&mut self, offset: u64, file: &File, length: u64) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        let length = length.checked_next_multiple_of(PAGE_SIZE).filter(|_| offset.is_multiple_of(PAGE_SIZE));
        let length = length.ok_or(io::ErrorKind::InvalidInput)?;
        let target = self.place(offset, length)?;
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: the place is in the mapping and nobody else's; what is unmapped there was never used.
        let mapped = unsafe { libc::mmap(target.cast(), length as usize, libc::PROT_READ, flags, file.as_raw_fd(), 0) };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Takes the next piece of the mapping.
    fn place(&mut self, offset: u64, length: u64) -> io::Result<*mut u8> {
        let end = offset.checked_add(length).filter(|end| *end <= self.mapping.length as u64 && offset >= self.end);
        self.end = end.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.mapping.address.wrapping_add(offset as usize))
    }
}
