//! The main loop: one thread that owns all connections, processes and streams, waits for any of them with poll(2), and never
//! for one alone.

mod connection;
mod ending;
mod framed;
mod health;
mod link;
pub mod panic;
mod pod;
mod process;
mod relays;
mod request;
mod restart;

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use podvm_pod::exit::PODVM_ERROR;
use podvm_pod::fault::{FaultPoint, reach};
use podvm_pod::protocol::{Command, Event, FrameError, PROTOCOL_VERSION, ProcessId};
use podvm_pod::status::PodReport;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::step::{Step, StepError, note};
use crate::sys::process::raise_open_files_limit;
use crate::sys::socket::{accept, set_nonblocking};
use crate::walls::{Connections, Walls};
use connection::{Connection, Heard, MAX_CONNECTIONS};
use framed::Framed;
use pod::RunningPod;
use process::Processes;
use relays::Relays;

/// Grace given to the apps when the supervisor itself decides to stop the pod: docker's default.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// Grace given when nobody is left outside who could wait for longer.
const ORPHAN_GRACE: Duration = Duration::from_secs(2);
/// How long new connections wait when there is no descriptor, or no memory, for one more.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the supervisor cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// A step of the system.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The primary connection carries what cannot be understood.
    #[error("on the primary connection {0}")]
    Primary(#[from] FrameError),
    /// A second pod.
    #[error("told to run a second pod; a supervisor runs one")]
    SecondPod,
}

/// What something that poll(2) reported belongs to.
#[derive(Debug, Clone, Copy)]
enum Token {
    Signals,
    Primary,
    Listener,
    Connection(u64),
    Control(ProcessId),
    Client(ProcessId, usize),
    Stream(ProcessId, usize),
    Relay(u64, usize),
}

/// Where the pod is in its life.
#[derive(Debug)]
enum Phase {
    /// No pod yet.
    Idle,
    /// The pod runs.
    Running,
    /// The pod is over, and its last output is being read, for as long as somebody is there who reads it.
    Finished,
    /// Nothing is left to do.
    Left,
}

/// The supervisor.
pub struct Supervisor {
    walls: Box<dyn Walls>,
    primary: Framed,
    listener: OwnedFd,
    /// Until when no new connections are taken.
    accepts_from: Option<Instant>,
    signals: SignalFd,
    connections: BTreeMap<u64, Connection>,
    last_connection: u64,
    processes: Processes,
    relays: Relays,
    pod: Option<RunningPod>,
    phase: Phase,
    /// What ended the pod when it was not its apps.
    error: Option<String>,
}

