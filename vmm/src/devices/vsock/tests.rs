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
        let mut guest = Self::new(config);
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

mod listener {
    use super::*;

    fn listening() -> (Guest, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("s")).unwrap();
        let guest = Guest::ready(VsockConfig { listener: Some(listener), ..VsockConfig::new(CID) });
        (guest, directory)
    }

    fn client(directory: &tempfile::TempDir) -> UnixStream {
        let client = UnixStream::connect(directory.path().join("s")).unwrap();
        client.set_nonblocking(true).unwrap();
        client
    }

    #[test]
    fn a_client_is_told_when_the_guest_accepts() {
        let (mut guest, directory) = listening();
        let mut client = client(&directory);
        client.write_all(b"CONNECT 1024\n").unwrap();
        let request = guest.expect(Op::Request);
        assert_eq!(request.dst_port, 1024);
        assert_eq!(read_all(&mut client), b"");
        guest.send(packet(Op::Response, 1024, request.src_port), &[]);
        assert_eq!(read_all(&mut client), format!("OK {}\n", request.src_port).as_bytes());
        client.write_all(b"data").unwrap();
        assert_eq!(guest.receive().1, b"data");
        guest.send(packet(Op::ReadWrite, 1024, request.src_port), b"more");
        assert_eq!(read_all(&mut client), b"more");
    }

    #[test]
    fn a_client_is_let_go_when_the_guest_refuses() {
        let (mut guest, directory) = listening();
        let mut client = client(&directory);
        client.write_all(b"CONNECT 1\n").unwrap();
        let request = guest.expect(Op::Request);
        guest.send(packet(Op::Reset, 1, request.src_port), &[]);
        assert!(is_at_end(&mut client));
        assert_eq!(guest.streams(), 0);
    }

    #[test]
    fn data_that_follows_the_line_at_once_reaches_the_guest() {
        let (mut guest, directory) = listening();
        let mut client = client(&directory);
        client.write_all(b"CONNECT 5\nearly").unwrap();
        let request = guest.expect(Op::Request);
        guest.send(packet(Op::Response, 5, request.src_port), &[]);
        assert_eq!(guest.receive().1, b"early");
    }

    #[test]
    fn a_client_that_leaves_while_the_guest_thinks_is_forgotten() {
        let (mut guest, directory) = listening();
        let mut client = client(&directory);
        client.write_all(b"CONNECT 5\n").unwrap();
        guest.expect(Op::Request);
        drop(client);
        guest.expect(Op::Reset);
        assert_eq!(guest.streams(), 0);
    }

    #[test]
    fn a_wrong_line_ends_the_client() {
        let (mut guest, directory) = listening();
        for line in [&b"CONNECT x\n"[..], b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"\n"] {
            let mut client = client(&directory);
            client.write_all(line).unwrap();
            guest.bench.run();
            // What was not read makes the end a reset.
            let mut byte = [0];
            assert!(matches!(client.read(&mut byte), Ok(0) | Err(_)));
            assert_eq!(guest.streams(), 0);
        }
    }

    #[test]
    fn silent_clients_make_way_for_newer_ones() {
        let (mut guest, directory) = listening();
        let mut clients: Vec<_> = (0..MAX_CLIENTS + 1)
            .map(|_| {
                let client = client(&directory);
                guest.bench.run();
                client
            })
            .collect();
        assert_eq!(guest.streams(), MAX_CLIENTS);
        assert!(is_at_end(&mut clients[0]));
        clients[1].write_all(b"CONNECT 9\n").unwrap();
        guest.expect(Op::Request);
    }

    #[test]
    fn clients_wait_for_the_guests_driver() {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("s")).unwrap();
        let mut client = client(&directory);
        client.write_all(b"CONNECT 1024\n").unwrap();
        let mut guest = Guest::ready(VsockConfig { listener: Some(listener), ..VsockConfig::new(CID) });
        guest.expect(Op::Request);
    }
}

mod connector {
    use super::*;

