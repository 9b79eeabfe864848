//! Commands in one boot of the lab, or on the host itself where it needs no lab: one after the other, each with
//! its own exit code, output, input and time limit.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use podvm_lab_agent::process::{Event, Process};
use podvm_lab_agent::protocol::{Ended, Frame, INPUT_WINDOW, Ready, Spawn, Stream, TerminalSize};

use crate::machine::Machine;
use crate::{LabConfig, LabError};

/// How long the machine may take to come up; many times what it takes.
const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// How long a machine that goes on may be silent. QEMU's emulation of nested virtualization sometimes spins for ever.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// How long a killed command may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(20);
/// How often a terminal's size is looked at.
const TICK: Duration = Duration::from_millis(300);
/// Most bytes of input in one frame.
const INPUT_CHUNK: usize = 32 * 1024;

/// A command to run in the lab.
#[derive(Default)]
pub struct LabCommand {
    spawn: Spawn,
    time_limit: Option<Duration>,
    input: Option<Box<dyn Read + Send>>,
    terminal_size: Option<fn() -> TerminalSize>,
}

impl LabCommand {
    /// Program and arguments.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        let argv = argv.into_iter().map(Into::into).collect();
        Self { spawn: Spawn { argv, ..Spawn::default() }, ..Self::default() }
    }

    /// Sets one variable of its environment, which else holds only what [`Session::environment`] says.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.spawn.env.push((name.into(), value.into()));
        self
    }

    /// Where it starts; `/` without.
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.spawn.directory = Some(directory.into());
        self
    }

    /// Kills it, and all it started, after this time.
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = Some(limit);
        self
    }

    /// What it reads as standard input. A read that blocks goes on when the command has ended.
    pub fn input(mut self, from: impl Read + Send + 'static) -> Self {
        self.input = Some(Box::new(from));
        self
    }

    /// Gives it a terminal, whose size is asked for now and then.
    pub fn terminal(mut self, size: fn() -> TerminalSize) -> Self {
        self.terminal_size = Some(size);
        self
    }
}

/// Why a command has no end to report.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It was killed for taking too long; the session goes on.
    #[error("the time limit of {} s is over; the command was killed", .0.as_secs())]
    TimeLimit(Duration),
    /// The machine died, and the session with it.
    #[error("the lab's machine died while the command ran ({status})\n--- end of its console ---\n{console}")]
    MachineDied {
        /// How QEMU ended.
        status: String,
        /// The end of the kernel's messages.
        console: String,
    },
    /// What the command left could not be brought out.
    #[error("{path} could not be carried out of the lab: {reason}")]
    NotCarriedOut {
        /// The path in the lab.
        path: PathBuf,
        /// What the lab said.
        reason: String,
    },
}

/// What the machine's end of the session says.
enum News {
    Ready(Ready),
    Alive,
    Event(u32, Event),
    Gone(String),
}

/// A booted lab, or the host itself.
pub struct Session {
    link: Link,
    news: Receiver<News>,
    next_id: u32,
    ready: Option<Ready>,
    boot_time: Duration,
    /// Whether the machine's clock is the host's, so that its heartbeat can be waited for.
    has_heartbeat: bool,
}

enum Link {
    Direct { sender: Sender<News>, process: Option<Process> },
    Emulated { machine: Option<Machine>, port: Arc<Mutex<UnixStream>> },
}

impl Session {
    pub(crate) fn direct() -> Self {
        let (sender, news) = mpsc::channel();
        let link = Link::Direct { sender, process: None };
        Self { link, news, next_id: 1, ready: None, boot_time: Duration::ZERO, has_heartbeat: false }
    }

    pub(crate) fn emulated(config: &LabConfig) -> Result<Self, LabError> {
        let start = Instant::now();
        let (machine, port) = Machine::start(config)?;
        let from = port.try_clone().map_err(LabError::io("share the agent's port"))?;
        let (sender, news) = mpsc::channel();
        std::thread::spawn(move || read_port(from, &sender));
        let link = Link::Emulated { machine: Some(machine), port: Arc::new(Mutex::new(port)) };
        let has_heartbeat = !config.icount;
        let mut session = Self { link, news, next_id: 1, ready: None, boot_time: Duration::ZERO, has_heartbeat };
        let reason = match session.news.recv_timeout(BOOT_LIMIT) {
            Ok(News::Ready(ready)) => {
                session.ready = Some(ready);
                session.boot_time = start.elapsed();
                return Ok(session);
            }
            Ok(News::Gone(reason)) => reason,
            Ok(News::Event(..) | News::Alive) => "its agent spoke before it was ready".into(),
            Err(_) => format!("nothing was heard of it for {} s", BOOT_LIMIT.as_secs()),
        };
        let (status, console) = session.stop_machine();
        Err(LabError::BootFailed { reason: format!("{reason} ({status})"), console })
    }

