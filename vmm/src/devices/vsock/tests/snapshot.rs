//! What survives, and what the guest is told.

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
