//! Guest memory: how it is laid out in the guest, and how it is mapped on the host.
//!
//! RAM starts at guest address 0 and leaves out [`MMIO_HOLE`], the last GiB below 4 GiB, where devices and
//! interrupt controllers live; what does not fit below goes on at 4 GiB. On the host each region is one
//! private anonymous mapping aligned to 2 MiB, so that the kernel can back it with huge pages and nested
//! page faults stay few. It is not reserved in advance, and not part of core dumps.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::Arc;

use vm_memory::bitmap::BS;
use vm_memory::guest_memory::Result as MemoryResult;
use vm_memory::volatile_memory::VolatileSlice;
use vm_memory::{
    GuestAddress, GuestMemory as _, GuestMemoryRegion, GuestMemoryRegionBytes, GuestRegionCollection, GuestRegionMmap,
    GuestUsize, MemoryRegionAddress, MmapRegion,
};

/// Dirty-page tracking of guest memory: none. All code names this alias, so that tracking is one change.
pub type DirtyBitmap = ();

/// The guest's whole memory. Implements [`vm_memory::GuestMemory`].
pub type GuestMemory = GuestRegionCollection<RamRegion>;

/// The guest's memory as devices and CPUs share it.
pub type SharedMemory = Arc<GuestMemory>;

/// A checked piece of guest memory.
pub type GuestSlice<'a> = VolatileSlice<'a, BS<'a, DirtyBitmap>>;

/// Guest addresses that never hold RAM: devices, IOAPIC and LAPIC.
pub const MMIO_HOLE: Range<u64> = 0xc000_0000..0x1_0000_0000;

/// Size of a page of the guest and of the host.
pub const PAGE_SIZE: u64 = 4096;

/// Size of an x86-64 huge page, to which regions are aligned on the host.
pub const HUGE_PAGE: u64 = 2 << 20;

/// Why guest memory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size is zero or not whole pages.
    #[error("guest memory of {bytes} bytes is not a positive multiple of 4096; choose whole pages")]
    NotWholePages {
        /// The size asked for.
        bytes: u64,
    },
    /// The host gave no address space.
    #[error("{bytes} bytes of guest memory cannot be mapped; choose less memory or raise the address-space limit")]
    Map {
        /// The size of the region.
        bytes: u64,
        /// What mmap(2) said.
        #[source]
        source: io::Error,
    },
    /// Regions overlap or wrap; a bug of the caller's layout.
    #[error("the guest memory's regions do not fit together")]
    Layout(#[from] vm_memory::GuestRegionCollectionError),
}

/// The ranges of guest addresses that `bytes` of RAM occupy.
///
/// # Errors
/// [`MemoryError::NotWholePages`].
pub fn ram_ranges(bytes: u64) -> Result<Vec<(GuestAddress, u64)>, MemoryError> {
    if bytes == 0 || !bytes.is_multiple_of(PAGE_SIZE) {
        return Err(MemoryError::NotWholePages { bytes });
    }
    let low = bytes.min(MMIO_HOLE.start);
    let mut ranges = vec![(GuestAddress(0), low)];
    if bytes > low {
        ranges.push((GuestAddress(MMIO_HOLE.end), bytes - low));
    }
    Ok(ranges)
}

/// Maps `bytes` of zeroed guest RAM, laid out as [`ram_ranges`] says.
///
/// # Errors
/// [`MemoryError`] if the size is impossible or the host refuses the mapping.
pub fn map_ram(bytes: u64) -> Result<SharedMemory, MemoryError> {
    let regions = ram_ranges(bytes)?
        .into_iter()
        .map(|(start, size)| RamRegion::map(start, size))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Arc::new(GuestMemory::from_regions(regions)?))
}

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

/// Has the host back a range by small pages, because little of it is used: a huge page would be found and cleared in
/// vain. It is advice, and what is not guest memory is passed over.
pub fn prefer_small_pages(memory: &GuestMemory, start: GuestAddress, length: u64) {
    if let Ok(slice) = memory.get_slice(start, length as usize) {
        let guard = slice.ptr_guard_mut();
        // SAFETY: the range is mapped guest memory, and the advice changes no content.
        unsafe { libc::madvise(guard.as_ptr().cast(), slice.len(), libc::MADV_NOHUGEPAGE) };
    }
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

/// One contiguous piece of guest RAM, unmapped when dropped.
#[derive(Debug)]
pub struct RamRegion {
    region: GuestRegionMmap<DirtyBitmap>,
    // Dropped after `region`, which only points into it.
    _mapping: AlignedMapping,
}

impl RamRegion {
    fn map(start: GuestAddress, size: u64) -> Result<Self, MemoryError> {
        let mapping = AlignedMapping::new(size as usize).map_err(|source| MemoryError::Map { bytes: size, source })?;
        // SAFETY: address and length are those of `mapping`, which this struct keeps as long as the region.
        let region = unsafe {
            MmapRegion::build_raw(
                mapping.address,
                mapping.length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            )
        }
        .map_err(|error| MemoryError::Map { bytes: size, source: io::Error::other(error.to_string()) })?;
        let region = GuestRegionMmap::new(region, start).ok_or(MemoryError::NotWholePages { bytes: size })?;
        Ok(Self { region, _mapping: mapping })
    }
}

impl GuestMemoryRegion for RamRegion {
    type B = DirtyBitmap;

    fn len(&self) -> GuestUsize {
        self.region.len()
    }

    fn start_addr(&self) -> GuestAddress {
        self.region.start_addr()
    }

    fn bitmap(&self) -> BS<'_, Self::B> {
        self.region.bitmap()
    }

    fn get_host_address(&self, address: MemoryRegionAddress) -> MemoryResult<*mut u8> {
        self.region.get_host_address(address)
    }

    fn get_slice(&self, offset: MemoryRegionAddress, count: usize) -> MemoryResult<GuestSlice<'_>> {
        GuestMemoryRegion::get_slice(&self.region, offset, count)
    }
}