    /// What the machine said of itself; `None` where commands run on the host.
    pub fn ready(&self) -> Option<&Ready> {
        self.ready.as_ref()
    }

    /// From the start of QEMU's preparation to the agent's word.
    pub fn boot_time(&self) -> Duration {
        self.boot_time
    }

    /// The environment every command gets: the caller's search path with the system's directories, a home, and
    /// a directory for temporary files that is on a real file system.
    pub fn environment(&self) -> Vec<(String, String)> {
        let system = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let path = std::env::var("PATH").map_or_else(|_| system.into(), |path| format!("{path}:{system}"));
        let mut environment = vec![("PATH".into(), path)];
        for (name, value) in [("HOME", "/root"), ("USER", "root"), ("LANG", "C.UTF-8"), ("TMPDIR", "/var/tmp")] {
            environment.push((name.into(), value.into()));
        }
        let kept = ["TERM", "RUST_BACKTRACE", "RUST_LOG", "CARGO_HOME", "RUSTUP_HOME"];
        environment.extend(kept.iter().filter_map(|name| Some((name.to_string(), std::env::var(name).ok()?))));
        environment
    }

    /// Runs a command to its end; `output` gets what it writes, as it comes.
    pub fn run(&mut self, command: LabCommand, output: &mut dyn FnMut(Stream, &[u8])) -> Result<Ended, RunError> {
        let LabCommand { mut spawn, time_limit, input, terminal_size } = command;
        let id = self.next_id;
        self.next_id += 1;
        let mut environment = self.environment();
        environment.append(&mut spawn.env);
        spawn.env = environment;
        spawn.reads_input = input.is_some();
        spawn.terminal = terminal_size.map(|size| size());
        let deadline = time_limit.map(|limit| Instant::now() + limit);
        let mut shown = spawn.terminal;
        self.start(id, spawn);
        let window = Arc::new(InputWindow::default());
        if let Some(input) = input {
            self.pump_input(id, input, window.clone());
        }
        let mut heard = Instant::now();
        let ended = loop {
            let left = deadline.map_or(TICK, |deadline| deadline.saturating_duration_since(Instant::now()));
            let news = self.news.recv_timeout(left.min(TICK));
            if news.is_ok() {
                heard = Instant::now();
            } else if self.has_heartbeat && heard.elapsed() > SILENCE_LIMIT {
                break Err(self.died("it hangs"));
            }
            match news {
                Ok(News::Event(of, event)) if of == id => match event {
                    Event::Output(stream, bytes) => output(stream, &bytes),
                    Event::InputTaken(bytes) => window.widen(bytes as usize),
                    Event::Ended(ended) => break Ok(ended),
                },
                Ok(News::Event(..) | News::Ready(_) | News::Alive) => {}
                Ok(News::Gone(reason)) => break Err(self.died(&reason)),
                Err(RecvTimeoutError::Disconnected) => break Err(self.died("it was gone already")),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let (Some(limit), Some(deadline)) = (time_limit, deadline)
                && Instant::now() >= deadline
            {
                break Err(self.give_up(id, limit, output));
            }
            if let Some(size) = terminal_size.map(|size| size()).filter(|size| Some(*size) != shown) {
                shown = Some(size);
                self.send(id, Frame::Resize(id, size));
            }
        };
        window.close();
        ended
    }

    /// Runs a command and returns its end, standard output and standard error.
    pub fn capture(&mut self, command: LabCommand) -> Result<(Ended, Vec<u8>, Vec<u8>), RunError> {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let ended = self.run(command, &mut |stream, bytes| match stream {
            Stream::Stdout => out.extend_from_slice(bytes),
            Stream::Stderr => err.extend_from_slice(bytes),
        })?;
        Ok((ended, out, err))
    }

    /// Copies a file or a directory that a command has left to the host.
    pub fn carry_out(&mut self, from: &Path, to: &Path) -> Result<(), RunError> {
        let failed = |reason: String| RunError::NotCarriedOut { path: from.to_owned(), reason };
        let path = from.display().to_string();
        let (is_directory, ..) = self.capture(LabCommand::new(["test", "-d", &path]))?;
        let directory = is_directory == Ended::Code(0);
        let command = if directory {
            LabCommand::new(["tar", "-C", &path, "-cf", "-", "."])
        } else {
            LabCommand::new(["cat", &path])
        };
        let mut sink = Carrier::open(to, directory).map_err(|error| failed(error.to_string()))?;
        let (mut said, mut trouble) = (Vec::new(), None);
        let ended = self.run(command, &mut |stream, bytes| match stream {
            Stream::Stdout => trouble = trouble.take().or(sink.write(bytes).err()),
            Stream::Stderr => said.extend_from_slice(bytes),
        })?;
        if ended != Ended::Code(0) {
            return Err(failed(String::from_utf8_lossy(&said).trim().to_owned()));
        }
        match trouble.or(sink.finish().err()) {
            Some(error) => Err(failed(format!("{}: {error}", to.display()))),
            None => Ok(()),
        }
    }

    fn start(&mut self, id: u32, spawn: Spawn) {
        let Link::Direct { sender, process } = &mut self.link else {
            return self.send(id, Frame::Start(id, spawn));
        };
        let events = sender.clone();
        let sink = Arc::new(move |event| {
            // Nobody listens once the session is dropped.
            let _ = events.send(News::Event(id, event));
        });
        match Process::start(&spawn, None, sink) {
            Ok(started) => *process = Some(started),
            Err(error) => {
                let program = spawn.argv.first().map_or("", String::as_str);
                let _ = sender.send(News::Event(id, Event::Ended(Ended::NotStarted(format!("{program}: {error}")))));
            }
        }
    }

    /// Sends the agent a frame, or does to the host's process what the agent would do.
    fn send(&mut self, id: u32, frame: Frame) {
        match &mut self.link {
            // If the port is dead the reader says so, with the reason.
            Link::Emulated { port, .. } => drop(frame.write(&mut *lock(port))),
            Link::Direct { process: Some(process), .. } => match frame {
                Frame::Resize(of, size) if of == id => process.resize(size),
                Frame::Kill(of) if of == id => process.kill(),
                _ => {}
            },
            Link::Direct { process: None, .. } => {}
        }
    }

    fn pump_input(&mut self, id: u32, mut from: Box<dyn Read + Send>, window: Arc<InputWindow>) {
        let mut send: Box<dyn FnMut(Option<Vec<u8>>) + Send> = match &mut self.link {
            Link::Emulated { port, .. } => {
                let port = port.clone();
                Box::new(move |bytes| {
                    let frame = bytes.map_or(Frame::InputEnd(id), |bytes| Frame::Input(id, bytes));
                    let _ = frame.write(&mut *lock(&port));
                })
            }
            Link::Direct { process, .. } => {
                let mut input = process.as_mut().and_then(Process::take_input);
                Box::new(move |bytes| match bytes {
                    Some(bytes) => drop(input.as_ref().map(|input| input.send(bytes))),
                    None => input = None,
                })
            }
        };
        std::thread::spawn(move || {
            let mut buffer = vec![0; INPUT_CHUNK];
            while let Ok(length @ 1..) = from.read(&mut buffer) {
                if !window.narrow(length) {
                    return;
                }
                send(Some(buffer[..length].to_vec()));
            }
            send(None);
        });
    }

    /// Kills a command that has had its time, and waits for its end.
    fn give_up(&mut self, id: u32, limit: Duration, output: &mut dyn FnMut(Stream, &[u8])) -> RunError {
        self.send(id, Frame::Kill(id));
        let deadline = Instant::now() + KILL_LIMIT;
        loop {
            match self.news.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(News::Event(of, Event::Output(stream, bytes))) if of == id => output(stream, &bytes),
                Ok(News::Event(of, Event::Ended(_))) if of == id => return RunError::TimeLimit(limit),
                Ok(News::Gone(reason)) => return self.died(&reason),
                Ok(_) => {}
                Err(_) => return self.died("a command could not even be killed"),
            }
        }
    }

