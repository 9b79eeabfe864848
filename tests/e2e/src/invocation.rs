//! One call of a program, and what came of it.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a call may take unless the test says otherwise. Under emulation a pod's start takes seconds.
const TIME_LIMIT: Duration = Duration::from_secs(120);

/// Number of the first socket that a program is started with.
const FIRST_SOCKET: i32 = 3;

/// A program to be run.
pub struct Invocation {
    command: Command,
    line: String,
    input: Vec<u8>,
    time_limit: Duration,
}

impl Invocation {
    /// A call of `program`.
    pub fn new<S: AsRef<OsStr>>(program: impl AsRef<Path>, arguments: impl IntoIterator<Item = S>) -> Self {
        let program = program.as_ref();
        let arguments: Vec<OsString> = arguments.into_iter().map(|word| word.as_ref().to_owned()).collect();
        let mut line = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for word in &arguments {
            let _ = write!(line, " {}", word.to_string_lossy());
        }
        let mut command = Command::new(program);
        command.args(arguments);
        Self { command, line, input: Vec::new(), time_limit: TIME_LIMIT }
    }

    /// One more argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        let _ = write!(self.line, " {}", argument.as_ref().to_string_lossy());
        self.command.arg(argument);
        self
    }

    /// A variable of its environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// What it reads as standard input; nothing without.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = bytes.into();
        self
    }

    /// Sockets that it is started with, by their names (sd_listen_fds(3)).
    pub fn sockets(mut self, sockets: Vec<(&str, OwnedFd)>) -> Self {
        let (names, sockets): (Vec<&str>, Vec<OwnedFd>) = sockets.into_iter().unzip();
        // Only the process itself knows its number.
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "LISTEN_PID=$$ exec \"$@\"", "sh"]);
        command.arg(self.command.get_program()).args(self.command.get_args());
        command.envs(self.command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.env("LISTEN_FDS", sockets.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        let place = move || -> std::io::Result<()> {
            // Copied first, so that none is overwritten before its turn.
            let end = FIRST_SOCKET + sockets.len() as i32;
            let copies = sockets.iter().map(|socket| rustix::io::fcntl_dupfd_cloexec(socket, end));
            for (number, copy) in (FIRST_SOCKET..).zip(copies.collect::<Result<Vec<_>, _>>()?) {
                // SAFETY: between fork and exec nothing else uses this number.
                if unsafe { libc::dup2(copy.as_raw_fd(), number) } < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        };
        // SAFETY: what it calls may be called between fork and exec, but for a small allocation, which glibc allows.
        unsafe { command.pre_exec(place) };
        self.command = command;
        self
    }

    /// How long it may take.
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// Runs it to its end. Panics if it takes too long.
    #[track_caller]
    pub fn run(self) -> Finished {
        let limit = self.time_limit;
        self.spawn().wait(limit)
    }

    /// Starts it.
    #[track_caller]
    pub fn spawn(mut self) -> Running {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let spawned = self.command.spawn();
        let mut child = spawned.unwrap_or_else(|error| panic!("`{}` cannot be started: {error}", self.line));
        let (mut to, input) = (child.stdin.take(), self.input);
        // On its own thread: the program may write before it has read all.
        std::thread::spawn(move || to.as_mut().map(|to| to.write_all(&input)));
        let stdout = Collector::start(child.stdout.take());
        let stderr = Collector::start(child.stderr.take());
        Running { child, line: self.line, stdout, stderr, start: Instant::now() }
    }
}

/// What a stream has brought so far.
struct Collector {
    bytes: Arc<Mutex<Vec<u8>>>,
    ended: Receiver<()>,
}

impl Collector {
    fn start(from: Option<impl Read + Send + 'static>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let (end, ended) = mpsc::channel();
        let to = bytes.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 8192];
            let mut from = from;
            while let Some(Ok(length @ 1..)) = from.as_mut().map(|from| from.read(&mut buffer)) {
                to.lock().expect("no reader panics").extend_from_slice(&buffer[..length]);
            }
            let _ = end.send(());
        });
        Self { bytes, ended }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().expect("no reader panics")).into_owned()
    }

    /// The whole text; what a program's children still hold open is not waited for long.
    fn finish(&self) -> String {
        let _ = self.ended.recv_timeout(Duration::from_secs(2));
        self.text()
    }
}

