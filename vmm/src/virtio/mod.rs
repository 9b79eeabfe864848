//! What all virtio devices share (virtio 1.2): queues, buffers, interrupts.

pub mod chain;
pub mod interrupt;
pub mod mmio;
pub mod queue;

/// Device status bits (virtio 1.2, section 2.1).
pub mod status {
    /// The driver has noticed the device.
    pub const ACKNOWLEDGE: u32 = 1;
    /// The driver knows how to drive it.
    pub const DRIVER: u32 = 2;
    /// The driver is set up: the device may work.
    pub const DRIVER_OK: u32 = 4;
    /// Features are negotiated.
    pub const FEATURES_OK: u32 = 8;
    /// The device met an error it cannot go on from; only a reset helps.
    pub const DEVICE_NEEDS_RESET: u32 = 64;
    /// The driver has given up on the device.
    pub const FAILED: u32 = 128;
}

/// Feature bits that every device here has (virtio 1.2, section 6); devices do not list them.
pub const COMMON_FEATURES: u64 = (1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC)
    | (1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX)
    | (1 << virtio_bindings::virtio_config::VIRTIO_F_VERSION_1);
