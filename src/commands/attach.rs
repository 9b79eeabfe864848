//! `podvm attach`: a running app's output from now on, and its input.
//!
//! The output is read from the app's log, which the pod's process writes as the output comes, so that any number of terminals can
//! be attached and none can slow the app down. Input goes to the supervisor: to the app's terminal beside what else is typed there,
//! or to its standard input if nobody has that yet.

use std::io::{self, IsTerminal, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::sys::signal::Signal;
use podvm_pod::PodDir;
use podvm_pod::client::{ClientError, SupervisorClient};
use podvm_pod::console::{RawTerminal, Signals, TerminalSize};
use podvm_pod::directory::Phase;
use podvm_pod::manifest::{App, AppName};
use podvm_pod::protocol::{ProcessId, StreamKind};
use podvm_pod::status::AppState;

use super::logs::{FollowedLog, Printer};
use super::summary::PodSummary;
use super::target::RunningPod;
use crate::config::Config;
use crate::report;

const EXAMPLES: &str = "\
Examples:
  podvm attach 8d3f             what the only app prints from now on; what is typed, if it was run with --interactive or --tty
  podvm attach 8d3f --app db    one of several apps
Ctrl-P Ctrl-Q leaves an app's terminal, Ctrl-C any other app; the app goes on. The exit code is the app's when it ends. An app
that is started again stays attached, and its new terminal gets what is typed.";
/// How often new output is looked for: less than a person notices.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// How long an app that has ended must have been silent until all that it has printed is there.
const QUIET: Duration = Duration::from_millis(500);
/// What leaves a terminal: Ctrl-P, Ctrl-Q, as in docker.
const LEAVE: [u8; 2] = [0x10, 0x11];

/// Options of `podvm attach`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct AttachArgs {
    /// The pod: its UUID, or enough of its beginning
    #[arg(value_name = "POD")]
    pub pod: String,
    /// The app; needed when the pod has several
    #[arg(long, value_name = "APP")]
    pub app: Option<AppName>,
    /// Show output only
    #[arg(long)]
    pub no_stdin: bool,
}

/// Attaches to an app; returns its exit code, or 0 when the user leaves.
pub fn run(args: &AttachArgs, config: &Config) -> Result<u8> {
    let pod = RunningPod::find(config, &args.pod)?;
    let name = pod.app(args.app.as_ref())?;
    let Some(app) = pod.manifest.apps.iter().find(|app| app.name == name) else { bail!("there is no app {name}") };
    let attached = Arc::new(Attached::to(pod.client(), app)?);

    let mut log = FollowedLog::new(&pod.dir, name.clone());
    log.skip_to_end()?;
    let left = Arc::new(AtomicBool::new(false));
    let signals = Signals::block()?;
    let raw = if args.no_stdin { None } else { type_to(app, &attached, &left)? };
    watch_signals(signals, attached.clone(), left.clone());
    let shown = show(&pod.dir, log, &attached, &left);
    let was_raw = raw.is_some();
    drop(raw);
    shown?;
    if left.load(Ordering::Relaxed) {
        if was_raw {
            // The app's prompt stays in its line, and the shell's gets one of its own.
            eprintln!();
        }
        return Ok(0);
    }
    let summary = PodSummary::of(&pod.dir)?;
    Ok(summary.apps.iter().find(|app| app.name == name).and_then(|app| app.exit_code).unwrap_or(0))
}

