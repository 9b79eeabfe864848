//! The processes the supervisor started: where each is in its life, and its streams.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use podvm_pod::exit::PODVM_ERROR;
use podvm_pod::protocol::{ProcessId, StreamKind};
use podvm_pod::status::ExitStatus;
use rustix::event::PollFlags;

use super::framed::Framed;
use super::link::{Link, Progress, Stream, drain, keep_last};
use crate::app::control::{self, Report};
use crate::app::launch::Launched;
use crate::processes;
use crate::sys::socket::set_nonblocking;

/// Most processes beside the apps' own that exist at a time.
pub const MAX_EXECS: usize = 128;
/// Most ended processes that are remembered, so that a client that is late can still ask how they ended.
const MAX_REMEMBERED: usize = 64;
/// Most bytes of output that are kept of a process whose output nobody reads.
const MAX_KEPT: usize = 512;
/// How long an exec'd process waits to be started.
const START_WITHIN: Duration = Duration::from_secs(30);

/// Where a process is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It builds or enters its walls.
    SettingUp,
    /// It waits for the word to go.
    Prepared,
    /// It has the word, and gives up its privileges.
    Starting,
    /// Its program runs.
    Running,
    /// It ended.
    Ended(ExitStatus),
    /// Its program never ran.
    Failed {
        /// Why.
        message: String,
        /// The exit code this counts as.
        code: u8,
    },
}

/// A process.
#[derive(Debug)]
pub struct Process {
    /// The app it is in, by index.
    pub app: usize,
    /// Whether it is the app's main process.
    pub main: bool,
    /// Where it is in its life.
    pub state: State,
    pid: Pid,
    /// None when it was reaped.
    pidfd: Option<OwnedFd>,
    control: Option<OwnedFd>,
    /// By number. None is used twice, so that what poll(2) has told of one stream is never taken for another's.
    streams: BTreeMap<usize, (StreamKind, Stream)>,
    last_stream: usize,
    terminal: Option<OwnedFd>,
    start_by: Option<Instant>,
    reaped: bool,
    /// The last of its output, if nobody reads it.
    kept: Vec<u8>,
}

impl Process {
    fn new(app: usize, main: bool, launched: Launched) -> Self {
        let Launched { pid, pidfd, control, pipes } = launched;
        let pipes =
            [(StreamKind::Stdin, pipes.stdin), (StreamKind::Stdout, pipes.stdout), (StreamKind::Stderr, pipes.stderr)];
        let mut process = Self {
            app,
            main,
            state: State::SettingUp,
            pid,
            pidfd: Some(pidfd),
            control: Some(control),
            streams: BTreeMap::new(),
            last_stream: 0,
            terminal: None,
            start_by: (!main).then(|| Instant::now() + START_WITHIN),
            reaped: false,
            kept: Vec::new(),
        };
        for (kind, pipe) in pipes {
            pipe.into_iter().for_each(|pipe| process.add_stream(kind, Stream::Waiting(pipe)));
        }
        process
    }

    fn add_stream(&mut self, kind: StreamKind, stream: Stream) {
        self.last_stream += 1;
        self.streams.insert(self.last_stream, (kind, stream));
    }

