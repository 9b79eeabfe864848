//! A bench for devices: guest memory, the driver's side of the queues, and hostile input.
//!
//! [`Bench`] runs a device's worker on the test's own thread, event by event, so that tests are exact.
//! [`survives_hostile_rings`] feeds any device rings that no driver would make.

use std::collections::HashMap;
use std::sync::Arc;

use event_manager::{EventManager, SubscriberId, SubscriberOps};
use proptest::prelude::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::VirtioDevice;
use super::worker::{Command, DeviceLink, DeviceWorker};
use crate::memory::{SharedMemory, map_ram};
use crate::virtio::COMMON_FEATURES;
use crate::virtio::queue::Virtqueue;

/// Guest memory of the bench.
pub const MEMORY_BYTES: u64 = 16 << 20;
/// Where buffers are allocated from; rings lie below.
const BUFFERS_START: u64 = 4 << 20;
/// Room for one queue's rings.
const QUEUE_ROOM: u64 = 0x10_0000 / 8;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A buffer of a request.
#[derive(Clone, Debug)]
pub enum Buffer {
    /// Bytes for the device.
    Readable(Vec<u8>),
    /// Room for the device's answer, in bytes.
    Writable(u32),
}

impl Buffer {
    /// A buffer the device reads.
    pub fn readable(bytes: &[u8]) -> Self {
        Self::Readable(bytes.to_vec())
    }

    /// A buffer the device writes.
    pub fn writable(length: u32) -> Self {
        Self::Writable(length)
    }
}

/// The driver's side of one queue.
struct DriverQueue {
    size: u16,
    table: u64,
    avail: u64,
    used: u64,
    next_descriptor: u16,
    avail_index: u16,
    used_seen: u16,
    writable: HashMap<u16, Vec<(u64, u32)>>,
}

impl DriverQueue {
    fn new(index: usize, size: u16) -> Self {
        let table = (index as u64 + 1) * QUEUE_ROOM;
        let avail = table + 16 * u64::from(size);
        let used = (avail + 6 + 2 * u64::from(size)).next_multiple_of(4);
        Self { size, table, avail, used, next_descriptor: 0, avail_index: 0, used_seen: 0, writable: HashMap::new() }
    }

    fn device_side(&self, event_idx: bool) -> Queue {
        let mut queue = Queue::new(self.size).unwrap();
        queue.set_desc_table_address(Some(self.table as u32), Some(0));
        queue.set_avail_ring_address(Some(self.avail as u32), Some(0));
        queue.set_used_ring_address(Some(self.used as u32), Some(0));
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        queue
    }
}

/// A device with a driver in front of it.
pub struct Bench<D: VirtioDevice> {
    /// The guest's memory.
    pub memory: SharedMemory,
    manager: EventManager<DeviceWorker<D>>,
    worker: SubscriberId,
    link: DeviceLink,
    queues: Vec<DriverQueue>,
    next_buffer: u64,
    features: u64,
}

impl<D: VirtioDevice> Bench<D> {
    /// Activates the device with all features it offers, without the event index, so that every used chain
    /// interrupts.
    pub fn start(device: D) -> Self {
        let features = device.features() | COMMON_FEATURES & !(1 << 29);
        Self::start_with_features(device, features)
    }

    /// Activates the device with the given features.
    pub fn start_with_features(device: D, features: u64) -> Self {
        Self::start_in(map_ram(MEMORY_BYTES).unwrap(), device, features)
    }

    /// Activates the device in this memory, whose RAM has [`MEMORY_BYTES`].
    pub fn start_in(memory: SharedMemory, device: D, features: u64) -> Self {
        let (worker, link) = DeviceWorker::new(device).unwrap();
        let mut manager = EventManager::new().unwrap();
        let worker = manager.add_subscriber(worker);
        let mut bench =
            Self { memory, manager, worker, link, queues: Vec::new(), next_buffer: BUFFERS_START, features };
        bench.activate();
        bench
    }

    fn activate(&mut self) {
        let sizes = self.link.queue_sizes.clone();
        self.queues = sizes.iter().enumerate().map(|(i, size)| DriverQueue::new(i, *size)).collect();
        for queue in &self.queues {
            let zeroes = vec![0; (queue.used + 8 * u64::from(queue.size) + 6 - queue.table) as usize];
            self.memory.write_slice(&zeroes, GuestAddress(queue.table)).unwrap();
        }
        let event_idx = self.features & (1 << 29) != 0;
        let queues = self.queues.iter().zip(&self.link.kicks).map(|(queue, kick)| {
            let (interrupt, kick) = (Arc::clone(&self.link.interrupt), Arc::clone(kick));
            Virtqueue::new(queue.device_side(event_idx), self.memory.clone(), interrupt, kick).unwrap()
        });
        let queues = queues.collect();
        self.link.send(Command::Activate { features: self.features, queues, restored: false });
        self.run();
    }

