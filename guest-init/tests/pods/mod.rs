//! Real pods behind fresh namespaces: the supervisor's program, with directories as layers, driven over its protocol.
//!
//! Needs root, `unshare` (util-linux) and a static `busybox` (Debian's busybox-static).

#![allow(dead_code)]

mod build;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Program, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use podvm_pod::client::SupervisorClient;
use podvm_pod::protocol::{
    Command, Event, ExecSpec, FrameError, PROTOCOL_VERSION, PodSpec, ProcessId, StreamKind, read_frame, write_frame,
};
use podvm_pod::status::{AppState, ExitStatus, PodReport};

pub use build::{PodBuilder, app};

/// Longest that anything may take; an emulated machine is slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// Descriptors a supervisor begins with: fewer than a login shell's 1024, so that tests meet the limit.
const OPEN_FILES: u64 = 256;

/// Why this machine cannot run the tests, if it cannot.
pub fn cannot_run() -> bool {
    let reason = if !nix::unistd::geteuid().is_root() {
        "needs root"
    } else if !Path::new(build::BUSYBOX).exists() {
        "needs Debian's package busybox-static"
    } else {
        return false;
    };
    println!("skipped: {reason}");
    true
}

/// A pod that runs.
pub struct Pod {
    folder: tempfile::TempDir,
    image: Option<Arc<tempfile::TempDir>>,
    supervisor: Child,
    primary: Option<UnixStream>,
    pub client: SupervisorClient,
    pub events: Vec<Event>,
    pub processes: BTreeMap<String, ProcessId>,
    notes: PathBuf,
}

/// What a pod left behind.
#[derive(Debug)]
pub struct Outcome {
    pub report: PodReport,
    pub stdout: BTreeMap<String, String>,
    pub stderr: BTreeMap<String, String>,
}

impl Outcome {
    /// What the only app, or the one called `main`, wrote, without the last newline.
    pub fn text(&self) -> &str {
        self.stdout["main"].trim_end_matches('\n')
    }

    /// As [`Self::text`] of a pod that must have succeeded.
    pub fn ok(&self) -> &str {
        assert_eq!(self.report.code, 0, "{self:?}");
        self.text()
    }

    pub fn state(&self, app: &str) -> &AppState {
        let found = self.report.apps.iter().find(|status| status.name.as_str() == app);
        &found.unwrap_or_else(|| panic!("no app {app}: {self:?}")).state
    }
}

/// The handshake and then the connection.
fn connect(socket: &Path) -> std::io::Result<UnixStream> {
    let mut connection = UnixStream::connect(socket)?;
    connection.write_all(b"CONNECT 1024\n")?;
    let mut answer = [0; 8];
    connection.read_exact(&mut answer)?;
    if &answer != b"OK 1024\n" {
        return Err(std::io::ErrorKind::ConnectionRefused.into());
    }
    Ok(connection)
}

impl Pod {
    /// Starts a supervisor in namespaces of its own, which has said hello.
    pub fn begin() -> Self {
        Self::begin_in(None)
    }

