//! virtio-pmem: files of the host as memory of the guest (virtio 1.2, section 5.19).
//!
//! What a [`ReadOnlyFiles`] maps is in the guest's address space: the guest reads it without asking the device, from the
//! host's page cache itself, so that all guests that have a file share one copy of it. KVM lets no guest write there; what
//! it tries to write comes back as an access to a place without memory, and is ignored.
//!
//! The files must keep their length. A guest that reads where a file has lost its end ends by that, and nobody else.
//!
//! One queue of flush requests is all that is left for the device to do; as nothing is ever written, they succeed at once.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vm_memory::{GuestAddress, GuestMemoryRegion};

use super::block::{Content, Extent};
use super::{Context, DeviceError, DeviceKind, VirtioDevice, Watches};
use crate::memory::{HUGE_PAGE, MemoryError, MemoryRegion};
use crate::persist::{Persist, PersistError};
use crate::virtio::chain::DescriptorChain;

/// The only queue: requests.
const REQUEST_QUEUE: usize = 0;

/// Request type: make what was written durable.
const FLUSH: u32 = 0;
/// Result of a request that was done.
const DONE: u32 = 0;
/// Result of a request that was not understood.
const FAILED: u32 = 1;

/// Pieces of files and memory, mapped one behind the other into the guest.
#[derive(Clone, Debug)]
pub struct ReadOnlyFiles {
    region: Arc<MemoryRegion>,
}

impl ReadOnlyFiles {
    /// Maps the pieces, which are in order of their places; those of files begin a page. What is between them reads as
    /// zeroes, and so does what is behind, up to a whole number of huge pages.
    ///
    /// # Errors
    /// [`MemoryError`].
    pub fn map(start: GuestAddress, extents: &[Extent]) -> Result<Self, MemoryError> {
        let size = extents.last().map_or(0, Extent::end).max(1).next_multiple_of(HUGE_PAGE);
        let region = MemoryRegion::read_only(start, size, |filling| {
            extents.iter().try_for_each(|extent| match extent.content() {
                Content::File(file) => filling.map_file(extent.start, file, extent.length),
                Content::Bytes(bytes) => filling.copy(extent.start, bytes),
            })
        })?;
        Ok(Self { region: Arc::new(region) })
    }

    /// The guest's memory that it is.
    pub(crate) fn region(&self) -> Arc<MemoryRegion> {
        Arc::clone(&self.region)
    }

    /// The first address of the guest behind it.
    pub fn end(&self) -> GuestAddress {
        let (start, size) = self.place();
        GuestAddress(start + size)
    }

    /// Where the guest sees it, and how many bytes.
    fn place(&self) -> (u64, u64) {
        (self.region.start_addr().0, self.region.len())
    }
}

/// The device that tells the guest where the memory is.
#[derive(Debug)]
pub struct Pmem {
    files: ReadOnlyFiles,
}

impl Pmem {
    /// The device of these files.
    pub fn new(files: ReadOnlyFiles) -> Self {
        Self { files }
    }
}

impl VirtioDevice for Pmem {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Pmem
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn features(&self) -> u64 {
        0
    }

    /// Start and size of the memory.
    fn config(&self) -> Vec<u8> {
        let (start, size) = self.files.place();
        [start.to_le_bytes(), size.to_le_bytes()].concat()
    }

    fn activate(&mut self, _features: u64, _context: &mut Context<'_, '_>) -> Result<(), DeviceError> {
        Ok(())
    }

    fn process_queue(&mut self, _index: usize, context: &mut Context<'_, '_>) -> Result<(), DeviceError> {
        context.queues[REQUEST_QUEUE].serve(|chain| Ok(answer(chain)))
    }

    fn reset(&mut self, _watches: &mut Watches<'_, '_>) {}
}

/// Answers one request; returns how many bytes were written.
fn answer(chain: &DescriptorChain) -> u32 {
    let kind = chain.readable().read_object::<u32>().map(u32::from_le);
    let result = if kind == Some(FLUSH) { DONE } else { FAILED };
    chain.writable().copy_from(&result.to_le_bytes()) as u32
}

/// The device's saved state. The files' content is not part of it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PmemState {
    start: u64,
    size: u64,
}

impl Persist for Pmem {
    type State = PmemState;
    type Args = ReadOnlyFiles;

    fn save(&self) -> PmemState {
        let (start, size) = self.files.place();
        PmemState { start, size }
    }

