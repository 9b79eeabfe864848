//! Clients of the listener.

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