    /// Resets the device and activates it anew, with empty rings.
    pub fn restart(&mut self) {
        let (done, _) = std::sync::mpsc::channel();
        self.link.send(Command::Reset(done));
        self.run();
        self.activate();
    }

    /// The link that a transport would hold.
    pub fn link(&self) -> &DeviceLink {
        &self.link
    }

    /// The device itself.
    pub fn device(&mut self) -> &mut D {
        self.manager.subscriber_mut(self.worker).unwrap().device()
    }

    /// Handles all events that are ready now: kicks, commands, the device's own descriptors. At most 1,000
    /// rounds, so that a device that is never done fails its test instead of hanging it.
    pub fn run(&mut self) {
        for _ in 0..1000 {
            if self.manager.run_with_timeout(0).unwrap() == 0 {
                return;
            }
        }
        panic!("the device is still busy after 1,000 rounds");
    }

    /// Like [`run`](Self::run), but first waits up to `timeout_ms` for something to happen.
    pub fn wait(&mut self, timeout_ms: i32) {
        if self.manager.run_with_timeout(timeout_ms).unwrap() > 0 {
            self.run();
        }
    }

    /// Allocates guest memory for a buffer.
    pub fn allocate(&mut self, length: usize) -> u64 {
        let address = self.next_buffer;
        self.next_buffer = (address + length as u64).next_multiple_of(16);
        assert!(self.next_buffer < MEMORY_BYTES, "the bench's guest memory is used up");
        address
    }

    /// Puts a request into the descriptor table and makes it available; returns its head.
    pub fn add_chain(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let head = self.queues[queue].next_descriptor;
        let mut writable = Vec::new();
        for (i, buffer) in buffers.iter().enumerate() {
            let (length, flags) = match buffer {
                Buffer::Readable(bytes) => (bytes.len() as u32, 0),
                Buffer::Writable(length) => (*length, WRITE),
            };
            let address = self.allocate(length as usize);
            match buffer {
                Buffer::Readable(bytes) => {
                    self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
                }
                Buffer::Writable(length) => writable.push((address, *length)),
            }
            let flags = if i + 1 < buffers.len() { flags | NEXT } else { flags };
            let q = &mut self.queues[queue];
            let index = q.next_descriptor;
            q.next_descriptor = (index + 1) % q.size;
            let next = q.next_descriptor;
            self.set_descriptor(queue, index, address, length, flags, next);
        }
        self.queues[queue].writable.insert(head, writable);
        self.make_available(queue, head);
        head
    }

    /// Writes one descriptor, however wrong.
    pub fn set_descriptor(&self, queue: usize, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let at = self.queues[queue].table + 16 * u64::from(index);
        write_descriptor(&self.memory, at, address, length, flags, next);
    }

    /// Appends a head to the available ring, however wrong.
    pub fn make_available(&mut self, queue: usize, head: u16) {
        let q = &mut self.queues[queue];
        let slot = q.avail + 4 + 2 * u64::from(q.avail_index % q.size);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        q.avail_index = q.avail_index.wrapping_add(1);
        self.memory.write_obj(q.avail_index, GuestAddress(q.avail + 2)).unwrap();
    }

    /// Kicks the queue and lets the device work.
    pub fn kick(&mut self, queue: usize) {
        self.link.kicks[queue].write(1).unwrap();
        self.run();
    }

    /// The chains given back since the last call: head and bytes written.
    pub fn used(&mut self, queue: usize) -> Vec<(u16, u32)> {
        let q = &mut self.queues[queue];
        let index: u16 = self.memory.read_obj(GuestAddress(q.used + 2)).unwrap();
        let mut used = Vec::new();
        while q.used_seen != index {
            let at = q.used + 4 + 8 * u64::from(q.used_seen % q.size);
            let [id, length]: [u32; 2] = self.memory.read_obj(GuestAddress(at)).unwrap();
            used.push((id as u16, length));
            q.used_seen = q.used_seen.wrapping_add(1);
        }
        used
    }

    /// All bytes of a request's writable buffers.
    pub fn written(&self, queue: usize, head: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (address, length) in &self.queues[queue].writable[&head] {
            let mut part = vec![0; *length as usize];
            self.memory.read_slice(&mut part, GuestAddress(*address)).unwrap();
            bytes.extend(part);
        }
        bytes
    }

