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

/// Alignment of regions on the host: the size of an x86-64 huge page.
const HUGE_PAGE: usize = 2 << 20;

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

/// Puts `length` bytes of `file`, from `offset`, at `address` in guest memory.
///
/// Where file and guest pages line up, whole pages are mapped copy-on-write, so that nothing is read now and
/// all guests share the host's page cache; the rest is read. The file must not be truncated while the guest
/// lives (replacing it by rename is fine): touching a page that is gone would end the process by SIGBUS.
///
/// # Errors
/// The host's error, or [`io::ErrorKind::InvalidInput`] if the range is not guest memory.
pub fn place_file(
    memory: &GuestMemory,
    address: GuestAddress,
    file: &File,
    offset: u64,
    length: u64,
) -> io::Result<()> {
    let outside = || io::Error::new(io::ErrorKind::InvalidInput, "not within guest memory");
    let region = memory.find_region(address).ok_or_else(outside)?;
    let start = address.0 - region.start_addr().0;
    let end = start.checked_add(length).filter(|end| *end <= region.len()).ok_or_else(outside)?;
    let (first, last) = (start.next_multiple_of(PAGE_SIZE), end / PAGE_SIZE * PAGE_SIZE);
    if first >= last || !(address.0 ^ offset).is_multiple_of(PAGE_SIZE) {
        return region.read_file(start, file, offset, length);
    }
    region.read_file(start, file, offset, first - start)?;
    region.map_file(first, file, offset + (first - start), last - first)?;
    region.read_file(last, file, offset + (last - start), end - last)
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

    fn slice(&self, start: u64, length: u64) -> io::Result<GuestSlice<'_>> {
        GuestMemoryRegion::get_slice(self, MemoryRegionAddress(start), length as usize)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))
    }

    fn read_file(&self, start: u64, file: &File, offset: u64, length: u64) -> io::Result<()> {
        let mut done = 0;
        while done < length {
            let slice = self.slice(start + done, length - done)?;
            let guard = slice.ptr_guard_mut();
            let at = (offset + done) as libc::off_t;
            // SAFETY: the guard's memory is valid for its length, and pread only writes there.
            let count = unsafe { libc::pread(file.as_raw_fd(), guard.as_ptr().cast(), guard.len(), at) };
            match count {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                1.. => done += count as u64,
                _ => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// Replaces whole pages by private pages of a file.
    fn map_file(&self, start: u64, file: &File, offset: u64, length: u64) -> io::Result<()> {
        if file.metadata()?.len() < offset + length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let slice = self.slice(start, length)?;
        // SAFETY: the replaced pages are part of this region's own mapping, which stays mapped throughout;
        // guest memory is only accessed by volatile operations, so that changing contents are allowed.
        let mapped = unsafe {
            libc::mmap(
                slice.ptr_guard_mut().as_ptr().cast(),
                slice.len(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
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
        let padded = length.checked_add(HUGE_PAGE).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
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
        let head = base.align_offset(HUGE_PAGE);
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
    use std::os::unix::fs::FileExt;
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
            assert_eq!(host as usize % HUGE_PAGE, 0);
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
    fn a_file_appears_in_memory_whether_pages_line_up_or_not() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..40_000_u32).map(|n| (n / 7) as u8).collect();
        file.write_all(&bytes).unwrap();
        let memory = map_ram(1 << 20).unwrap();
        for (address, offset) in [(0x1_0000, 0), (0x2_0100, 0x100), (0x3_0000, 0x1001), (0x4_0ffe, 0xffe)] {
            let length = bytes.len() as u64 - offset;
            place_file(&memory, GuestAddress(address), &file, offset, length).unwrap();
            let mut seen = vec![0; length as usize];
            memory.read_slice(&mut seen, GuestAddress(address)).unwrap();
            assert!(seen == bytes[offset as usize..], "at {address:#x}");
            let behind: u8 = memory.read_obj(GuestAddress(address + length)).unwrap();
            assert_eq!(behind, 0);
        }
        memory.write_obj(0xff_u8, GuestAddress(0x1_0000)).unwrap();
        let mut first = [1];
        file.read_exact_at(&mut first, 0).unwrap();
        assert_eq!(first, [0], "the guest's writes must not reach the file");
    }

    #[test]
    fn a_file_beyond_memory_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        let memory = map_ram(1 << 20).unwrap();
        let error = place_file(&memory, GuestAddress((1 << 20) - 4096), &file, 0, 8192).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