/// Shows what comes until the app has ended for good or the user leaves.
fn show(dir: &PodDir, log: FollowedLog, attached: &Attached, left: &AtomicBool) -> Result<()> {
    let mut printer = Printer::plain();
    let mut logs = [log];
    let mut running = None;
    let mut quiet_since = None;
    while !left.load(Ordering::Relaxed) {
        // Looked at first, so that what was printed before the end is still read.
        let life = Life::of(dir, &attached.app)?;
        let has_come = match super::logs::print_new(&mut logs, &mut printer) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            printed => printed?,
        };
        match life {
            Life::PodOver => return Ok(()),
            Life::Ended if has_come || quiet_since.is_none() => quiet_since = Some(Instant::now()),
            Life::Ended if quiet_since.is_some_and(|since| since.elapsed() > QUIET) => return Ok(()),
            Life::Ended => {}
            Life::Runs(pid) if running == Some(pid) => {}
            Life::Runs(pid) => {
                running = Some(pid);
                // Any other error is the pod's end, which is seen next.
                if let Err(error @ ClientError::Refused { .. }) = attached.follow() {
                    report(&format!("what is typed here goes nowhere: {error}"));
                }
            }
            Life::Waits => quiet_since = None,
        }
        sleep(LOOK_INTERVAL);
    }
    Ok(())
}

/// Where an app is in its life, as its pod recorded it.
enum Life {
    /// It is started, or is to be started again.
    Waits,
    /// It runs, with this PID.
    Runs(i32),
    /// It has ended for good. What it printed last may still be under way to its log.
    Ended,
    /// Its pod has ended, and its log is whole.
    PodOver,
}

impl Life {
    fn of(dir: &PodDir, app: &AppName) -> Result<Self> {
        let (state, phase) = dir.state()?;
        let Phase::Running { apps, .. } = phase else { return Ok(Self::PodOver) };
        if state.has_ended() {
            return Ok(Self::PodOver);
        }
        let state = apps.into_iter().find(|status| status.name == *app).map(|status| status.state);
        Ok(match state {
            Some(AppState::Running { pid }) => Self::Runs(pid),
            Some(AppState::Exited { .. } | AppState::Failed { .. }) => Self::Ended,
            Some(AppState::Waiting | AppState::Restarting { .. }) | None => Self::Waits,
        })
    }
}

/// The app's process as it is now: an app that is started again has another.
struct Attached {
    client: SupervisorClient,
    app: AppName,
    has_terminal: bool,
    now: Mutex<Now>,
}

struct Now {
    process: ProcessId,
    /// Where what is typed goes, if it goes anywhere.
    typed_to: Option<UnixStream>,
}