impl Supervisor {
    /// Takes over the walls and connections, and says hello.
    ///
    /// # Errors
    /// When signals or connections cannot be set up.
    pub fn new(walls: Box<dyn Walls>, connections: Connections) -> Result<Self, SupervisorError> {
        // A client takes several. Programs are started with a limit of their own.
        raise_open_files_limit().step(|| "raise the limit on open files")?;
        let mut taken = SigSet::empty();
        [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT].into_iter().for_each(|signal| taken.add(signal));
        taken.thread_block().step(|| "block signals")?;
        let signals = SignalFd::with_flags(&taken, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .step(|| "make a descriptor for signals")?;
        let mut primary = Framed::new(connections.primary).step(|| "use the primary connection")?;
        reach(FaultPoint::SupervisorBegun);
        primary.send(&Event::Hello { protocol: PROTOCOL_VERSION })?;
        reach(FaultPoint::SupervisorGreeted);
        set_nonblocking(connections.listener.as_fd(), true).step(|| "use the listening socket")?;
        Ok(Self {
            walls,
            primary,
            listener: connections.listener,
            accepts_from: None,
            signals,
            connections: BTreeMap::new(),
            last_connection: 0,
            processes: Processes::default(),
            relays: Relays::default(),
            pod: None,
            phase: Phase::Idle,
            error: None,
        })
    }

    /// Runs until the pod has ended and its end was told.
    pub fn run(mut self) {
        while !matches!(self.phase, Phase::Left) {
            if let Err(error) = self.turn() {
                note(&error);
                self.fail(error.to_string());
                // There may be nothing left whose event would take the pod to its end.
                self.advance_pod();
            }
        }
        self.walls.leave();
    }

    /// Waits for what happens next and handles it.
    fn turn(&mut self) -> Result<(), SupervisorError> {
        for (token, events) in self.wait().step(|| "wait for events")? {
            match token {
                Token::Signals => self.take_signals(),
                Token::Primary => self.take_commands(events)?,
                Token::Listener => self.accept(),
                Token::Connection(id) => self.hear_connection(id, events),
                Token::Control(id) => self.hear_process(id),
                Token::Client(id, stream) => self.serve_stream(id, stream, events, PollFlags::empty()),
                Token::Stream(id, stream) => self.serve_stream(id, stream, PollFlags::empty(), events),
                Token::Relay(id, end) => self.relays.serve(id, end, events),
            }
        }
        self.check_deadlines();
        self.advance_pod();
        Ok(())
    }

    fn wait(&self) -> io::Result<Vec<(Token, PollFlags)>> {
        let mut watched = vec![(Token::Signals, self.signals.as_fd(), PollFlags::IN)];
        if self.accepts_from.is_none() {
            watched.push((Token::Listener, self.listener.as_fd(), PollFlags::IN));
        }
        if !self.primary.interest().is_empty() {
            watched.push((Token::Primary, self.primary.as_fd(), self.primary.interest()));
        }
        for (id, connection) in &self.connections {
            let framed = connection.framed();
            watched.push((Token::Connection(*id), framed.as_fd(), framed.interest()));
        }
        for (id, process) in self.processes.iter() {
            if let Some(control) = process.control() {
                watched.push((Token::Control(id), control, PollFlags::IN));
            }
            for (stream, is_client, fd, flags) in process.stream_interests() {
                let token = if is_client { Token::Client(id, stream) } else { Token::Stream(id, stream) };
                watched.push((token, fd, flags));
            }
        }
        watched.extend(self.relays.interests().map(|(id, end, fd, flags)| (Token::Relay(id, end), fd, flags)));
        let mut fds: Vec<PollFd> = watched.iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        match poll(&mut fds, self.timeout().as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        let happened = fds.iter().map(|fd| fd.revents());
        let tokens = watched.iter().map(|(token, ..)| *token);
        Ok(tokens.zip(happened).filter(|(_, events)| !events.is_empty()).collect())
    }

    fn timeout(&self) -> Option<Timespec> {
        let of_pod = self.pod.as_ref().and_then(RunningPod::next_deadline);
        let next = of_pod
            .into_iter()
            .chain(self.accepts_from)
            .chain(self.connections.values().filter_map(Connection::deadline))
            .chain(self.processes.iter().filter_map(|(_, process)| process.start_by()))
            .min()?;
        // One more millisecond, so that the deadline has really passed.
        let left = next.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        Timespec::try_from(left).ok()
    }

    fn check_deadlines(&mut self) {
        let now = Instant::now();
        self.accepts_from.take_if(|from| *from <= now);
        self.connections.retain(|_, connection| connection.deadline().is_none_or(|until| until > now));
        for (_, process) in self.processes.iter().filter(|(_, process)| process.start_by().is_some_and(|by| by <= now))
        {
            process.kill();
        }
        if self.pod.as_ref().and_then(RunningPod::kill_at).is_some_and(|at| at <= now) {
            self.kill_apps();
        }
        if matches!(self.phase, Phase::Running) {
            self.restart_apps(now);
            self.check_health(now);
        }
    }

    fn take_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            if signal.ssi_signo == Signal::SIGCHLD as u32 {
                self.reap();
            } else {
                self.stop(STOP_GRACE);
            }
        }
    }

    /// Reaps what has ended: the supervisor's own processes, and orphans that came to it as to any first process.
    fn reap(&mut self) {
        while let Some((pid, status)) = crate::sys::process::reap() {
            let Some(id) = self.processes.reaped(pid) else { continue };
            // Its last reports: a program that ran for a moment was started all the same.
            self.hear_process(id);
            if self.processes.get_mut(id).is_some_and(|process| process.ended(status)) {
                self.process_changed(id);
            }
        }
        self.processes.forget_old();
    }

