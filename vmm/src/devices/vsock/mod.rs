//! virtio-vsock: stream sockets between the guest and the host (virtio 1.2, section 5.10).
//!
//! The host's end of every connection is a Unix stream socket, so the host needs no vsock driver:
//! - A program connects to the listener, writes `CONNECT <port>\n`, and reads `OK <local port>\n` when the
//!   guest has accepted; when the guest refuses, the stream ends. Then bytes flow.
//! - A thread of this process asks a [`VsockConnector`].
//! - The guest's first connection to a host port that was configured gets the stream configured for it. All
//!   other connections of the guest are refused.
//!
//! Each direction of a connection ends on its own, after all data before its end. A connection's memory on
//! the host is bounded by the credit that the guest gets; data for the guest stays in the host's sockets until
//! the guest has buffers for it, and is read straight into them.
//!
//! Connections do not survive a snapshot: a restored guest is told so (transport reset), and the host's ends
//! are closed.

mod client;
mod connection;
mod connector;
mod host;
mod mux;
mod packet;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};

use event_manager::EventSet;
use serde::{Deserialize, Serialize};

use self::connector::Inbox;
pub use self::connector::VsockConnector;
use self::mux::{FIRST_LOCAL_PORT, Mux};
use self::packet::{HEADER_BYTES, Header};
use super::{Context, DeviceError, DeviceKind, VirtioDevice, Watches};
use crate::persist::{Persist, PersistError};
use crate::virtio::chain::DescriptorChain;

/// Queue of buffers for packets to the guest.
const RX: usize = 0;
/// Queue of packets from the guest.
const TX: usize = 1;
/// Queue of buffers for events.
const EVENT: usize = 2;

/// VIRTIO_VSOCK_F_STREAM (section 5.10.3).
const FEATURE_STREAM: u64 = 1 << 0;

/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (section 5.10.6.7), as it stands in the buffer.
const EVENT_TRANSPORT_RESET: [u8; 4] = 0_u32.to_le_bytes();

const LISTENER_TOKEN: u32 = 0;
const INBOX_TOKEN: u32 = 1;
const FIRST_STREAM_TOKEN: u32 = 2;

/// What a vsock device is made of.
#[derive(Debug)]
pub struct VsockConfig {
    /// The guest's address: 3 or more, and not [`u32::MAX`].
    pub guest_cid: u32,
    /// Where programs of the host connect to the guest.
    pub listener: Option<UnixListener>,
    /// Host ports the guest may connect to, each once, and the stream it is then joined to.
    pub host_ports: Vec<(u32, UnixStream)>,
}

impl VsockConfig {
    /// A guest that nothing but a [`VsockConnector`] can talk to.
    pub fn new(guest_cid: u32) -> Self {
        Self { guest_cid, listener: None, host_ports: Vec::new() }
    }
}

/// The socket device.
#[derive(Debug)]
pub struct Vsock {
    guest_cid: u32,
    listener: Option<UnixListener>,
    /// The listener gave an error that only time cures, such as too many open files: try again.
    accept_again: bool,
    host_ports: HashMap<u32, UnixStream>,
    inbox: Inbox,
    mux: Mux,
    active: bool,
    /// The driver comes from a snapshot and must hear that its connections are gone.
    transport_reset_due: bool,
}

impl Vsock {
    /// A new device.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for a CID that no guest may have; else the host's error.
    pub fn new(config: VsockConfig) -> io::Result<Self> {
        let VsockConfig { guest_cid, listener, host_ports } = config;
        if !(3..u32::MAX).contains(&guest_cid) {
            let text = format!("{guest_cid} is no guest's vsock address; choose one from 3 on");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        if let Some(listener) = &listener {
            listener.set_nonblocking(true)?;
        }
        Ok(Self {
            guest_cid,
            listener,
            accept_again: false,
            host_ports: host_ports.into_iter().collect(),
            inbox: Inbox::new()?,
            mux: Mux::new(guest_cid, FIRST_STREAM_TOKEN, FIRST_LOCAL_PORT),
            active: false,
            transport_reset_due: false,
        })
    }

    /// A handle by which other threads connect to the guest.
    pub fn connector(&self) -> VsockConnector {
        self.inbox.connector()
    }

    /// Takes the clients that wait at the listener.
    fn accept(&mut self, watches: &mut Watches<'_, '_>) {
        let Some(listener) = &self.listener else { return };
        loop {
            match listener.accept() {
                Ok((stream, _)) => self.mux.add_client(stream, watches),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.accept_again = error.kind() != io::ErrorKind::WouldBlock;
                    return;
                }
            }
        }
    }

    /// Takes packets of the guest, as long as there is room for what they cause.
    fn take_packets(&mut self, context: &mut Context<'_, '_>) -> Result<(), DeviceError> {
        let queue = &mut context.queues[TX];
        if !queue.is_ready() {
            return Ok(());
        }
        queue.disable_kicks()?;
        for _ in 0..queue.size() {
            if !self.mux.takes_packets() {
                // Goes on when the guest has taken the resets.
                return Ok(queue.notify()?);
            }
            let Some(chain) = queue.pop()? else { break };
            self.take_packet(&chain, &mut context.watches)?;
            queue.add_used(chain.head(), 0)?;
        }
        queue.notify()?;
        if queue.enable_kicks()? {
            queue.kick_self()?;
        }
        Ok(())
    }

