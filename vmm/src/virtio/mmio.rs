//! The virtio-mmio transport, version 2 (virtio 1.2, section 4.2): a device's registers.
//!
//! The guest's accesses arrive from any vCPU. What the specification forbids (wrong order, changed queues
//! while running, unknown registers) is ignored, as it asks of devices; nothing here can fail.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};

use super::queue::{QueueState, Virtqueue};
use super::{COMMON_FEATURES, status};
use crate::devices::worker::{Command, DeviceLink, SavedDevice};
use crate::memory::SharedMemory;
use crate::persist::PersistError;

/// Size of a transport's register window.
pub const WINDOW: u64 = 0x1000;
/// Offset of the QueueNotify register, which KVM turns into kicks.
pub const QUEUE_NOTIFY: u64 = 0x50;

const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"PDVM");
const CONFIG_SPACE: u64 = 0x100;
/// What the length of a shared-memory region that does not exist reads as.
const NO_SHARED_MEMORY: u32 = u32::MAX;

/// A device's registers.
#[derive(Debug)]
pub struct MmioTransport {
    link: DeviceLink,
    memory: SharedMemory,
    status: u32,
    features: u64,
    device_features_page: u32,
    driver_features_page: u32,
    selected_queue: u32,
    // Empty while the device's thread has them.
    queues: Vec<Queue>,
}

impl MmioTransport {
    /// The transport of a device that no driver has seen yet.
    pub fn new(link: DeviceLink, memory: SharedMemory) -> Self {
        let queues = fresh_queues(&link);
        Self {
            link,
            memory,
            status: 0,
            features: 0,
            device_features_page: 0,
            driver_features_page: 0,
            selected_queue: 0,
            queues,
        }
    }

    /// The device behind the registers.
    pub fn link(&self) -> &DeviceLink {
        &self.link
    }

