//! virtio-net: a network card on a tap, or on a stream socket (virtio 1.2, section 5.1).
//!
//! One pair of queues. Frames pass between guest memory and a tap without a copy in between, each behind a
//! virtio-net header that the guest and the kernel understand alike: checksums and segmentation are left to
//! whichever side does them last. The kernel checks the header's contents; this device checks lengths.
//! On a stream (module `stream`), there is no header and nothing to leave.
//!
//! Frames are dropped only as a network may: by the tap when its queue is full, or when the host refuses a
//! frame. A guest without receive buffers is not worked for: the network is watched edge-triggered, and read
//! again when the guest offers buffers.

mod features;
mod link;
mod receive;
mod stream;
mod tap;
#[cfg(test)]
mod tests;

use event_manager::EventSet;
use serde::{Deserialize, Serialize};

use self::features::Features;
use self::link::Link;
pub use self::link::NetworkEnd;
use self::receive::Window;
use self::tap::Moved;
pub use self::tap::TapError;
use super::{Context, DeviceError, DeviceKind, VirtioDevice, Watches};
use crate::persist::{Persist, PersistError};
use crate::virtio::chain::DescriptorChain;
use crate::virtio::queue::Virtqueue;

/// Queue of buffers for received frames.
const RX: usize = 0;
/// Queue of frames to send.
const TX: usize = 1;

/// Bytes of the header before each frame (section 5.1.6).
const HEADER_BYTES: usize = 12;

/// Bytes of an Ethernet header with a VLAN tag.
const ETHERNET_BYTES: usize = 18;

/// Largest frame with its header: an IP packet of the largest size there is.
const LARGEST_FRAME: usize = HEADER_BYTES + ETHERNET_BYTES + 65_535;

/// Largest frame without offloads where no MTU is given.
const DEFAULT_MTU: u16 = 1500;

/// Smallest MTU of IPv4 (RFC 791), and of the configuration field (section 5.1.4.1).
const SMALLEST_MTU: u16 = 68;

/// Most frames received at a stretch, so that sending and commands take their turn.
const MAX_FRAMES_AT_ONCE: usize = 256;

const LINK_TOKEN: u32 = 0;

/// What a network card is made of.
#[derive(Debug)]
pub struct NetConfig {
    /// What it is plugged into.
    pub network: NetworkEnd,
    /// The card's address.
    pub mac: [u8; 6],
    /// Largest packet of the network, if the guest is to be told. 68 or more.
    pub mtu: Option<u16>,
}

/// Why a network card cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The tap does not serve.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The socket does not serve.
    #[error("the socket given as a network cannot be used: {0}")]
    Stream(#[source] std::io::Error),
    /// The MTU is below what IPv4 needs.
    #[error("an MTU of {mtu} is too small; give {SMALLEST_MTU} or more")]
    Mtu {
        /// The MTU.
        mtu: u16,
    },
}

/// The network card.
#[derive(Debug)]
pub struct Net {
    link: Link,
    mac: [u8; 6],
    mtu: Option<u16>,
    /// What was agreed on; `None` while there is no driver.
    active: Option<Features>,
    /// The network may have frames: set by its events, cleared when it has none.
    readable: bool,
    /// The network takes no frames for now.
    sending_blocked: bool,
}

impl Net {
    /// A new card. Sets a tap up, which needs no privilege but ioctl(2) and fcntl(2).
    ///
    /// # Errors
    /// [`NetError`].
    pub fn new(config: NetConfig) -> Result<Self, NetError> {
        let NetConfig { network, mac, mtu } = config;
        if let Some(mtu) = mtu.filter(|&mtu| mtu < SMALLEST_MTU) {
            return Err(NetError::Mtu { mtu });
        }
        Ok(Self::on(Link::new(network)?, mac, mtu))
    }

    fn on(link: Link, mac: [u8; 6], mtu: Option<u16>) -> Self {
        Self { link, mac, mtu, active: None, readable: false, sending_blocked: false }
    }

    /// Room that the largest frame needs now.
    fn largest_received(&self, features: Features) -> usize {
        // On a stream, packets of UDP may be larger than the MTU.
        if matches!(self.link, Link::Stream(_)) || features.has(Features::GUEST_TSO4 | Features::GUEST_TSO6) {
            LARGEST_FRAME
        } else {
            HEADER_BYTES + ETHERNET_BYTES + usize::from(self.mtu.unwrap_or(0).max(DEFAULT_MTU))
        }
    }

    /// Moves frames from the network to the guest, as long as there are frames and buffers.
    fn receive(&mut self, context: &mut Context<'_, '_>) -> Result<(), DeviceError> {
        let Some(features) = self.active else { return Ok(()) };
        let queue = &mut context.queues[RX];
        if !self.readable || !queue.is_ready() {
            return Ok(());
        }
        queue.disable_kicks()?;
        let mut window = Window::new(self.largest_received(features), features.has(Features::MRG_RXBUF));
        let received = self.receive_into(&mut window, queue);
        window.put_back(queue);
        queue.notify()?;
        received
    }