    #[test]
    fn another_thread_connects_and_its_early_bytes_arrive() {
        let device = Vsock::new(VsockConfig::new(CID)).unwrap();
        let connector = device.connector();
        let mut guest = Guest::with(device);
        guest.offer(64);
        let thread = std::thread::spawn(move || {
            let mut stream = connector.connect(1024).unwrap();
            stream.write_all(b"first").unwrap();
            stream
        });
        let mut stream = thread.join().unwrap();
        let request = guest.expect(Op::Request);
        guest.expect_nothing();
        guest.send(packet(Op::Response, 1024, request.src_port), &[]);
        assert_eq!(guest.receive().1, b"first");
        guest.send(packet(Op::ReadWrite, 1024, request.src_port), b"back");
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"back");
    }

    #[test]
    fn what_was_written_before_leaving_is_delivered() {
        let device = Vsock::new(VsockConfig::new(CID)).unwrap();
        let connector = device.connector();
        let mut guest = Guest::with(device);
        guest.offer(64);
        connector.connect(9).unwrap().write_all(b"and gone").unwrap();
        let request = guest.expect(Op::Request);
        guest.send(packet(Op::Response, 9, request.src_port), &[]);
        assert_eq!(guest.receive().1, b"and gone");
        assert_eq!(guest.expect(Op::Shutdown).flags, SHUTDOWN_BOTH);
    }

    #[test]
    fn two_connections_have_different_host_ports() {
        let device = Vsock::new(VsockConfig::new(CID)).unwrap();
        let connector = device.connector();
        let mut guest = Guest::with(device);
        guest.offer(64);
        let _streams = (connector.connect(9).unwrap(), connector.connect(9).unwrap());
        assert_ne!(guest.expect(Op::Request).src_port, guest.expect(Op::Request).src_port);
    }
}

mod ends {
    use super::*;

    #[test]
    fn the_hosts_half_close_leaves_the_other_half_open() {
        let (mut guest, mut host) = connected();
        host.write_all(b"last").unwrap();
        host.shutdown(Shutdown::Write).unwrap();
        assert_eq!(guest.receive().1, b"last");
        assert_eq!(guest.expect(Op::Shutdown).flags, SHUTDOWN_SEND);
        guest.send(packet(Op::ReadWrite, 7, HOST_PORT), b"still here");
        assert_eq!(read_all(&mut host), b"still here");
        guest.expect_nothing();
    }

    #[test]
    fn the_guests_half_close_leaves_the_other_half_open() {
        let (mut guest, mut host) = connected();
        guest.send(packet(Op::ReadWrite, 7, HOST_PORT), b"last");
        guest.send(Header { flags: SHUTDOWN_SEND, ..packet(Op::Shutdown, 7, HOST_PORT) }, &[]);
        let mut bytes = Vec::new();
        host.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"last");
        host.write_all(b"still here").unwrap();
        assert_eq!(guest.receive().1, b"still here");
        guest.expect_nothing();
    }

    #[test]
    fn a_guest_that_receives_no_more_stops_the_hosts_writing() {
        let (mut guest, mut host) = connected();
        guest.send(Header { flags: SHUTDOWN_RECEIVE, ..packet(Op::Shutdown, 7, HOST_PORT) }, &[]);
        assert_eq!(host.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
        guest.send(packet(Op::ReadWrite, 7, HOST_PORT), b"still here");
        assert_eq!(read_all(&mut host), b"still here");
    }

    #[test]
    fn a_guest_that_closes_gets_its_reset_and_the_host_all_its_data() {
        let (mut guest, mut host) = connected();
        let data = vec![5; RECEIVE_BUFFER as usize];
        let mut sent = 0;
        // More than the host's socket holds: some of it is still in the device when the guest closes.
        while guest.bench.device().mux.backlog() == 0 {
            guest.send(packet(Op::ReadWrite, 7, HOST_PORT), &data[..60_000]);
            sent += 60_000;
        }
        guest.send(Header { flags: SHUTDOWN_BOTH, ..packet(Op::Shutdown, 7, HOST_PORT) }, &[]);
        guest.packets.clear();
        while guest.receive().0.op != Op::Reset as u16 {}
        assert_eq!(guest.streams(), 1);

        let mut received = 0;
        while !is_at_end(&mut host) {
            received += 1 + read_all(&mut host).len();
            guest.bench.run();
        }
        assert_eq!(received, sent);
        assert_eq!(guest.streams(), 0);
    }

    #[test]
    fn a_host_that_leaves_is_reported_to_the_guest_after_its_data() {
        let (mut guest, mut host) = connected();
        host.write_all(b"bye").unwrap();
        drop(host);
        assert_eq!(guest.receive().1, b"bye");
        assert_eq!(guest.expect(Op::Shutdown).flags, SHUTDOWN_BOTH);
        guest.send(packet(Op::Reset, 7, HOST_PORT), &[]);
        assert_eq!(guest.streams(), 0);
        guest.expect_nothing();
    }

    #[test]
    fn a_host_that_half_closes_and_leaves_later_is_reported_twice() {
        let (mut guest, host) = connected();
        host.shutdown(Shutdown::Write).unwrap();
        assert_eq!(guest.expect(Op::Shutdown).flags, SHUTDOWN_SEND);
        drop(host);
        assert_eq!(guest.expect(Op::Shutdown).flags, SHUTDOWN_BOTH);
    }

    #[test]
    fn writing_to_a_host_that_reads_no_more_tells_the_guest() {
        let (mut guest, host) = connected();
        host.shutdown(Shutdown::Read).unwrap();
        guest.send(packet(Op::ReadWrite, 7, HOST_PORT), b"into the void");
        assert_eq!(guest.expect(Op::Shutdown).flags, SHUTDOWN_RECEIVE);
    }

    #[test]
    fn a_reset_of_the_device_closes_the_hosts_streams() {
        let (mut guest, mut host) = connected();
        guest.bench.restart();
        assert!(is_at_end(&mut host));
        assert_eq!(guest.streams(), 0);
    }

    #[test]
    fn a_stopped_device_closes_everything() {
        let (guest, mut host) = connected();
        drop(guest);
        assert!(is_at_end(&mut host));
    }
}