    fn take_packet(&mut self, chain: &DescriptorChain, watches: &mut Watches<'_, '_>) -> Result<(), DeviceError> {
        let mut bytes = [0; HEADER_BYTES];
        let mut buffers = chain.readable();
        if buffers.take(HEADER_BYTES).copy_to(&mut bytes) < HEADER_BYTES {
            return Err(DeviceError::Protocol("a vsock packet is shorter than its header"));
        }
        let header = Header::from_bytes(&bytes);
        let data = buffers.take(header.length as usize);
        if data.len() < header.length as usize {
            return Err(DeviceError::Protocol("a vsock packet is shorter than its header says"));
        }
        let ports = &mut self.host_ports;
        self.mux.guest_packet(&header, data, |port| ports.remove(&port), watches);
        Ok(())
    }

    /// Fills the guest's buffers with packets, as long as there are both.
    fn give_packets(&mut self, context: &mut Context<'_, '_>) -> Result<(), DeviceError> {
        let queue = &mut context.queues[RX];
        if !queue.is_ready() {
            return Ok(());
        }
        let stalled = !self.mux.takes_packets();
        queue.disable_kicks()?;
        let mut budget = queue.size();
        while self.mux.has_packets() {
            if budget == 0 {
                queue.kick_self()?;
                break;
            }
            budget -= 1;
            let Some(chain) = queue.pop()? else {
                if queue.enable_kicks()? {
                    continue;
                }
                break;
            };
            if chain.writable().len() <= HEADER_BYTES {
                return Err(DeviceError::Protocol("a buffer for vsock packets is too short for any data"));
            }
            match self.mux.write_packet(chain.writable()) {
                Some(length) => queue.add_used(chain.head(), length)?,
                None => {
                    queue.undo_pop();
                    break;
                }
            }
        }
        queue.notify()?;
        if stalled && self.mux.takes_packets() {
            context.queues[TX].kick_self()?;
        }
        Ok(())
    }

    /// Tells a restored driver that its connections are gone, when it has a buffer for that.
    fn give_event(&mut self, context: &mut Context<'_, '_>) -> Result<(), DeviceError> {
        let queue = &mut context.queues[EVENT];
        if !self.transport_reset_due || !queue.is_ready() {
            return Ok(());
        }
        if let Some(chain) = queue.pop()? {
            let written = chain.writable().copy_from(&EVENT_TRANSPORT_RESET);
            queue.add_used(chain.head(), written as u32)?;
            queue.notify()?;
            self.transport_reset_due = false;
        }
        Ok(())
    }
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Vsock
    }

    fn queue_sizes(&self) -> &[u16] {
        &[128, 128, 8]
    }

    fn features(&self) -> u64 {
        FEATURE_STREAM
    }

    fn config(&self) -> Vec<u8> {
        u64::from(self.guest_cid).to_le_bytes().to_vec()
    }

    fn activate(&mut self, _features: u64, context: &mut Context<'_, '_>) -> Result<(), DeviceError> {
        self.active = true;
        if let Some(listener) = &self.listener {
            context.watches.add(listener.as_raw_fd(), LISTENER_TOKEN, EventSet::IN | EventSet::EDGE_TRIGGERED)?;
        }
        context.watches.add(self.inbox.bell().as_raw_fd(), INBOX_TOKEN, EventSet::IN)?;
        self.give_event(context)
    }

    fn process_queue(&mut self, index: usize, context: &mut Context<'_, '_>) -> Result<(), DeviceError> {
        match index {
            TX => self.take_packets(context)?,
            EVENT => self.give_event(context)?,
            _ => {}
        }
        self.give_packets(context)
    }

    fn process_event(
        &mut self,
        token: u32,
        events: EventSet,
        context: &mut Context<'_, '_>,
    ) -> Result<(), DeviceError> {
        match token {
            LISTENER_TOKEN => self.accept(&mut context.watches),
            INBOX_TOKEN => {
                for request in self.inbox.take() {
                    self.mux.connect(request.stream, request.port, &mut context.watches);
                }
            }
            _ => self.mux.host_event(token, events, &mut context.watches),
        }
        if self.accept_again {
            self.accept(&mut context.watches);
        }
        self.give_packets(context)
    }

    fn reset(&mut self, watches: &mut Watches<'_, '_>) {
        self.mux.clear(watches);
        if self.active {
            self.active = false;
            // Both are watched while the device is active.
            if let Some(listener) = &self.listener {
                let _ = watches.remove(listener.as_raw_fd());
            }
            let _ = watches.remove(self.inbox.bell().as_raw_fd());
        }
    }
}

/// The device's saved state. Connections are not part of it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// Whether there is a driver, which may have connections.
    active: bool,
    next_local_port: u32,
}

impl Persist for Vsock {
    type State = VsockState;
    type Args = VsockConfig;

    fn save(&self) -> VsockState {
        VsockState { active: self.active, next_local_port: self.mux.next_local_port() }
    }

    fn restore(config: VsockConfig, state: VsockState) -> Result<Self, PersistError> {
        let mut device = Self::new(config)
            .map_err(|error| PersistError::Invalid { what: "a vsock device", why: error.to_string() })?;
        device.mux = Mux::new(device.guest_cid, FIRST_STREAM_TOKEN, state.next_local_port);
        device.transport_reset_due = state.active;
        Ok(device)
    }
}
