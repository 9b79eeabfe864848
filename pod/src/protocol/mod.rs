//! The supervisor protocol: what stage0 and stage1 say to the supervisor inside the walls, and what it answers.
//!
//! A connection is a byte stream (vsock through a VM's wall, a Unix socket through the namespaces') of [`frame`]s, each one
//! message as JSON. There are two kinds of connection:
//!
//! - The *primary* one, exactly one a pod. The supervisor opens it when it is up: in a VM to port [`PRIMARY_PORT`] of the
//!   host, behind namespaces it inherits it. It sends [`Event`]s, first of all [`Event::Hello`]; it takes [`Command`]s, first
//!   of all [`Command::Run`]. When the primary connection ends without [`Command::Farewell`], the supervisor stops the pod.
//! - Any number of *request* connections, opened from outside to [`REQUEST_PORT`]. The client sends one [`Request`] in an
//!   [`Envelope`] and reads [`Response`]s as the request says. After [`Response::Stream`] the connection is no longer framed but
//!   carries one stream's bytes, and the closing of one direction is the stream's end.
//!
//! Numbers of processes ([`ProcessId`]) are the supervisor's own: an app's main process and every exec'd one has one.

pub mod frame;
mod spec;

use serde::{Deserialize, Serialize};

pub use frame::{FrameError, MAX_FRAME_BYTES, read_frame, write_frame};
pub use spec::{
    AppSpec, DnsSpec, HostsEntry, InterfaceSpec, LayerSource, NetworkSpec, PodSpec, SocketSource, SocketSpec,
    VolumeSource, VolumeSpec, WritableSource,
};

use crate::archive::Archived;
use crate::manifest::{AppName, EnvironmentVariable, UserSpec};
use crate::status::{AppStats, AppStatus, ExitStatus, PodReport, ProcessInfo};

/// Version of this protocol. Both ends must have the same one.
pub const PROTOCOL_VERSION: u32 = 1;
/// vsock port at the host that the supervisor opens the primary connection to.
pub const PRIMARY_PORT: u32 = 1025;
/// vsock port in the guest where the supervisor takes request connections.
pub const REQUEST_PORT: u32 = 1024;

/// Name of the cgroup below the pod's that the supervisor is in, where there is one; no app's name has this form.
pub const SUPERVISOR_CGROUP: &str = "_supervisor";

/// The supervisor's name for a process it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProcessId(pub u32);

/// What the supervisor says on the primary connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum Event {
    /// First: the supervisor is up.
    Hello {
        /// Its [`PROTOCOL_VERSION`].
        protocol: u32,
    },
    /// An app's process exists; its streams can be opened. Sent for each app before any runs, so that streams can be
    /// attached from the start, and again for each process of an app that is started again.
    Prepared {
        /// The app.
        app: AppName,
        /// Its main process.
        process: ProcessId,
    },
    /// All apps were started.
    Ready,
    /// An app's state changed.
    App(AppStatus),
    /// All apps have ended and filesystems are synced. The supervisor waits for [`Command::Farewell`], or the connection's end,
    /// so that streams can be read to their ends.
    Finished(PodReport),
}

/// What the supervisor is told on the primary connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "command")]
pub enum Command {
    /// Run this pod; once only.
    Run(Box<PodSpec>),
    /// Send every app its stop signal, and SIGKILL to what is left after the grace period.
    Stop {
        /// Grace period in milliseconds; 0 kills at once.
        grace_ms: u64,
    },
    /// All streams were read: power off.
    Farewell,
}

/// The first message on a request connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// The client's [`PROTOCOL_VERSION`].
    pub protocol: u32,
    /// What it wants.
    pub request: Request,
}

impl Envelope {
    /// A request from this version of the protocol.
    pub fn new(request: Request) -> Self {
        Self { protocol: PROTOCOL_VERSION, request }
    }
}