mod credit {
    use super::*;

    #[test]
    fn the_device_sends_no_more_than_the_guest_has_room_for() {
        let (mut guest, mut host) = connected();
        let small = |fwd_cnt, op| Header { buf_alloc: 10, fwd_cnt, ..packet(op, 7, HOST_PORT) };
        guest.send(small(0, Op::CreditUpdate), &[]);
        host.write_all(b"0123456789abcdef").unwrap();
        assert_eq!(guest.receive().1, b"0123456789");
        guest.expect(Op::CreditRequest);
        guest.expect_nothing();
        guest.send(small(3, Op::CreditUpdate), &[]);
        assert_eq!(guest.receive().1, b"abc");
        guest.expect(Op::CreditRequest);
        guest.send(small(13, Op::CreditUpdate), &[]);
        assert_eq!(guest.receive().1, b"def");
    }

    #[test]
    fn a_guest_that_sends_more_than_it_may_is_reset() {
        let (mut guest, _host) = connected();
        let data = vec![0; 60_000];
        // The host reads nothing, so its socket fills up, and then the device's buffer.
        for _ in 0..100 {
            guest.send(packet(Op::ReadWrite, 7, HOST_PORT), &data);
            guest.turn();
            if guest.packets.iter().any(|(header, _)| header.op == Op::Reset as u16) {
                assert!(!guest.needs_reset());
                return;
            }
        }
        panic!("six megabytes without any credit were taken");
    }

    #[test]
    fn credit_is_renewed_as_the_host_reads() {
        let (mut guest, mut host) = connected();
        let mut in_flight = 0;
        let mut told = 0;
        for _ in 0..100 {
            guest.send(packet(Op::ReadWrite, 7, HOST_PORT), &[1; 20_000]);
            in_flight += 20_000;
            assert_eq!(read_all(&mut host).len(), 20_000);
            guest.turn();
            for (header, _) in guest.packets.drain(..) {
                assert_eq!(Op::from_number(header.op), Some(Op::CreditUpdate));
                in_flight -= header.fwd_cnt - told;
                told = header.fwd_cnt;
            }
            assert!(in_flight < RECEIVE_BUFFER / 2);
        }
    }

    #[test]
    fn a_credit_request_is_answered() {
        let (mut guest, _host) = connected();
        guest.send(packet(Op::ReadWrite, 7, HOST_PORT), b"12345");
        guest.send(packet(Op::CreditRequest, 7, HOST_PORT), &[]);
        let update = guest.expect(Op::CreditUpdate);
        assert_eq!((update.buf_alloc, update.fwd_cnt), (RECEIVE_BUFFER, 5));
    }
}

mod hostile {
    use super::*;

    fn hostile_config() -> VsockConfig {
        let (_, device) = UnixStream::pair().unwrap();
        VsockConfig { host_ports: vec![(1, device)], ..VsockConfig::new(CID) }
    }

    #[test]
    fn hostile_rings_only_stop_the_device() {
        survives_hostile_rings(|| Vsock::new(hostile_config()).unwrap());
    }

    #[test]
    fn packets_between_other_cids_are_dropped() {
        let mut guest = Guest::ready(hostile_config());
        guest.send(Header { src_cid: 4, ..packet(Op::Request, 7, 1) }, &[]);
        guest.send(Header { dst_cid: 1, ..packet(Op::Request, 7, 1) }, &[]);
        guest.expect_nothing();
    }

