//! A connection that is over at a set time, whatever the other end does: a guest that sends a byte now and then holds nobody up.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use std::os::fd::AsRawFd;

/// The connection. When its time is over, it gives [`io::ErrorKind::WouldBlock`].
#[derive(Debug)]
pub(super) struct Timed {
    connection: UnixStream,
    latest: Instant,
}

impl Timed {
    /// A connection that is over at `latest`.
    pub fn new(connection: UnixStream, latest: Instant) -> Self {
        Self { connection, latest }
    }

    /// Connects to a socket; that, too, is over at `latest`, should nobody accept.
    pub fn connect(path: &Path, latest: Instant) -> io::Result<Self> {
        let connection = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        let timed = Self::new(connection.into(), latest);
        timed.connection.set_write_timeout(Some(timed.left()?))?;
        connect(timed.connection.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(timed)
    }

    /// The connection without a limit.
    pub fn into_untimed(self) -> io::Result<UnixStream> {
        self.connection.set_read_timeout(None)?;
        self.connection.set_write_timeout(None)?;
        Ok(self.connection)
    }

    fn left(&self) -> io::Result<Duration> {
        match self.latest.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::WouldBlock.into()),
            left => Ok(left),
        }
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.connection.set_read_timeout(Some(self.left()?))?;
        self.connection.read(buffer)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.connection.set_write_timeout(Some(self.left()?))?;
        self.connection.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.connection.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_socket_where_nobody_accepts_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let _listener = UnixListener::bind(&path).unwrap();
        // Until the queue is full, connections are made.
        let mut waiting = Vec::new();
        let error = loop {
            match Timed::connect(&path, Instant::now() + Duration::from_millis(50)) {
                Ok(connection) => waiting.push(connection),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
