//! One command: started in a session of its own, its output and end reported as events, killed with all it started.
//!
//! Called by the agent inside the lab's machine, and by the lab itself on a host that needs no lab.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::protocol::{Ended, Spawn, Stream, TerminalSize};

/// How long output may still come from what a command left running, once the command itself has ended.
const DRAIN: Duration = Duration::from_millis(500);

/// What a running command reports, in order; [`Event::Ended`] is the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Bytes it wrote.
    Output(Stream, Vec<u8>),
    /// So many bytes of its input have been passed on.
    InputTaken(u32),
    /// It has ended.
    Ended(Ended),
}

/// Where a command's events go.
pub type Sink = Arc<dyn Fn(Event) + Send + Sync>;

/// A command that was started.
pub struct Process {
    group: Pid,
    cgroup: Option<PathBuf>,
    input: Option<Sender<Vec<u8>>>,
    terminal: Option<File>,
}

impl Process {
    /// Starts `spawn`, in the cgroup `cgroup` if one is given (it is made, and removed when the command is waited for).
    ///
    /// # Errors
    /// If the command cannot be started; no event is sent then.
    pub fn start(spawn: &Spawn, cgroup: Option<&Path>, sink: Sink) -> io::Result<Self> {
        let (program, arguments) = spawn.argv.split_first().ok_or_else(|| io::Error::other("no command was given"))?;
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(spawn.env.iter().cloned());
        command.current_dir(spawn.directory.as_deref().unwrap_or(Path::new("/")));
        let pty = spawn.terminal.map(|size| openpty(&window(size), None)).transpose()?;
        match &pty {
            Some(pty) => {
                let end = || pty.slave.try_clone().map(Stdio::from);
                command.stdin(end()?).stdout(end()?).stderr(end()?);
            }
            None => {
                let input = if spawn.reads_input { Stdio::piped() } else { Stdio::null() };
                command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
            }
        }
        let membership = cgroup.map(join_cgroup).transpose()?;
        let has_terminal = pty.is_some();
        let membership_fd = membership.as_ref().map(AsRawFd::as_raw_fd);
        // SAFETY: `prepare` makes only async-signal-safe system calls and allocates nothing; `membership` lives
        // until the child has been spawned.
        unsafe { command.pre_exec(move || prepare(has_terminal, membership_fd)) };
        let child = command.spawn();
        drop(command);
        let child = child.inspect_err(|_| {
            cgroup.map(std::fs::remove_dir);
        })?;
        let group = Pid::from_raw(child.id() as i32);
        let cgroup = cgroup.map(Path::to_owned);
        let terminal = pty.map(|pty| File::from(pty.master));
        let (input, pumps) = Pumps::start(child, terminal.as_ref(), cgroup.clone(), sink)?;
        std::thread::spawn(move || pumps.wait());
        Ok(Self { group, cgroup, input, terminal })
    }

    /// Queues bytes for the command's input. They are dropped if it has none.
    pub fn input(&self, bytes: Vec<u8>) {
        if let Some(input) = &self.input {
            // The pump is gone when the command has closed its input: nobody wants the bytes then.
            let _ = input.send(bytes);
        }
    }

    /// Ends the command's input, after what was queued.
    pub fn end_input(&mut self) {
        drop(self.take_input());
    }

    /// Takes the command's input out of its hands; dropping the sender ends it.
    pub fn take_input(&mut self) -> Option<Sender<Vec<u8>>> {
        self.input.take()
    }

    /// Gives the command's terminal, if it has one, a new size.
    pub fn resize(&self, size: TerminalSize) {
        if let Some(terminal) = &self.terminal {
            let window = window(size);
            // SAFETY: TIOCSWINSZ reads one winsize, which lives on this stack; the descriptor is open.
            unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &window) };
        }
    }

    /// Kills the command and all it started.
    pub fn kill(&self) {
        let killed = self.cgroup.as_ref().map(|cgroup| std::fs::write(cgroup.join("cgroup.kill"), "1"));
        if !matches!(killed, Some(Ok(()))) {
            // Already gone is as good as killed.
            let _ = killpg(self.group, Signal::SIGKILL);
        }
    }
}