    fn restore(files: ReadOnlyFiles, state: PmemState) -> Result<Self, PersistError> {
        let (start, size) = files.place();
        if (start, size) != (state.start, state.size) {
            let why = format!(
                "the files were {} bytes at {:#x}, those given are {size} at {start:#x}",
                state.size, state.start
            );
            return Err(PersistError::Invalid { what: "files in memory", why });
        }
        Ok(Self { files })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use virtio_queue::{Queue, QueueT};
    use vm_memory::Bytes;

    use super::*;
    use crate::devices::block::{Block, Disk};
    use crate::devices::testing::{Bench, Buffer, MEMORY_BYTES, survives_hostile_rings};
    use crate::memory::{SharedMemory, map_ram};
    use crate::virtio::COMMON_FEATURES;
    use crate::virtio::queue::Virtqueue;

    const START: GuestAddress = GuestAddress(1 << 32);
    /// Without the event index, so that every used chain interrupts.
    const FEATURES: u64 = COMMON_FEATURES & !(1 << 29);

    fn file_of(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    fn files() -> ReadOnlyFiles {
        let pieces = [Extent::bytes(0, *b"table"), Extent::file(4096, file_of(&[7; 8192])).unwrap()];
        ReadOnlyFiles::map(START, &pieces).unwrap()
    }

    fn memory() -> SharedMemory {
        map_ram(MEMORY_BYTES).unwrap().with_read_only([files().region()]).unwrap()
    }

    #[test]
    fn the_driver_is_told_where_the_files_are() {
        let config = Pmem::new(files()).config();
        assert_eq!(config, [(1_u64 << 32).to_le_bytes(), HUGE_PAGE.to_le_bytes()].concat());
        let mut table = [0; 6];
        memory().readable().read_slice(&mut table, START).unwrap();
        assert_eq!(&table, b"table\0");
        assert_eq!(memory().readable().read_obj::<u8>(GuestAddress(START.0 + 4096)).unwrap(), 7);
    }

    #[test]
    fn files_that_overlap_or_begin_within_a_page_are_refused() {
        let pieces = [Extent::bytes(0, vec![1; 4097]), Extent::file(4096, file_of(&[7; 10])).unwrap()];
        assert!(ReadOnlyFiles::map(START, &pieces).is_err());
        assert!(ReadOnlyFiles::map(START, &[Extent::file(512, file_of(&[7; 10])).unwrap()]).is_err());
    }

    #[test]
    fn a_flush_is_done_and_anything_else_fails() {
        let mut bench = Bench::start(Pmem::new(files()));
        for (request, result) in [(&[0; 4][..], 0_u32), (&[1, 0, 0, 0], 1), (&[0; 3], 1), (&[], 1)] {
            let head = bench.add_chain(0, &[Buffer::readable(request), Buffer::writable(4)]);
            bench.kick(0);
            assert_eq!(bench.used(0), [(head, 4)]);
            assert_eq!(bench.written(0, head), result.to_le_bytes());
            assert!(bench.interrupted());
        }
        let head = bench.add_chain(0, &[Buffer::readable(&[0; 4])]);
        bench.kick(0);
        assert_eq!(bench.used(0), [(head, 0)], "there is no place for an answer");
    }

    #[test]
    fn state_fits_only_files_of_the_same_place_and_size() {
        let state = Pmem::new(files()).save();
        assert_eq!(Pmem::restore(files(), state).unwrap().save(), Pmem::new(files()).save());
        let larger = ReadOnlyFiles::map(START, &[Extent::bytes(HUGE_PAGE, *b"x")]).unwrap();
        assert!(Pmem::restore(larger, Pmem::new(files()).save()).is_err());
    }

    #[test]
    fn what_is_in_the_files_can_be_written_to_a_disk_but_no_disk_is_read_into_them() {
        let disk = file_of(&[1; 8192]);
        let header = |kind: u32| Buffer::readable(&[&kind.to_le_bytes()[..], &[0; 12]].concat());
        for (kind, flags, is_sound) in [(1, 1_u16, true), (0, 3, false)] {
            let device = Block::new(Disk::writable(disk.try_clone().unwrap()).unwrap(), "disk");
            let mut bench = Bench::start_in(memory(), device, FEATURES);
            let data = if is_sound { Buffer::readable(&[0; 4096]) } else { Buffer::writable(4096) };
            bench.add_chain(0, &[header(kind), data, Buffer::writable(1)]);
            bench.set_descriptor(0, 1, START.0 + 4096, 4096, flags, 2);
            bench.kick(0);
            assert_eq!((bench.used(0).len(), bench.link().health.needs_reset()), (usize::from(is_sound), !is_sound));
        }
        let mut bytes = [0; 8192];
        disk.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!((bytes[0], bytes[4095], bytes[4096]), (7, 7, 1));
    }

    #[test]
    fn no_ring_is_among_the_files() {
        let (_, link) = crate::devices::worker::DeviceWorker::new(Pmem::new(files())).unwrap();
        for (table, avail, used) in [(1, 0, 0), (0, 1, 0), (0, 0, 1)] {
            let mut queue = Queue::new(64).unwrap();
            queue.set_desc_table_address(Some(0x1000), Some(table));
            queue.set_avail_ring_address(Some(0x2000), Some(avail));
            queue.set_used_ring_address(Some(0x3000), Some(used));
            queue.set_ready(true);
            let (interrupt, kick) = (Arc::clone(&link.interrupt), Arc::clone(&link.kicks[0]));
            assert!(Virtqueue::new(queue, memory(), interrupt, kick).is_err(), "{table} {avail} {used}");
        }
    }

    #[test]
    fn hostile_rings_only_stop_the_device() {
        survives_hostile_rings(|| Pmem::new(files()));
    }
}
