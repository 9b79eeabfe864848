//! Copying between this process's own standard streams and a stream of a pod's process.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Most bytes carried at once.
const CHUNK_BYTES: usize = 16 * 1024;

/// Writes all of it, also to a descriptor that someone else who shares it has made non-blocking.
///
/// # Errors
/// Those of write(2).
pub fn write_fully(to: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(to, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => wait_for(&mut [PollFd::new(to, PollFlags::POLLOUT)])?,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Carries bytes from `from` to a pod's stream. Returns `true` when `from` has ended, `false` when the stream's other end
/// is closed, also while `from` is silent.
///
/// # Errors
/// Those of poll(2), read(2) and write(2).
pub fn feed(from: BorrowedFd<'_>, mut to: &UnixStream) -> io::Result<bool> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let mut fds = [PollFd::new(from, PollFlags::POLLIN), PollFd::new(to.as_fd(), PollFlags::empty())];
        wait_for(&mut fds)?;
        if fds[1].any().unwrap_or(true) {
            return Ok(false);
        }
        match nix::unistd::read(from, &mut chunk) {
            Ok(0) => return Ok(true),
            Ok(length) => match to.write_all(&chunk[..length]) {
                // What a reader has not read when it ends resets the connection.
                Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                    return Ok(false);
                }
                other => other?,
            },
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Reads a pod's stream to its end and hands each piece on. That the walls fall is an end, too.
///
/// # Errors
/// Those of read(2).
pub fn drain(mut from: &UnixStream, mut sink: impl FnMut(&[u8])) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(length) => sink(&chunk[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

fn wait_for(fds: &mut [PollFd<'_>]) -> io::Result<()> {
    match poll(fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feeding_ends_with_the_input_or_with_the_reader() {
        let (input, writer) = nix::unistd::pipe().unwrap();
        let (here, mut there) = UnixStream::pair().unwrap();
        nix::unistd::write(&writer, b"typed").unwrap();
        drop(writer);
        assert!(feed(input.as_fd(), &here).unwrap());
        let mut typed = [0; 5];
        there.read_exact(&mut typed).unwrap();
        assert_eq!(&typed, b"typed");

        let (silent, _writer) = nix::unistd::pipe().unwrap();
        drop(there);
        assert!(!feed(silent.as_fd(), &here).unwrap());
    }

    #[test]
    fn a_non_blocking_output_gets_every_byte() {
        let (reader, writer) = UnixStream::pair().unwrap();
        writer.set_nonblocking(true).unwrap();
        let content = vec![7; 1 << 20];
        std::thread::scope(|scope| {
            let count = scope.spawn(|| {
                let mut count = 0;
                drain(&reader, |bytes| count += bytes.len()).unwrap();
                count
            });
            write_fully(writer.as_fd(), &content).unwrap();
            writer.shutdown(std::net::Shutdown::Both).unwrap();
            assert_eq!(count.join().unwrap(), content.len());
        });
    }
}
