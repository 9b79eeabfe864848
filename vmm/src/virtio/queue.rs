//! A split virtqueue as a device uses it (virtio 1.2, section 2.7).
//!
//! It joins virtio-queue's ring, the guest's memory, the eventfd the driver kicks and the interrupt that
//! answers. Everything read from the ring is untrusted: each violation is a [`QueueError`], after which the
//! device must be reset by its driver.

use std::io;
use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueState as RawState, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::chain::DescriptorChain;
use super::interrupt::Interrupt;
use crate::memory::SharedMemory;
use crate::persist::{Persist, PersistError};
use std::sync::Arc;

/// What a driver did wrong with a queue.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// A ring structure cannot be used: outside memory, too many entries.
    #[error("the driver's ring is unusable: {0}")]
    Ring(virtio_queue::Error),
    /// A descriptor chain breaks the rules.
    #[error("the driver's descriptor chain {head} is malformed: {why}")]
    MalformedChain {
        /// Index of the first descriptor.
        head: u16,
        /// The rule it breaks.
        why: &'static str,
    },
    /// The eventfd that carries the driver's kicks failed.
    #[error("the queue's eventfd failed")]
    Kick(#[source] io::Error),
}

impl From<virtio_queue::Error> for QueueError {
    fn from(error: virtio_queue::Error) -> Self {
        Self::Ring(error)
    }
}

/// A queue that the driver has set up.
#[derive(Debug)]
pub struct Virtqueue {
    queue: Queue,
    memory: SharedMemory,
    interrupt: Arc<Interrupt>,
    kick: Arc<EventFd>,
    /// The used ring's index when the driver was last considered for an interrupt.
    notified: Wrapping<u16>,
}

impl Virtqueue {
    /// Joins a configured ring with its surroundings.
    ///
    /// # Errors
    /// [`QueueError::Ring`] if the ring's structures do not lie in guest memory.
    pub fn new(
        queue: Queue,
        memory: SharedMemory,
        interrupt: Arc<Interrupt>,
        kick: Arc<EventFd>,
    ) -> Result<Self, QueueError> {
        // A queue that the driver left unused stays unready: legal, and never popped.
        if queue.ready() && !queue.is_valid(&*memory) {
            return Err(QueueError::Ring(virtio_queue::Error::QueueNotReady));
        }
        let notified = Wrapping(queue.next_used());
        Ok(Self { queue, memory, interrupt, kick, notified })
    }