    /// As [`Self::begin`], with a cgroup.
    pub fn begin_in(cgroup: Option<&Path>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("supervisor.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (primary, inner) = UnixStream::pair().unwrap();
        primary.set_read_timeout(Some(PATIENCE)).unwrap();
        let scratch = folder.path().join("scratch");
        std::fs::create_dir(&scratch).unwrap();
        let notes = folder.path().join("notes");
        let fds = [inner.as_raw_fd(), listener.as_raw_fd()];
        let mut program = Program::new("unshare");
        program
            .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", "--"])
            .args([env!("CARGO_BIN_EXE_guest-init"), "namespaces", &fds[0].to_string(), &fds[1].to_string()])
            .arg(&scratch)
            .args(cgroup)
            .env("LEAKED", "from the host")
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(&notes).unwrap());
        // SAFETY: fcntl, getrlimit and setrlimit are safe between fork and exec.
        unsafe {
            program.pre_exec(move || {
                let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
                setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES.min(hard), hard)?;
                fds.iter().for_each(|fd| {
                    libc::fcntl(*fd, libc::F_SETFD, 0);
                });
                Ok(())
            })
        };
        let supervisor = program.spawn().unwrap();
        let client = SupervisorClient::new(move || connect(&socket));
        let (events, processes) = (Vec::new(), BTreeMap::new());
        let primary = Some(primary);
        let mut pod = Self { folder, image: None, supervisor, primary, client, events, processes, notes };
        assert_eq!(pod.next(), Event::Hello { protocol: PROTOCOL_VERSION });
        pod
    }

    /// A pod that was told what to run, of an image that lives as long as it.
    pub fn run(spec: PodSpec, image: Arc<tempfile::TempDir>) -> Self {
        let mut pod = Self::begin();
        pod.image = Some(image);
        pod.tell(&Command::Run(Box::new(spec)));
        pod
    }

    pub fn tell(&mut self, command: &Command) {
        write_frame(self.primary.as_mut().unwrap(), command).unwrap();
    }

    pub fn try_next(&mut self) -> Result<Event, FrameError> {
        let event: Event = read_frame(self.primary.as_mut().unwrap())?;
        if let Event::Prepared { app, process } = &event {
            self.processes.insert(app.to_string(), *process);
        }
        self.events.push(event.clone());
        Ok(event)
    }

    pub fn next(&mut self) -> Event {
        self.try_next().unwrap_or_else(|error| panic!("{error}\n{:?}\n{}", self.events, self.notes()))
    }

    /// What the supervisor said on its standard error.
    pub fn notes(&self) -> String {
        std::fs::read_to_string(&self.notes).unwrap_or_default()
    }

    /// Waits until all apps run.
    pub fn ready(mut self) -> Self {
        while self.next() != Event::Ready {}
        self
    }

    /// Waits for the pod's end.
    pub fn report(&mut self) -> PodReport {
        loop {
            if let Event::Finished(report) = self.next() {
                return report;
            }
        }
    }

    /// Reads all apps' output and waits for the pod's end.
    pub fn outcome(mut self) -> Outcome {
        let mut readers = Vec::new();
        let report = loop {
            match self.next() {
                Event::Prepared { app, process } => {
                    for kind in [StreamKind::Stdout, StreamKind::Stderr] {
                        if let Ok(stream) = self.client.open_stream(process, kind) {
                            readers.push((app.to_string(), kind, read_all(stream)));
                        }
                    }
                }
                Event::Finished(report) => break report,
                _ => {}
            }
        };
        let mut outcome = Outcome { report, stdout: BTreeMap::new(), stderr: BTreeMap::new() };
        for (app, kind, reader) in readers {
            let texts = if kind == StreamKind::Stdout { &mut outcome.stdout } else { &mut outcome.stderr };
            texts.insert(app, reader.join().unwrap());
        }
        self.farewell();
        outcome
    }

    /// Says farewell; the supervisor must leave at once.
    pub fn farewell(mut self) {
        self.tell(&Command::Farewell);
        assert!(self.supervisor.wait().unwrap().success(), "{}", self.notes());
    }

    /// Sends bytes that may be no command.
    pub fn write_raw(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.primary.as_mut().unwrap().write_all(bytes)
    }

    /// A request connection on which nothing was said.
    pub fn connect_raw(&self) -> UnixStream {
        UnixStream::connect(self.folder.path().join("supervisor.sock")).unwrap()
    }

    /// Hangs the primary connection up.
    pub fn hang_up(&mut self) {
        self.primary = None;
    }

    /// The supervisor's PID here.
    pub fn supervisor_pid(&self) -> i32 {
        let id = self.supervisor.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        children.trim().parse().unwrap()
    }

    /// CPU time that the supervisor has used.
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.supervisor_pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        // utime and stime, fields 14 and 15 of proc_pid_stat(5), in hundredths of a second.
        let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 10)
    }

    /// Waits for the supervisor's own end.
    pub fn gone(mut self) {
        self.supervisor.wait().unwrap();
    }

    /// Runs another command in the app `main`: its end, output and errors.
    pub fn exec(&self, words: &[&str]) -> (ExitStatus, String, String) {
        self.exec_spec(exec_spec(words), b"")
    }

    pub fn exec_spec(&self, spec: ExecSpec, input: &[u8]) -> (ExitStatus, String, String) {
        let stdin = spec.stdin;
        let process = self.client.prepare(spec).unwrap();
        let open = |kind| self.client.open_stream(process, kind).unwrap();
        let readers = [read_all(open(StreamKind::Stdout)), read_all(open(StreamKind::Stderr))];
        if stdin {
            open(StreamKind::Stdin).write_all(input).unwrap();
        }
        self.client.start(process).unwrap();
        let status = self.client.wait(process).unwrap();
        let [stdout, stderr] = readers.map(|reader| reader.join().unwrap());
        (status, stdout, stderr)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.supervisor.kill();
        let _ = self.supervisor.wait();
    }
}

pub fn read_all(mut stream: UnixStream) -> JoinHandle<String> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

pub fn exec_spec(words: &[&str]) -> ExecSpec {
    ExecSpec {
        app: "main".parse().unwrap(),
        exec: words.iter().map(|word| word.to_string()).collect(),
        user: None,
        environment: Vec::new(),
        working_directory: None,
        terminal: false,
        stdin: false,
    }
}