    /// Its number, as the supervisor sees it.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// A handle on it, unless nothing of it is left.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// The socket it reports over, while its program does not run.
    pub fn control(&self) -> Option<BorrowedFd<'_>> {
        self.control.as_ref().map(AsFd::as_fd)
    }

    /// When it must have been started.
    pub fn start_by(&self) -> Option<Instant> {
        self.start_by.filter(|_| self.state == State::Prepared)
    }

    /// Whether its life is over.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Ended(_) | State::Failed { .. })
    }

    /// Whether it was reaped: nothing of it is left.
    pub fn is_reaped(&self) -> bool {
        self.reaped
    }

    /// Takes its reports; true when its state has changed.
    pub fn hear(&mut self) -> bool {
        let before = self.state.clone();
        while let Some(control) = &self.control {
            let Some(report) = control::next_report(control.as_fd()) else { break };
            match report {
                Report::Prepared(terminal) => {
                    self.state = State::Prepared;
                    if let Some(outer) = terminal {
                        self.add_terminal(outer);
                    }
                }
                Report::Failed { message, code } => self.state = State::Failed { message, code },
                Report::Closed => {
                    self.control = None;
                    match self.state {
                        State::Starting => self.state = State::Running,
                        State::SettingUp | State::Prepared => self.fail("ended before its program was started"),
                        State::Running | State::Ended(_) | State::Failed { .. } => {}
                    }
                }
            }
        }
        self.state != before
    }

    /// Its program will never run: what waits in its place is ended.
    fn fail(&mut self, message: &str) {
        self.kill();
        self.state = State::Failed { message: message.into(), code: PODVM_ERROR };
    }

    fn add_terminal(&mut self, outer: OwnedFd) {
        let set_up = || {
            set_nonblocking(outer.as_fd(), true)?;
            outer.try_clone()
        };
        match set_up() {
            Ok(copy) => {
                self.terminal = Some(copy);
                self.add_stream(StreamKind::Terminal, Stream::Waiting(outer));
            }
            Err(error) => self.fail(&format!("its terminal cannot be used: {error}")),
        }
    }

    /// Gives a prepared process the word to go.
    pub fn go(&mut self) {
        if let (State::Prepared, Some(control)) = (&self.state, &self.control) {
            // A process that is gone reports so by the end of its socket.
            let _ = control::go(control.as_fd());
            self.state = State::Starting;
        }
    }

    /// Sends a signal; nothing happens when the process has ended.
    pub fn signal(&self, signal: i32) -> nix::Result<()> {
        if self.reaped {
            return Ok(());
        }
        // SAFETY: takes two integers; the number is still the process's, since only the supervisor reaps it.
        let result = unsafe { libc::kill(self.pid.as_raw(), signal) };
        nix::errno::Errno::result(result).map(drop)
    }

    /// Ends the process at once, and with an app's main process everything in the app.
    pub fn kill(&self) {
        // Only a process that has ended can refuse.
        let _ = self.signal(Signal::SIGKILL as i32);
    }

    /// Ends the process at once, and what it has started, unless that leads sessions of its own.
    pub fn kill_session(&self) {
        if !self.reaped {
            processes::kill_session(self.pid.as_raw());
        }
        self.kill();
    }

    /// The process was reaped, and all its reports were taken; true when its state has changed by that, as it has not when it
    /// said that it failed.
    pub fn ended(&mut self, status: ExitStatus) -> bool {
        let was_over = self.is_over();
        if !was_over {
            self.state = State::Ended(status);
        }
        !was_over
    }

    /// The outer end of its terminal.
    pub fn terminal(&self) -> Option<BorrowedFd<'_>> {
        self.terminal.as_ref().map(AsFd::as_fd)
    }

    /// Whether it has a stream of this kind that nobody has opened yet; else why not, as a sentence.
    pub fn check_stream(&self, kind: StreamKind) -> Result<usize, String> {
        match self.streams.iter().find(|(_, (other, _))| *other == kind) {
            Some((number, (_, Stream::Waiting(_)))) => Ok(*number),
            Some(_) => Err(format!("{} was opened before; each stream can be opened once", name(kind))),
            None => Err(format!("this process has no {}", name(kind))),
        }
    }

    /// Whether more can be typed at its terminal, beside what its main client types.
    pub fn has_keys(&self, kind: StreamKind) -> bool {
        kind == StreamKind::Stdin && self.terminal.is_some()
    }

    /// Ties another client to its terminal, for typing.
    ///
    /// # Errors
    /// When there is no descriptor left for it.
    pub fn attach_keys(&mut self, client: Framed) -> std::io::Result<()> {
        let Some(terminal) = &self.terminal else { return Ok(()) };
        let (client, inward, outward) = client.into_parts();
        let link = Link::new(StreamKind::Stdin, terminal.try_clone()?, client, inward, outward);
        self.streams.retain(|_, (kind, stream)| *kind != StreamKind::Stdin || !matches!(stream, Stream::Ended));
        self.add_stream(StreamKind::Stdin, Stream::Linked(link));
        Ok(())
    }

    /// Nobody reads its output; the last of it is kept.
    pub fn keep_output(&mut self) {
        for (_, stream) in self.streams.values_mut().filter(|(kind, _)| *kind != StreamKind::Stdin) {
            if let Stream::Waiting(source) = std::mem::replace(stream, Stream::Ended) {
                *stream = Stream::Kept(source);
            }
        }
    }

    /// The last of its output, with what of it has not been read yet, without space at the ends.
    pub fn kept_output(&mut self) -> String {
        let kept: Vec<usize> =
            self.streams.iter().filter(|(_, (_, stream))| matches!(stream, Stream::Kept(_))).map(|(n, _)| *n).collect();
        for number in kept {
            self.serve_stream(number, PollFlags::empty(), PollFlags::IN);
        }
        String::from_utf8_lossy(&self.kept).trim().to_owned()
    }

    /// Closes an output stream: the process learns that nobody reads it when it writes again. Closing its terminal hangs up.
    pub fn close_output(&mut self, kind: StreamKind) {
        if kind == StreamKind::Stdin {
            return;
        }
        for (_, stream) in self.streams.values_mut().filter(|(other, _)| *other == kind) {
            *stream = Stream::Ended;
        }
    }

    /// Ties a stream, found by [`Self::check_stream`], to a client.
    pub fn attach(&mut self, number: usize, client: Framed) {
        let Some((kind, stream)) = self.streams.get_mut(&number) else { return };
        if let Stream::Waiting(process) = std::mem::replace(stream, Stream::Ended) {
            let (client, inward, outward) = client.into_parts();
            *stream = Stream::Linked(Link::new(*kind, process, client, inward, outward));
        }
    }

    /// What to poll its streams for: the stream's number, and whether the client's end of it.
    pub fn stream_interests(&self) -> impl Iterator<Item = (usize, bool, BorrowedFd<'_>, PollFlags)> {
        self.streams.iter().flat_map(|(number, (_, stream))| {
            let (client, process) = match stream {
                Stream::Linked(link) => (link.client_interest(), link.process_interest()),
                Stream::Draining(process) | Stream::Kept(process) => (None, Some((process.as_fd(), PollFlags::IN))),
                Stream::Waiting(_) | Stream::Ended => (None, None),
            };
            let client = client.map(|(fd, flags)| (*number, true, fd, flags));
            client.into_iter().chain(process.map(|(fd, flags)| (*number, false, fd, flags)))
        })
    }

    /// Moves a stream on after poll(2) has reported one of its ends, unless it is forgotten meanwhile.
    pub fn serve_stream(&mut self, number: usize, client: PollFlags, process: PollFlags) {
        let Some((_, stream)) = self.streams.get_mut(&number) else { return };
        match stream {
            Stream::Linked(link) => match link.advance(client, process) {
                Progress::Going => {}
                Progress::Over => *stream = Stream::Ended,
                Progress::Abandoned => {
                    if let Stream::Linked(link) = std::mem::replace(stream, Stream::Ended) {
                        *stream = link.into_source().map_or(Stream::Ended, Stream::Draining);
                    }
                }
            },
            Stream::Draining(process) => {
                if !drain(process.as_fd()) {
                    *stream = Stream::Ended;
                }
            }
            Stream::Kept(process) => {
                if !keep_last(process.as_fd(), &mut self.kept, MAX_KEPT) {
                    *stream = Stream::Ended;
                }
            }
            Stream::Waiting(_) | Stream::Ended => {}
        }
    }
}