impl Attached {
    fn to(client: SupervisorClient, app: &App) -> Result<Self> {
        let Some(process) = main_process(&client, &app.name)? else { bail!("app {} has not been started", app.name) };
        let now = Mutex::new(Now { process, typed_to: None });
        Ok(Self { client, app: app.name.clone(), has_terminal: app.terminal, now })
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects what is typed.
    fn connect(&self) -> Result<(), ClientError> {
        let mut now = self.now();
        now.typed_to = Some(self.client.open_stream(now.process, StreamKind::Stdin)?);
        Ok(())
    }

    /// Turns to the app's new process, if it has one.
    fn follow(&self) -> Result<(), ClientError> {
        let Some(process) = main_process(&self.client, &self.app)? else { return Ok(()) };
        let was_typing = {
            let mut now = self.now();
            if now.process == process {
                return Ok(());
            }
            now.process = process;
            // Whoever is writing to the old one is let go.
            now.typed_to.take().map(|old| old.shutdown(Shutdown::Both)).is_some()
        };
        if was_typing {
            self.connect()?;
        }
        self.resize();
        Ok(())
    }

    /// What cannot be written, since the app has ended, is lost, as what is typed at a dead terminal.
    fn write(&self, typed: &[u8]) {
        // Not under the lock: an app that does not read must not keep its successor waiting.
        let stream = self.now().typed_to.as_ref().and_then(|stream| stream.try_clone().ok());
        let _ = stream.map(|mut stream| stream.write_all(typed));
    }

    fn end_typing(&self) {
        let stream = self.now().typed_to.take();
        let _ = stream.map(|stream| stream.shutdown(Shutdown::Write));
    }

    /// Gives the app's terminal the size of this one.
    fn resize(&self) {
        if let (true, Some(size)) = (self.has_terminal, TerminalSize::of(io::stdout().as_fd())) {
            let process = self.now().process;
            // A process that has ended has no size.
            let _ = self.client.resize(process, size);
        }
    }
}

fn main_process(client: &SupervisorClient, app: &AppName) -> Result<Option<ProcessId>, ClientError> {
    Ok(client.status()?.into_iter().find(|(status, _)| status.name == *app).and_then(|(_, process)| process))
}

/// Connects what is typed, if the app takes input.
fn type_to(app: &App, attached: &Arc<Attached>, left: &Arc<AtomicBool>) -> Result<Option<RawTerminal>> {
    if !app.stdin && !app.terminal {
        return Ok(None);
    }
    match attached.connect() {
        Ok(()) => {}
        // Somebody else types already: what the app says can be seen all the same.
        Err(error @ ClientError::Refused { .. }) => {
            report(&format!("what is typed here goes nowhere: {error}"));
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    }
    let raw = if app.terminal && io::stdin().is_terminal() { RawTerminal::enter(io::stdin().as_fd())? } else { None };
    attached.resize();
    let (attached, left, has_keys) = (attached.clone(), left.clone(), raw.is_some());
    spawn(move || {
        if feed(io::stdin().as_fd(), &attached, has_keys) {
            left.store(true, Ordering::Relaxed);
        }
    });
    Ok(raw)
}

/// Passes on what is typed to its end; true when the keys that leave were pressed.
fn feed(from: BorrowedFd<'_>, to: &Attached, has_keys: bool) -> bool {
    let mut bytes = [0; 4096];
    let mut had_first = false;
    loop {
        match nix::unistd::read(from, &mut bytes) {
            Err(nix::errno::Errno::EINTR) => {}
            Ok(0) | Err(_) => break,
            Ok(length) => {
                let typed = &bytes[..length];
                if has_keys && ((had_first && typed[0] == LEAVE[1]) || typed.windows(2).any(|keys| keys == LEAVE)) {
                    return true;
                }
                had_first = typed.last() == Some(&LEAVE[0]);
                to.write(typed);
            }
        }
    }
    to.end_typing();
    false
}

/// A signal that would end this process leaves the app; the terminal's size is the app's.
fn watch_signals(mut signals: Signals, attached: Arc<Attached>, left: Arc<AtomicBool>) {
    spawn(move || {
        while let Some(signal) = signals.wait() {
            if signal == Signal::SIGWINCH as i32 {
                attached.resize();
            } else {
                left.store(true, Ordering::Relaxed);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use podvm_pod::PodsRoot;
    use podvm_pod::Stage1Kind;
    use podvm_pod::status::{AppStatus, ExitStatus, PodReport};

    use super::*;
    use crate::commands::pod_without_apps;

    #[test]
    fn an_app_ends_before_its_pod_and_not_when_it_is_started_again() {
        let folder = tempfile::tempdir().unwrap();
        let pod = PodsRoot::new(folder.path()).prepare(pod_without_apps()).unwrap().start(Stage1Kind::Ns).unwrap();
        let (web, other): (AppName, AppName) = ("web".parse().unwrap(), "other".parse().unwrap());
        let life = |state: AppState| {
            let runs = AppStatus::new(other.clone(), AppState::Running { pid: 1 });
            pod.record_running(1, &[], &[runs, AppStatus::new(web.clone(), state)]).unwrap();
            Life::of(pod.dir(), &web).unwrap()
        };
        let status = ExitStatus::Exited(0);
        assert!(matches!(life(AppState::Running { pid: 7 }), Life::Runs(7)));
        assert!(matches!(life(AppState::Restarting { status }), Life::Waits));
        assert!(matches!(life(AppState::Exited { status, oom_killed: false }), Life::Ended));
        let report = PodReport { code: 0, failed_app: None, error: None, apps: Vec::new() };
        pod.record_exit(2, &report).unwrap();
        assert!(matches!(Life::of(pod.dir(), &web).unwrap(), Life::PodOver));
    }
}
