//! The feature bits of the network device (virtio 1.2, section 5.1.3).

use std::ops::BitOr;

/// A set of feature bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Features(u64);

impl Features {
    /// The device takes frames whose checksum is yet to be made.
    pub const CSUM: Self = Self(1 << 0);
    /// The driver takes such frames.
    pub const GUEST_CSUM: Self = Self(1 << 1);
    /// The configuration holds the largest MTU.
    pub const MTU: Self = Self(1 << 3);
    /// The configuration holds the address.
    pub const MAC: Self = Self(1 << 5);
    /// The driver takes many TCP segments over IPv4 as one frame.
    pub const GUEST_TSO4: Self = Self(1 << 7);
    /// The same over IPv6.
    pub const GUEST_TSO6: Self = Self(1 << 8);
    /// The driver takes such frames with ECN.
    pub const GUEST_ECN: Self = Self(1 << 9);
    /// The device takes many TCP segments over IPv4 as one frame.
    pub const HOST_TSO4: Self = Self(1 << 11);
    /// The same over IPv6.
    pub const HOST_TSO6: Self = Self(1 << 12);
    /// The device takes such frames with ECN.
    pub const HOST_ECN: Self = Self(1 << 13);
    /// A received frame may lie in several buffers.
    pub const MRG_RXBUF: Self = Self(1 << 15);

    /// What the device can do by itself.
    pub fn plain() -> Self {
        Self::MAC | Self::MRG_RXBUF
    }

    /// What takes a network that finishes frames for the driver, and that the driver finishes frames for.
    pub fn offloads() -> Self {
        Self::CSUM
            | Self::GUEST_CSUM
            | Self::GUEST_TSO4
            | Self::GUEST_TSO6
            | Self::GUEST_ECN
            | Self::HOST_TSO4
            | Self::HOST_TSO6
            | Self::HOST_ECN
    }

    /// The set of the bits of a number.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The set as a number.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether any of `others` is in the set.
    pub const fn has(self, others: Self) -> bool {
        self.0 & others.0 != 0
    }
}

impl BitOr for Features {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}
