//! Whole transfers through windows of all sizes, and turns between connections.

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
