//! `podvm attach`: a running app's output from now on, and its input.
//!
//! The output is read from the app's log, which the pod's process writes as the output comes, so that any number of terminals can
//! be attached and none can slow the app down. Input goes to the supervisor: to the app's terminal beside what else is typed there,
//! or to its standard input if nobody has that yet.

use std::io::{self, IsTerminal, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{sleep, spawn};
use std::time::Duration;

use anyhow::{Result, bail};
use nix::sys::signal::Signal;
use podvm_pod::client::{ClientError, SupervisorClient};
use podvm_pod::console::{RawTerminal, Signals, TerminalSize};
use podvm_pod::manifest::{App, AppName};
use podvm_pod::protocol::{ProcessId, StreamKind};

use super::logs::{FollowedLog, Printer};
use super::summary::PodSummary;
use super::target::RunningPod;
use crate::config::Config;
use crate::report;

const EXAMPLES: &str = "\
Examples:
  podvm attach 8d3f             what the only app prints from now on; what is typed, if it was run with --interactive or --tty
  podvm attach 8d3f --app db    one of several apps
Ctrl-P Ctrl-Q leaves an app's terminal, Ctrl-C any other app; the app goes on. The exit code is the app's when it ends.";
/// How often new output is looked for: less than a person notices.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
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
    let client = pod.client();
    let found = client.status()?.into_iter().find(|(status, _)| status.name == name);
    let Some((_, Some(process))) = found else { bail!("app {name} has not been started") };

    let mut log = FollowedLog::new(&pod.dir, name.clone());
    log.skip_to_end()?;
    let left = Arc::new(AtomicBool::new(false));
    let signals = Signals::block()?;
    let raw = if args.no_stdin { None } else { type_to(app, &client, process, &left)? };
    watch_signals(signals, client, app.terminal.then_some(process), left.clone());
    let shown = show(&pod, log, &left);
    drop(raw);
    shown?;
    if left.load(Ordering::Relaxed) {
        return Ok(0);
    }
    let summary = PodSummary::of(&pod.dir)?;
    Ok(summary.apps.iter().find(|app| app.name == name).and_then(|app| app.exit_code).unwrap_or(0))
}

/// Shows what comes until the pod has ended or the user leaves.
fn show(pod: &RunningPod, log: FollowedLog, left: &AtomicBool) -> Result<()> {
    let mut printer = Printer::plain();
    let mut logs = [log];
    while !left.load(Ordering::Relaxed) {
        // Asked first, so that what was printed before the end is still read.
        let may_grow = pod.dir.is_alive()?;
        match super::logs::print_new(&mut logs, &mut printer) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            printed => printed?,
        }
        if !may_grow {
            return Ok(());
        }
        sleep(LOOK_INTERVAL);
    }
    Ok(())
}

/// Connects what is typed, if the app takes input.
fn type_to(
    app: &App,
    client: &SupervisorClient,
    process: ProcessId,
    left: &Arc<AtomicBool>,
) -> Result<Option<RawTerminal>> {
    if !app.stdin && !app.terminal {
        return Ok(None);
    }
    let stream = match client.open_stream(process, StreamKind::Stdin) {
        Ok(stream) => stream,
        // Somebody else types already: what the app says can be seen all the same.
        Err(error @ ClientError::Refused { .. }) => {
            report(&format!("what is typed here goes nowhere: {error}"));
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    let raw = if app.terminal && io::stdin().is_terminal() { RawTerminal::enter(io::stdin().as_fd())? } else { None };
    if let (true, Some(size)) = (app.terminal, TerminalSize::of(io::stdout().as_fd())) {
        client.resize(process, size)?;
    }
    let (left, has_keys) = (left.clone(), raw.is_some());
    spawn(move || {
        if feed(io::stdin().as_fd(), stream, has_keys) {
            left.store(true, Ordering::Relaxed);
        }
    });
    Ok(raw)
}

/// Passes on what is typed to its end; true when the keys that leave were pressed.
fn feed(from: BorrowedFd<'_>, mut to: UnixStream, has_keys: bool) -> bool {
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
                if to.write_all(typed).is_err() {
                    break;
                }
            }
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    false
}

/// A signal that would end this process leaves the app; the terminal's size is the app's.
fn watch_signals(mut signals: Signals, client: SupervisorClient, terminal: Option<ProcessId>, left: Arc<AtomicBool>) {
    spawn(move || {
        while let Some(signal) = signals.wait() {
            if signal != Signal::SIGWINCH as i32 {
                left.store(true, Ordering::Relaxed);
            } else if let (Some(process), Some(size)) = (terminal, TerminalSize::of(io::stdout().as_fd())) {
                // A process that has ended has no size.
                let _ = client.resize(process, size);
            }
        }
    });
}
