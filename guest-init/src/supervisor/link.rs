//! A process's standard stream tied to a client's connection, each direction through one bounded buffer: who does not read
//! stops who writes, and nobody else.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use podvm_pod::protocol::StreamKind;
use rustix::event::PollFlags;
use rustix::io::Errno;

use crate::sys::socket::{is_heard, shut_down};

/// Most bytes under way in one direction: the capacity of a pipe.
const BUFFER: usize = 64 << 10;

/// What poll(2) reports without being asked.
const BROKEN: PollFlags = PollFlags::ERR.union(PollFlags::HUP).union(PollFlags::NVAL);

/// One of a process's streams.
#[derive(Debug)]
pub enum Stream {
    /// Not attached yet. Output fills the pipe and then stops the process, so that nothing is lost.
    Waiting(OwnedFd),
    /// Attached.
    Linked(Link),
    /// Its client went away: output goes nowhere, so that the process is not stopped for good.
    Draining(OwnedFd),
    /// Nobody wants all of its output; the last of it is kept.
    Kept(OwnedFd),
    /// Over.
    Ended,
}

/// A stream and a client.
#[derive(Debug)]
pub struct Link {
    process: Option<OwnedFd>,
    client: OwnedFd,
    /// From the process to the client.
    outward: Vec<u8>,
    /// From the client to the process.
    inward: Vec<u8>,
    /// Whether the process may still write.
    reads_process: bool,
    /// Whether the client may still write.
    reads_client: bool,
    /// Whether the client's end of its direction has been seen where it is of no interest.
    ignores_client: bool,
    /// Whether the client was told that no more comes.
    finished: bool,
    kind: StreamKind,
}

/// What is left after some progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// There is more to come.
    Going,
    /// The client is gone.
    Abandoned,
    /// All is said.
    Over,
}

/// Result of moving bytes: whether the end that was read or written is still there.
type Alive = bool;

impl Link {
    /// Ties a process's end to a client, which has already sent `inward` and is still to get `outward`.
    pub fn new(kind: StreamKind, process: OwnedFd, client: OwnedFd, inward: Vec<u8>, outward: Vec<u8>) -> Self {
        let (output, input) = match kind {
            StreamKind::Stdin => (false, true),
            StreamKind::Stdout | StreamKind::Stderr => (true, false),
            StreamKind::Terminal => (true, true),
        };
        Self {
            process: Some(process),
            client,
            outward,
            inward: if input { inward } else { Vec::new() },
            reads_process: output,
            reads_client: input,
            ignores_client: false,
            finished: false,
            kind,
        }
    }

    /// What to poll the process's end for; none when nothing that happens there matters now.
    pub fn process_interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let process = self.process.as_ref()?;
        let mut interest = PollFlags::empty();
        interest.set(PollFlags::IN, self.reads_process && self.outward.is_empty());
        interest.set(PollFlags::OUT, !self.inward.is_empty());
        // A pipe that nobody reads any more, or a terminal that nobody has open, reports so without being asked.
        let asked = !interest.is_empty() || self.kind == StreamKind::Stdin;
        asked.then_some((process.as_fd(), interest))
    }

    /// What to poll the client for; none when nothing that happens there matters now.
    pub fn client_interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let mut interest = PollFlags::empty();
        if self.finished {
            // Only the client's own end is waited for.
            interest |= PollFlags::IN;
        } else {
            interest.set(PollFlags::OUT, !self.outward.is_empty());
            interest.set(PollFlags::IN, self.reads_client && self.inward.is_empty());
            interest.set(PollFlags::RDHUP, !self.reads_client && !self.ignores_client);
        }
        (!interest.is_empty()).then_some((self.client.as_fd(), interest))
    }

    /// Moves what can be moved, after poll(2) has reported `client` or `process`.
    pub fn advance(&mut self, client: PollFlags, process: PollFlags) -> Progress {
        if self.finished {
            return self.await_client(client);
        }
        if !self.serve_client(client) {
            return Progress::Abandoned;
        }
        self.serve_process(process);
        // What was just read can often be passed on at once.
        if !self.push_outward() {
            return Progress::Abandoned;
        }
        self.push_inward();
        if self.is_stdin() && !self.reads_client && self.inward.is_empty() {
            // The process sees the end of its input.
            self.process = None;
        }
        let over = if self.is_stdin() { self.process.is_none() } else { !self.reads_process };
        if over && self.outward.is_empty() {
            self.process = None;
            self.finished = true;
            shut_down(self.client.as_fd(), libc::SHUT_WR);
        }
        Progress::Going
    }

    fn is_stdin(&self) -> bool {
        self.kind == StreamKind::Stdin
    }

    /// The process's end, for draining, when it is one that is read.
    pub fn into_source(self) -> Option<OwnedFd> {
        self.process.filter(|_| self.reads_process)
    }

    /// False when the client is gone and what the process writes has nobody to go to.
    fn serve_client(&mut self, events: PollFlags) -> Alive {
        if self.reads_client {
            if events.intersects(PollFlags::IN | BROKEN) && self.inward.is_empty() {
                match pull(self.client.as_fd(), &mut self.inward) {
                    Pulled::Some => {}
                    Pulled::Broken if !self.is_stdin() => return false,
                    Pulled::End | Pulled::Broken => {
                        self.reads_client = false;
                        self.ignores_client = self.is_stdin();
                    }
                }
            }
        } else if !self.is_stdin() && events.intersects(PollFlags::RDHUP | BROKEN) {
            if !is_heard(self.client.as_fd()) {
                return false;
            }
            // A client that only reads may close its own direction.
            self.ignores_client = true;
        }
        true
    }

    fn serve_process(&mut self, events: PollFlags) {
        if self.is_stdin() {
            if events.intersects(BROKEN) {
                self.process = None;
                self.inward.clear();
            }
            return;
        }
        if events.intersects(BROKEN) {
            // A terminal that no process has open reads nothing.
            self.inward.clear();
        }
        if self.reads_process && self.outward.is_empty() && events.intersects(PollFlags::IN | BROKEN) {
            let Some(process) = &self.process else { return };
            // A terminal that no process has open any more reports an error, not an end.
            self.reads_process = pull(process.as_fd(), &mut self.outward) == Pulled::Some;
        }
    }

    /// False when the client is gone and what the process writes has nobody to go to.
    fn push_outward(&mut self) -> Alive {
        let heard = push(self.client.as_fd(), &mut self.outward);
        if !heard {
            self.outward.clear();
        }
        // What a client sent before it left is still the process's input.
        heard || self.is_stdin()
    }

    fn push_inward(&mut self) {
        let Some(process) = &self.process else { return };
        if !push(process.as_fd(), &mut self.inward) {
            self.inward.clear();
            if self.is_stdin() {
                self.process = None;
            }
        }
    }

    /// After the end: what the client still says is dropped until it closes its side too, so that nothing on its way to it
    /// is cut off.
    fn await_client(&mut self, events: PollFlags) -> Progress {
        if events.intersects(PollFlags::IN | BROKEN) {
            let mut ignored = Vec::new();
            match pull(self.client.as_fd(), &mut ignored) {
                Pulled::Some => {}
                Pulled::End | Pulled::Broken => return Progress::Over,
            }
        }
        Progress::Going
    }
}