    #[test]
    fn seqpackets_are_refused_in_their_own_type() {
        let mut guest = Guest::ready(hostile_config());
        guest.send(Header { socket_type: 2, ..packet(Op::Request, 7, 1) }, &[]);
        assert_eq!(guest.expect(Op::Reset).socket_type, 2);
    }

    #[test]
    fn packets_of_no_connection_are_reset_except_resets() {
        let mut guest = Guest::ready(hostile_config());
        for op in [Op::Response, Op::Shutdown, Op::ReadWrite, Op::CreditUpdate, Op::CreditRequest] {
            guest.send(packet(op, 7, 1), &[]);
            guest.expect(Op::Reset);
        }
        guest.send(packet(Op::Reset, 7, 1), &[]);
        guest.expect_nothing();
    }

    #[test]
    fn a_second_request_on_a_connection_resets_it() {
        let (mut guest, mut host) = connected();
        guest.send(packet(Op::Request, 7, HOST_PORT), &[]);
        guest.expect(Op::Reset);
        assert!(is_at_end(&mut host));
    }

    #[test]
    fn a_length_beyond_the_buffer_stops_the_device() {
        let mut guest = Guest::ready(hostile_config());
        let header = Header { length: 10, ..packet(Op::ReadWrite, 7, 1) };
        guest.bench.add_chain(TX, &[Buffer::readable(&header.to_bytes()), Buffer::readable(b"short")]);
        guest.bench.kick(TX);
        assert!(guest.bench.link().health.reason().unwrap().contains("shorter than its header says"));
    }

    #[test]
    fn a_flood_without_receive_buffers_stops_at_a_bound_and_goes_on_later() {
        let mut guest = Guest::new(hostile_config());
        let header = packet(Op::ReadWrite, 7, 99).to_bytes();
        let mut taken = 0;
        for _ in 0..300 {
            guest.bench.add_chain(TX, &[Buffer::readable(&header)]);
            guest.bench.kick(TX);
            taken += guest.bench.used(TX).len();
        }
        assert_eq!(taken, 256);
        guest.offer(64);
        for _ in 0..5 {
            guest.turn();
        }
        guest.bench.run();
        assert_eq!(guest.packets.len(), 300);
        assert_eq!(guest.bench.used(TX).len(), 44);
    }

    #[test]
    fn a_guest_without_receive_buffers_does_not_keep_the_device_busy() {
        let (mut guest, mut host) = connected();
        // Use up all buffers, and leave data and an end in the host's socket.
        while host.write(&[0; 4096]).is_ok() {
            guest.bench.run();
        }
        drop(host);
        // `run` fails when the device is never done.
        guest.bench.run();
    }

    fn any_header() -> impl Strategy<Value = Header> {
        let cid = prop_oneof![8 => Just(u64::from(CID)), 1 => any::<u64>()];
        let ports = (prop_oneof![0_u32..4, any::<u32>()], prop_oneof![0_u32..4, any::<u32>()]);
        let kind = (prop_oneof![8 => Just(1_u16), 1 => any::<u16>()], 0_u16..10);
        let numbers = (0_u32..5, any::<u32>(), any::<u32>());
        (cid, ports, kind, numbers).prop_map(|(src_cid, ports, kind, (flags, buf_alloc, fwd_cnt))| Header {
            src_cid,
            dst_cid: 2,
            src_port: ports.0,
            dst_port: ports.1,
            length: 0,
            socket_type: kind.0,
            op: kind.1,
            flags,
            buf_alloc,
            fwd_cnt,
        })
    }

    proptest! {
        #[test]
        fn any_sequence_of_packets_leaves_the_device_working(
            packets in prop::collection::vec((any_header(), 0_usize..3000), 1..40),
        ) {
            let mut guest = Guest::ready(hostile_config());
            for (header, length) in packets {
                guest.send(header, &vec![1; length]);
                guest.turn();
                prop_assert!(!guest.needs_reset());
            }
        }
    }
}

mod snapshot {
    use super::*;
    use crate::persist;

    fn restored(device: &Vsock) -> Vsock {
        let state = persist::decode(&persist::encode(&device.save()).unwrap()).unwrap();
        Vsock::restore(VsockConfig::new(CID), state).unwrap()
    }

