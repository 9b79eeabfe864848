//! What a card is plugged into.

use std::fs::File;
use std::io;
use std::os::fd::RawFd;

use super::HEADER_BYTES;
use super::NetError;
use super::features::Features;
use super::receive::Window;
use super::stream::Stream;
use super::tap::{Moved, Tap, TapError};
use crate::virtio::chain::DescriptorChain;

/// The network that a card is to be plugged into.
#[derive(Debug)]
pub enum NetworkEnd {
    /// A tap attached with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR.
    Tap(File),
    /// A connected stream socket on which each frame stands behind its length, four bytes in network byte order, as passt(1) has it.
    Stream(File),
}

/// The network, in use. It does not block.
#[derive(Debug)]
pub(super) enum Link {
    Tap(Tap),
    Stream(Stream),
}

impl Link {
    pub fn new(end: NetworkEnd) -> Result<Self, NetError> {
        match end {
            NetworkEnd::Tap(file) => Ok(Self::Tap(Tap::new(file)?)),
            NetworkEnd::Stream(socket) => Stream::new(socket).map(Self::Stream).map_err(NetError::Stream),
        }
    }

    pub fn fd(&self) -> RawFd {
        match self {
            Self::Tap(tap) => tap.fd(),
            Self::Stream(stream) => stream.fd(),
        }
    }

    /// What the card can offer the driver here.
    pub fn features(&self) -> Features {
        match self {
            Self::Tap(_) => Features::plain() | Features::offloads(),
            // Nobody on the way would finish a frame.
            Self::Stream(_) => Features::plain(),
        }
    }

    /// Agrees with the network on what the driver finishes itself.
    pub fn set_offloads(&self, features: Features) -> Result<(), TapError> {
        match self {
            Self::Tap(tap) => tap.set_offloads(features),
            Self::Stream(_) => Ok(()),
        }
    }

    /// Receives one frame into the window.
    pub fn receive(&mut self, window: &mut Window) -> io::Result<Moved> {
        match self {
            Self::Tap(tap) => window.read(tap),
            Self::Stream(stream) => Ok(stream.receive().map_or(Moved::NotNow, |frame| window.copy_from(frame))),
        }
    }

    /// Sends a frame of the driver's, header and all. One that the network refuses is lost, as on a wire.
    pub fn send(&mut self, chain: &DescriptorChain) -> Moved {
        let mut frame = chain.readable();
        match self {
            // The kernel refuses a wrong header, and all frames while the interface is down or memory is short.
            Self::Tap(tap) => tap.write(&frame.iovecs()).unwrap_or(Moved::Bytes(0)),
            Self::Stream(stream) => {
                frame.take(HEADER_BYTES);
                stream.send(&frame)
            }
        }
    }

    /// Sends what is left of the last frame; whether nothing is left now.
    pub fn flush(&mut self) -> bool {
        match self {
            Self::Tap(_) => true,
            Self::Stream(stream) => stream.flush(),
        }
    }
}