/// A program that runs. Dropped, it is killed.
pub struct Running {
    child: Child,
    line: String,
    stdout: Collector,
    stderr: Collector,
    start: Instant,
}

impl Running {
    /// Its process.
    pub fn pid(&self) -> i32 {
        self.child.id().try_into().expect("a process number is positive and fits")
    }

    /// What it has written to standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// What it has written to standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Sends it a signal.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap_or_else(|error| panic!("`{}`: {signal}: {error}", self.line));
    }

    /// Waits until its standard output contains `text`. Panics if it ends first, or after `limit`.
    #[track_caller]
    pub fn wait_for_stdout(&mut self, text: &str, limit: Duration) {
        let start = Instant::now();
        while !self.stdout.text().contains(text) {
            if let Ok(Some(status)) = self.child.try_wait() {
                let said = self.report(status);
                assert!(said.stdout.contains(text), "it ended without saying {text:?}\n{said}");
                return;
            }
            let late = start.elapsed() > limit;
            assert!(!late, "`{}` did not say {text:?}; it said\n{}\n{}", self.line, self.stdout(), self.stderr());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits for its end. Panics after `limit`.
    #[track_caller]
    pub fn wait(mut self, limit: Duration) -> Finished {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return self.report(status);
            }
            if start.elapsed() > limit {
                let said = format!("{}\n{}", self.stdout(), self.stderr());
                panic!("`{}` still runs after {} s; it said\n{said}", self.line, limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn report(&self, status: ExitStatus) -> Finished {
        Finished {
            line: self.line.clone(),
            status,
            stdout: self.stdout.finish(),
            stderr: self.stderr.finish(),
            time: self.start.elapsed(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended needs no killing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program that has ended.
#[derive(Debug)]
pub struct Finished {
    line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
    /// From its start to its end.
    pub time: Duration,
}

impl Finished {
    /// Panics unless it exited with `code`.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert!(self.status.code() == Some(code), "expected exit code {code}\n{self}");
        self
    }

    /// Panics unless its standard output contains `part`.
    #[track_caller]
    pub fn expect_stdout(self, part: &str) -> Self {
        assert!(self.stdout.contains(part), "expected {part:?} on standard output\n{self}");
        self
    }

    /// Panics unless its standard error contains `part`.
    #[track_caller]
    pub fn expect_stderr(self, part: &str) -> Self {
        assert!(self.stderr.contains(part), "expected {part:?} on standard error\n{self}");
        self
    }

    /// Its standard output as JSON. Panics if it is none.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON: {error}\n{self}"))
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(to, "`{}` ended: {}", self.line, self.status)?;
        writeln!(to, "stdout:\n{}\nstderr:\n{}", self.stdout.trim_end(), self.stderr.trim_end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_reported_whole() {
        let finished = Invocation::new("/bin/sh", ["-c", "cat; echo two >&2; exit 4"]).input("one\n").run();
        let finished = finished.expect_code(4).expect_stdout("one").expect_stderr("two");
        assert!(finished.to_string().contains("exit 4"));
    }

    #[test]
    fn output_can_be_waited_for() {
        let mut running = Invocation::new("/bin/sh", ["-c", "echo up; exec sleep 60"]).spawn();
        running.wait_for_stdout("up", Duration::from_secs(10));
        running.signal(Signal::SIGTERM);
        assert_eq!(running.wait(Duration::from_secs(10)).status.code(), None);
    }

    #[test]
    #[should_panic(expected = "still runs")]
    fn a_call_that_takes_too_long_panics() {
        Invocation::new("/bin/sleep", ["60"]).time_limit(Duration::from_millis(50)).run();
    }
}