    #[test]
    fn a_restored_driver_hears_that_its_connections_are_gone() {
        let (mut guest, _host) = connected();
        let mut guest = Guest::with(restored(guest.bench.device()));
        let head = guest.bench.add_chain(EVENT, &[Buffer::writable(4)]);
        guest.bench.kick(EVENT);
        assert_eq!(guest.bench.used(EVENT), [(head, 4)]);
        assert_eq!(guest.bench.written(EVENT, head), [0; 4]);
        // Once is enough.
        guest.bench.add_chain(EVENT, &[Buffer::writable(4)]);
        guest.bench.kick(EVENT);
        assert_eq!(guest.bench.used(EVENT), []);
    }

    #[test]
    fn a_device_saved_before_its_driver_came_has_nothing_to_tell() {
        let fresh = Vsock::new(VsockConfig::new(CID)).unwrap();
        let mut guest = Guest::with(restored(&fresh));
        guest.bench.add_chain(EVENT, &[Buffer::writable(4)]);
        guest.bench.kick(EVENT);
        assert_eq!(guest.bench.used(EVENT), []);
    }

    #[test]
    fn local_ports_go_on_where_they_were() {
        let device = Vsock::new(VsockConfig::new(CID)).unwrap();
        let connector = device.connector();
        let mut guest = Guest::with(device);
        guest.offer(8);
        let _stream = connector.connect(1).unwrap();
        let first = guest.expect(Op::Request).src_port;
        assert_eq!(restored(guest.bench.device()).mux.next_local_port(), first + 1);
    }
}

mod transfer {
    use super::*;

    /// The guest's side of a connection, keeping its account as Linux does.
    struct Socket {
        guest: Guest,
        host: UnixStream,
        window: u32,
        received: Vec<u8>,
        forwarded: u32,
        sent: u32,
        host_buffer: u32,
        host_forwarded: u32,
        shutdown: u32,
    }

    impl Socket {
        fn new(window: u32) -> Self {
            let (guest, host) = connected();
            let mut socket = Self {
                guest,
                host,
                window,
                received: Vec::new(),
                forwarded: 0,
                sent: 0,
                host_buffer: RECEIVE_BUFFER,
                host_forwarded: 0,
                shutdown: 0,
            };
            socket.send(Op::CreditUpdate, 0, &[]);
            socket
        }

        fn send(&mut self, op: Op, flags: u32, data: &[u8]) {
            let header = Header { flags, buf_alloc: self.window, fwd_cnt: self.forwarded, ..packet(op, 7, HOST_PORT) };
            self.guest.send(header, data);
        }

        fn turn(&mut self) {
            self.guest.turn();
            while let Some((header, data)) = self.guest.packets.pop_front() {
                self.received.extend(data);
                assert!(self.received.len() as u32 - self.forwarded <= self.window, "window overrun");
                (self.host_buffer, self.host_forwarded) = (header.buf_alloc, header.fwd_cnt);
                match Op::from_number(header.op).unwrap() {
                    Op::Shutdown => self.shutdown |= header.flags,
                    Op::CreditRequest => self.send(Op::CreditUpdate, 0, &[]),
                    Op::ReadWrite | Op::CreditUpdate => {}
                    other => panic!("unexpected {other:?}"),
                }
            }
        }

        /// Sends what of `data` there is credit for; says how much.
        fn write(&mut self, data: &[u8]) -> usize {
            let credit = self.host_buffer - (self.sent - self.host_forwarded);
            let count = data.len().min(credit as usize).min(64 * 1024);
            if count > 0 {
                self.sent += count as u32;
                self.send(Op::ReadWrite, 0, &data[..count]);
            }
            count
        }

        /// The guest's program reads up to `count` bytes.
        fn consume(&mut self, count: usize) {
            let unread = self.received.len() as u32 - self.forwarded;
            if unread > 0 && count > 0 {
                self.forwarded += unread.min(count as u32);
                self.send(Op::CreditUpdate, 0, &[]);
            }
        }
    }

