//! Two connections tied to each other: what one end says, the other hears, and the end of either direction is passed on.
//!
//! Used on both sides of a VM's wall, so that a connection to a socket of the host reaches an app: by the pod's own process
//! between its client and the wall, by the supervisor between the wall and the app.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};

/// Most bytes under way in one direction.
const BUFFER: usize = 64 << 10;
/// What poll(2) reports without being asked.
const BROKEN: PollFlags = PollFlags::POLLERR.union(PollFlags::POLLHUP).union(PollFlags::POLLNVAL);

/// Two stream sockets that are tied to each other, each direction through one bounded buffer.
#[derive(Debug)]
pub struct Relay {
    ends: [OwnedFd; 2],
    /// The direction that begins at the end of the same number.
    directions: [Direction; 2],
}

/// What goes from one end to the other.
#[derive(Debug, Default)]
struct Direction {
    bytes: Vec<u8>,
    /// Whether the source has said all.
    is_read_out: bool,
    /// Whether the other end was told so.
    is_shut: bool,
}

/// A connection broke: nothing more gets through.
#[derive(Debug)]
struct Broken;

impl Relay {
    /// Ties two sockets; the first has already said `early`, which the second is still to hear, and the other way round.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub fn new(ends: [OwnedFd; 2], early: [Vec<u8>; 2]) -> io::Result<Self> {
        for end in &ends {
            let flags = OFlag::from_bits_retain(fcntl(end, FcntlArg::F_GETFL)?);
            fcntl(end, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        }
        Ok(Self { ends, directions: early.map(|bytes| Direction { bytes, ..Direction::default() }) })
    }

    /// What to poll(2) each end for; none when nothing that happens there matters now.
    pub fn interests(&self) -> [Option<(BorrowedFd<'_>, PollFlags)>; 2] {
        [0, 1].map(|end| {
            let (from, to) = (&self.directions[end], &self.directions[1 - end]);
            let mut interest = PollFlags::empty();
            interest.set(PollFlags::POLLIN, !from.is_read_out && from.bytes.is_empty());
            interest.set(PollFlags::POLLOUT, !to.bytes.is_empty());
            (!interest.is_empty()).then_some((self.ends[end].as_fd(), interest))
        })
    }

    /// Moves what can be moved, after poll(2) has reported these events of the two ends. False when the relay is over.
    pub fn advance(&mut self, events: [PollFlags; 2]) -> bool {
        let moved = [0, 1].into_iter().try_for_each(|from| self.advance_direction(from, events[from]));
        moved.is_ok() && !self.directions.iter().all(|direction| direction.is_shut)
    }

    /// Runs the relay to its end in the calling thread.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn run(&mut self) -> io::Result<()> {
        loop {
            let interests = self.interests();
            let mut fds: Vec<PollFd> =
                interests.iter().flatten().map(|(fd, wanted)| PollFd::new(*fd, *wanted)).collect();
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            let mut happened = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
            let events = interests.map(|interest| interest.and_then(|_| happened.next()).unwrap_or(PollFlags::empty()));
            if !self.advance(events) {
                return Ok(());
            }
        }
    }

    fn advance_direction(&mut self, from: usize, events: PollFlags) -> Result<(), Broken> {
        let (source, sink) = (&self.ends[from], &self.ends[1 - from]);
        let direction = &mut self.directions[from];
        if !direction.is_read_out && direction.bytes.is_empty() && events.intersects(PollFlags::POLLIN | BROKEN) {
            direction.bytes.resize(BUFFER, 0);
            let received = recv(source.as_raw_fd(), &mut direction.bytes, MsgFlags::empty());
            direction.bytes.truncate(received.unwrap_or(0));
            direction.is_read_out = received == Ok(0);
            received.map(drop).or_else(may_pass)?;
        }
        if !direction.bytes.is_empty() {
            match send(sink.as_raw_fd(), &direction.bytes, MsgFlags::MSG_NOSIGNAL) {
                Ok(sent) => drop(direction.bytes.drain(..sent)),
                Err(errno) => may_pass(errno)?,
            }
        }
        if direction.is_read_out && direction.bytes.is_empty() && !direction.is_shut {
            direction.is_shut = true;
            // That it is closed already does not matter.
            let _ = shutdown(sink.as_raw_fd(), Shutdown::Write);
        }
        Ok(())
    }
}

/// Errors that are none: it is only not the time.
fn may_pass(errno: Errno) -> Result<(), Broken> {
    match errno {
        Errno::EAGAIN | Errno::EINTR => Ok(()),
        _ => Err(Broken),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::thread::{self, JoinHandle};

    use super::*;

    /// A relay that runs in a thread, and what is at its two ends.
    fn relay(early: [&[u8]; 2]) -> (UnixStream, UnixStream, JoinHandle<()>) {
        let ((one, first), (second, other)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        let mut relay = Relay::new([first.into(), second.into()], early.map(<[u8]>::to_vec)).unwrap();
        let thread = thread::spawn(move || relay.run().unwrap());
        (one, other, thread)
    }

    fn said(mut end: &UnixStream) -> String {
        let mut text = String::new();
        end.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn each_direction_ends_by_itself() {
        let (mut one, mut other, thread) = relay([b"early ", b""]);
        one.write_all(b"question").unwrap();
        one.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(said(&other), "early question");
        other.write_all(b"answer").unwrap();
        drop(other);
        assert_eq!(said(&one), "answer");
        thread.join().unwrap();
    }

    #[test]
    fn who_does_not_read_stops_who_writes() {
        let (mut one, other, thread) = relay([b"", b""]);
        let writer = thread::spawn(move || one.write_all(&[7; 8 << 20]));
        thread::sleep(std::time::Duration::from_millis(200));
        assert!(!writer.is_finished());
        drop(other.shutdown(std::net::Shutdown::Write));
        let mut bytes = Vec::new();
        (&other).read_to_end(&mut bytes).unwrap();
        writer.join().unwrap().unwrap();
        assert_eq!(bytes.len(), 8 << 20);
        thread.join().unwrap();
    }

    #[test]
    fn an_end_that_is_gone_ends_the_other() {
        let (one, mut other, thread) = relay([b"", b""]);
        drop(one);
        assert_eq!(other.read(&mut [0]).unwrap(), 0);
        // What is said to nobody breaks the relay, if the end of this direction does not come first.
        while other.write_all(b"?").is_ok() {
            thread::sleep(std::time::Duration::from_millis(5));
        }
        thread.join().unwrap();
    }
}