    fn died(&mut self, reason: &str) -> RunError {
        let (status, console) = self.stop_machine();
        RunError::MachineDied { status: format!("{reason}; {status}"), console }
    }

    fn stop_machine(&mut self) -> (String, String) {
        match &mut self.link {
            Link::Emulated { machine, port } => {
                let _ = lock(port).shutdown(Shutdown::Both);
                machine.take().map_or_else(|| ("stopped".into(), String::new()), Machine::stop)
            }
            Link::Direct { .. } => ("this is the host itself".into(), String::new()),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read_port(mut from: UnixStream, news: &Sender<News>) {
    loop {
        let item = match Frame::read(&mut from) {
            Ok(Some(Frame::Ready(ready))) => News::Ready(ready),
            Ok(Some(Frame::Alive)) => News::Alive,
            Ok(Some(Frame::Output(id, stream, bytes))) => News::Event(id, Event::Output(stream, bytes)),
            Ok(Some(Frame::InputTaken(id, bytes))) => News::Event(id, Event::InputTaken(bytes)),
            Ok(Some(Frame::Ended(id, ended))) => News::Event(id, Event::Ended(ended)),
            Ok(Some(other)) => News::Gone(format!("its agent sent what only the host sends: {other:?}")),
            Ok(None) => News::Gone("it went down".into()),
            Err(error) => News::Gone(format!("its port broke: {error}")),
        };
        let last = matches!(item, News::Gone(_));
        if news.send(item).is_err() || last {
            return;
        }
    }
}

/// How much input may still be sent before the command has taken some.
#[derive(Default)]
struct InputWindow {
    state: Mutex<InputState>,
    changed: Condvar,
}

#[derive(Default)]
struct InputState {
    under_way: usize,
    closed: bool,
}

impl InputWindow {
    /// Waits for room for `bytes`; false when the command has ended.
    fn narrow(&self, bytes: usize) -> bool {
        let full = |state: &mut InputState| !state.closed && state.under_way + bytes > INPUT_WINDOW;
        let mut state = self.changed.wait_while(lock(&self.state), full).unwrap_or_else(PoisonError::into_inner);
        state.under_way += bytes;
        !state.closed
    }

    fn widen(&self, bytes: usize) {
        let mut state = lock(&self.state);
        state.under_way = state.under_way.saturating_sub(bytes);
        self.changed.notify_all();
    }

    fn close(&self) {
        lock(&self.state).closed = true;
        self.changed.notify_all();
    }
}

/// Takes what is carried out: into a file, or through tar(1) into a directory.
enum Carrier {
    File(std::fs::File),
    Directory(std::process::Child),
}

impl Carrier {
    fn open(to: &Path, directory: bool) -> io::Result<Self> {
        if !directory {
            return std::fs::File::create(to).map(Self::File);
        }
        std::fs::create_dir_all(to)?;
        let mut tar = std::process::Command::new("tar");
        tar.arg("-C").arg(to).args(["-xf", "-"]).stdin(std::process::Stdio::piped());
        tar.spawn().map(Self::Directory)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::File(file) => io::Write::write_all(file, bytes),
            Self::Directory(tar) => tar.stdin.as_mut().map_or(Ok(()), |input| io::Write::write_all(input, bytes)),
        }
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Self::File(_) => Ok(()),
            Self::Directory(mut tar) => {
                drop(tar.stdin.take());
                let status = tar.wait()?;
                if status.success() { Ok(()) } else { Err(io::Error::other(format!("tar: {status}"))) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_direct_session_runs_commands_one_after_the_other() {
        let mut session = Session::direct();
        for code in [0, 7] {
            let script = format!("echo out; echo err >&2; exit {code}");
            let (ended, out, err) = session.capture(LabCommand::new(["sh", "-c", &script])).unwrap();
            assert_eq!((ended, out.as_slice(), err.as_slice()), (Ended::Code(code), &b"out\n"[..], &b"err\n"[..]));
        }
    }

    #[test]
    fn input_larger_than_the_window_arrives_whole() {
        let input = io::Cursor::new(vec![b'x'; 3 * INPUT_WINDOW]);
        let (ended, out, _) = Session::direct().capture(LabCommand::new(["wc", "-c"]).input(input)).unwrap();
        assert_eq!(ended, Ended::Code(0));
        assert_eq!(String::from_utf8(out).unwrap().trim(), (3 * INPUT_WINDOW).to_string());
    }

    #[test]
    fn a_command_over_its_time_is_killed_and_the_session_goes_on() {
        let mut session = Session::direct();
        let slow = LabCommand::new(["sleep", "600"]).time_limit(Duration::from_millis(50));
        assert!(matches!(session.capture(slow), Err(RunError::TimeLimit(_))));
        assert_eq!(session.capture(LabCommand::new(["true"])).unwrap().0, Ended::Code(0));
    }

    #[test]
    fn a_program_that_is_not_there_ends_as_127() {
        let (ended, ..) = Session::direct().capture(LabCommand::new(["no-such-program"])).unwrap();
        assert_eq!(ended.exit_code(), 127);
    }

    #[test]
    fn files_and_directories_are_carried_out() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        std::fs::create_dir(&from).unwrap();
        std::fs::write(from.join("file"), "content").unwrap();
        let mut session = Session::direct();
        session.carry_out(&from, &to).unwrap();
        session.carry_out(&from.join("file"), &directory.path().join("single")).unwrap();
        assert_eq!(std::fs::read(to.join("file")).unwrap(), b"content");
        assert_eq!(std::fs::read(directory.path().join("single")).unwrap(), b"content");
        assert!(session.carry_out(Path::new("/no/such/file"), &directory.path().join("none")).is_err());
    }
}
