//! One request: a descriptor chain, read once, checked, and held as plain slices of guest memory.
//!
//! Virtio 1.2, section 2.7.4: buffers the device reads come before buffers it writes. The ring's own
//! walking (loops, indirect tables) is virtio-queue's; this file refuses what it would pass over silently.

use std::cmp::min;

use virtio_queue::DescriptorChain as RawChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{ByteValued, GuestAddress, GuestMemory as _};

use super::queue::QueueError;
use crate::memory::{GuestMemory, GuestSlice, SharedMemory};

/// Most descriptors of one chain: as many as one preadv(2) takes (IOV_MAX).
pub const MAX_DESCRIPTORS: usize = 1024;

/// A checked range of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    address: GuestAddress,
    length: u32,
}

/// A chain of buffers that the driver has handed to the device.
///
/// Give it back with [`super::queue::Virtqueue::add_used`]; until then the driver leaves its buffers alone.
#[derive(Debug)]
pub struct DescriptorChain {
    raw: RawChain<SharedMemory>,
    memory: SharedMemory,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
}

impl DescriptorChain {
    /// Walks the chain once and checks every descriptor.
    pub(super) fn parse(raw: RawChain<SharedMemory>, memory: &SharedMemory) -> Result<Self, QueueError> {
        let head = raw.head_index();
        let malformed = |why| QueueError::MalformedChain { head, why };
        let mut chain = Self { raw: raw.clone(), memory: memory.clone(), readable: vec![], writable: vec![] };
        let mut ends = false;
        for (count, descriptor) in raw.enumerate() {
            if count >= MAX_DESCRIPTORS {
                return Err(malformed("it has more than 1024 descriptors"));
            }
            chain.push(&descriptor).map_err(malformed)?;
            ends = !descriptor.has_next();
        }
        // virtio-queue ends the walk quietly at a bad index, a loop or a bad indirect table.
        if ends { Ok(chain) } else { Err(malformed("it leads to a descriptor that does not exist")) }
    }

    fn push(&mut self, descriptor: &Descriptor) -> Result<(), &'static str> {
        let segment = Segment { address: descriptor.addr(), length: descriptor.len() };
        if segment.length == 0 {
            return Ok(());
        }
        // What can only be read may be handed to the device, but not offered for its answer.
        let memory = if descriptor.is_write_only() { &*self.memory } else { self.memory.readable() };
        if memory.get_slice(segment.address, segment.length as usize).is_err() {
            return Err("a buffer lies outside guest memory");
        }
        if descriptor.is_write_only() {
            self.writable.push(segment);
        } else if self.writable.is_empty() {
            self.readable.push(segment);
        } else {
            return Err("a readable buffer follows a writable one");
        }
        Ok(())
    }

    /// Names the chain to [`super::queue::Virtqueue::add_used`].
    pub fn head(&self) -> u16 {
        self.raw.head_index()
    }

    /// What the driver wrote for the device, in order.
    pub fn readable(&self) -> Buffers<'_> {
        Buffers::new(self.memory.readable(), &self.readable)
    }

    /// Where the device may write its answer, in order.
    pub fn writable(&self) -> Buffers<'_> {
        Buffers::new(&self.memory, &self.writable)
    }

    /// The chain as virtio-queue knows it, for libraries that walk it themselves.
    pub fn raw(&self) -> RawChain<SharedMemory> {
        self.raw.clone()
    }
}

/// A sequence of guest buffers, seen as one run of bytes.
///
/// The guest can change the bytes at any time: copy what you decide on, and decide on the copy.
#[derive(Clone, Debug, Default)]
pub struct Buffers<'a> {
    slices: Vec<GuestSlice<'a>>,
}

impl<'a> Buffers<'a> {
    fn new(memory: &'a GuestMemory, segments: &[Segment]) -> Self {
        // Every segment was checked when the chain was parsed, and guest memory never shrinks.
        let slices = segments.iter().filter_map(|s| memory.get_slice(s.address, s.length as usize).ok()).collect();
        Self { slices }
    }

    /// Bytes in all buffers together. A chain is at most 4 GiB long.
    pub fn len(&self) -> usize {
        self.slices.iter().map(|slice| slice.len()).sum()
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.slices.is_empty()
    }

    /// The buffers themselves.
    pub fn slices(&self) -> &[GuestSlice<'a>] {
        &self.slices
    }

    /// Takes the first `count` bytes off the front (fewer if there are not as many).
    pub fn take(&mut self, count: usize) -> Self {
        let mut taken = Vec::new();
        let mut left = count;
        while left > 0 && !self.slices.is_empty() {
            let first = &self.slices[0];
            if first.len() <= left {
                left -= first.len();
                taken.push(self.slices.remove(0));
            } else {
                match first.split_at(left) {
                    Ok((front, back)) => {
                        taken.push(front);
                        self.slices[0] = back;
                    }
                    Err(_) => break,
                }
                left = 0;
            }
        }
        Self { slices: taken }
    }

    /// Takes the last `count` bytes off the back; `None` if there are not as many.
    pub fn take_back(&mut self, count: usize) -> Option<Self> {
        let front = self.len().checked_sub(count)?;
        let mut rest = std::mem::take(self);
        *self = rest.take(front);
        Some(rest)
    }

    /// Copies bytes out, from the front, as many as fit; says how many.
    pub fn copy_to(&self, target: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            let count = min(slice.len(), target.len() - done);
            done += slice.copy_to(&mut target[done..done + count]);
            if done == target.len() {
                break;
            }
        }
        done
    }

    /// Copies bytes in, from the front, as many as fit; says how many.
    pub fn copy_from(&self, source: &[u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            let count = min(slice.len(), source.len() - done);
            slice.copy_from(&source[done..done + count]);
            done += count;
            if done == source.len() {
                break;
            }
        }
        done
    }

    /// Takes a structure off the front; `None` if there are too few bytes.
    pub fn read_object<T: ByteValued>(&mut self) -> Option<T> {
        let mut object = T::zeroed();
        let front = self.take(size_of::<T>());
        let done = front.copy_to(object.as_mut_slice());
        (done == size_of::<T>()).then_some(object)
    }

    /// The buffers as the kernel takes them (preadv, pwritev, readv), at most [`MAX_DESCRIPTORS`].
    ///
    /// The pointers stay valid for `'a`. Give them only to system calls: a Rust reference to memory that
    /// the guest changes would be undefined behaviour.
    pub fn iovecs(&self) -> Vec<libc::iovec> {
        self.slices
            .iter()
            .map(|slice| libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() })
            .collect()
    }
}