/// Runs in the child between fork and exec.
fn prepare(has_terminal: bool, membership: Option<RawFd>) -> io::Result<()> {
    nix::unistd::setsid()?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    if has_terminal {
        // SAFETY: TIOCSCTTY takes an integer; descriptor 0 is the terminal's.
        if unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    if let Some(fd) = membership {
        // SAFETY: the buffer is one byte of static memory, and `fd` is open until exec.
        if unsafe { libc::write(fd, c"0".as_ptr().cast(), 1) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn join_cgroup(cgroup: &Path) -> io::Result<File> {
    std::fs::create_dir_all(cgroup)?;
    File::options().write(true).open(cgroup.join("cgroup.procs"))
}

fn window(size: TerminalSize) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// The threads that carry one command's streams.
struct Pumps {
    child: Child,
    cgroup: Option<PathBuf>,
    /// Set once the end is reported: what still writes is not heard any more.
    closed: Arc<AtomicBool>,
    /// Held while an event is sent, so that none comes after the end.
    sink: Arc<Mutex<Sink>>,
    outputs_done: Receiver<()>,
    outputs: usize,
}

impl Pumps {
    fn start(
        mut child: Child,
        terminal: Option<&File>,
        cgroup: Option<PathBuf>,
        sink: Sink,
    ) -> io::Result<(Option<Sender<Vec<u8>>>, Self)> {
        let mut sources = Vec::new();
        let mut input: Option<OwnedFd> = child.stdin.take().map(OwnedFd::from);
        if let Some(terminal) = terminal {
            sources.push((Stream::Stdout, OwnedFd::from(terminal.try_clone()?)));
            input = Some(terminal.as_fd().try_clone_to_owned()?);
        }
        sources.extend(child.stdout.take().map(|from| (Stream::Stdout, OwnedFd::from(from))));
        sources.extend(child.stderr.take().map(|from| (Stream::Stderr, OwnedFd::from(from))));
        let (done, outputs_done) = mpsc::channel();
        let closed = Arc::new(AtomicBool::new(false));
        let outputs = sources.len();
        let pumps = Self { child, cgroup, closed, sink: Arc::new(Mutex::new(sink)), outputs_done, outputs };
        for (stream, from) in sources {
            let (done, reporter) = (done.clone(), pumps.reporter());
            std::thread::spawn(move || {
                carry_output(stream, from.into(), &reporter);
                // The waiter is gone once it has given up on this stream.
                let _ = done.send(());
            });
        }
        let input = input.map(|to| {
            let (sender, queue) = mpsc::channel();
            let (reporter, is_terminal) = (pumps.reporter(), terminal.is_some());
            std::thread::spawn(move || carry_input(&queue, to.into(), is_terminal, &reporter));
            sender
        });
        Ok((input, pumps))
    }

    fn reporter(&self) -> impl Fn(Event) + Send + 'static {
        let (closed, sink) = (self.closed.clone(), self.sink.clone());
        move |event| {
            let sink = sink.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if !closed.load(Ordering::Acquire) {
                sink(event);
            }
        }
    }

    /// Waits for the command, then for the rest of its output, and reports the end.
    fn wait(mut self) {
        let ended = match self.child.wait() {
            Ok(status) => ended(status),
            Err(error) => Ended::NotStarted(format!("its end is not known: {error}")),
        };
        for _ in 0..self.outputs {
            if self.outputs_done.recv_timeout(DRAIN).is_err() {
                break;
            }
        }
        if let Some(cgroup) = &self.cgroup {
            // Fails while something the command left behind still runs in it, which it may.
            let _ = std::fs::remove_dir(cgroup);
        }
        let sink = self.sink.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.closed.store(true, Ordering::Release);
        sink(Event::Ended(ended));
    }
}

fn ended(status: ExitStatus) -> Ended {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ended::Code(code),
        (None, Some(signal)) => Ended::Signal(signal),
        (None, None) => Ended::NotStarted(format!("unexpected status {status}")),
    }
}

fn carry_output(stream: Stream, mut from: File, report: &dyn Fn(Event)) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A terminal answers EIO when its last user is gone.
            Ok(0) | Err(_) => return,
            Ok(length) => report(Event::Output(stream, buffer[..length].to_vec())),
        }
    }
}

