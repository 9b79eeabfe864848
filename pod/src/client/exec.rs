//! Executing another program in a running app, with this process's own standard streams, terminal and signals.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::{ClientError, SupervisorClient};
use crate::console::{Outputs, RawTerminal, Signals, TerminalSize, feed, spawn, write_fully};
use crate::protocol::{ExecSpec, ProcessId, SignalTarget, StreamKind};
use crate::status::ExitStatus;

/// How long a stream may rest after the program's end before it counts as held open by someone else.
const IDLE_STREAM: Duration = Duration::from_secs(2);
/// Longest reading of streams after the program's end; a signal ends it earlier.
const READ_OUT: Duration = Duration::from_secs(3_600);

/// The process's own standard streams.
#[derive(Debug, Clone, Copy)]
pub struct ExecStreams<'a> {
    /// What is typed.
    pub stdin: BorrowedFd<'a>,
    /// Where output goes; of a terminal, all of it.
    pub stdout: BorrowedFd<'a>,
    /// Where errors go.
    pub stderr: BorrowedFd<'a>,
}

/// Executes a program in an app and waits for its end. Signals are passed on to it.
///
/// # Errors
/// [`ClientError`]; a program that is not there or cannot be executed is [`ClientError::Refused`].
pub fn exec(
    client: &SupervisorClient,
    spec: ExecSpec,
    streams: ExecStreams<'_>,
    signals: Signals,
) -> Result<ExitStatus, ClientError> {
    let (terminal, stdin) = (spec.terminal, spec.stdin);
    let process = client.prepare(spec)?;
    let own = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map_err(ClientError::Unreachable);
    let local = |error: io::Error| ClientError::Unreachable(error);

    let mut outputs = Outputs::default();
    let mut typed_to = None;
    let kinds: &[StreamKind] =
        if terminal { &[StreamKind::Terminal] } else { &[StreamKind::Stdout, StreamKind::Stderr] };
    for kind in kinds {
        let stream = client.open_stream(process, *kind)?;
        if *kind == StreamKind::Terminal {
            typed_to = Some(stream.try_clone().map_err(local)?);
        }
        let to = own(if *kind == StreamKind::Stderr { streams.stderr } else { streams.stdout })?;
        let sink = move |piece: &[u8]| drop(write_fully(to.as_fd(), piece));
        outputs.carry("output", move || Ok::<_, io::Error>(stream), sink, |_| {}).map_err(local)?;
    }
    if stdin && !terminal {
        typed_to = Some(client.open_stream(process, StreamKind::Stdin)?);
    }
    let size_from = own(streams.stdout)?;
    if let (true, Some(size)) = (terminal, TerminalSize::of(size_from.as_fd())) {
        client.resize(process, size)?;
    }
    let raw = if terminal && stdin { RawTerminal::enter(streams.stdin).map_err(local)? } else { None };
    client.start(process)?;
    if let (true, Some(stream)) = (stdin, typed_to) {
        let from = own(streams.stdin)?;
        let fed = move || {
            if feed(from.as_fd(), &stream).unwrap_or(false) && !terminal {
                let _ = stream.shutdown(Shutdown::Write);
            }
        };
        spawn("input", fed).map_err(local)?;
    }
    let (forward_client, interrupt) = (client.clone(), outputs.interrupter());
    let forward = move || pass_signals_on(signals, &forward_client, process, &size_from, interrupt);
    spawn("signals", forward).map_err(local)?;

    let status = client.wait(process)?;
    outputs.wait(IDLE_STREAM, READ_OUT);
    drop(raw);
    Ok(status)
}

/// Sends the program what this process is sent, for as long as the supervisor knows it; then a signal ends the waiting for
/// its streams.
fn pass_signals_on(
    mut signals: Signals,
    client: &SupervisorClient,
    process: ProcessId,
    terminal: &impl AsFd,
    interrupt: impl Fn(),
) {
    while let Some(signal) = signals.wait() {
        if signal == Signal::SIGWINCH as i32 {
            if let Some(size) = TerminalSize::of(terminal.as_fd()) {
                let _ = client.resize(process, size);
            }
        } else if client.signal(SignalTarget::Process(process), signal).is_err() {
            interrupt();
        }
    }
}
