//! A connection that carries frames and never waits.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use podvm_pod::protocol::{FrameError, MAX_FRAME_BYTES, read_frame, write_frame};
use rustix::event::PollFlags;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::sys::socket::set_nonblocking;

/// Bytes read at a time.
const CHUNK: usize = 64 << 10;

/// A connection with what has arrived but is no whole frame yet, and what is still to be sent.
#[derive(Debug)]
pub struct Framed {
    socket: OwnedFd,
    input: Vec<u8>,
    output: Vec<u8>,
    ended: bool,
}

impl Framed {
    /// Takes a connection over.
    ///
    /// # Errors
    /// When it cannot be told not to wait.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        set_nonblocking(socket.as_fd(), true)?;
        Ok(Self { socket, input: Vec::new(), output: Vec::new(), ended: false })
    }

    /// What to poll for; it always wants to read, so as to see the end.
    pub fn interest(&self) -> PollFlags {
        let mut interest = PollFlags::empty();
        interest.set(PollFlags::IN, !self.ended);
        interest.set(PollFlags::OUT, !self.output.is_empty());
        interest
    }

    /// Reads what has arrived. Stops at one whole frame more than the longest, so that nobody can fill the memory.
    ///
    /// # Errors
    /// Those of read(2).
    pub fn fill(&mut self) -> io::Result<()> {
        while !self.ended && self.input.len() <= MAX_FRAME_BYTES as usize + 4 {
            let mut chunk = [0; CHUNK];
            match nix::unistd::read(&self.socket, &mut chunk).map_err(io::Error::from) {
                Ok(0) => self.ended = true,
                Ok(length) => self.input.extend(&chunk[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The next message, if it has arrived whole.
    ///
    /// # Errors
    /// A frame that is too long or cannot be understood.
    pub fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let Some((length, _)) = self.input.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length);
        if length > MAX_FRAME_BYTES {
            return Err(FrameError::TooLong(length.into()));
        }
        let whole = length as usize + 4;
        if self.input.len() < whole {
            return Ok(None);
        }
        let message = read_frame(&mut &self.input[..whole])?;
        self.input.drain(..whole);
        Ok(Some(message))
    }

    /// The line that has arrived before any frame, without its end; none when it is not whole yet.
    ///
    /// # Errors
    /// A line that is longer than `longest`.
    pub fn next_line(&mut self, longest: usize) -> Result<Option<Vec<u8>>, FrameError> {
        match self.input.iter().take(longest).position(|byte| *byte == b'\n') {
            Some(end) => {
                let mut line: Vec<u8> = self.input.drain(..=end).collect();
                line.pop();
                Ok(Some(line))
            }
            None if self.input.len() >= longest => Err(FrameError::TooLong(self.input.len() as u64)),
            None => Ok(None),
        }
    }

    /// Queues bytes that are no frame and sends what the connection takes.
    ///
    /// # Errors
    /// Those of writing.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.extend(bytes);
        self.flush()
    }

    /// Whether the other end has closed its direction; what it sent before may still be unread.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Queues a message and sends what the connection takes.
    ///
    /// # Errors
    /// Those of writing; a message that is too long.
    pub fn send(&mut self, message: &impl Serialize) -> Result<(), FrameError> {
        write_frame(&mut self.output, message)?;
        Ok(self.flush()?)
    }

    /// Sends what the connection takes of what is queued.
    ///
    /// # Errors
    /// Those of write(2).
    pub fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match nix::unistd::write(&self.socket, &self.output).map_err(io::Error::from) {
                Ok(length) => drop(self.output.drain(..length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether all was sent.
    pub fn is_flushed(&self) -> bool {
        self.output.is_empty()
    }

    /// The bare connection, what has arrived on it beyond the last message, and what is still to be sent.
    pub fn into_parts(self) -> (OwnedFd, Vec<u8>, Vec<u8>) {
        (self.socket, self.input, self.output)
    }
}

impl AsFd for Framed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use podvm_pod::protocol::Command;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_are_whole_however_they_arrive() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut framed = Framed::new(ours.into()).unwrap();
        let mut wire = Vec::new();
        write_frame(&mut wire, &Command::Stop { grace_ms: 5 }).unwrap();
        write_frame(&mut wire, &Command::Farewell).unwrap();
        for byte in &wire[..wire.len() - 1] {
            theirs.write_all(&[*byte]).unwrap();
        }
        framed.fill().unwrap();
        assert_eq!(framed.next::<Command>().unwrap(), Some(Command::Stop { grace_ms: 5 }));
        assert_eq!(framed.next::<Command>().unwrap(), None);
        theirs.write_all(&wire[wire.len() - 1..]).unwrap();
        drop(theirs);
        framed.fill().unwrap();
        assert_eq!(framed.next::<Command>().unwrap(), Some(Command::Farewell));
        assert!(framed.has_ended());
    }

    #[test]
    fn a_reader_that_does_not_read_does_not_stop_us() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut framed = Framed::new(ours.into()).unwrap();
        let long = "x".repeat(1 << 20);
        framed.send(&long).unwrap();
        assert!(!framed.is_flushed());
        let reader = std::thread::spawn(move || podvm_pod::protocol::read_frame::<String>(&mut &theirs).unwrap());
        while !framed.is_flushed() {
            framed.flush().unwrap();
        }
        assert_eq!(reader.join().unwrap(), long);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_hang(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let mut framed = Framed::new(ours.into()).unwrap();
            theirs.write_all(&bytes).unwrap();
            drop(theirs);
            framed.fill().unwrap();
            while let Ok(Some(_)) = framed.next::<Command>() {}
        }
    }
}
