//! Buffers of the guest in line for received frames.
//!
//! A frame's length is known only once it is read, so there must be room for the largest one first. A window
//! holds enough buffers for that; a frame takes some off its front, and what is left at the end of a batch
//! goes back to the queue.

use std::collections::VecDeque;
use std::io;

use super::HEADER_BYTES;
use super::tap::{Moved, Tap};
use crate::devices::DeviceError;
use crate::virtio::chain::DescriptorChain;
use crate::virtio::queue::Virtqueue;

/// Where a header holds the number of buffers of its frame (virtio 1.2, section 5.1.6).
const NUM_BUFFERS_OFFSET: usize = 10;

/// Chains taken off a queue and not used yet.
pub(super) struct Window {
    chains: VecDeque<Held>,
    iovecs: Vec<libc::iovec>,
    /// Iovecs before this one belong to used chains.
    first_iovec: usize,
    length: usize,
    /// Room that the largest frame needs.
    needed: usize,
    mergeable: bool,
}

/// A chain in the window.
struct Held {
    chain: DescriptorChain,
    length: usize,
    iovec_count: usize,
}

impl Window {
    /// An empty window for frames of up to `needed` bytes, header and all. `mergeable`: a frame may take several
    /// buffers; else each buffer has room for any frame, by the driver's duty.
    pub fn new(needed: usize, mergeable: bool) -> Self {
        Self { chains: VecDeque::new(), iovecs: Vec::new(), first_iovec: 0, length: 0, needed, mergeable }
    }

    /// Takes chains off the queue until the largest frame fits; `false` if the queue has not enough.
    pub fn fill(&mut self, queue: &mut Virtqueue) -> Result<bool, DeviceError> {
        while if self.mergeable { self.length < self.needed } else { self.chains.is_empty() } {
            let Some(chain) = queue.pop()? else { return Ok(false) };
            let buffers = chain.writable();
            let length = buffers.len();
            if length < HEADER_BYTES {
                return Err(DeviceError::Protocol("a buffer for frames is shorter than a frame's header"));
            }
            self.iovecs.extend(buffers.iovecs());
            let iovec_count = buffers.slices().len();
            drop(buffers);
            self.length += length;
            self.chains.push_back(Held { chain, length, iovec_count });
        }
        Ok(true)
    }

    /// Reads one frame into the window. A frame that is larger than it seems one byte longer than the window, as
    /// far as the kernel takes that many buffers.
    pub fn read(&mut self, tap: &Tap) -> io::Result<Moved> {
        let mut spill = [0_u8];
        let spill = libc::iovec { iov_base: spill.as_mut_ptr().cast(), iov_len: spill.len() };
        self.iovecs.push(spill);
        let moved = tap.read(&self.iovecs[self.first_iovec..]);
        self.iovecs.pop();
        moved
    }

    /// Copies a frame that comes without header into the window, as far as there is room, behind an empty one.
    pub fn copy_from(&mut self, frame: &[u8]) -> Moved {
        let mut header: &[u8] = &[0; HEADER_BYTES];
        let mut left = frame;
        for held in &self.chains {
            let mut buffers = held.chain.writable();
            // The first buffer has room for it.
            buffers.take(header.len()).copy_from(header);
            header = &[];
            left = &left[buffers.copy_from(left)..];
        }
        Moved::Bytes(HEADER_BYTES + frame.len())
    }

    /// A frame of `length` bytes, header and all, was read: gives the chains it lies in to the driver. A frame
    /// that did not fit is dropped.
    pub fn deliver(&mut self, length: usize, queue: &mut Virtqueue) -> Result<(), DeviceError> {
        if length > self.length {
            return Ok(());
        }
        let mut used = Vec::new();
        let mut left = length;
        let mut first = None;
        while left > 0 {
            let Some(held) = self.chains.pop_front() else { break };
            let written = held.length.min(left);
            left -= written;
            self.length -= held.length;
            self.first_iovec += held.iovec_count;
            // No frame is anywhere near 4 GiB, so the cast loses nothing.
            used.push((held.chain.head(), written as u32));
            first.get_or_insert(held.chain);
        }
        if let Some(first) = first {
            let mut header = first.writable().take(HEADER_BYTES);
            header.take(NUM_BUFFERS_OFFSET);
            header.copy_from(&(used.len() as u16).to_le_bytes());
        }
        Ok(queue.add_used_together(&used)?)
    }

    /// Puts the chains that were not used back.
    pub fn put_back(self, queue: &mut Virtqueue) {
        for _ in self.chains {
            queue.undo_pop();
        }
    }
}
