//! The conversation on the primary connection.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::attach::Attacher;
use super::board::Board;
use super::sockets::Relays;
use super::{Runner, Walls};
use crate::console::{Signals, is_passed_on, spawn};
use crate::directory::RunningPod;
use crate::exit::{NO_REPORT, PODVM_ERROR, SIGNAL_BASE};
use crate::fault::{FaultPoint, reach};
use crate::manifest::{AppName, RestartPolicy};
use crate::protocol::{
    Command, Event, FrameError, PROTOCOL_VERSION, PodSpec, ProcessId, SignalTarget, read_frame, write_frame,
};
use crate::status::PodReport;
use crate::timestamp::Timestamp;

/// How long the supervisor may take to come up, and then to start the apps: long, for under an emulator all is slow.
const START_LIMIT: Duration = Duration::from_secs(180);
/// Grace period of the first signal that asks the pod to end.
pub(super) const STOP_GRACE: Duration = Duration::from_secs(10);
/// How long after the grace period the pod's end may take.
const STOP_MARGIN: Duration = Duration::from_secs(30);
/// How long the walls may take to tell what happened when the supervisor has gone: a panicking kernel, emulated, is slow.
const LAST_WORD: Duration = Duration::from_secs(60);
/// How long the walls may take to fall after the farewell. All that matters is on disk by then.
const POWER_OFF: Duration = Duration::from_secs(10);
/// How long a report that is on its way may take to be read when the walls have fallen.
const LAST_READ: Duration = Duration::from_secs(1);
/// How long a message to the supervisor may wait to be taken.
const SEND_LIMIT: Duration = Duration::from_secs(10);
/// How long streams may rest when the apps have ended, and how long they are read at all when the pod was asked to end. Otherwise who
/// reads slowly is waited for, until a signal comes.
const READ_OUT_IDLE: Duration = Duration::from_secs(10);
const READ_OUT_LIMIT: Duration = Duration::from_secs(30);
/// Shortest time between two records of the apps' states.
const RECORD_INTERVAL: Duration = Duration::from_millis(200);
/// Most output streams that are carried for an app: those of its present life, and some that are left of those before.
const MAX_STREAMS_PER_APP: usize = 8;
/// Most inputs that wait; whoever has more waits, too.
const WAITING_INPUTS: usize = 64;

/// All that can happen to a running pod.
enum Input {
    Event(Event),
    PrimaryEnded(FrameError),
    Signal(i32),
    WallsFell(PodReport),
}

/// How the conversation ended.
enum End {
    /// The supervisor's own report.
    Reported(PodReport),
    /// Without one.
    Unreported(PodReport),
}

/// When something must have happened, and the pod's report if it has not.
struct Limit {
    at: Instant,
    report: PodReport,
}

impl Limit {
    fn after(wait: Duration, code: u8, message: impl Into<String>) -> Self {
        Self { at: Instant::now() + wait, report: PodReport::failure(code, message) }
    }
}

/// Runs the pod to its end.
pub(super) fn run(runner: Runner<'_>, spec: PodSpec) -> PodReport {
    let manifest = runner.pod.manifest();
    let mut session = match Session::begin(runner, spec) {
        Ok(session) => session,
        Err(error) => {
            let report = PodReport::failure(PODVM_ERROR, format!("the pod's process cannot be set up: {error}"));
            return Board::new(manifest).conclude_without_report(report);
        }
    };
    let end = session.converse();
    if matches!(end, End::Reported(_)) {
        reach(FaultPoint::EndHeard);
        session.read_out();
        session.say_farewell();
        reach(FaultPoint::FarewellSaid);
    }
    // Also for the thread that reads it.
    let _ = session.primary.shutdown(Shutdown::Both);
    session.attacher.leave_terminal();
    let is_output_lost = session.attacher.is_output_lost.load(Ordering::Relaxed);
    let report = match end {
        End::Reported(report) => session.board.conclude(report),
        End::Unreported(report) => session.board.conclude_without_report(report),
    };
    if is_output_lost { without_output(report) } else { report }
}