fn name(kind: StreamKind) -> &'static str {
    match kind {
        StreamKind::Stdin => "standard input",
        StreamKind::Stdout => "standard output",
        StreamKind::Stderr => "standard error",
        StreamKind::Terminal => "terminal",
    }
}

/// All processes by their names.
#[derive(Debug, Default)]
pub struct Processes {
    table: BTreeMap<ProcessId, Process>,
    last: u32,
}

impl Processes {
    /// Takes a process that was just made.
    pub fn add(&mut self, app: usize, main: bool, launched: Launched) -> ProcessId {
        self.last += 1;
        let id = ProcessId(self.last);
        self.table.insert(id, Process::new(app, main, launched));
        id
    }

    /// The process of that name.
    pub fn get(&self, id: ProcessId) -> Option<&Process> {
        self.table.get(&id)
    }

    /// The process of that name.
    pub fn get_mut(&mut self, id: ProcessId) -> Option<&mut Process> {
        self.table.get_mut(&id)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (ProcessId, &Process)> {
        self.table.iter().map(|(id, process)| (*id, process))
    }

    /// Whether another exec'd process may be made.
    pub fn has_room(&self) -> bool {
        self.table.values().filter(|process| !process.main && !process.is_over()).count() < MAX_EXECS
    }

    /// An app's main process is no longer that: it is forgotten as others are.
    pub fn retire(&mut self, id: ProcessId) {
        if let Some(process) = self.table.get_mut(&id) {
            process.main = false;
        }
    }

    /// The process whose number was just reaped, and from now on may be another's.
    pub fn reaped(&mut self, pid: Pid) -> Option<ProcessId> {
        let (id, process) = self.table.iter_mut().find(|(_, process)| process.pid == pid && !process.reaped)?;
        process.reaped = true;
        process.pidfd = None;
        Some(*id)
    }

    /// Forgets the exec'd processes that ended longest ago, beyond those that are remembered.
    pub fn forget_old(&mut self) {
        let over: Vec<ProcessId> =
            self.iter().filter(|(_, process)| !process.main && process.reaped).map(|(id, _)| id).collect();
        for id in over.iter().take(over.len().saturating_sub(MAX_REMEMBERED)) {
            self.table.remove(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::app::child::Pipes;
    use crate::sys::socket::message_pair;

    /// A process with a terminal, and the terminal's inner end.
    fn with_terminal() -> (Process, UnixStream) {
        let (control, _) = message_pair().unwrap();
        let (outer, inner) = UnixStream::pair().unwrap();
        let pidfd = std::fs::File::open("/dev/null").unwrap().into();
        let mut process = Process::new(0, true, Launched { pid: Pid::this(), pidfd, control, pipes: Pipes::default() });
        process.add_terminal(outer.into());
        (process, inner)
    }

    /// Has another client type at the terminal; its stream's number and the client's end.
    fn attach_keys(process: &mut Process) -> (usize, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        process.attach_keys(Framed::new(ours.into()).unwrap()).unwrap();
        (process.stream_interests().map(|(number, ..)| number).max().unwrap(), theirs)
    }

    #[test]
    fn what_happens_to_a_stream_stays_its_own_when_others_come_and_go() {
        let (mut process, mut terminal) = with_terminal();
        let (leaves, first) = attach_keys(&mut process);
        let (stays, mut second) = attach_keys(&mut process);
        drop(first);
        // The end of its input, and then the end of the connection.
        process.serve_stream(leaves, PollFlags::IN, PollFlags::empty());
        process.serve_stream(leaves, PollFlags::IN, PollFlags::empty());
        second.write_all(b"typed").unwrap();
        let (new, _third) = attach_keys(&mut process);
        assert!(new != leaves && new != stays);
        process.serve_stream(leaves, PollFlags::IN, PollFlags::HUP);
        process.serve_stream(stays, PollFlags::IN, PollFlags::empty());
        let mut text = [0; 5];
        terminal.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"typed");
    }
}