    /// Whether the driver set this queue up. An unready queue pops nothing.
    pub fn is_ready(&self) -> bool {
        self.queue.ready()
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The guest's memory.
    pub fn memory(&self) -> &SharedMemory {
        &self.memory
    }

    /// Takes the next chain that the driver made available.
    ///
    /// # Errors
    /// [`QueueError`] if the ring or the chain breaks the rules.
    pub fn pop(&mut self) -> Result<Option<DescriptorChain>, QueueError> {
        if !self.queue.ready() {
            return Ok(None);
        }
        let next = self.queue.iter(self.memory.clone())?.next();
        next.map(|raw| DescriptorChain::parse(raw, &self.memory)).transpose()
    }

    /// Puts the chain popped last back to the front, for when it cannot be served yet.
    pub fn undo_pop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives a chain back to the driver; `written` is the number of bytes written to it.
    ///
    /// # Errors
    /// [`QueueError::Ring`] if the used ring cannot be written.
    pub fn add_used(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        Ok(self.queue.add_used(&*self.memory, head, written)?)
    }

    /// Gives several chains back so that the driver sees all of them or none: one packet in many buffers.
    ///
    /// # Errors
    /// [`QueueError::Ring`] if the used ring cannot be written.
    pub fn add_used_together(&mut self, used: &[(u16, u32)]) -> Result<(), QueueError> {
        let Some((&(last_head, last_written), others)) = used.split_last() else { return Ok(()) };
        let size = self.queue.size();
        for &(head, written) in others {
            // Ring elements are two little-endian words behind the flags and the index (section 2.7.8).
            let slot = u64::from(self.queue.next_used() % size);
            let element = [u32::from(head).to_le(), written.to_le()];
            let address = GuestAddress(self.queue.used_ring() + 4 + 8 * slot);
            self.memory.write_obj(element, address).map_err(virtio_queue::Error::GuestMemory)?;
            // The index in memory follows with the last element.
            self.queue.set_next_used(self.queue.next_used().wrapping_add(1));
        }
        self.add_used(last_head, last_written)
    }

    /// Interrupts the driver if it wants to know of the chains given back since the last call.
    ///
    /// # Errors
    /// [`QueueError::Ring`] if the ring cannot be read.
    pub fn notify(&mut self) -> Result<(), QueueError> {
        if self.queue.ready() && self.wants_interrupt()? {
            self.interrupt.raise_used_buffer();
        }
        Ok(())
    }

    fn wants_interrupt(&mut self) -> Result<bool, QueueError> {
        // What was given back is in memory before the driver's wish is read.
        fence(Ordering::SeqCst);
        let now = Wrapping(self.queue.next_used());
        let before = std::mem::replace(&mut self.notified, now);
        if now == before {
            return Ok(false);
        }
        let ring = self.queue.avail_ring();
        let wish = if self.queue.event_idx_enabled() { 4 + 2 * u64::from(self.queue.size()) } else { 0 };
        let wish: u16 = self.memory.read_obj(GuestAddress(ring + wish)).map_err(virtio_queue::Error::GuestMemory)?;
        let wish = u16::from_le(wish);
        if self.queue.event_idx_enabled() {
            // Section 2.7.7.2: whether the wished-for index lies among those given back since. virtio-queue's own
            // count of them does not know of `add_used_together`.
            return Ok(now - Wrapping(wish) - Wrapping(1) < now - before);
        }
        Ok(u32::from(wish) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Asks the driver not to kick while the device is busy with the queue anyway.
    ///
    /// # Errors
    /// [`QueueError::Ring`] if the ring cannot be written.
    pub fn disable_kicks(&mut self) -> Result<(), QueueError> {
        Ok(self.queue.disable_notification(&*self.memory)?)
    }

    /// Asks for kicks again; `true` if chains have become available meanwhile, to be popped first.
    ///
    /// # Errors
    /// [`QueueError::Ring`] if the ring cannot be accessed.
    pub fn enable_kicks(&mut self) -> Result<bool, QueueError> {
        Ok(self.queue.enable_notification(&*self.memory)?)
    }

    /// Serves every available chain with `serve`, which returns the bytes it wrote; then notifies once.
    ///
    /// At most one ring's worth of chains is served per call. If the driver keeps adding, the queue kicks
    /// itself, so that the thread sees its other events (stop, pause) in between.
    ///
    /// # Errors
    /// [`QueueError`] or what `serve` returned; chains served before are given back already.
    pub fn serve<E: From<QueueError>>(
        &mut self,
        mut serve: impl FnMut(&DescriptorChain) -> Result<u32, E>,
    ) -> Result<(), E> {
        if !self.queue.ready() {
            return Ok(());
        }
        self.disable_kicks()?;
        for _ in 0..self.size() {
            let Some(chain) = self.pop()? else { break };
            let written = serve(&chain)?;
            self.add_used(chain.head(), written)?;
        }
        self.notify()?;
        if self.enable_kicks()? {
            self.kick_self()?;
        }
        Ok(())
    }

    /// Makes the device's thread look at this queue again soon, as if the driver had kicked.
    ///
    /// # Errors
    /// [`QueueError::Kick`] if the eventfd cannot be written.
    pub fn kick_self(&self) -> Result<(), QueueError> {
        match self.kick.write(1) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(QueueError::Kick(error)),
            _ => Ok(()),
        }
    }

    /// The eventfd that the driver's kicks arrive at.
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }
}

/// A queue's registers and positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    max_size: u16,
    next_avail: u16,
    next_used: u16,
    event_idx_enabled: bool,
    size: u16,
    ready: bool,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
}

impl QueueState {
    /// The state of a bare ring.
    pub fn of(queue: &Queue) -> Self {
        let raw = queue.state();
        Self {
            max_size: raw.max_size,
            next_avail: raw.next_avail,
            next_used: raw.next_used,
            event_idx_enabled: raw.event_idx_enabled,
            size: raw.size,
            ready: raw.ready,
            desc_table: raw.desc_table,
            avail_ring: raw.avail_ring,
            used_ring: raw.used_ring,
        }
    }

    /// The bare ring again.
    ///
    /// # Errors
    /// [`PersistError::Invalid`] if sizes or alignments are impossible.
    pub fn into_queue(self) -> Result<Queue, PersistError> {
        let raw = RawState {
            max_size: self.max_size,
            next_avail: self.next_avail,
            next_used: self.next_used,
            event_idx_enabled: self.event_idx_enabled,
            size: self.size,
            ready: self.ready,
            desc_table: self.desc_table,
            avail_ring: self.avail_ring,
            used_ring: self.used_ring,
        };
        Queue::try_from(raw).map_err(|error| PersistError::Invalid { what: "a virtqueue", why: error.to_string() })
    }
}

impl Persist for Virtqueue {
    type State = QueueState;
    type Args = (SharedMemory, Arc<Interrupt>, Arc<EventFd>);

    fn save(&self) -> QueueState {
        QueueState::of(&self.queue)
    }

    fn restore((memory, interrupt, kick): Self::Args, state: QueueState) -> Result<Self, PersistError> {
        Self::new(state.into_queue()?, memory, interrupt, kick)
            .map_err(|error| PersistError::Invalid { what: "a virtqueue", why: error.to_string() })
    }
}