struct Session<'a> {
    pod: &'a RunningPod,
    primary: UnixStream,
    inputs: Receiver<Input>,
    attacher: Attacher,
    relays: Relays,
    board: Board,
    addresses: Vec<std::net::IpAddr>,
    ready: Option<super::ReadySender>,
    /// What the supervisor is to run, until it was told.
    spec: Option<Box<PodSpec>>,
    attached: Vec<AppName>,
    /// When the apps were started.
    started: Option<u64>,
    /// When the next change of the apps' states is recorded.
    record_at: Option<Instant>,
    last_record: Option<Instant>,
    has_walls: bool,
    have_walls_fallen: bool,
    is_primary_lost: bool,
    /// How often the user asked for the end.
    stops: u32,
    limit: Option<Limit>,
}

impl<'a> Session<'a> {
    fn begin(runner: Runner<'a>, spec: PodSpec) -> Result<Self, Box<dyn std::error::Error>> {
        let Runner { pod, primary, supervisor, io, signals, addresses, walls, relayed } = runner;
        let attacher = Attacher::new(supervisor.clone(), pod.open_logs()?, &io, pod.manifest());
        primary.set_write_timeout(Some(SEND_LIMIT))?;
        let has_walls = walls.is_some();
        let inputs = listen(primary.try_clone()?, signals, walls, attacher.outputs.interrupter())?;
        Ok(Self {
            pod,
            primary,
            inputs,
            attacher,
            relays: Relays::new(supervisor, relayed),
            board: Board::new(pod.manifest()),
            addresses,
            ready: io.ready,
            spec: Some(Box::new(spec)),
            attached: Vec::new(),
            started: None,
            record_at: None,
            last_record: None,
            has_walls,
            have_walls_fallen: false,
            is_primary_lost: false,
            stops: 0,
            limit: Some(Limit::after(
                START_LIMIT,
                NO_REPORT,
                format!("the supervisor did not come up within {} s", START_LIMIT.as_secs()),
            )),
        })
    }

