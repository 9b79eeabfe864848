//! All streams of the device: which connection a packet or an event belongs to, whose turn it is to send to
//! the guest, and the resets that packets of unknown connections are answered with.
//!
//! Descriptors are watched edge-triggered and never muted: a connection remembers that it is readable, and is
//! read when the guest has buffers and credit for it. So a guest that takes nothing costs nothing.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use event_manager::EventSet;

use super::client::{self, Line};
use super::connection::{Connection, Outgoing, Ports};
use super::host::HostStream;
use super::packet::{HEADER_BYTES, HOST_CID, Header, Op, TYPE_STREAM};
use crate::devices::Watches;
use crate::virtio::chain::Buffers;

/// Most streams at once, in whatever phase.
pub(super) const MAX_STREAMS: usize = 1024;

/// Most clients that have not said which port they want; the oldest has to go for a newer one.
pub(super) const MAX_CLIENTS: usize = 64;

/// With so many resets waiting for buffers, no more packets of the guest are looked at (virtio 1.2, section
/// 5.10.6.1.1: additional resources are bounded).
const MAX_RESETS: usize = 256;

/// Host ports of connections that the host asks for start here, as in other monitors.
pub(super) const FIRST_LOCAL_PORT: u32 = 1 << 30;

/// What a token's stream is.
#[derive(Debug)]
enum Slot {
    Free,
    /// Has not said which port it wants.
    Client(UnixStream),
    Connected {
        connection: Connection,
        /// Whether it stands in [`Mux::turns`].
        has_turn: bool,
        watches_room: bool,
    },
    /// Is over for the guest; the host has yet to read what is left.
    Draining(HostStream),
}

impl Slot {
    fn connected(connection: Connection) -> Self {
        Self::Connected { connection, has_turn: false, watches_room: false }
    }

    fn fd(&self) -> Option<RawFd> {
        match self {
            Self::Free => None,
            Self::Client(stream) => Some(stream.as_raw_fd()),
            Self::Connected { connection, .. } => Some(connection.fd()),
            Self::Draining(host) => Some(host.fd()),
        }
    }
}

/// The streams.
#[derive(Debug)]
pub(super) struct Mux {
    guest_cid: u64,
    first_token: u32,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Clients by age; may name slots that are something else by now.
    clients: VecDeque<usize>,
    connections: HashMap<Ports, usize>,
    /// Connections with something for the guest, in the order they are served.
    turns: VecDeque<usize>,
    resets: VecDeque<Header>,
    next_local_port: u32,
}

impl Mux {
    /// No streams. Their descriptors will be watched with tokens from `first_token` on.
    pub fn new(guest_cid: u32, first_token: u32, next_local_port: u32) -> Self {
        Self {
            guest_cid: u64::from(guest_cid),
            first_token,
            slots: Vec::new(),
            free: Vec::new(),
            clients: VecDeque::new(),
            connections: HashMap::new(),
            turns: VecDeque::new(),
            resets: VecDeque::new(),
            next_local_port: next_local_port.max(FIRST_LOCAL_PORT),
        }
    }

    /// The host port that the next connection of the host gets if it is free.
    pub fn next_local_port(&self) -> u32 {
        self.next_local_port
    }

    /// Closes everything; the host's streams get what fits into their sockets.
    pub fn clear(&mut self, watches: &mut Watches<'_, '_>) {
        for index in 0..self.slots.len() {
            self.end(index, watches);
            self.close(index, watches);
        }
        self.slots.clear();
        self.free.clear();
        self.clients.clear();
        self.resets.clear();
    }

    /// Whether packets of the guest can be taken: there is room for the resets they may cause.
    pub fn takes_packets(&self) -> bool {
        self.resets.len() < MAX_RESETS
    }

    /// Whether the guest could use a buffer.
    pub fn has_packets(&self) -> bool {
        !self.resets.is_empty() || !self.turns.is_empty()
    }

    /// A client of the listener; it is dropped if there are too many streams.
    pub fn add_client(&mut self, stream: UnixStream, watches: &mut Watches<'_, '_>) {
        let slots = &self.slots;
        self.clients.retain(|&index| matches!(slots.get(index), Some(Slot::Client(_))));
        while self.clients.len() >= MAX_CLIENTS {
            let Some(oldest) = self.clients.pop_front() else { break };
            self.close(oldest, watches);
        }
        let fd = stream.as_raw_fd();
        if let Some(index) = self.insert(Slot::Client(stream), fd, watches) {
            self.clients.push_back(index);
        }
    }

    /// Asks the guest for a connection; `stream` is dropped if there are too many streams.
    pub fn connect(&mut self, stream: UnixStream, guest_port: u32, watches: &mut Watches<'_, '_>) {
        let ports = Ports { host: self.take_local_port(), guest: guest_port };
        self.add_connection(Connection::requested_by_host(ports, stream, false), watches);
    }

