//! A client of the host's listener that has not said yet which port of the guest it wants.
//!
//! It writes `CONNECT <port>\n`. The convention is Firecracker's.

use std::io;
use std::os::unix::net::UnixStream;

use super::host;

/// Longest line looked at; the longest good one has 19 bytes.
const MAX_LINE: usize = 32;

/// What is known of a client's line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// It is not whole yet.
    Unfinished,
    /// It asks for this port, and has been taken off the stream.
    Connect(u32),
    /// It is not a line that is understood, or the client is gone.
    Wrong,
}

/// Looks for a client's line; leaves what follows it in the socket.
pub(super) fn read_line(stream: &UnixStream) -> Line {
    let mut bytes = [0; MAX_LINE];
    let count = match host::peek(stream, &mut bytes) {
        Ok(count) => count,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Line::Unfinished,
        Err(_) => return Line::Wrong,
    };
    let seen = &bytes[..count];
    match seen.iter().position(|&byte| byte == b'\n') {
        Some(end) => match (parse(&seen[..end]), host::take(stream, &mut [0; MAX_LINE][..=end])) {
            (Some(port), Ok(taken)) if taken == end + 1 => Line::Connect(port),
            _ => Line::Wrong,
        },
        None if count == 0 || count == MAX_LINE => Line::Wrong,
        None => Line::Unfinished,
    }
}

/// The port of a line without its end.
fn parse(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(b"CONNECT ")?;
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_a_plain_decimal_port_is_understood() {
        assert_eq!(parse(b"CONNECT 1024"), Some(1024));
        assert_eq!(parse(b"CONNECT 4294967295"), Some(u32::MAX));
        for wrong in [&b"CONNECT 4294967296"[..], b"CONNECT ", b"CONNECT +1", b"CONNECT 1 ", b"connect 1", b""] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn what_follows_the_line_stays_in_the_stream() {
        let (mut client, mut stream) = UnixStream::pair().unwrap();
        client.write_all(b"CONNE").unwrap();
        assert_eq!(read_line(&stream), Line::Unfinished);
        client.write_all(b"CT 52\nhello").unwrap();
        assert_eq!(read_line(&stream), Line::Connect(52));
        let mut rest = [0; 5];
        stream.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"hello");
    }

    #[test]
    fn a_client_that_leaves_early_or_talks_too_long_is_wrong() {
        let (mut client, stream) = UnixStream::pair().unwrap();
        client.write_all(&[b'1'; MAX_LINE]).unwrap();
        assert_eq!(read_line(&stream), Line::Wrong);

        let (client, stream) = UnixStream::pair().unwrap();
        drop(client);
        assert_eq!(read_line(&stream), Line::Wrong);
    }

    proptest! {
        #[test]
        fn arbitrary_lines_never_panic(bytes in prop::collection::vec(any::<u8>(), 1..80)) {
            let (mut client, stream) = UnixStream::pair().unwrap();
            client.write_all(&bytes).unwrap();
            let _ = read_line(&stream);
        }
    }
}
