//! The windows in both directions.

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