fn carry_input(queue: &Receiver<Vec<u8>>, mut to: File, is_terminal: bool, report: &dyn Fn(Event)) {
    for bytes in queue {
        if to.write_all(&bytes).is_err() {
            return;
        }
        report(Event::InputTaken(bytes.len() as u32));
    }
    if is_terminal {
        // End of file on a terminal is a character (VEOF); a terminal that is gone needs none.
        let _ = to.write_all(&[4]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(spawn: Spawn) -> (String, String, Ended) {
        let (sender, events) = mpsc::channel();
        let sink = Arc::new(move |event| sender.send(event).unwrap());
        let _process = Process::start(&spawn, None, sink).unwrap();
        collect(&events)
    }

    fn collect(events: &Receiver<Event>) -> (String, String, Ended) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        loop {
            match events.recv_timeout(Duration::from_secs(20)).unwrap() {
                Event::Output(Stream::Stdout, bytes) => out.extend(bytes),
                Event::Output(Stream::Stderr, bytes) => err.extend(bytes),
                Event::InputTaken(_) => {}
                Event::Ended(ended) => {
                    return (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap(), ended);
                }
            }
        }
    }

    fn shell(script: &str) -> Spawn {
        let env = vec![("PATH".into(), "/usr/bin:/bin".into())];
        Spawn { argv: ["sh", "-c", script].map(String::from).into(), env, ..Spawn::default() }
    }

    #[test]
    fn the_two_streams_and_the_exit_code_come_apart() {
        let (out, err, ended) = run(shell("echo one; echo two >&2; exit 3"));
        assert_eq!((out.as_str(), err.as_str(), ended), ("one\n", "two\n", Ended::Code(3)));
    }

    #[test]
    fn a_signal_is_told_from_an_exit_code() {
        assert_eq!(run(shell("kill -TERM $$")).2, Ended::Signal(15));
    }

    #[test]
    fn what_a_command_leaves_running_does_not_hold_up_its_end() {
        let (out, _, ended) = run(shell("sleep 30 & echo left; exit 0"));
        assert_eq!((out.as_str(), ended), ("left\n", Ended::Code(0)));
    }

    #[test]
    fn input_reaches_the_command_and_ends() {
        let (sender, events) = mpsc::channel();
        let sink = Arc::new(move |event| sender.send(event).unwrap());
        let spawn = Spawn { reads_input: true, ..shell("tr a-z A-Z") };
        let mut process = Process::start(&spawn, None, sink).unwrap();
        process.input(b"hello ".to_vec());
        process.input(b"lab".to_vec());
        process.end_input();
        assert_eq!(collect(&events).0, "HELLO LAB");
    }

    #[test]
    fn a_kill_reaches_the_whole_session() {
        let (sender, events) = mpsc::channel();
        let sink = Arc::new(move |event| sender.send(event).unwrap());
        let process = Process::start(&shell("echo up; sleep 600"), None, sink).unwrap();
        assert_eq!(events.recv().unwrap(), Event::Output(Stream::Stdout, b"up\n".to_vec()));
        process.kill();
        assert_eq!(collect(&events).2, Ended::Signal(9));
    }

    #[test]
    fn a_terminal_is_one_with_the_given_size() {
        let size = TerminalSize { rows: 33, columns: 101 };
        let (out, _, ended) = run(Spawn { terminal: Some(size), ..shell("test -t 1 && stty size") });
        assert_eq!((out.trim(), ended), ("33 101", Ended::Code(0)));
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let spawn = Spawn { argv: vec!["/no/such/program".into()], ..Spawn::default() };
        assert!(Process::start(&spawn, None, Arc::new(|_| ())).is_err());
    }
}
