//! One connection between a port of the guest and a Unix stream of the host: its phases, its credit in
//! both directions, and how each side's end reaches the other (virtio 1.2, section 5.10.6).

use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;

use event_manager::EventSet;

use super::host::{HostStream, Received};
use super::packet::{Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use crate::virtio::chain::Buffers;

/// Most bytes of one connection that wait for the host to read them. It is the credit the guest is given.
pub(super) const RECEIVE_BUFFER: u32 = 128 * 1024;

/// The guest is told of free buffer when so much has become free since it was told last.
const CREDIT_STEP: u32 = RECEIVE_BUFFER / 4;

/// Most bytes of one packet to the guest, so that connections take turns.
const MAX_PACKET: usize = 64 * 1024;

/// Both ends of a connection, seen from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub host: u32,
    pub guest: u32,
}

/// Where a connection stands. Ended ones are no [`Connection`] any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The guest has not answered the host's request yet.
    Requested {
        /// Whether the host's client waits for an `OK` line.
        wants_line: bool,
    },
    /// Data flows.
    Established,
}

/// The guest broke the rules of the connection, which must be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Violation;

/// A packet that is to go to the guest; its data is in the guest's buffer already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outgoing {
    pub op: Op,
    pub flags: u32,
    pub length: u32,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub ports: Ports,
    pub host: HostStream,
    phase: Phase,
    /// A request or response that the guest has to be sent first.
    opening: Option<Op>,

    // From the host to the guest. Counters wrap, as in the packets.
    /// The socket may have something to read: set by its events, cleared when it has not.
    readable: bool,
    /// The host will send no more: read to the end.
    host_ended: bool,
    /// The host has closed its end altogether.
    hung_up: bool,
    sent: u32,
    guest_buffer: u32,
    guest_forwarded: u32,
    credit_requested: bool,
    /// What of [`SHUTDOWN_BOTH`] the guest was told, and what it has to be told.
    shutdown_told: u32,
    shutdown_due: u32,

    // From the guest to the host.
    received: u32,
    forwarded: u32,
    forwarded_told: u32,
    credit_update_asked: bool,
    /// What of [`SHUTDOWN_BOTH`] the guest has said.
    guest_shutdown: u32,
    sending_ended: bool,
}

impl Connection {
    fn new(ports: Ports, host: HostStream, phase: Phase, opening: Op) -> Self {
        Self {
            ports,
            host,
            phase,
            opening: Some(opening),
            readable: true,
            host_ended: false,
            hung_up: false,
            sent: 0,
            guest_buffer: 0,
            guest_forwarded: 0,
            credit_requested: false,
            shutdown_told: 0,
            shutdown_due: 0,
            received: 0,
            forwarded: 0,
            forwarded_told: 0,
            credit_update_asked: false,
            guest_shutdown: 0,
            sending_ended: false,
        }
    }

    /// A connection that the host asks for. `wants_line`: an `OK` line tells the host's client of success.
    pub fn requested_by_host(ports: Ports, stream: UnixStream, wants_line: bool) -> Self {
        Self::new(ports, HostStream::new(stream), Phase::Requested { wants_line }, Op::Request)
    }

    /// A connection that the guest asked for with `request`, and gets.
    pub fn accepted_from_guest(ports: Ports, stream: UnixStream, request: &Header) -> Self {
        let mut connection = Self::new(ports, HostStream::new(stream), Phase::Established, Op::Response);
        connection.learn_credit(request);
        connection
    }

    /// The descriptor to watch.
    pub fn fd(&self) -> RawFd {
        self.host.fd()
    }

    /// Whether the guest may know of the connection: a request has been sent, or came from it.
    pub fn is_known_to_guest(&self) -> bool {
        self.opening != Some(Op::Request)
    }

    /// Whether it was asked for by one who is gone, and the guest has not answered yet.
    pub fn is_forsaken(&self) -> bool {
        self.hung_up && matches!(self.phase, Phase::Requested { .. })
    }

    /// Whether the guest will neither send nor receive any more.
    pub fn is_over_for_guest(&self) -> bool {
        self.guest_shutdown == SHUTDOWN_BOTH
    }

