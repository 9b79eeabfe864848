//! How each side's end reaches the other.

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