    fn pattern(length: usize, seed: u32) -> Vec<u8> {
        (0..length as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 24) as u8).collect()
    }

    #[test]
    fn three_mebibytes_each_way_pass_through_a_small_window() {
        let mut socket = Socket::new(5000);
        let (down, up) = (pattern(3 << 20, 1), pattern(3 << 20, 2));
        let (mut written, mut sent, mut arrived) = (0, 0, Vec::new());
        while arrived.len() < up.len() || socket.received.len() < down.len() {
            match socket.host.write(&down[written..]) {
                Ok(count) => written += count,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            sent += socket.write(&up[sent..]);
            socket.turn();
            socket.consume(usize::MAX);
            arrived.extend(read_all(&mut socket.host));
        }
        assert!(arrived == up && socket.received == down);
    }

    #[test]
    fn a_busy_connection_leaves_turns_to_others() {
        let device = Vsock::new(VsockConfig::new(CID)).unwrap();
        let connector = device.connector();
        let mut guest = Guest::with(device);
        guest.offer(2);
        let mut streams = [connector.connect(1).unwrap(), connector.connect(2).unwrap()];
        for stream in &mut streams {
            stream.set_nonblocking(true).unwrap();
            while stream.write(&[0; 1024]).is_ok() {}
        }
        for _ in 0..2 {
            let request = guest.expect(Op::Request);
            guest.send(packet(Op::Response, request.dst_port, request.src_port), &[]);
        }
        // The one that was accepted first was alone for a while.
        for _ in 0..10 {
            guest.expect(Op::ReadWrite);
        }
        let ports: Vec<u32> = (0..8).map(|_| guest.expect(Op::ReadWrite).dst_port).collect();
        assert_eq!(ports.iter().filter(|&&port| port == 1).count(), 4, "{ports:?}");
    }

    #[derive(Clone, Debug)]
    enum Action {
        HostWrites(usize),
        HostReads(usize),
        HostEnds,
        GuestWrites(usize),
        GuestReads(usize),
        GuestEnds,
        Turn,
    }

    fn action() -> impl Strategy<Value = Action> {
        let size = || prop_oneof![0_usize..100, 0_usize..100_000];
        prop_oneof![
            4 => size().prop_map(Action::HostWrites),
            4 => size().prop_map(Action::HostReads),
            1 => Just(Action::HostEnds),
            4 => size().prop_map(Action::GuestWrites),
            4 => size().prop_map(Action::GuestReads),
            1 => Just(Action::GuestEnds),
            4 => Just(Action::Turn),
        ]
    }

    /// What one side has written and the other read so far.
    #[derive(Default)]
    struct Flow {
        written: Vec<u8>,
        ended: bool,
        read: Vec<u8>,
    }

    fn apply(action: &Action, socket: &mut Socket, down: &mut Flow, up: &mut Flow) {
        match *action {
            Action::HostWrites(size) if !down.ended => {
                let data = pattern(size, down.written.len() as u32);
                if let Ok(count) = socket.host.write(&data) {
                    down.written.extend(&data[..count]);
                }
            }
            Action::HostReads(size) => {
                let mut bytes = vec![0; size];
                if let Ok(count) = socket.host.read(&mut bytes) {
                    up.read.extend(&bytes[..count]);
                }
            }
            Action::HostEnds if !down.ended => {
                down.ended = true;
                socket.host.shutdown(Shutdown::Write).unwrap();
            }
            Action::GuestWrites(size) if !up.ended => {
                let data = pattern(size, up.written.len() as u32);
                let count = socket.write(&data);
                up.written.extend(&data[..count]);
            }
            Action::GuestReads(size) => socket.consume(size),
            Action::GuestEnds if !up.ended => {
                up.ended = true;
                socket.send(Op::Shutdown, SHUTDOWN_SEND, &[]);
            }
            Action::Turn => socket.turn(),
            _ => {}
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_byte_and_no_end_is_lost(
            actions in prop::collection::vec(action(), 1..60),
            window in prop_oneof![1 => 100_u32..1000, 4 => 1000_u32..300_000],
        ) {
            let mut socket = Socket::new(window);
            let (mut down, mut up) = (Flow::default(), Flow::default());
            for action in &actions {
                apply(action, &mut socket, &mut down, &mut up);
            }
            for action in [Action::HostEnds, Action::GuestEnds] {
                apply(&action, &mut socket, &mut down, &mut up);
            }
            // Everything that is under way arrives, with its end behind it.
            let (mut seen, mut idle_turns) = (0, 0);
            while socket.shutdown & SHUTDOWN_SEND == 0 {
                socket.turn();
                socket.consume(usize::MAX);
                idle_turns = if socket.received.len() > seen { 0 } else { idle_turns + 1 };
                prop_assert!(idle_turns < 5, "the flow stands still");
                seen = socket.received.len();
            }
            up.read.extend(read_all(&mut socket.host));
            loop {
                socket.turn();
                let bytes = read_all(&mut socket.host);
                if bytes.is_empty() {
                    break;
                }
                up.read.extend(bytes);
            }
            prop_assert!(is_at_end(&mut socket.host));
            prop_assert!(up.read == up.written);
            prop_assert!(socket.received == down.written);
        }
    }
}
