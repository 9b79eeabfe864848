//! The device in front of a guest's driver and the host's programs: a driver that speaks packets, sockets
//! that keep its side of a connection's account, and whole transfers through small windows.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::connection::RECEIVE_BUFFER;
use super::mux::MAX_CLIENTS;
use super::packet::{Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM};
use super::*;
use crate::devices::testing::{Bench, Buffer, survives_hostile_rings};
use crate::sandbox;

mod connector;
mod credit;
mod ends;
mod hostile;
mod listener;
mod snapshot;
mod transfer;

const CID: u32 = 3;
const HOST_PORT: u32 = 1025;
/// As Linux makes them.
const RX_BUFFER: usize = 4096;
const WRITE: u16 = 2;

/// A driver that gives its receive buffers back in order.
struct Guest {
    bench: Bench<Vsock>,
    buffers: Vec<u64>,
    next_buffer: usize,
    packets: VecDeque<(Header, Vec<u8>)>,
}

impl Guest {
    fn new(config: VsockConfig) -> Self {
        Self::with(Vsock::new(config).unwrap())
    }

    fn with(device: Vsock) -> Self {
        let mut bench = Bench::start(device);
        let buffers = (0..128).map(|_| bench.allocate(RX_BUFFER)).collect();
        Self { bench, buffers, next_buffer: 0, packets: VecDeque::new() }
    }

    /// A guest with room for many packets.
    fn ready(config: VsockConfig) -> Self {
        Self::ready_on(Vsock::new(config).unwrap())
    }

    fn ready_on(device: Vsock) -> Self {
        let mut guest = Self::with(device);
        guest.offer(64);
        guest
    }

    fn offer(&mut self, count: usize) {
        for _ in 0..count {
            let index = self.next_buffer as u16;
            let address = self.buffers[self.next_buffer];
            self.bench.set_descriptor(RX, index, address, RX_BUFFER as u32, WRITE, 0);
            self.bench.make_available(RX, index);
            self.next_buffer = (self.next_buffer + 1) % self.buffers.len();
        }
        self.bench.kick(RX);
    }

    /// Lets the device work, takes what it sent, and offers the used buffers again.
    fn turn(&mut self) {
        self.bench.run();
        let used = self.bench.used(RX);
        for (head, length) in &used {
            let mut bytes = vec![0; *length as usize];
            self.bench.memory.read_slice(&mut bytes, GuestAddress(self.buffers[usize::from(*head)])).unwrap();
            let (header, data) = bytes.split_first_chunk().unwrap();
            let header = Header::from_bytes(header);
            assert_eq!(header.length as usize, data.len());
            assert_eq!((header.src_cid, header.dst_cid), (2, u64::from(CID)));
            self.packets.push_back((header, data.to_vec()));
        }
        if !used.is_empty() {
            self.offer(used.len());
        }
    }

    /// The next packet for the guest.
    #[track_caller]
    fn receive(&mut self) -> (Header, Vec<u8>) {
        self.turn();
        self.packets.pop_front().expect("the device sent nothing")
    }

    #[track_caller]
    fn expect(&mut self, op: Op) -> Header {
        let (header, _) = self.receive();
        assert_eq!(Op::from_number(header.op), Some(op));
        header
    }

    #[track_caller]
    fn expect_nothing(&mut self) {
        self.turn();
        assert_eq!(self.packets.pop_front(), None);
    }

    fn send(&mut self, header: Header, data: &[u8]) {
        let header = Header { length: data.len() as u32, ..header };
        let mut buffers = vec![Buffer::readable(&header.to_bytes())];
        // Data in several descriptors, as Linux sends it from pages.
        buffers.extend(data.chunks(3000).map(Buffer::readable));
        self.bench.add_chain(TX, &buffers);
        self.bench.kick(TX);
        assert!(!self.needs_reset());
        assert_eq!(self.bench.used(TX).len(), 1);
    }

    fn needs_reset(&self) -> bool {
        self.bench.link().health.needs_reset()
    }

    fn streams(&mut self) -> usize {
        self.bench.device().mux.stream_count()
    }
}