    fn converse(&mut self) -> End {
        loop {
            let next = [self.limit.as_ref().map(|limit| limit.at), self.record_at].into_iter().flatten().min();
            let input = match next {
                Some(at) => self.inputs.recv_timeout(at.saturating_duration_since(Instant::now())),
                None => self.inputs.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            let end = match input {
                Ok(Input::Event(event)) => self.hear(event),
                Ok(Input::PrimaryEnded(error)) => self.lose_primary(&error),
                Ok(Input::WallsFell(report)) => self.lose_walls(report),
                Ok(Input::Signal(signal)) => self.obey(signal),
                Err(RecvTimeoutError::Timeout) => None,
                // Every thread that could say something has ended.
                Err(RecvTimeoutError::Disconnected) => {
                    Some(End::Unreported(PodReport::failure(NO_REPORT, "the pod's process lost sight of the pod")))
                }
            };
            let now = Instant::now();
            if self.record_at.is_some_and(|at| at <= now) {
                self.record(now);
            }
            if let Some(end) = end {
                return end;
            }
            if let Some(limit) = self.limit.take_if(|limit| limit.at <= now) {
                return End::Unreported(limit.report);
            }
        }
    }

    /// What the supervisor says at the wrong time, twice, or of apps that are not there is passed over.
    fn hear(&mut self, event: Event) -> Option<End> {
        match event {
            Event::Hello { protocol } => return self.greet(protocol),
            Event::Prepared { app, process } => return self.attach(&app, process),
            Event::Ready if self.spec.is_none() && self.started.is_none() => {
                reach(FaultPoint::RunnerReady);
                self.started = Some(Timestamp::now().seconds());
                if self.stops == 0 {
                    self.expect(None);
                }
                self.record(Instant::now());
                reach(FaultPoint::RunningRecorded);
                if let Err(error) = self.relays.begin() {
                    eprintln!("podvm: the sockets of this pod take no connections: {error}");
                }
                if let Some(ready) = self.ready.take() {
                    ready.ready();
                }
            }
            Event::App(status) => {
                if self.board.update(status) && self.started.is_some() && self.record_at.is_none() {
                    let now = Instant::now();
                    self.record_at = Some(self.last_record.map_or(now, |last| last + RECORD_INTERVAL));
                }
            }
            Event::Finished(report) if self.spec.is_none() => return Some(End::Reported(report)),
            // A supervisor that cannot even begin reports without having been told what to run.
            Event::Finished(report) => return Some(End::Unreported(report)),
            Event::Ready => {}
        }
        None
    }

    fn greet(&mut self, protocol: u32) -> Option<End> {
        if protocol != PROTOCOL_VERSION {
            let message = format!(
                "the supervisor speaks protocol version {protocol}, this podvm {PROTOCOL_VERSION}; install both from one build"
            );
            return Some(End::Unreported(PodReport::failure(PODVM_ERROR, message)));
        }
        reach(FaultPoint::RunnerGreeted);
        let spec = self.spec.take()?;
        let message = format!("the apps were not started within {} s", START_LIMIT.as_secs());
        self.expect(Some(Limit::after(START_LIMIT, NO_REPORT, message)));
        let told = write_frame(&mut self.primary, &Command::Run(spec));
        reach(FaultPoint::RunnerTold);
        match told {
            Err(FrameError::TooLong(length)) => {
                let message =
                    format!("the pod's description of {length} bytes is too long; use fewer or shorter arguments");
                Some(End::Unreported(PodReport::failure(PODVM_ERROR, message)))
            }
            // A connection that broke is heard of by the thread that reads it.
            _ => None,
        }
    }

    fn attach(&mut self, app: &AppName, process: ProcessId) -> Option<End> {
        let app = self.pod.manifest().apps.iter().find(|known| known.name == *app)?;
        if self.attached.contains(&app.name) {
            // A supervisor that says so without end gets no thread for each time.
            let most = MAX_STREAMS_PER_APP * self.pod.manifest().apps.len();
            let lives_once = app.restart == RestartPolicy::No && app.post_stop.is_empty();
            if lives_once || self.attacher.outputs.under_way() >= most {
                return None;
            }
        } else {
            self.attached.push(app.name.clone());
        }
        let attached = self.attacher.attach(app, process);
        reach(FaultPoint::StreamsAttached);
        let error = attached.err()?;
        let message = format!("the streams of app {} cannot be attached: {error}", app.name);
        Some(End::Unreported(PodReport::failure(PODVM_ERROR, message)))
    }

    fn lose_primary(&mut self, error: &FrameError) -> Option<End> {
        // The supervisor, should it still be there, stops the pod when it sees the end of its connection.
        let _ = self.primary.shutdown(Shutdown::Both);
        self.is_primary_lost = true;
        if self.have_walls_fallen || !self.has_walls {
            let limit = self.limit.take().filter(|_| self.have_walls_fallen);
            let report = limit.map_or_else(|| supervisor_lost(error), |limit| limit.report);
            return Some(End::Unreported(report));
        }
        self.limit = Some(Limit { at: Instant::now() + LAST_WORD, report: supervisor_lost(error) });
        None
    }

    /// The supervisor's report may still be on its way, and is the better one.
    fn lose_walls(&mut self, report: PodReport) -> Option<End> {
        self.have_walls_fallen = true;
        if self.is_primary_lost {
            return Some(End::Unreported(report));
        }
        self.limit = Some(Limit { at: Instant::now() + LAST_READ, report });
        None
    }

    fn obey(&mut self, signal: i32) -> Option<End> {
        if signal == Signal::SIGWINCH as i32 {
            self.attacher.resize();
            return None;
        }
        if is_passed_on(signal) {
            self.pass_on(signal);
            return None;
        }
        self.stops += 1;
        if self.spec.is_some() || self.stops > 2 {
            let when =
                if self.spec.is_some() { "before its apps were started" } else { "without waiting for its apps" };
            let code = SIGNAL_BASE.wrapping_add(signal as u8);
            return Some(End::Unreported(PodReport::failure(
                code,
                format!("the pod was ended {when}, by signal {signal}"),
            )));
        }
        let grace = if self.stops == 1 { STOP_GRACE } else { Duration::ZERO };
        self.expect(Some(Limit::after(grace + STOP_MARGIN, NO_REPORT, "the supervisor did not stop the pod in time")));
        // A connection that broke is heard of by the thread that reads it.
        let _ = write_frame(&mut self.primary, &Command::Stop { grace_ms: grace.as_millis() as u64 });
        None
    }

    /// Sends the apps a signal that is theirs. Before they run there is nobody to get it.
    fn pass_on(&self, signal: i32) {
        if self.started.is_none() {
            return;
        }
        let client = self.attacher.client.clone();
        let passed = spawn("signal", move || {
            if let Err(error) = client.signal(SignalTarget::Pod, signal) {
                eprintln!("podvm: signal {signal} has not reached the apps: {error}");
            }
        });
        if let Err(error) = passed {
            eprintln!("podvm: signal {signal} has not reached the apps: {error}");
        }
    }

    /// Sets the limit of what is waited for. When the walls or the supervisor are gone, it stays as it is: what was still
    /// under way by then, and signals, put the end off no further, nor change what is reported.
    fn expect(&mut self, limit: Option<Limit>) {
        if !self.have_walls_fallen && !self.is_primary_lost {
            self.limit = limit;
        }
    }

    fn record(&mut self, now: Instant) {
        self.record_at = None;
        self.last_record = Some(now);
        let Some(started) = self.started else { return };
        if let Err(error) = self.pod.record_running(started, &self.addresses, self.board.apps()) {
            eprintln!("podvm: the pod's state cannot be recorded: {error}");
        }
    }

    /// Reads what the apps have still said.
    fn read_out(&mut self) {
        let at_most = (self.stops > 0).then_some(READ_OUT_LIMIT);
        // Forgets the signals that came before.
        self.attacher.outputs.under_way();
        self.attacher.outputs.wait(READ_OUT_IDLE, at_most);
    }

    /// Lets the supervisor go, and waits for the walls' orderly end.
    fn say_farewell(&mut self) {
        if write_frame(&mut self.primary, &Command::Farewell).is_err() || !self.has_walls {
            return;
        }
        let latest = Instant::now() + POWER_OFF;
        while !self.have_walls_fallen && Instant::now() < latest {
            match self.inputs.recv_timeout(latest.saturating_duration_since(Instant::now())) {
                Ok(Input::WallsFell(_)) => self.have_walls_fallen = true,
                // The user is impatient.
                Ok(Input::Signal(signal)) if asks_for_the_end(signal) => return,
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }
}

/// Who reads what a pod prints must not take it for whole by the exit code.
fn without_output(report: PodReport) -> PodReport {
    if report.code != 0 {
        return report;
    }
    PodReport { code: PODVM_ERROR, error: Some("what the apps printed could not all be written".into()), ..report }
}

fn asks_for_the_end(signal: i32) -> bool {
    signal != Signal::SIGWINCH as i32 && !is_passed_on(signal)
}

fn supervisor_lost(error: &FrameError) -> PodReport {
    PodReport::failure(NO_REPORT, format!("the supervisor was lost before it reported the pod's end: {error}"))
}

/// Starts the threads that read what can happen. Signals also `interrupt` the reading of the apps' last output.
fn listen(
    mut primary: UnixStream,
    mut signals: Signals,
    walls: Option<Walls>,
    interrupt: impl Fn() + Send + 'static,
) -> io::Result<Receiver<Input>> {
    let (sender, inputs): (SyncSender<Input>, _) = sync_channel(WAITING_INPUTS);
    let events = sender.clone();
    spawn("events", move || {
        loop {
            let (input, is_last) = match read_frame(&mut primary) {
                Ok(event) => (Input::Event(event), false),
                Err(error) => (Input::PrimaryEnded(error), true),
            };
            if events.send(input).is_err() || is_last {
                return;
            }
        }
    })?;
    if let Some(walls) = walls {
        let fallen = sender.clone();
        spawn("walls", move || drop(fallen.send(Input::WallsFell(walls()))))?;
    }
    spawn("signals", move || {
        while let Some(signal) = signals.wait() {
            if asks_for_the_end(signal) {
                interrupt();
            }
            if sender.send(Input::Signal(signal)).is_err() {
                return;
            }
        }
    })?;
    Ok(inputs)
}
