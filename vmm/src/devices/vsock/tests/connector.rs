//! Threads of the same process.

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

/// Sees to it that this process may have so many open files, if its hard limit lets it.
fn allow_descriptors(count: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one rlimit there.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    limit.rlim_cur = limit.rlim_cur.max(count.min(limit.rlim_max));
    // SAFETY: the kernel reads one rlimit from there.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
}

#[test]
fn a_guest_that_never_answers_can_still_be_asked() {
    let device = Vsock::new(VsockConfig::new(CID)).unwrap();
    let connector = device.connector();
    let mut guest = Guest::with(device);
    guest.offer(64);
    allow_descriptors(2 * mux::MAX_STREAMS as u64);
    for _ in 0..mux::MAX_STREAMS {
        drop(connector.connect(9).unwrap());
        guest.expect(Op::Request);
    }
    let _stream = connector.connect(9).unwrap();
    let request = guest.expect(Op::Request);
    guest.send(packet(Op::Response, 9, request.src_port - 1), &[]);
    assert_eq!(guest.expect(Op::Reset).dst_port, 9, "those that nobody waits for are over");
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