/// A packet of a guest with a large buffer.
fn packet(op: Op, guest_port: u32, host_port: u32) -> Header {
    Header {
        src_cid: u64::from(CID),
        dst_cid: 2,
        src_port: guest_port,
        dst_port: host_port,
        socket_type: TYPE_STREAM,
        op: op as u16,
        buf_alloc: 1 << 20,
        ..Header::default()
    }
}

/// A guest that has connected to the host, its packet header, and the host's end.
fn connected() -> (Guest, UnixStream) {
    let (host, device) = UnixStream::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    let config = VsockConfig { host_ports: vec![(HOST_PORT, device)], ..VsockConfig::new(CID) };
    let mut guest = Guest::ready(config);
    guest.send(packet(Op::Request, 7, HOST_PORT), &[]);
    guest.expect(Op::Response);
    (guest, host)
}

fn read_all(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
    }
    bytes
}

fn is_at_end(stream: &mut UnixStream) -> bool {
    matches!(stream.read(&mut [0]), Ok(0))
}

#[test]
fn the_guest_reaches_a_configured_host_port_once() {
    let (mut guest, mut host) = connected();
    guest.send(packet(Op::ReadWrite, 7, HOST_PORT), b"hello");
    assert_eq!(read_all(&mut host), b"hello");
    host.write_all(b"answer").unwrap();
    assert_eq!(guest.receive().1, b"answer");

    guest.send(packet(Op::Request, 8, HOST_PORT), &[]);
    let reset = guest.expect(Op::Reset);
    assert_eq!((reset.src_port, reset.dst_port), (HOST_PORT, 8));
}

#[test]
fn any_other_host_port_is_refused() {
    let mut guest = Guest::ready(VsockConfig::new(CID));
    guest.send(packet(Op::Request, 7, 22), &[]);
    guest.expect(Op::Reset);
}

#[test]
fn a_cid_that_no_guest_may_have_is_refused_with_its_number() {
    for cid in [0, 2, u32::MAX] {
        let error = Vsock::new(VsockConfig::new(cid)).unwrap_err();
        assert!(error.to_string().contains(&cid.to_string()), "{error}");
    }
}

#[test]
fn a_confined_thread_can_do_all_that_the_device_does() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let (mut host, stream) = UnixStream::pair().unwrap();
    let host_ports = vec![(HOST_PORT, stream)];
    let device = Vsock::new(VsockConfig { listener: Some(listener), host_ports, ..VsockConfig::new(CID) }).unwrap();
    let mut clients = [device.connector().connect(1024).unwrap(), UnixStream::connect(&path).unwrap()];
    clients[1].write_all(b"CONNECT 1024\n").unwrap();
    host.write_all(b"from the host").unwrap();

    let (sender, receiver) = std::sync::mpsc::channel();
    let body = move || {
        let mut guest = Guest::ready_on(device);
        for _ in 0..2 {
            let request = guest.expect(Op::Request);
            guest.send(packet(Op::Response, 1024, request.src_port), &[]);
        }
        guest.send(packet(Op::Request, 7, HOST_PORT), &[]);
        guest.expect(Op::Response);
        assert_eq!(guest.receive().1, b"from the host");
        // More than the host's socket holds.
        for _ in 0..5 {
            guest.send(packet(Op::ReadWrite, 7, HOST_PORT), &[1; 60_000]);
        }
        assert_eq!(guest.bench.device().mux.backlog(), 1);
        guest.send(Header { flags: SHUTDOWN_BOTH, ..packet(Op::Shutdown, 7, HOST_PORT) }, &[]);
        guest.bench.restart();
    };
    let profile = sandbox::profiles::device(DeviceKind::Vsock);
    let ended = move |result| sender.send(result).unwrap();
    sandbox::spawn("vsock", profile, sandbox::Sandbox::On, body, ended).unwrap().join().unwrap();
    receiver.recv().unwrap().unwrap();
    let mut line = String::new();
    clients[1].read_to_string(&mut line).unwrap();
    assert!(line.starts_with("OK "), "{line}");
}