    /// Whether the interrupt was raised since the last call.
    pub fn interrupted(&self) -> bool {
        self.link.interrupt.line().read().is_ok()
    }
}

fn write_descriptor(memory: &SharedMemory, at: u64, address: u64, length: u32, flags: u16, next: u16) {
    let mut bytes = [0_u8; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&length.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    memory.write_slice(&bytes, GuestAddress(at)).unwrap();
}

/// A descriptor that is wrong in some way, or by chance not.
#[derive(Clone, Debug)]
pub struct HostileDescriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

fn hostile_descriptor() -> impl Strategy<Value = HostileDescriptor> {
    let address = prop_oneof![
        6 => (0_u64..64).prop_map(|n| BUFFERS_START + n * 128),
        1 => 0..MEMORY_BYTES,
        1 => Just(MEMORY_BYTES - 4),
        1 => any::<u64>(),
    ];
    let length = prop_oneof![
        6 => 0_u32..600,
        2 => (0_u32..64).prop_map(|n| n * 16),
        1 => Just(u32::MAX),
        1 => any::<u32>(),
    ];
    let flags = prop_oneof![6 => 0_u16..4, 1 => Just(INDIRECT), 1 => any::<u16>()];
    let next = prop_oneof![8 => 0_u16..24, 1 => any::<u16>()];
    (address, length, flags, next).prop_map(|(address, length, flags, next)| HostileDescriptor {
        address,
        length,
        flags,
        next,
    })
}

/// What a malicious driver puts into memory before it kicks.
#[derive(Clone, Debug)]
pub struct HostileRing {
    descriptors: Vec<HostileDescriptor>,
    heads: Vec<u16>,
    avail_index: Option<u16>,
    buffers: Vec<u8>,
}

/// Bytes for buffers: many zeroes and small numbers, as headers have, between arbitrary ones. Made from a seed, because
/// generating them one by one would take most of a test's time.
fn junk(seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        // xorshift64 (Marsaglia).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let [kind, byte, ..] = state.to_le_bytes();
        match kind % 4 {
            0 => 0,
            1 | 2 => byte % 32,
            _ => byte,
        }
    };
    (0..2048).map(|_| next()).collect()
}

/// Rings with wrong descriptors, heads and indices, over random buffers.
pub fn hostile_ring() -> impl Strategy<Value = HostileRing> {
    let head = prop_oneof![8 => 0_u16..24, 1 => any::<u16>()];
    (
        prop::collection::vec(hostile_descriptor(), 24),
        prop::collection::vec(head, 1..8),
        prop_oneof![6 => Just(None), 1 => any::<u16>().prop_map(Some)],
        any::<u64>().prop_map(junk),
    )
        .prop_map(|(descriptors, heads, avail_index, buffers)| HostileRing {
            descriptors,
            heads,
            avail_index,
            buffers,
        })
}

impl<D: VirtioDevice> Bench<D> {
    /// Puts a hostile ring into a queue and kicks it.
    pub fn attack(&mut self, queue: usize, ring: &HostileRing) {
        for chunk in 0..4 {
            let at = GuestAddress(BUFFERS_START + chunk * ring.buffers.len() as u64);
            self.memory.write_slice(&ring.buffers, at).unwrap();
        }
        let size = usize::from(self.queues[queue].size);
        for (index, d) in ring.descriptors.iter().enumerate().take(size) {
            self.set_descriptor(queue, index as u16, d.address, d.length, d.flags, d.next);
        }
        for head in &ring.heads {
            self.make_available(queue, *head);
        }
        if let Some(index) = ring.avail_index {
            let at = GuestAddress(self.queues[queue].avail + 2);
            self.memory.write_obj(index, at).unwrap();
        }
        self.kick(queue);
    }
}

/// Feeds a device hostile rings on every queue, and restarts it whenever it gives up. Fails if the device
/// panics, or is never done.
pub fn survives_hostile_rings<D: VirtioDevice>(make: impl Fn() -> D) {
    let rings = prop::collection::vec((any::<prop::sample::Index>(), hostile_ring()), 1..6);
    proptest!(ProptestConfig::with_cases(64), |(rings in rings)| {
        let mut bench = Bench::start(make());
        for (queue, ring) in &rings {
            let queue = queue.index(bench.queues.len());
            bench.attack(queue, ring);
            if bench.link.health.needs_reset() {
                bench.restart();
            }
        }
    });
}