impl GuestMemoryRegionBytes for RamRegion {}

/// A private anonymous mapping whose address is a multiple of 2 MiB.
#[derive(Debug)]
struct AlignedMapping {
    address: *mut u8,
    length: usize,
}

// SAFETY: the struct only owns the mapping; all access goes through vm-memory's volatile slices.
unsafe impl Send for AlignedMapping {}
// SAFETY: as above.
unsafe impl Sync for AlignedMapping {}

impl AlignedMapping {
    /// Maps with room to spare, then gives back what lies before and behind the aligned part.
    fn new(length: usize) -> io::Result<Self> {
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
        // SAFETY: both pieces are parts of the mapping just made, outside the aligned part that is kept;
        // the advice concerns that part only, and failing it costs speed or dump size, not correctness.
        unsafe {
            if head > 0 {
                libc::munmap(base.cast(), head);
            }
            if tail > 0 {
                libc::munmap(address.wrapping_add(length).cast(), tail);
            }
            libc::madvise(address.cast(), length, libc::MADV_HUGEPAGE);
            libc::madvise(address.cast(), length, libc::MADV_DONTDUMP);
        }
        Ok(Self { address, length })
    }
}

impl Drop for AlignedMapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and the region that pointed into it is gone.
        unsafe { libc::munmap(self.address.cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use vm_memory::Bytes;

    #[test]
    fn memory_beyond_three_gib_goes_above_the_hole() {
        let ranges = ram_ranges(5 << 30).unwrap();
        assert_eq!(ranges, [(GuestAddress(0), 3 << 30), (GuestAddress(4 << 30), 2 << 30)]);
    }

    #[test]
    fn every_region_is_aligned_to_two_mib_on_the_host() {
        let memory = map_ram((3 << 30) + (4 << 20)).unwrap();
        assert_eq!(memory.num_regions(), 2);
        for region in memory.iter() {
            let host = region.get_host_address(MemoryRegionAddress(0)).unwrap();
            assert_eq!(host as u64 % HUGE_PAGE, 0);
        }
    }

    #[test]
    fn the_hole_holds_no_memory() {
        let memory = map_ram(4 << 30).unwrap();
        assert!(memory.write_obj(1_u8, GuestAddress(MMIO_HOLE.start)).is_err());
        memory.write_obj(1_u8, GuestAddress(MMIO_HOLE.end)).unwrap();
    }

    #[test]
    fn odd_sizes_are_refused_with_their_number() {
        let message = map_ram(4097).unwrap_err().to_string();
        assert!(message.contains("4097"), "{message}");
    }

    #[test]
    fn a_range_that_is_to_have_small_pages_is_marked_so_and_its_neighbours_are_not() {
        let memory = map_ram(3 * HUGE_PAGE).unwrap();
        prefer_small_pages(&memory, GuestAddress(HUGE_PAGE), HUGE_PAGE);
        prefer_small_pages(&memory, GuestAddress(1 << 40), HUGE_PAGE);
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let has_small_pages = |address: u64| {
            let host = memory.get_host_address(GuestAddress(address)).unwrap() as usize;
            let holds = |line: &str| {
                let range = line.split_whitespace().next().and_then(|range| range.split_once('-'));
                let parse = |hex| usize::from_str_radix(hex, 16).ok();
                range.and_then(|(start, end)| parse(start).zip(parse(end))).is_some_and(|(a, b)| (a..b).contains(&host))
            };
            let flags = smaps.lines().skip_while(|line| !holds(line)).find(|line| line.starts_with("VmFlags:"));
            flags.unwrap().contains(" nh")
        };
        assert_eq!([0, 1, 2].map(|page| has_small_pages(page * HUGE_PAGE)), [false, true, false]);
    }

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
