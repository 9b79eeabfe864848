//! virtio-blk: a disk (virtio 1.2, section 5.2).
//!
//! One queue of requests, served one after the other on the device's thread, with data moved by the kernel straight between
//! the guest's buffers and the file. What a disk is made of is [`Disk`]'s matter. A request that makes no sense ends in a
//! status, as the spec has it; only a ring that makes no sense stops the device.

mod disk;
mod request;

use serde::{Deserialize, Serialize};

pub(super) use disk::Content;
pub use disk::{Disk, DiskError, Extent};

use super::{Context, DeviceError, DeviceKind, VirtioDevice, Watches};
use crate::persist::{Persist, PersistError};

/// Unit of addresses and lengths.
pub const SECTOR_BYTES: u64 = 512;

const QUEUE_SIZE: u16 = 256;
/// Most data buffers of a request: the queue's entries less those for header and status.
const MAX_SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// Unit in which the guest should give room back: that of the host's filesystems.
const DISCARD_ALIGNMENT_BYTES: u64 = 4096;

// Feature bits (virtio 1.2, section 5.2.3).
const F_SEG_MAX: u64 = 1 << 2;
const F_READ_ONLY: u64 = 1 << 5;
const F_FLUSH: u64 = 1 << 9;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// A disk as a device.
#[derive(Debug)]
pub struct Block {
    disk: Disk,
    /// Text that identifies the disk to the guest, at most 20 bytes.
    id: String,
}

impl Block {
    /// The disk, with an identity of which the guest sees the first 20 bytes.
    pub fn new(disk: Disk, id: impl Into<String>) -> Self {
        Self { disk, id: id.into() }
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        let always = F_SEG_MAX | F_FLUSH;
        always | if self.disk.is_read_only() { F_READ_ONLY } else { F_DISCARD | F_WRITE_ZEROES }
    }

    fn config(&self) -> Vec<u8> {
        let mut config = (self.disk.size() / SECTOR_BYTES).to_le_bytes().to_vec();
        config.extend([0; 4]); // size_max
        config.extend(MAX_SEGMENTS.to_le_bytes());
        config.extend([0; 4]); // geometry
        config.extend([0; 12]); // block size, topology: what is usual
        config.extend([1, 0]); // writeback
        config.extend(1_u16.to_le_bytes()); // queues
        let [discarded, zeroed] =
            [request::MAX_DISCARD_BYTES, request::MAX_ZEROES_BYTES].map(|most| (most / SECTOR_BYTES) as u32);
        let alignment = (DISCARD_ALIGNMENT_BYTES / SECTOR_BYTES) as u32;
        for field in [discarded, request::MAX_RANGES, alignment, zeroed, request::MAX_RANGES] {
            config.extend(field.to_le_bytes());
        }
        config.extend([1, 0, 0, 0]); // zeroing may unmap
        config
    }

    fn activate(&mut self, _features: u64, _context: &mut Context<'_, '_>) -> Result<(), DeviceError> {
        Ok(())
    }

    fn process_queue(&mut self, index: usize, context: &mut Context<'_, '_>) -> Result<(), DeviceError> {
        let Some(queue) = context.queues.get_mut(index) else { return Ok(()) };
        queue.serve(|chain| Ok(request::serve(&self.disk, &self.id, chain)))
    }

    fn reset(&mut self, _watches: &mut Watches<'_, '_>) {}
}

/// The device's saved state. The disk's content is not part of it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    id: String,
    size: u64,
    read_only: bool,
}

impl Persist for Block {
    type State = BlockState;
    type Args = Disk;

    fn save(&self) -> BlockState {
        BlockState { id: self.id.clone(), size: self.disk.size(), read_only: self.disk.is_read_only() }
    }

    fn restore(disk: Disk, state: BlockState) -> Result<Self, PersistError> {
        if (disk.size(), disk.is_read_only()) != (state.size, state.read_only) {
            let why = format!("the disk had {} bytes, the one given has {}", state.size, disk.size());
            return Err(PersistError::Invalid { what: "a disk", why });
        }
        Ok(Self { disk, id: state.id })
    }
}

#[cfg(test)]
mod tests;