    /// The host's socket has events. `Err` if nobody on the host waits for the connection any more.
    pub fn host_event(&mut self, events: EventSet) -> Result<(), Violation> {
        if events.intersects(EventSet::IN | EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR) {
            self.readable = true;
        }
        if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            self.hung_up = true;
            if self.phase == (Phase::Requested { wants_line: true }) {
                return Err(Violation);
            }
            if self.host_ended {
                self.owe_shutdown(SHUTDOWN_BOTH);
            }
        }
        self.flush();
        Ok(())
    }

    /// Takes a packet that the guest sent on this connection, its data in `data`.
    pub fn guest_packet(&mut self, op: Op, header: &Header, data: Buffers<'_>) -> Result<(), Violation> {
        self.learn_credit(header);
        match (op, self.phase) {
            (Op::Response, Phase::Requested { wants_line }) if self.is_known_to_guest() => {
                self.phase = Phase::Established;
                let line = format!("OK {}\n", self.ports.host);
                if wants_line && !self.host.send_text(&line) {
                    return Err(Violation);
                }
            }
            (Op::ReadWrite, Phase::Established) => self.take_data(&data)?,
            (Op::Shutdown, Phase::Established) => self.guest_ends(header.flags & SHUTDOWN_BOTH),
            (Op::CreditUpdate, Phase::Established) => {}
            (Op::CreditRequest, Phase::Established) => self.credit_update_asked = true,
            _ => return Err(Violation),
        }
        Ok(())
    }

    fn learn_credit(&mut self, header: &Header) {
        self.guest_buffer = header.buf_alloc;
        self.guest_forwarded = header.fwd_cnt;
        if self.credit() > 0 {
            self.credit_requested = false;
        }
    }

    /// Bytes the guest has room for. A guest that lies about its counters only starves itself.
    fn credit(&self) -> u32 {
        let in_flight = self.sent.wrapping_sub(self.guest_forwarded);
        self.guest_buffer.saturating_sub(in_flight)
    }

    fn take_data(&mut self, data: &Buffers<'_>) -> Result<(), Violation> {
        let length = u32::try_from(data.len()).map_err(|_| Violation)?;
        let waiting = self.received.wrapping_sub(self.forwarded);
        if length > RECEIVE_BUFFER - waiting || self.guest_shutdown & SHUTDOWN_SEND != 0 {
            return Err(Violation);
        }
        self.received = self.received.wrapping_add(length);
        let gone = self.host.send(data.clone());
        self.account_forwarded(gone);
        Ok(())
    }

    fn guest_ends(&mut self, flags: u32) {
        self.guest_shutdown |= flags;
        if flags & SHUTDOWN_RECEIVE != 0 {
            self.host.end_receiving();
            self.host_ended = true;
        }
        self.flush();
    }

    /// Sends what waits for the host, as far as there is room, and then the guest's end of stream.
    fn flush(&mut self) {
        let gone = self.host.flush();
        self.account_forwarded(gone);
        let ends = self.guest_shutdown & SHUTDOWN_SEND != 0 && !self.host.has_backlog();
        if ends && !self.sending_ended {
            self.host.end_sending();
            self.sending_ended = true;
        }
    }

    fn account_forwarded(&mut self, bytes: usize) {
        // At most the backlog's bound, so the cast loses nothing.
        self.forwarded = self.forwarded.wrapping_add(bytes as u32);
        if self.host.is_broken() {
            self.owe_shutdown(SHUTDOWN_RECEIVE);
        }
    }

    fn owe_shutdown(&mut self, flags: u32) {
        self.shutdown_due |= flags & !self.shutdown_told;
    }

    /// Whether a buffer of the guest could be used now.
    pub fn has_packet(&self) -> bool {
        self.opening.is_some()
            || self.phase == Phase::Established
                && (self.may_read() && self.credit() > 0
                    || self.shutdown_due != 0
                    || self.should_request_credit()
                    || self.should_update_credit())
    }

    fn may_read(&self) -> bool {
        self.readable && !self.host_ended
    }

    fn should_request_credit(&self) -> bool {
        self.may_read() && self.credit() == 0 && !self.credit_requested
    }

    fn should_update_credit(&self) -> bool {
        self.credit_update_asked || self.forwarded.wrapping_sub(self.forwarded_told) >= CREDIT_STEP
    }

    /// Makes the next packet for the guest, reading the host's data straight into `room`.
    pub fn next_packet(&mut self, mut room: Buffers<'_>) -> Option<Outgoing> {
        let control = |op| Some(Outgoing { op, flags: 0, length: 0 });
        if let Some(op) = self.opening.take() {
            return control(op);
        }
        if self.phase != Phase::Established {
            return None;
        }
        if let Some(length) = self.read_host(&mut room) {
            return Some(Outgoing { op: Op::ReadWrite, flags: 0, length });
        }
        if self.shutdown_due != 0 {
            self.shutdown_told |= std::mem::take(&mut self.shutdown_due);
            return Some(Outgoing { op: Op::Shutdown, flags: self.shutdown_told, length: 0 });
        }
        if self.should_request_credit() {
            self.credit_requested = true;
            return control(Op::CreditRequest);
        }
        if self.should_update_credit() {
            return control(Op::CreditUpdate);
        }
        None
    }

    fn read_host(&mut self, room: &mut Buffers<'_>) -> Option<u32> {
        let target = room.take((self.credit() as usize).min(MAX_PACKET));
        if !self.may_read() || target.is_empty() {
            return None;
        }
        match self.host.receive(&target) {
            Received::Bytes(count) => {
                // At most MAX_PACKET.
                let count = count as u32;
                self.sent = self.sent.wrapping_add(count);
                Some(count)
            }
            Received::Nothing => {
                self.readable = false;
                None
            }
            Received::End => {
                self.host_ended = true;
                self.owe_shutdown(if self.hung_up { SHUTDOWN_BOTH } else { SHUTDOWN_SEND });
                None
            }
        }
    }

    /// Buffer size and forwarded bytes for the header of a packet that goes out now.
    pub fn announce_credit(&mut self) -> (u32, u32) {
        self.credit_update_asked = false;
        self.forwarded_told = self.forwarded;
        (RECEIVE_BUFFER, self.forwarded)
    }

    /// The connection is over for the guest: what is left of it is the data that the host has yet to read.
    pub fn into_rest(mut self) -> HostStream {
        self.flush();
        self.host
    }
}