/// What can be asked on a request connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "request")]
pub enum Request {
    /// Start another process in an app. Answered by [`Response::Process`] at once, when the process exists but waits for
    /// [`Request::Start`] so that its streams can be attached first.
    Exec(Box<ExecSpec>),
    /// Let an exec'd process go. Answered by [`Response::Done`], or an error such as "not found".
    Start {
        /// Which one.
        process: ProcessId,
    },
    /// Make a process in an app that packs or unpacks files; as [`Request::Exec`] from there on. It reads the files as a tar
    /// stream from its standard input, or writes them to its standard output; what goes wrong it says on its standard error,
    /// and exits with something else than 0.
    Archive {
        /// The app.
        app: AppName,
        /// What.
        what: Archived,
    },
    /// Open one of a process's streams; answered by [`Response::Stream`], then raw bytes. Each can be opened once, but for the
    /// standard input of a process with a terminal: what is typed there comes beside what else is typed.
    Stream {
        /// Whose.
        process: ProcessId,
        /// Which one.
        stream: StreamKind,
    },
    /// Close one of a process's output streams, whose client has nobody to pass it on to: the process is told when it writes
    /// again, by SIGPIPE or EPIPE. A stream whose client merely leaves is read on, so that the process can go on. Answered by
    /// [`Response::Done`].
    Close {
        /// Whose.
        process: ProcessId,
        /// Which one.
        stream: StreamKind,
    },
    /// Connect to one of the sockets that an app was started with and that the supervisor has made; answered by
    /// [`Response::Stream`], then the connection's bytes, each direction with its own end.
    Socket {
        /// The app.
        app: AppName,
        /// Which of its sockets.
        index: usize,
    },
    /// Wait for a process's end; answered by [`Response::Exited`] then.
    Wait {
        /// Which one.
        process: ProcessId,
    },
    /// Send a signal.
    Signal {
        /// To whom.
        target: SignalTarget,
        /// The signal's number.
        signal: i32,
    },
    /// Set the size of a process's terminal.
    Resize {
        /// Whose.
        process: ProcessId,
        /// Rows of characters.
        rows: u16,
        /// Columns of characters.
        columns: u16,
    },
    /// The state of every app; answered by [`Response::Status`].
    Status,
    /// What every app uses; answered by [`Response::Stats`].
    Stats,
    /// The processes of an app; answered by [`Response::Processes`].
    Processes {
        /// The app.
        app: AppName,
    },
    /// Hold the processes of apps still, or let them go on. Answered by [`Response::Done`] when it is so.
    Freeze {
        /// The app; all of them when none.
        app: Option<AppName>,
        /// Whether they are held.
        frozen: bool,
    },
    /// As [`Command::Stop`]; answered by [`Response::Done`] at once.
    Stop {
        /// Grace period in milliseconds; 0 kills at once.
        grace_ms: u64,
    },
}

/// Whom a signal is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SignalTarget {
    /// The main process of every app.
    Pod,
    /// The main process of one app.
    App(AppName),
    /// One process.
    Process(ProcessId),
}

/// One of a process's standard streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StreamKind {
    /// Standard input, from the client to the process.
    Stdin,
    /// Standard output, from the process to the client.
    Stdout,
    /// Standard error, from the process to the client.
    Stderr,
    /// The terminal, both ways.
    Terminal,
}

/// Another process to start in an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// The app whose walls it joins.
    pub app: AppName,
    /// Program and arguments; looked up as the app's own is.
    pub exec: Vec<String>,
    /// User it runs as; the app's when none.
    pub user: Option<UserSpec>,
    /// Variables added to the app's environment.
    pub environment: Vec<EnvironmentVariable>,
    /// Directory it starts in; the app's when none.
    pub working_directory: Option<std::path::PathBuf>,
    /// Whether it has a terminal instead of pipes.
    pub terminal: bool,
    /// Whether its standard input is connected.
    pub stdin: bool,
}

/// Answers on a request connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "response")]
pub enum Response {
    /// It was done.
    Done,
    /// The process that was made.
    Process {
        /// Its name from now on.
        process: ProcessId,
    },
    /// From here on this connection carries the stream's bytes.
    Stream,
    /// The process ended.
    Exited {
        /// How.
        status: ExitStatus,
    },
    /// The state of every app.
    Status {
        /// By name, in the manifest's order.
        apps: Vec<AppStatus>,
        /// Main process of each app, in the same order; none when it was never started.
        processes: Vec<Option<ProcessId>>,
    },
    /// The processes of an app.
    Processes {
        /// By PID.
        processes: Vec<ProcessInfo>,
    },
    /// What every app uses.
    Stats {
        /// By name, in the manifest's order.
        apps: Vec<(AppName, AppStats)>,
    },
    /// It could not be done.
    Error {
        /// What is wrong and what helps, as a sentence.
        message: String,
        /// The exit code a command that asked for this should have (127: program not found, 126: not executable, else 254).
        code: u8,
    },
}
