//! Executing another program in a running app, with this process's own standard streams, terminal and signals.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
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
/// [`ClientError`]; a program that is not there or cannot be executed is [`ClientError::Refused`], and output that could not be
/// written [`ClientError::OutputLost`]. That nobody reads it is no error but the program's.
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
    let lost: Arc<Mutex<Option<io::Error>>> = Arc::default();
    let mut typed_to = None;
    let kinds: &[StreamKind] =
        if terminal { &[StreamKind::Terminal] } else { &[StreamKind::Stdout, StreamKind::Stderr] };
    for kind in kinds {
        let stream = client.open_stream(process, *kind)?;
        if *kind == StreamKind::Terminal {
            typed_to = Some(stream.try_clone().map_err(local)?);
        }
        let to = own(if *kind == StreamKind::Stderr { streams.stderr } else { streams.stdout })?;
        let (client, kind, lost) = (client.clone(), *kind, lost.clone());
        let mut is_taken = true;
        let sink = move |piece: &[u8]| {
            if is_taken && let Err(error) = write_fully(to.as_fd(), piece) {
                is_taken = false;
                if error.kind() != io::ErrorKind::BrokenPipe {
                    lost.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
                // A supervisor that is gone has closed it.
                let _ = client.close_stream(process, kind);
            }
        };
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
    outputs.wait(IDLE_STREAM, Some(READ_OUT));
    drop(raw);
    match lost.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(error) => Err(ClientError::OutputLost(error)),
        None => Ok(status),
    }
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::sync::{Arc, Mutex};
    use std::thread;

    use super::*;
    use crate::protocol::{Envelope, Request, Response, read_frame, write_frame};

    const PROCESS: ProcessId = ProcessId(3);

    /// A supervisor whose every process copies its input to its output, and ends with 5 when its input has.
    #[derive(Clone)]
    struct Echo {
        asked: Sender<Request>,
        input: Arc<Mutex<Option<UnixStream>>>,
        ended: Arc<Mutex<Receiver<()>>>,
        end: Sender<()>,
    }

    impl Echo {
        fn client() -> (SupervisorClient, Receiver<Request>) {
            let (asked, requests) = channel();
            let (end, ended) = channel();
            let echo = Self { asked, input: Arc::default(), ended: Arc::new(Mutex::new(ended)), end };
            let connect = move || {
                let (here, there) = UnixStream::pair()?;
                let echo = echo.clone();
                thread::spawn(move || echo.serve(there));
                Ok(here)
            };
            (SupervisorClient::new(connect), requests)
        }

        fn serve(self, mut connection: UnixStream) {
            let envelope: Envelope = read_frame(&mut connection).unwrap();
            self.asked.send(envelope.request.clone()).unwrap();
            let mut answer = |response: Response| write_frame(&mut connection, &response).unwrap();
            match envelope.request {
                Request::Exec(spec) if spec.exec == ["nosuch"] => {
                    answer(Response::Error { message: "no program".into(), code: 127 });
                }
                Request::Exec(_) => answer(Response::Process { process: PROCESS }),
                Request::Wait { .. } => {
                    self.ended.lock().unwrap().recv().unwrap();
                    answer(Response::Exited { status: ExitStatus::Exited(5) });
                }
                Request::Stream { stream: StreamKind::Stdin, .. } => {
                    answer(Response::Stream);
                    *self.input.lock().unwrap() = Some(connection);
                }
                Request::Stream { stream, .. } => {
                    answer(Response::Stream);
                    if stream == StreamKind::Stdout {
                        let mut input = loop {
                            match self.input.lock().unwrap().take() {
                                Some(input) => break input,
                                None => thread::yield_now(),
                            }
                        };
                        std::io::copy(&mut input, &mut connection).unwrap();
                        self.end.send(()).unwrap();
                    } else {
                        connection.write_all(b"warning").unwrap();
                    }
                }
                _ => answer(Response::Done),
            }
        }
    }

    fn spec(program: &str) -> ExecSpec {
        ExecSpec {
            app: "web".parse().unwrap(),
            exec: vec![program.into()],
            user: None,
            environment: Vec::new(),
            working_directory: None,
            terminal: false,
            stdin: true,
        }
    }

    fn text_of(pipe: OwnedFd) -> String {
        let mut text = String::new();
        File::from(pipe).read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn input_output_errors_and_exit_code_are_the_programs() {
        let (client, requests) = Echo::client();
        let [(stdin, typed), (shown, stdout), (errors, stderr)] = [(); 3].map(|()| nix::unistd::pipe().unwrap());
        File::from(typed).write_all(b"through").unwrap();
        let streams = ExecStreams { stdin: stdin.as_fd(), stdout: stdout.as_fd(), stderr: stderr.as_fd() };
        let status = exec(&client, spec("cat"), streams, Signals::from_source(|| None)).unwrap();
        drop((stdout, stderr));
        assert_eq!(status, ExitStatus::Exited(5));
        assert_eq!((text_of(shown).as_str(), text_of(errors).as_str()), ("through", "warning"));
        let started = requests.try_iter().position(|request| request == Request::Start { process: PROCESS });
        assert!(started.is_some_and(|position| position >= 4), "started before its streams were attached: {started:?}");
    }

    #[test]
    fn a_signal_is_passed_on_to_the_program() {
        let (client, requests) = Echo::client();
        let (stdin, typed) = nix::unistd::pipe().unwrap();
        let null = File::options().write(true).open("/dev/null").unwrap();
        let streams = ExecStreams { stdin: stdin.as_fd(), stdout: null.as_fd(), stderr: null.as_fd() };
        let mut signal = Some(Signal::SIGTERM as i32);
        let ended = thread::spawn(move || {
            // The program ends once it was signalled.
            let wanted = Request::Signal { target: SignalTarget::Process(PROCESS), signal: Signal::SIGTERM as i32 };
            assert!(requests.iter().any(|request| request == wanted));
            drop(typed);
            // What else is asked for must still find someone who listens.
            requests
        });
        exec(&client, spec("cat"), streams, Signals::from_source(move || signal.take())).unwrap();
        ended.join().unwrap();
    }

    #[test]
    fn a_program_that_is_not_there_is_refused_with_its_code() {
        let (client, _requests) = Echo::client();
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        let streams = ExecStreams { stdin: null.as_fd(), stdout: null.as_fd(), stderr: null.as_fd() };
        let error = exec(&client, spec("nosuch"), streams, Signals::from_source(|| None)).unwrap_err();
        assert_eq!(error.exit_code(), 127);
    }
}
