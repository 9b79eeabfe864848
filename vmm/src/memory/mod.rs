//! Guest memory: how it is laid out in the guest, and how it is mapped on the host.
//!
//! RAM starts at guest address 0 and leaves out [`MMIO_HOLE`], the last GiB below 4 GiB, where devices and
//! interrupt controllers live; what does not fit below goes on at 4 GiB. On the host each region is one
//! private anonymous mapping aligned to 2 MiB, so that the kernel can back it with huge pages and nested
//! page faults stay few. It is not reserved in advance, and not part of core dumps.
//!
//! Beside RAM there may be regions that are only read: files of the host, mapped into the guest (virtio-pmem).

mod load;
mod mapping;

use std::io;
use std::ops::{Deref, Range};
use std::sync::Arc;

use vm_memory::bitmap::BS;
use vm_memory::guest_memory::Result as MemoryResult;
use vm_memory::volatile_memory::VolatileSlice;
use vm_memory::{
    GuestAddress, GuestMemory as _, GuestMemoryRegion, GuestMemoryRegionBytes, GuestRegionCollection, GuestRegionMmap,
    GuestUsize, MemoryRegionAddress, MmapRegion,
};

pub use self::load::copy_file;
pub use self::mapping::Filling;
use self::mapping::{AlignedMapping, Pages};

/// Dirty-page tracking of guest memory: none. All code names this alias, so that tracking is one change.
pub type DirtyBitmap = ();

/// Pieces of guest memory. Implements [`vm_memory::GuestMemory`].
pub type GuestMemory = GuestRegionCollection<MemoryRegion>;

/// The guest's memory as devices and CPUs share it. It stands for the RAM: what is only to be read, such as image layers
/// that are mapped into the guest, is reached by [`Self::readable`] alone, so that no device can be made to write there.
#[derive(Clone, Debug)]
pub struct SharedMemory {
    ram: Arc<GuestMemory>,
    readable: Arc<GuestMemory>,
}

impl SharedMemory {
    /// RAM alone.
    fn of_ram(ram: GuestMemory) -> Self {
        let ram = Arc::new(ram);
        Self { readable: Arc::clone(&ram), ram }
    }

    /// The same, with regions that can only be read.
    ///
    /// # Errors
    /// [`MemoryError::Layout`] if one lies where another is.
    pub fn with_read_only(&self, regions: impl IntoIterator<Item = Arc<MemoryRegion>>) -> Result<Self, MemoryError> {
        let insert = |all: GuestMemory, region| all.insert_region(region);
        let readable = regions.into_iter().try_fold((*self.readable).clone(), insert)?;
        Ok(Self { ram: Arc::clone(&self.ram), readable: Arc::new(readable) })
    }

    /// RAM and what can only be read: for what the guest hands to a device, never for a device's answers. Writing to a
    /// read-only region would end the process.
    pub fn readable(&self) -> &GuestMemory {
        &self.readable
    }
}

impl Deref for SharedMemory {
    type Target = GuestMemory;

    fn deref(&self) -> &GuestMemory {
        &self.ram
    }
}

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
        .map(|(start, size)| MemoryRegion::ram(start, size))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(SharedMemory::of_ram(GuestMemory::from_regions(regions)?))
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

/// One contiguous piece of guest memory, unmapped when dropped.
#[derive(Debug)]
pub struct MemoryRegion {
    region: GuestRegionMmap<DirtyBitmap>,
    is_read_only: bool,
    // Dropped after `region`, which only points into it.
    _mapping: AlignedMapping,
}

impl MemoryRegion {
    fn ram(start: GuestAddress, size: u64) -> Result<Self, MemoryError> {
        let mapping = AlignedMapping::new(size as usize, Pages::Huge)
            .map_err(|source| MemoryError::Map { bytes: size, source })?;
        Self::of(mapping, start, false)
    }