    /// A port that no connection has, for the host's end.
    fn take_local_port(&mut self) -> u32 {
        loop {
            let port = self.next_local_port;
            self.next_local_port = port.checked_add(1).filter(|&next| next < u32::MAX).unwrap_or(FIRST_LOCAL_PORT);
            // At most MAX_STREAMS ports are taken.
            if !self.connections.keys().any(|ports| ports.host == port) {
                return port;
            }
        }
    }

    /// Adds a connection; `false` if there are too many streams.
    fn add_connection(&mut self, connection: Connection, watches: &mut Watches<'_, '_>) -> bool {
        let (ports, fd) = (connection.ports, connection.fd());
        let Some(index) = self.insert(Slot::connected(connection), fd, watches) else { return false };
        self.connections.insert(ports, index);
        self.settle(index, watches);
        true
    }

    fn insert(&mut self, slot: Slot, fd: RawFd, watches: &mut Watches<'_, '_>) -> Option<usize> {
        if self.free.is_empty() && self.slots.len() >= MAX_STREAMS {
            self.end_forsaken(watches);
        }
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < MAX_STREAMS => {
                self.slots.push(Slot::Free);
                self.slots.len() - 1
            }
            None => return None,
        };
        if watches.add(fd, self.token(index), interest(false)).is_err() {
            // The host is out of watches: this stream is refused, the others go on.
            self.free.push(index);
            return None;
        }
        self.slots[index] = slot;
        Some(index)
    }

    /// Ends what the guest was asked for, has not answered, and nobody waits for any more: a guest that never answers is not to use up
    /// all streams.
    fn end_forsaken(&mut self, watches: &mut Watches<'_, '_>) {
        for index in 0..self.slots.len() {
            if matches!(&self.slots[index], Slot::Connected { connection, .. } if connection.is_forsaken()) {
                self.end(index, watches);
            }
        }
    }

    fn token(&self, index: usize) -> u32 {
        // Far below the reserved tokens: there are at most MAX_STREAMS slots.
        self.first_token + index as u32
    }

    /// Ends a connection for the guest. Its stream is closed when the host has been sent what is left.
    fn end(&mut self, index: usize, watches: &mut Watches<'_, '_>) {
        let slot = &mut self.slots[index];
        if !matches!(slot, Slot::Connected { .. }) {
            return;
        }
        let Slot::Connected { connection, .. } = std::mem::replace(slot, Slot::Free) else { return };
        self.connections.remove(&connection.ports);
        self.turns.retain(|&turn| turn != index);
        let rest = connection.into_rest();
        let has_more = rest.has_backlog();
        let fd = rest.fd();
        self.slots[index] = Slot::Draining(rest);
        if !has_more || watches.modify(fd, self.token(index), interest(true)).is_err() {
            self.close(index, watches);
        }
    }

    /// Closes whatever stream a slot holds.
    fn close(&mut self, index: usize, watches: &mut Watches<'_, '_>) {
        if let Some(fd) = self.slots[index].fd() {
            // It is watched as long as it has a slot.
            let _ = watches.remove(fd);
            self.slots[index] = Slot::Free;
            self.free.push(index);
        }
    }

    /// After anything happened to a connection: watches what it waits for, and gives it a turn if it needs one.
    fn settle(&mut self, index: usize, watches: &mut Watches<'_, '_>) {
        let token = self.token(index);
        if let Slot::Connected { connection, watches_room, .. } = &mut self.slots[index] {
            let wanted = connection.host.has_backlog();
            // Changing the interest also looks for what is ready already, so that nothing is missed.
            if wanted != *watches_room && watches.modify(connection.fd(), token, interest(wanted)).is_ok() {
                *watches_room = wanted;
            }
        }
        self.give_turn(index);
    }

    fn give_turn(&mut self, index: usize) {
        if let Slot::Connected { connection, has_turn, .. } = &mut self.slots[index]
            && !*has_turn
            && connection.has_packet()
        {
            *has_turn = true;
            self.turns.push_back(index);
        }
    }

    /// A watched descriptor has events.
    pub fn host_event(&mut self, token: u32, events: EventSet, watches: &mut Watches<'_, '_>) {
        let Some(index) = token.checked_sub(self.first_token).map(|index| index as usize) else { return };
        match self.slots.get_mut(index) {
            Some(Slot::Client(stream)) => match client::read_line(stream) {
                Line::Connect(port) => self.connect_client(index, port, events, watches),
                Line::Unfinished if !events.intersects(EventSet::READ_HANG_UP | EventSet::HANG_UP) => {}
                Line::Unfinished | Line::Wrong => self.close(index, watches),
            },
            Some(Slot::Connected { connection, .. }) => {
                if connection.host_event(events).is_err() {
                    self.reset(index, watches);
                } else {
                    self.settle(index, watches);
                }
            }
            Some(Slot::Draining(host)) => {
                host.flush();
                if !host.has_backlog() {
                    self.close(index, watches);
                }
            }
            Some(Slot::Free) | None => {}
        }
    }

    /// A client has said which port it wants.
    fn connect_client(&mut self, index: usize, port: u32, events: EventSet, watches: &mut Watches<'_, '_>) {
        let ports = Ports { host: self.take_local_port(), guest: port };
        let Slot::Client(stream) = std::mem::replace(&mut self.slots[index], Slot::Free) else { return };
        self.slots[index] = Slot::connected(Connection::requested_by_host(ports, stream, true));
        self.connections.insert(ports, index);
        self.host_event(self.token(index), events, watches);
    }

    /// Ends a connection that the host gives up, or in which the guest broke the rules.
    fn reset(&mut self, index: usize, watches: &mut Watches<'_, '_>) {
        let Slot::Connected { connection, .. } = &self.slots[index] else { return };
        if connection.is_known_to_guest() {
            let header = self.header(connection.ports, Op::Reset);
            self.resets.push_back(header);
        }
        self.end(index, watches);
    }

    /// Takes a packet of the guest. `listener` gives the stream that a host port leads to, if there is one.
    pub fn guest_packet(
        &mut self,
        header: &Header,
        data: Buffers<'_>,
        listener: impl FnOnce(u32) -> Option<UnixStream>,
        watches: &mut Watches<'_, '_>,
    ) {
        if header.src_cid != self.guest_cid || header.dst_cid != HOST_CID {
            return;
        }
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        let known = self.connections.get(&ports).copied().filter(|_| header.socket_type == TYPE_STREAM);
        match (Op::from_number(header.op), known) {
            (Some(Op::Reset), Some(index)) => self.end(index, watches),
            (Some(op), Some(index)) => self.connection_packet(index, op, header, data, watches),
            (None, Some(index)) => self.reset(index, watches),
            (Some(Op::Request), None) if header.socket_type == TYPE_STREAM => {
                let accepted = listener(ports.host).is_some_and(|stream| {
                    let connection = Connection::accepted_from_guest(ports, stream, header);
                    self.add_connection(connection, watches)
                });
                if !accepted {
                    self.refuse(header);
                }
            }
            (Some(Op::Reset), None) => {}
            (_, None) => self.refuse(header),
        }
    }

    fn connection_packet(
        &mut self,
        index: usize,
        op: Op,
        header: &Header,
        data: Buffers<'_>,
        watches: &mut Watches<'_, '_>,
    ) {
        let Slot::Connected { connection, .. } = &mut self.slots[index] else { return };
        let kept = connection.guest_packet(op, header, data);
        if kept.is_err() || connection.is_over_for_guest() {
            self.reset(index, watches);
        } else {
            self.settle(index, watches);
        }
    }

    /// Answers a packet that belongs to no connection.
    fn refuse(&mut self, header: &Header) {
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        self.resets.push_back(Header { socket_type: header.socket_type, ..self.header(ports, Op::Reset) });
    }

    fn header(&self, ports: Ports, op: Op) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: ports.host,
            dst_port: ports.guest,
            socket_type: TYPE_STREAM,
            op: op as u16,
            ..Header::default()
        }
    }

    /// Writes the next packet for the guest into a buffer of more than [`HEADER_BYTES`]; says how many bytes
    /// it has, or that there is none.
    pub fn write_packet(&mut self, mut buffer: Buffers<'_>) -> Option<u32> {
        let place = buffer.take(HEADER_BYTES);
        let header = self.resets.pop_front().or_else(|| self.next_turn(&buffer))?;
        place.copy_from(&header.to_bytes());
        Some(HEADER_BYTES as u32 + header.length)
    }

    /// Lets the connections send, in turn, until one has something.
    fn next_turn(&mut self, room: &Buffers<'_>) -> Option<Header> {
        while let Some(index) = self.turns.pop_front() {
            let Slot::Connected { connection, has_turn, .. } = &mut self.slots[index] else { continue };
            *has_turn = false;
            let ports = connection.ports;
            let Some(Outgoing { op, flags, length }) = connection.next_packet(room.clone()) else { continue };
            let (buf_alloc, fwd_cnt) = connection.announce_credit();
            self.give_turn(index);
            return Some(Header { length, flags, buf_alloc, fwd_cnt, ..self.header(ports, op) });
        }
        None
    }

    /// Connections whose data waits for room on the host.
    #[cfg(test)]
    pub fn backlog(&self) -> usize {
        let waits = |slot: &&Slot| matches!(slot, Slot::Connected { watches_room: true, .. });
        self.slots.iter().filter(waits).count()
    }

    /// Streams in any phase.
    #[cfg(test)]
    pub fn stream_count(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

/// What a stream is watched for: data, its end, and room in it if `room`.
fn interest(room: bool) -> EventSet {
    let always = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
    if room { always | EventSet::OUT } else { always }
}