    fn receive_into(&mut self, window: &mut Window, queue: &mut Virtqueue) -> Result<(), DeviceError> {
        for _ in 0..MAX_FRAMES_AT_ONCE {
            if !window.fill(queue)? {
                // The driver's next buffers kick. If they came just now, they are looked at soon.
                return if queue.enable_kicks()? { Ok(queue.kick_self()?) } else { Ok(()) };
            }
            match self.link.receive(window) {
                Ok(Moved::Bytes(length)) if length >= HEADER_BYTES => window.deliver(length, queue)?,
                // No frame comes without a header.
                Ok(Moved::Bytes(_) | Moved::NotNow) => {
                    self.readable = false;
                    return Ok(());
                }
                Err(source) => return Err(DeviceError::Host { what: "reading from the network", source }),
            }
        }
        Ok(queue.kick_self()?)
    }

    /// Moves frames from the guest to the network, as long as it takes them.
    fn send(&mut self, context: &mut Context<'_, '_>) -> Result<(), DeviceError> {
        let queue = &mut context.queues[TX];
        if self.sending_blocked || !queue.is_ready() {
            return Ok(());
        }
        queue.disable_kicks()?;
        let mut is_blocked = !self.link.flush();
        for _ in 0..queue.size() {
            if is_blocked {
                break;
            }
            let Some(chain) = queue.pop()? else { break };
            if send_frame(&mut self.link, &chain)? == Moved::NotNow {
                queue.undo_pop();
                is_blocked = true;
            } else {
                queue.add_used(chain.head(), 0)?;
            }
        }
        queue.notify()?;
        // Part of a frame may be left.
        if is_blocked || !self.link.flush() {
            self.sending_blocked = true;
            return self.watch(&mut context.watches);
        }
        if queue.enable_kicks()? {
            queue.kick_self()?;
        }
        Ok(())
    }

    /// Watches the network for what is waited for. Looks for what is ready already, so that nothing is missed.
    fn watch(&self, watches: &mut Watches<'_, '_>) -> Result<(), DeviceError> {
        watches.modify(self.link.fd(), LINK_TOKEN, interest(self.sending_blocked))
    }
}

fn send_frame(link: &mut Link, chain: &DescriptorChain) -> Result<Moved, DeviceError> {
    match chain.readable().len() {
        ..HEADER_BYTES => Err(DeviceError::Protocol("a frame is shorter than its header")),
        // No network carries it.
        length if length > LARGEST_FRAME => Ok(Moved::Bytes(0)),
        _ => Ok(link.send(chain)),
    }
}

/// Events of the network: frames, and room if `room`.
fn interest(room: bool) -> EventSet {
    let always = EventSet::IN | EventSet::EDGE_TRIGGERED;
    if room { always | EventSet::OUT } else { always }
}

impl VirtioDevice for Net {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn queue_sizes(&self) -> &[u16] {
        &[256, 256]
    }

    fn features(&self) -> u64 {
        let features = self.link.features();
        if self.mtu.is_some() { (features | Features::MTU).bits() } else { features.bits() }
    }

    fn config(&self) -> Vec<u8> {
        // Address, status, number of queue pairs, MTU (section 5.1.4).
        let mut config = self.mac.to_vec();
        config.extend([0; 4]);
        config.extend(self.mtu.unwrap_or(0).to_le_bytes());
        config
    }

    fn activate(&mut self, features: u64, context: &mut Context<'_, '_>) -> Result<(), DeviceError> {
        let features = Features::from_bits(features);
        self.link.set_offloads(features).map_err(|error| DeviceError::Host {
            what: "setting the tap's offloads",
            source: std::io::Error::other(error),
        })?;
        context.watches.add(self.link.fd(), LINK_TOKEN, interest(false))?;
        (self.active, self.readable, self.sending_blocked) = (Some(features), true, false);
        Ok(())
    }

    fn process_queue(&mut self, index: usize, context: &mut Context<'_, '_>) -> Result<(), DeviceError> {
        match index {
            RX => self.receive(context),
            _ => self.send(context),
        }
    }

    fn process_event(
        &mut self,
        _token: u32,
        events: EventSet,
        context: &mut Context<'_, '_>,
    ) -> Result<(), DeviceError> {
        if events.contains(EventSet::OUT) && self.sending_blocked {
            self.sending_blocked = false;
            self.watch(&mut context.watches)?;
            self.send(context)?;
        }
        // An error of the network is reported by reading.
        if events.intersects(EventSet::IN | EventSet::ERROR | EventSet::HANG_UP) {
            self.readable = true;
            self.receive(context)?;
        }
        Ok(())
    }

    fn reset(&mut self, watches: &mut Watches<'_, '_>) {
        if self.active.take().is_some() {
            // It is watched while the device is active.
            let _ = watches.remove(self.link.fd());
        }
    }
}

/// The card's saved state: what its driver was told of it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    mac: [u8; 6],
    mtu: Option<u16>,
}

impl Persist for Net {
    type State = NetState;
    type Args = NetConfig;

    fn save(&self) -> NetState {
        NetState { mac: self.mac, mtu: self.mtu }
    }

    /// A restored card may get another address than its driver read: the guest has to be told by other means.
    /// But its driver has fixed the size of its buffers by the MTU.
    fn restore(config: NetConfig, state: NetState) -> Result<Self, PersistError> {
        let invalid = |why| PersistError::Invalid { what: "a network card", why };
        if config.mtu != state.mtu {
            return Err(invalid(format!("its MTU was {:?}, and now is {:?}", state.mtu, config.mtu)));
        }
        Self::new(config).map_err(|error| invalid(error.to_string()))
    }
}