    /// A region that can only be read, `size` bytes at `start`: zeroes, but for what `fill` puts there.
    ///
    /// # Errors
    /// [`MemoryError`] if the size is no multiple of [`HUGE_PAGE`], or the host refuses a mapping.
    pub fn read_only(
        start: GuestAddress,
        size: u64,
        fill: impl FnOnce(&mut Filling<'_>) -> io::Result<()>,
    ) -> Result<Self, MemoryError> {
        let failed = |source| MemoryError::Map { bytes: size, source };
        if size == 0 || !size.is_multiple_of(HUGE_PAGE) {
            return Err(MemoryError::NotWholePages { bytes: size });
        }
        let mapping = AlignedMapping::new(size as usize, Pages::Small).map_err(failed)?;
        fill(&mut Filling::new(&mapping)).and_then(|()| mapping.forbid_writing()).map_err(failed)?;
        Self::of(mapping, start, true)
    }

    /// Whether nobody may write to it.
    pub fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    fn of(mapping: AlignedMapping, start: GuestAddress, is_read_only: bool) -> Result<Self, MemoryError> {
        let size = mapping.length() as u64;
        let protection = libc::PROT_READ | if is_read_only { 0 } else { libc::PROT_WRITE };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: address and length are those of `mapping`, which this struct keeps as long as the region.
        let region = unsafe { MmapRegion::build_raw(mapping.address(), mapping.length(), protection, flags) }
            .map_err(|error| MemoryError::Map { bytes: size, source: io::Error::other(error.to_string()) })?;
        let region = GuestRegionMmap::new(region, start).ok_or(MemoryError::NotWholePages { bytes: size })?;
        Ok(Self { region, is_read_only, _mapping: mapping })
    }
}

impl GuestMemoryRegion for MemoryRegion {
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

impl GuestMemoryRegionBytes for MemoryRegion {}

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
    fn a_read_only_region_is_read_where_asked_for_and_never_written() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 5000]).unwrap();
        let start = GuestAddress(1 << 32);
        let fill = |filling: &mut Filling<'_>| {
            filling.copy(10, b"head")?;
            filling.map_file(PAGE_SIZE, &file, 5000)?;
            filling.copy(HUGE_PAGE - 4, b"tail")
        };
        let region = Arc::new(MemoryRegion::read_only(start, HUGE_PAGE, fill).unwrap());
        let memory = map_ram(1 << 20).unwrap().with_read_only([Arc::clone(&region)]).unwrap();
        let mut seen = vec![1; HUGE_PAGE as usize];
        memory.readable().read_slice(&mut seen, start).unwrap();
        let mut expected = vec![0; HUGE_PAGE as usize];
        expected[10..14].copy_from_slice(b"head");
        expected[4096..9096].fill(7);
        expected[HUGE_PAGE as usize - 4..].copy_from_slice(b"tail");
        assert!(seen == expected);
        assert!(memory.read_obj::<u8>(start).is_err() && memory.write_obj(1_u8, start).is_err());
        assert!(memory.with_read_only([region]).is_err(), "two regions are at one place");
    }

    #[test]
    fn pieces_of_a_read_only_region_follow_each_other_and_end_within_it() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(HUGE_PAGE).unwrap();
        let fails = |fill: fn(&mut Filling<'_>, &std::fs::File) -> io::Result<()>| {
            MemoryRegion::read_only(GuestAddress(0), HUGE_PAGE, |filling| fill(filling, &file)).is_err()
        };
        assert!(fails(|filling, file| filling.map_file(0, file, 1).and_then(|()| filling.copy(4095, b"x"))));
        assert!(fails(|filling, file| filling.map_file(1, file, 1)));
        assert!(fails(|filling, file| filling.map_file(PAGE_SIZE, file, HUGE_PAGE)));
        assert!(fails(|filling, file| filling.map_file(PAGE_SIZE, file, u64::MAX)));
        assert!(fails(|filling, _| filling.copy(u64::MAX, b"x")));
        assert!(!fails(|filling, file| filling.map_file(0, file, 1).and_then(|()| filling.copy(4096, b"x"))));
        assert!(MemoryRegion::read_only(GuestAddress(0), 4096, |_| Ok(())).is_err(), "not whole huge pages");
    }
}