    /// The guest reads `data.len()` bytes at `offset`.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(at) = offset.checked_sub(CONFIG_SPACE) {
            read_config(&self.link.config, at, data);
        } else if data.len() == 4 {
            data.copy_from_slice(&self.register(offset).to_le_bytes());
        } else {
            data.fill(0);
        }
    }

    fn register(&self, offset: u64) -> u32 {
        match offset {
            0x00 => MAGIC,
            0x04 => VERSION,
            0x08 => self.link.kind.virtio_id(),
            0x0c => VENDOR,
            0x10 => half(self.device_features(), self.device_features_page),
            0x34 => self.link.queue_sizes.get(self.selected_queue as usize).copied().unwrap_or(0).into(),
            0x44 => self.queue().is_some_and(Queue::ready).into(),
            0x60 => self.link.interrupt.reasons(),
            0x70 => self.status_register(),
            0xb0..0xc0 => NO_SHARED_MEMORY,
            // ConfigGeneration stays zero, because configuration spaces do not change.
            _ => 0,
        }
    }

    fn status_register(&self) -> u32 {
        let failed = self.link.health.needs_reset();
        self.status | if failed { status::DEVICE_NEEDS_RESET } else { 0 }
    }

    fn device_features(&self) -> u64 {
        self.link.features | COMMON_FEATURES
    }

    /// The guest writes `data` at `offset`.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        // Configuration spaces are read-only; all other registers have 32 bits.
        if let Ok(bytes) = <[u8; 4]>::try_from(data)
            && offset < CONFIG_SPACE
        {
            self.set_register(offset, u32::from_le_bytes(bytes));
        }
    }

    fn set_register(&mut self, offset: u64, value: u32) {
        match offset {
            0x14 => self.device_features_page = value,
            0x20 => self.set_driver_features(value),
            0x24 => self.driver_features_page = value,
            0x30 => self.selected_queue = value,
            0x38 => self.set_up_queue(|queue| queue.set_size(u16::try_from(value).unwrap_or(0))),
            0x44 => self.set_queue_ready(value),
            QUEUE_NOTIFY => self.kick(value),
            0x64 => self.link.interrupt.acknowledge(value),
            0x70 => self.set_status(value),
            0x80 => self.set_up_queue(|queue| queue.set_desc_table_address(Some(value), None)),
            0x84 => self.set_up_queue(|queue| queue.set_desc_table_address(None, Some(value))),
            0x90 => self.set_up_queue(|queue| queue.set_avail_ring_address(Some(value), None)),
            0x94 => self.set_up_queue(|queue| queue.set_avail_ring_address(None, Some(value))),
            0xa0 => self.set_up_queue(|queue| queue.set_used_ring_address(Some(value), None)),
            0xa4 => self.set_up_queue(|queue| queue.set_used_ring_address(None, Some(value))),
            _ => {}
        }
    }

    fn has(&self, bits: u32) -> bool {
        self.status & bits == bits
    }

    fn set_driver_features(&mut self, value: u32) {
        if self.has(status::DRIVER) && !self.has(status::FEATURES_OK) {
            let (shift, keep) = match self.driver_features_page {
                0 => (0, 0xffff_ffff_0000_0000),
                1 => (32, 0x0000_0000_ffff_ffff),
                _ => return,
            };
            self.features = self.features & keep | u64::from(value) << shift;
        }
    }

    fn queue(&self) -> Option<&Queue> {
        self.queues.get(self.selected_queue as usize)
    }

    /// Queues may be changed between FEATURES_OK and DRIVER_OK, while they are not ready.
    fn set_up_queue(&mut self, change: impl FnOnce(&mut Queue)) {
        if !self.may_set_up_queues() {
            return;
        }
        if let Some(queue) = self.queues.get_mut(self.selected_queue as usize)
            && !queue.ready()
        {
            change(queue);
        }
    }

    fn set_queue_ready(&mut self, value: u32) {
        if self.may_set_up_queues()
            && let Some(queue) = self.queues.get_mut(self.selected_queue as usize)
        {
            queue.set_ready(value == 1);
        }
    }

    fn may_set_up_queues(&self) -> bool {
        self.has(status::FEATURES_OK) && self.status & (status::DRIVER_OK | status::FAILED) == 0
    }

    fn kick(&self, index: u32) {
        if let Some(kick) = self.link.kicks.get(index as usize) {
            // A full counter is a kick already.
            let _ = kick.write(1);
        }
    }

    /// The status register's state machine (virtio 1.2, section 3.1.1): each step once, in order.
    fn set_status(&mut self, value: u32) {
        use status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK};
        if value == 0 {
            return self.reset();
        }
        if value & FAILED != 0 {
            self.status |= FAILED;
            return;
        }
        let steps = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];
        let mut before = 0;
        for step in steps {
            let wanted = value & step != 0 && !self.has(step);
            if wanted && self.has(before) && self.status & FAILED == 0 {
                self.take_step(step);
            }
            before |= step;
        }
    }

    fn take_step(&mut self, step: u32) {
        match step {
            status::FEATURES_OK if !self.features_fit() => {}
            status::DRIVER_OK => {
                self.status |= step;
                self.activate(false);
            }
            _ => self.status |= step,
        }
    }

    /// Whether the driver chose only features on offer, and the modern interface.
    fn features_fit(&self) -> bool {
        let modern = 1 << virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
        self.features & !self.device_features() == 0 && self.features & modern != 0
    }

    /// Hands the queues to the device's thread.
    fn activate(&mut self, restored: bool) {
        let event_idx = self.features & (1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX) != 0;
        let queues: Result<Vec<_>, _> = std::mem::take(&mut self.queues)
            .into_iter()
            .zip(&self.link.kicks)
            .map(|(mut queue, kick)| {
                queue.set_event_idx(event_idx);
                let interrupt = Arc::clone(&self.link.interrupt);
                Virtqueue::new(queue, self.memory.clone(), interrupt, Arc::clone(kick))
            })
            .collect();
        match queues {
            Ok(queues) => {
                self.link.send(Command::Activate { features: self.features, queues, restored });
            }
            Err(error) => self.link.health.fail(format!("{} device: {error}", self.link.kind.name())),
        }
    }

    /// Back to before any driver; returns when the device's thread has let go of guest memory.
    fn reset(&mut self) {
        if self.has(status::DRIVER_OK) {
            // No answer means that the thread is gone, and so are its queues.
            let _ = self.link.ask(Command::Reset);
        }
        self.link.interrupt.restore(0);
        self.queues = fresh_queues(&self.link);
        (self.status, self.features) = (0, 0);
        (self.device_features_page, self.driver_features_page, self.selected_queue) = (0, 0, 0);
    }
}

