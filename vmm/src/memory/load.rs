//! Copying files into guest memory, quickly.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

use vm_memory::{GuestAddress, GuestMemory as _};

use super::{GuestMemory, PAGE_SIZE};

/// Copies `length` bytes of `file`, from `offset`, to `address` in guest memory.
///
/// The file is mapped for the copy and the bytes are stored past the caches, where they would only displace others.
/// Guest memory thus stays in huge pages; mapping the file into it instead would save the copy, but cost a nested page
/// fault for every 4 KiB the guest touches, and another for each it changes, as kernels do when they patch themselves.
///
/// # Errors
/// The host's error, or [`io::ErrorKind::InvalidInput`] if the range is not guest memory,
/// [`io::ErrorKind::UnexpectedEof`] if it is not in the file.
pub fn copy_file(memory: &GuestMemory, address: GuestAddress, file: &File, offset: u64, length: u64) -> io::Result<()> {
    if length == 0 {
        return Ok(());
    }
    let outside = |error: vm_memory::GuestMemoryError| io::Error::new(io::ErrorKind::InvalidInput, error.to_string());
    let target = memory.get_slice(address, length as usize).map_err(outside)?;
    if offset.checked_add(length).is_none_or(|end| file.metadata().map_or(true, |file| file.len() < end)) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let into_page = offset % PAGE_SIZE;
    let source = FileMapping::new(file, offset - into_page, (length + into_page) as usize)?;
    let guard = target.ptr_guard_mut();
    // SAFETY: both are mapped for `length` bytes and do not overlap; no CPU runs yet that could change the target.
    unsafe { copy_past_caches(guard.as_ptr(), source.address.add(into_page as usize), length as usize) };
    Ok(())
}

/// Copies bytes with streaming stores.
///
/// # Safety
/// `from` must be readable and `to` writable for `length` bytes, without overlap.
#[cfg(target_arch = "x86_64")]
unsafe fn copy_past_caches(to: *mut u8, from: *const u8, length: usize) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    const BLOCK: usize = 64;
    let head = to.align_offset(BLOCK).min(length);
    let blocks = (length - head) / BLOCK;
    let tail = head + blocks * BLOCK;
    // SAFETY: all offsets are below `length`; `to + head` is aligned as streaming stores want it. SSE2 is part of x86-64.
    unsafe {
        to.copy_from_nonoverlapping(from, head);
        for block in 0..blocks {
            let from = from.add(head + block * BLOCK).cast::<__m128i>();
            let to = to.add(head + block * BLOCK).cast::<__m128i>();
            // Written out, or the compiler counts four rounds with a dozen instructions each.
            let lanes = [0, 1, 2, 3].map(|lane| _mm_loadu_si128(from.add(lane)));
            _mm_stream_si128(to, lanes[0]);
            _mm_stream_si128(to.add(1), lanes[1]);
            _mm_stream_si128(to.add(2), lanes[2]);
            _mm_stream_si128(to.add(3), lanes[3]);
        }
        _mm_sfence();
        to.add(tail).copy_from_nonoverlapping(from.add(tail), length - tail);
    }
}

/// Copies bytes.
///
/// # Safety
/// `from` must be readable and `to` writable for `length` bytes, without overlap.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn copy_past_caches(to: *mut u8, from: *const u8, length: usize) {
    // SAFETY: as the caller promises.
    unsafe { to.copy_from_nonoverlapping(from, length) };
}

/// Part of a file, mapped for reading.
struct FileMapping {
    address: *const u8,
    length: usize,
}

impl FileMapping {
    /// Maps pages that are in the file; `offset` is a multiple of the page size.
    fn new(file: &File, offset: u64, length: usize) -> io::Result<Self> {
        // SAFETY: a new read-only mapping at an address the kernel chooses touches nothing that exists.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { address: address.cast(), length })
    }
}

impl Drop for FileMapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and the copy that read it is done.
        unsafe { libc::munmap(self.address.cast_mut().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::Bytes;

    use super::super::map_ram;
    use super::*;

    #[test]
    fn a_file_appears_in_memory_at_any_alignment() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..40_000_u32).map(|n| (n / 7) as u8).collect();
        file.write_all(&bytes).unwrap();
        let memory = map_ram(1 << 20).unwrap();
        for (address, offset) in [(0x1_0000, 0), (0x2_0100, 0x100), (0x3_0003, 0x1001), (0x4_0ffe, 0xffe)] {
            let length = bytes.len() as u64 - offset;
            copy_file(&memory, GuestAddress(address), &file, offset, length).unwrap();
            let mut seen = vec![0; length as usize];
            memory.read_slice(&mut seen, GuestAddress(address)).unwrap();
            assert!(seen == bytes[offset as usize..], "at {address:#x}");
            let behind: u8 = memory.read_obj(GuestAddress(address + length)).unwrap();
            assert_eq!(behind, 0);
        }
    }

    #[test]
    fn a_file_that_is_too_short_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(5000).unwrap();
        let memory = map_ram(1 << 20).unwrap();
        let error = copy_file(&memory, GuestAddress(0), &file, 4096, 905).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        copy_file(&memory, GuestAddress(0), &file, 4096, 904).unwrap();
    }

    #[test]
    fn a_file_beyond_memory_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        let memory = map_ram(1 << 20).unwrap();
        let error = copy_file(&memory, GuestAddress((1 << 20) - 4096), &file, 0, 8192).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