    fn take_commands(&mut self, events: PollFlags) -> Result<(), SupervisorError> {
        let broken = self.primary.fill().and_then(|()| self.primary.flush()).is_err();
        while let Some(command) = self.primary.next::<Command>()? {
            match command {
                Command::Run(spec) => self.start(*spec)?,
                Command::Stop { grace_ms } => self.stop(Duration::from_millis(grace_ms)),
                Command::Farewell => self.phase = Phase::Left,
            }
        }
        let gone = broken || self.primary.has_ended() || events.intersects(PollFlags::ERR | PollFlags::NVAL);
        if gone && !matches!(self.phase, Phase::Left) {
            self.primary_lost();
        }
        Ok(())
    }

    fn primary_lost(&mut self) {
        match self.phase {
            // Nobody is left to tell how it ends.
            Phase::Idle | Phase::Finished => self.phase = Phase::Left,
            Phase::Running => {
                self.error.get_or_insert("the primary connection was closed from outside".into());
                self.stop(ORPHAN_GRACE);
            }
            Phase::Left => {}
        }
    }

    fn accept(&mut self) {
        loop {
            match accept(self.listener.as_fd()).map_err(|error| error.kind()) {
                Ok(socket) => self.take_connection(socket),
                Err(ErrorKind::WouldBlock) => return,
                // A client that has gone already.
                Err(ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
                Err(_) => {
                    // The connection waits on, and poll(2) would tell so at once, again and again.
                    self.accepts_from = Some(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    fn take_connection(&mut self, socket: OwnedFd) {
        let Some(mut connection) = Connection::new(socket, self.walls.is_greeted()) else { return };
        if self.connections.len() >= MAX_CONNECTIONS {
            let message = format!("there are {MAX_CONNECTIONS} requests under way; try again when some are done");
            connection.answer(&connection::refusal(message));
            return;
        }
        self.last_connection += 1;
        self.connections.insert(self.last_connection, connection);
    }

    fn hear_connection(&mut self, id: u64, events: PollFlags) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match connection.hear(events) {
            Heard::Nothing => {}
            Heard::Over => drop(self.connections.remove(&id)),
            Heard::Request(request) => self.handle_request(id, request),
        }
    }

    fn hear_process(&mut self, id: ProcessId) {
        if self.processes.get_mut(id).is_some_and(|process| process.hear()) {
            self.process_changed(id);
        }
    }

    fn serve_stream(&mut self, id: ProcessId, stream: usize, client: PollFlags, process: PollFlags) {
        if let Some(owner) = self.processes.get_mut(id) {
            owner.serve_stream(stream, client, process);
        }
    }

    /// Sends an event. A primary connection that is gone is noticed when it is read.
    fn tell(&mut self, event: &Event) {
        if let Err(error) = self.primary.send(event) {
            note(format_args!("cannot tell of {event:?}: {error}"));
        }
    }

    /// The supervisor cannot go on: the pod ends with this error.
    fn fail(&mut self, error: String) {
        self.error.get_or_insert(error);
        match self.phase {
            Phase::Idle => self.finish(),
            Phase::Running => self.kill_apps(),
            Phase::Finished | Phase::Left => self.phase = Phase::Left,
        }
    }

    /// Everything has ended: syncs, reports, and waits for the farewell.
    fn finish(&mut self) {
        reach(FaultPoint::AppsEnded);
        if let Some(pod) = &mut self.pod {
            pod.clean_up();
            self.walls.settle();
        }
        reach(FaultPoint::PlacesCleaned);
        let report = match (&self.error, &self.pod) {
            (None, Some(pod)) => pod.report(),
            (error, pod) => PodReport {
                apps: pod.as_ref().map(|pod| pod.report().apps).unwrap_or_default(),
                ..PodReport::failure(
                    PODVM_ERROR,
                    error.clone().unwrap_or_else(|| "the pod was stopped before it ran".into()),
                )
            },
        };
        self.tell(&Event::Finished(report));
        reach(FaultPoint::EndReported);
        self.phase = Phase::Finished;
        if self.primary.has_ended() {
            self.phase = Phase::Left;
        }
    }
}