fn fresh_queues(link: &DeviceLink) -> Vec<Queue> {
    // A device's own sizes are powers of two, which its worker's tests rely on too.
    link.queue_sizes.iter().filter_map(|size| Queue::new(*size).ok()).collect()
}

/// One 32-bit half of a feature set; there are only two.
fn half(features: u64, page: u32) -> u32 {
    match page {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

fn read_config(config: &[u8], at: u64, data: &mut [u8]) {
    for (byte, at) in data.iter_mut().zip(at..) {
        *byte = usize::try_from(at).ok().and_then(|at| config.get(at)).copied().unwrap_or(0);
    }
}

/// A transport's registers, and the device behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    kind: u32,
    status: u32,
    features: u64,
    pages: [u32; 2],
    selected_queue: u32,
    queues: Vec<QueueState>,
    interrupt: u32,
    device: SavedDevice,
}

impl TransportState {
    /// The device's own part, to restore the device from before its transport is made.
    pub fn device(&self) -> &SavedDevice {
        &self.device
    }
}

impl MmioTransport {
    /// Saves registers and device. The device's thread must be paused.
    ///
    /// # Errors
    /// [`PersistError`] if the device cannot be encoded, or its thread is gone.
    pub fn save(&self) -> Result<TransportState, PersistError> {
        let device = self.link.ask(Command::Save).ok_or_else(|| PersistError::Invalid {
            what: "a device",
            why: format!("the {} device's thread has ended", self.link.kind.name()),
        })??;
        Ok(TransportState {
            kind: self.link.kind.virtio_id(),
            status: self.status,
            features: self.features,
            pages: [self.device_features_page, self.driver_features_page],
            selected_queue: self.selected_queue,
            queues: self.queues.iter().map(QueueState::of).collect(),
            interrupt: self.link.interrupt.reasons(),
            device,
        })
    }

    /// Makes the transport of a restored device, and activates the device if it was active.
    ///
    /// # Errors
    /// [`PersistError::Invalid`] if the state is of another device.
    pub fn restore(link: DeviceLink, memory: SharedMemory, state: TransportState) -> Result<Self, PersistError> {
        let invalid = |why: &str| PersistError::Invalid { what: "a device", why: why.to_owned() };
        if state.kind != link.kind.virtio_id() {
            return Err(invalid("it is of another kind than the configured device"));
        }
        let mut transport = Self::new(link, memory);
        transport.status = state.status;
        transport.features = state.features;
        [transport.device_features_page, transport.driver_features_page] = state.pages;
        transport.selected_queue = state.selected_queue;
        transport.link.interrupt.restore(state.interrupt);
        let active = state.device.active.is_some();
        let saved = state.device.active.map_or(state.queues, |(_, queues)| queues);
        let queues = saved.into_iter().map(QueueState::into_queue).collect::<Result<Vec<_>, _>>()?;
        let sizes: Vec<u16> = queues.iter().map(Queue::max_size).collect();
        if (active || !queues.is_empty()) && sizes != transport.link.queue_sizes {
            return Err(invalid("its queues are not those of the configured device"));
        }
        transport.queues = queues;
        if active {
            transport.activate(true);
        }
        Ok(transport)
    }
}

#[cfg(test)]
mod tests;
