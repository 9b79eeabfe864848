//! Request connections: each brings one request and takes its answer, at once or when what it waits for has happened.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use podvm_pod::exit::PODVM_ERROR;
use podvm_pod::protocol::{Envelope, PROTOCOL_VERSION, ProcessId, Request, Response};
use rustix::event::PollFlags;

use super::framed::Framed;
use crate::sys::socket::shut_down;

/// Most request connections at a time; streams that are open do not count.
pub const MAX_CONNECTIONS: usize = 256;
/// How long a client may take to send its request, and to close after the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a client of a greeted socket begins with, and the answer.
const GREETING: &str = "CONNECT 1024";
const ANSWER: &str = "OK 1024\n";
/// Longest line of greeting.
const MAX_GREETING: usize = 64;

/// What a client waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitFor {
    /// A process to be prepared.
    Prepared(ProcessId),
    /// A process's program to run.
    Started(ProcessId),
    /// A process's end.
    Exit(ProcessId),
}

#[derive(Debug)]
enum State {
    Greeting { until: Instant },
    Reading { until: Instant },
    Waiting(WaitFor),
    Closing { until: Instant },
}

/// A request connection.
#[derive(Debug)]
pub struct Connection {
    framed: Framed,
    state: State,
}

/// What became of a connection that was looked at.
#[derive(Debug)]
pub enum Heard {
    /// Nothing to do yet.
    Nothing,
    /// Its request has arrived.
    Request(Request),
    /// It is over.
    Over,
}

impl Connection {
    /// Takes a new connection, which begins with a line of greeting if `greeted`; none when it is broken already.
    pub fn new(socket: OwnedFd, greeted: bool) -> Option<Self> {
        let until = Instant::now() + PATIENCE;
        let state = if greeted { State::Greeting { until } } else { State::Reading { until } };
        Some(Self { framed: Framed::new(socket).ok()?, state })
    }

    /// The connection, to be polled.
    pub fn framed(&self) -> &Framed {
        &self.framed
    }

    /// The connection itself, for a stream.
    pub fn into_framed(self) -> Framed {
        self.framed
    }

    /// What it waits for.
    pub fn waits_for(&self) -> Option<WaitFor> {
        match self.state {
            State::Waiting(wait) => Some(wait),
            State::Greeting { .. } | State::Reading { .. } | State::Closing { .. } => None,
        }
    }

    /// When it is given up.
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Greeting { until } | State::Reading { until } | State::Closing { until } => Some(until),
            State::Waiting(_) => None,
        }
    }

    /// Has it wait.
    pub fn wait_for(&mut self, wait: WaitFor) {
        self.state = State::Waiting(wait);
    }

    /// Answers; nothing follows but the end.
    pub fn answer(&mut self, response: &Response) {
        self.state = State::Closing { until: Instant::now() + PATIENCE };
        // A client that is gone needs no answer.
        let _ = self.framed.send(response);
        self.close_when_flushed();
    }

    /// Announces a stream; the announcement goes out with the stream's first bytes.
    pub fn announce_stream(&mut self) {
        let _ = self.framed.send(&Response::Stream);
    }

    fn close_when_flushed(&mut self) {
        if self.framed.is_flushed() {
            use std::os::fd::AsFd;
            shut_down(self.framed.as_fd(), libc::SHUT_WR);
        }
    }

    /// Looks at the connection after poll(2) has reported it.
    pub fn hear(&mut self, events: PollFlags) -> Heard {
        if self.framed.fill().is_err() || events.contains(PollFlags::NVAL) {
            return Heard::Over;
        }
        if let State::Greeting { until } = self.state {
            match self.framed.next_line(MAX_GREETING) {
                Ok(Some(line)) if line == GREETING.as_bytes() => {
                    self.state = State::Reading { until };
                    // A client that is gone needs no answer.
                    let _ = self.framed.send_bytes(ANSWER.as_bytes());
                }
                Ok(None) if !self.framed.has_ended() => return Heard::Nothing,
                _ => return Heard::Over,
            }
        }
        match self.state {
            State::Greeting { .. } => Heard::Nothing,
            State::Reading { .. } => self.read_request(),
            // Nothing may be said while an answer is due; the end means that nobody waits for it any more.
            State::Waiting(_) => Heard::Over,
            State::Closing { .. } => {
                if self.framed.has_ended() || self.framed.flush().is_err() {
                    return Heard::Over;
                }
                self.close_when_flushed();
                Heard::Nothing
            }
        }
    }

    fn read_request(&mut self) -> Heard {
        match self.framed.next::<Envelope>() {
            Ok(Some(Envelope { protocol: PROTOCOL_VERSION, request })) => Heard::Request(request),
            Ok(Some(Envelope { protocol, .. })) => {
                self.answer(&refusal(format!(
                    "this supervisor speaks version {PROTOCOL_VERSION} of the protocol, not {protocol}; the pod was started by \
                     another version of podvm"
                )));
                Heard::Nothing
            }
            Ok(None) if self.framed.has_ended() => Heard::Over,
            Ok(None) => Heard::Nothing,
            Err(error) => {
                self.answer(&refusal(error.to_string()));
                Heard::Nothing
            }
        }
    }
}

/// An answer that nothing was done.
pub fn refusal(message: impl Into<String>) -> Response {
    Response::Error { message: message.into(), code: PODVM_ERROR }
}