/// Reads and drops what a process wrote; false when there is no more to come.
pub fn drain(process: BorrowedFd<'_>) -> Alive {
    let mut ignored = Vec::new();
    pull(process, &mut ignored) == Pulled::Some
}

/// Reads what a process wrote and keeps the last `most` bytes of all; false when there is no more to come.
pub fn keep_last(process: BorrowedFd<'_>, kept: &mut Vec<u8>, most: usize) -> Alive {
    let pulled = pull(process, kept);
    kept.drain(..kept.len().saturating_sub(most));
    pulled == Pulled::Some
}

#[derive(Debug, PartialEq, Eq)]
enum Pulled {
    /// Something, or nothing for now.
    Some,
    End,
    Broken,
}

fn pull(from: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> Pulled {
    buffer.reserve_exact(BUFFER);
    match rustix::io::read(from, rustix::buffer::spare_capacity(buffer)) {
        Ok(0) => Pulled::End,
        Ok(_) => Pulled::Some,
        Err(Errno::AGAIN | Errno::INTR) => Pulled::Some,
        Err(_) => Pulled::Broken,
    }
}

fn push(to: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> Alive {
    if buffer.is_empty() {
        return true;
    }
    match rustix::io::write(to, buffer) {
        Ok(length) => {
            buffer.drain(..length);
            true
        }
        Err(error) => matches!(error, Errno::AGAIN | Errno::INTR),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::os::fd::FromRawFd;
    use std::os::unix::net::UnixStream;

    use rustix::event::{PollFd, Timespec, poll};

    use super::*;
    use crate::sys::socket::set_nonblocking;

    /// Lets a link run until it is over or abandoned, which must happen.
    fn end(link: &mut Link) -> Progress {
        run(link, 30)
    }

    /// Lets a link run until nothing happens for a while.
    fn run_on(link: &mut Link) {
        assert_eq!(run(link, 0), Progress::Going);
    }

    fn run(link: &mut Link, idle_seconds: i64) -> Progress {
        for _ in 0..10_000 {
            let (mut client, mut process) = (PollFlags::empty(), PollFlags::empty());
            {
                let ends = [link.client_interest(), link.process_interest()];
                let mut fds: Vec<PollFd> =
                    ends.iter().flatten().map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
                if fds.is_empty()
                    || poll(&mut fds, Some(&Timespec { tv_sec: idle_seconds, tv_nsec: 50_000_000 })).unwrap() == 0
                {
                    return Progress::Going;
                }
                let mut happened = fds.iter().map(|fd| fd.revents());
                if ends[0].is_some() {
                    client = happened.next().unwrap();
                }
                if ends[1].is_some() {
                    process = happened.next().unwrap();
                }
            }
            match link.advance(client, process) {
                Progress::Going => {}
                end => return end,
            }
        }
        panic!("the link spins: {link:?}");
    }

    fn output() -> (Link, std::io::PipeWriter, UnixStream) {
        let (read, write) = std::io::pipe().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        set_nonblocking(ours.as_fd(), true).unwrap();
        (Link::new(StreamKind::Stdout, read.into(), ours.into(), Vec::new(), b"frame".to_vec()), write, theirs)
    }

    fn input(early: &[u8]) -> (Link, std::io::PipeReader, UnixStream) {
        let (read, write) = std::io::pipe().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        set_nonblocking(ours.as_fd(), true).unwrap();
        set_nonblocking(write.as_fd(), true).unwrap();
        (Link::new(StreamKind::Stdin, write.into(), ours.into(), early.to_vec(), Vec::new()), read, theirs)
    }

    /// The outer and inner end of a terminal.
    fn terminal() -> (OwnedFd, OwnedFd) {
        let (mut outer, mut inner) = (-1, -1);
        let (name, settings, size) = (std::ptr::null_mut(), std::ptr::null(), std::ptr::null());
        // SAFETY: both numbers are valid places for an int; nothing else is written or read.
        assert_eq!(unsafe { libc::openpty(&raw mut outer, &raw mut inner, name, settings, size) }, 0);
        // SAFETY: the descriptors are new, and nobody else knows of them.
        let (outer, inner) = unsafe { (OwnedFd::from_raw_fd(outer), OwnedFd::from_raw_fd(inner)) };
        set_nonblocking(outer.as_fd(), true).unwrap();
        (outer, inner)
    }

    #[test]
    fn output_arrives_whole_and_then_ends() {
        let (mut link, mut process, mut client) = output();
        process.write_all(b" and text").unwrap();
        drop(process);
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(end(&mut link), Progress::Over);
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "frame and text");
    }

    #[test]
    fn a_client_that_left_abandons_its_output() {
        let (mut link, process, client) = output();
        drop(client);
        assert_eq!(end(&mut link), Progress::Abandoned);
        let source = link.into_source().unwrap();
        drop(process);
        assert!(!drain(source.as_fd()));
        let (source, mut process) = std::io::pipe().unwrap();
        let mut kept = Vec::new();
        for written in [&b"begin"[..], &[b'x'; 9000], b"end"] {
            process.write_all(written).unwrap();
        }
        assert!(keep_last(source.as_fd(), &mut kept, 6));
        assert_eq!(kept, b"xxxend");
        process.write_all(b"!").unwrap();
        drop(process);
        assert!(keep_last(source.as_fd(), &mut kept, 6));
        assert!(!keep_last(source.as_fd(), &mut kept, 6));
        assert_eq!(kept, b"xxend!");
    }

    #[test]
    fn a_client_that_does_not_read_stops_the_process_and_nothing_spins() {
        let (mut link, mut process, mut client) = output();
        let writer = std::thread::spawn(move || process.write_all(&[7; 4 << 20]));
        run_on(&mut link);
        assert!(!writer.is_finished());
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            client.read_to_end(&mut bytes).map(|_| bytes.len())
        });
        assert_eq!(end(&mut link), Progress::Over);
        writer.join().unwrap().unwrap();
        assert_eq!(reader.join().unwrap().unwrap(), (4 << 20) + 5);
    }

    #[test]
    fn input_arrives_whole_even_from_a_client_that_left() {
        let (mut link, mut process, mut client) = input(b"early ");
        client.write_all(b"late").unwrap();
        drop(client);
        assert_eq!(end(&mut link), Progress::Over);
        let mut text = String::new();
        process.read_to_string(&mut text).unwrap();
        assert_eq!(text, "early late");
    }

    #[test]
    fn input_for_a_process_that_reads_no_more_ends_the_connection() {
        let (mut link, process, mut client) = input(b"");
        drop(process);
        run_on(&mut link);
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
        drop(client);
        assert_eq!(end(&mut link), Progress::Over);
    }

    #[test]
    fn what_is_typed_at_a_terminal_that_nobody_has_open_ends_the_connection() {
        let (outer, inner) = terminal();
        let (ours, mut client) = UnixStream::pair().unwrap();
        set_nonblocking(ours.as_fd(), true).unwrap();
        let mut link = Link::new(StreamKind::Stdin, outer, ours.into(), b"key".to_vec(), Vec::new());
        run_on(&mut link);
        drop(inner);
        run_on(&mut link);
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
        drop(client);
        assert_eq!(end(&mut link), Progress::Over);
    }

    #[test]
    fn input_that_is_not_read_waits_without_spinning() {
        let (mut link, mut process, mut client) = input(b"");
        let writer = std::thread::spawn(move || client.write_all(&[1; 1 << 20]));
        run_on(&mut link);
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            process.read_to_end(&mut bytes).map(|_| bytes.len())
        });
        assert_eq!(end(&mut link), Progress::Over);
        writer.join().unwrap().unwrap();
        assert_eq!(reader.join().unwrap().unwrap(), 1 << 20);
    }
}
