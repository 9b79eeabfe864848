//! The devices a guest can have, and the contract they are written to.
//!
//! A device is a type that implements [`VirtioDevice`] and [`Persist`]. Each runs on a thread of its own
//! ([`worker::DeviceWorker`]), which owns it: no locks, and one seccomp filter and capability set per
//! [`DeviceKind`]. The thread's events are the driver's kicks, a control mailbox (activate, reset, pause,
//! save, stop), and whatever file descriptors the device watches itself ([`Watches`]).
//!
//! To write a new device, copy [`rng`]: it is the smallest. Its tests run on [`testing::Bench`], which also
//! feeds any device hostile rings (`testing::survives_hostile_rings`).

pub mod block;
pub mod fs;
pub mod net;
pub mod pmem;
pub mod rng;
#[cfg(test)]
pub mod testing;
pub mod vsock;
pub mod worker;

use std::io;
use std::os::fd::RawFd;

pub use event_manager::EventSet;
use event_manager::{EventOps, Events};

use crate::persist::Persist;
use crate::virtio::queue::{QueueError, Virtqueue};

/// The kinds of devices; also the kinds of device threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// Network card on a tap.
    Net,
    /// Disk.
    Block,
    /// Entropy.
    Rng,
    /// Sockets between guest and host.
    Vsock,
    /// Shared directory (virtio-fs).
    Fs,
    /// Files as memory (virtio-pmem).
    Pmem,
}

impl DeviceKind {
    /// The device type number (virtio 1.2, section 5).
    pub const fn virtio_id(self) -> u32 {
        match self {
            Self::Net => 1,
            Self::Block => 2,
            Self::Rng => 4,
            Self::Vsock => 19,
            Self::Fs => 26,
            Self::Pmem => 27,
        }
    }

    /// Name in thread names and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Block => "block",
            Self::Rng => "rng",
            Self::Vsock => "vsock",
            Self::Fs => "fs",
            Self::Pmem => "pmem",
        }
    }
}

/// A virtio device.
///
/// Order of calls: [`config`](Self::config), [`features`](Self::features) and
/// [`queue_sizes`](Self::queue_sizes) once, before the guest runs. Then [`activate`](Self::activate), any
/// number of `process_*`, [`reset`](Self::reset); and again. After a restore the device is activated like
/// after a boot, with the queues where they were. All calls come from the device's own thread.
///
/// What the guest puts into rings and buffers is untrusted: a violation is an `Err`, never a panic. After an
/// `Err` the device is reset, marked DEVICE_NEEDS_RESET, and gets no calls until the driver activates it anew.
pub trait VirtioDevice: Persist + Send + 'static {
    /// What the device is.
    fn kind(&self) -> DeviceKind;

    /// Largest size of each queue, in entries, a power of two; its length is the number of queues.
    fn queue_sizes(&self) -> &[u16];

    /// The device's own feature bits, without [`crate::virtio::COMMON_FEATURES`].
    fn features(&self) -> u64;

    /// The device-specific configuration space. It is fixed while the device lives; the guest's writes to it
    /// are ignored, and reads beyond its end give zeroes.
    fn config(&self) -> Vec<u8>;

    /// The driver is ready; `features` is what both sides agreed on.
    ///
    /// # Errors
    /// [`DeviceError`] if the device cannot start.
    fn activate(&mut self, features: u64, context: &mut Context<'_, '_>) -> Result<(), DeviceError>;

    /// The driver kicked queue `index`, which exists and is set up.
    ///
    /// # Errors
    /// [`DeviceError`] if the ring is malformed or the device cannot go on.
    fn process_queue(&mut self, index: usize, context: &mut Context<'_, '_>) -> Result<(), DeviceError>;

    /// A file descriptor added with [`Watches::add`] has events. Devices that watch none keep this.
    ///
    /// # Errors
    /// As [`process_queue`](Self::process_queue).
    fn process_event(
        &mut self,
        token: u32,
        events: EventSet,
        context: &mut Context<'_, '_>,
    ) -> Result<(), DeviceError> {
        let _ = (token, events, context);
        Ok(())
    }

    /// Forgets everything the driver set up: back to before [`activate`](Self::activate). The device removes
    /// its own watches; the queues are gone already.
    fn reset(&mut self, watches: &mut Watches<'_, '_>);
}

/// What a device works with while it is active.
pub struct Context<'a, 'e> {
    /// The queues, as many as [`VirtioDevice::queue_sizes`] has entries. Ones the driver left unused are not ready.
    pub queues: &'a mut [Virtqueue],
    /// The device's own file descriptors.
    pub watches: Watches<'a, 'e>,
}

/// The file descriptors a device waits for on its thread, by epoll.
pub struct Watches<'a, 'e> {
    ops: &'a mut EventOps<'e>,
}

/// Tokens from here on belong to the thread itself.
pub const FIRST_RESERVED_TOKEN: u32 = 0xffff_0000;

impl<'a, 'e> Watches<'a, 'e> {
    pub(crate) fn new(ops: &'a mut EventOps<'e>) -> Self {
        Self { ops }
    }

    /// Starts to watch `fd`; its events arrive at [`VirtioDevice::process_event`] with `token`.
    ///
    /// # Errors
    /// [`DeviceError::Watch`] if the descriptor is watched already or cannot be.
    pub fn add(&mut self, fd: RawFd, token: u32, events: EventSet) -> Result<(), DeviceError> {
        debug_assert!(token < FIRST_RESERVED_TOKEN);
        self.ops.add(Events::with_data_raw(fd, token, events)).map_err(DeviceError::Watch)
    }

    /// Changes which events of `fd` are wanted; [`EventSet::empty`] mutes it (errors and hang-ups still come).
    ///
    /// # Errors
    /// [`DeviceError::Watch`] if the descriptor is not watched.
    pub fn modify(&mut self, fd: RawFd, token: u32, events: EventSet) -> Result<(), DeviceError> {
        self.ops.modify(Events::with_data_raw(fd, token, events)).map_err(DeviceError::Watch)
    }

    /// Stops watching `fd`. Call it before closing the descriptor.
    ///
    /// # Errors
    /// [`DeviceError::Watch`] if the descriptor is not watched.
    pub fn remove(&mut self, fd: RawFd) -> Result<(), DeviceError> {
        self.ops.remove(Events::empty_raw(fd)).map_err(DeviceError::Watch)
    }
}

/// Why a device stopped until its next reset.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The driver broke the rules of a queue.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The driver sent something the device's own protocol forbids.
    #[error("the driver broke the device's protocol: {0}")]
    Protocol(&'static str),
    /// The host's side of the device failed.
    #[error("{what} failed on the host")]
    Host {
        /// What was being done.
        what: &'static str,
        /// The host's error.
        #[source]
        source: io::Error,
    },
    /// A file descriptor cannot be watched.
    #[error("a file descriptor cannot be watched")]
    Watch(#[source] event_manager::Error),
}
