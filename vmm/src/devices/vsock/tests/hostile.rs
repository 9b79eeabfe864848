//! Guests that break the rules, and guests that take nothing.

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
