//! Requests to the supervisor of a running pod, from the pod's own process or any other.
//!
//! Each request has a connection of its own ([`crate::protocol`]). From outside, the connection is made to the pod's
//! `supervisor.sock`, where it begins with one line each way: `CONNECT 1024` and `OK <number>`, the convention by which
//! Firecracker reaches a guest's vsock ports through a Unix socket. Both stage1s keep to it.

mod exec;
mod files;
mod timed;

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use exec::{ExecStreams, exec};
pub use files::{FilesError, get_files, put_files};

use crate::PodDir;
use crate::archive::Archived;
use crate::directory::in_directory;
use crate::manifest::AppName;
use crate::protocol::{
    Envelope, ExecSpec, FrameError, ProcessId, REQUEST_PORT, Request, Response, SignalTarget, StreamKind, read_frame,
    write_frame,
};
use crate::status::{AppStats, AppStatus, ExitStatus, ProcessInfo};
use timed::Timed;

/// How long an answer that needs no waiting may take, to its last byte. A guest under an emulator or a loaded host is slow, not dead.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest line of the handshake.
const MAX_HANDSHAKE_BYTES: usize = 64;

/// Why a request was not granted.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The supervisor's socket cannot be connected to.
    #[error("the pod takes no requests ({0}); `podvm status` tells whether it runs")]
    Unreachable(#[source] io::Error),
    /// The supervisor accepted the request and then was silent.
    #[error("the pod's supervisor does not answer; `podvm stop --force` ends the pod")]
    Silent,
    /// The conversation broke off.
    #[error("the pod's supervisor cannot be understood")]
    Frame(#[source] FrameError),
    /// The answer fits another question.
    #[error("the pod's supervisor gave an answer that does not fit the question")]
    Unexpected,
    /// What a program printed could not be written here.
    #[error("output is lost, for it cannot be written: {0}")]
    OutputLost(#[source] io::Error),
    /// The supervisor says no.
    #[error("{message}")]
    Refused {
        /// Why, in the supervisor's words.
        message: String,
        /// The exit code a command that asked for this should have.
        code: u8,
    },
}

impl ClientError {
    /// The exit code of a command that failed for this reason.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused { code, .. } => *code,
            _ => crate::exit::PODVM_ERROR,
        }
    }
}

impl From<FrameError> for ClientError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Io(error) if error.kind() == io::ErrorKind::WouldBlock => Self::Silent,
            other => Self::Frame(other),
        }
    }
}

impl From<io::Error> for ClientError {
    fn from(error: io::Error) -> Self {
        FrameError::Io(error).into()
    }
}

/// Makes a connection that is over at the time given.
type Connect = dyn Fn(Instant) -> io::Result<Timed> + Send + Sync;

/// A way to one pod's supervisor.
#[derive(Clone)]
pub struct SupervisorClient {
    connect: Arc<Connect>,
    patience: Duration,
}

impl std::fmt::Debug for SupervisorClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SupervisorClient")
    }
}

impl SupervisorClient {
    /// A client whose connections are made by this function, past any handshake.
    pub fn new(connect: impl Fn() -> io::Result<UnixStream> + Send + Sync + 'static) -> Self {
        let connect = move |latest| connect().map(|connection| Timed::new(connection, latest));
        Self { connect: Arc::new(connect), patience: ANSWER_TIMEOUT }
    }

    /// The client for a process that is not the pod's.
    pub fn of_pod(dir: &PodDir) -> Self {
        let socket = dir.supervisor_socket();
        let connect = move |latest| connect_to_port(&socket, REQUEST_PORT, latest);
        Self { connect: Arc::new(connect), patience: ANSWER_TIMEOUT }
    }

    /// A client that gives up after this time, if that is shorter than the usual one.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience: patience.min(self.patience), ..self }
    }

    /// The state of every app, with its main process if it was started.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn status(&self) -> Result<Vec<(AppStatus, Option<ProcessId>)>, ClientError> {
        match self.ask(Request::Status)? {
            Response::Status { apps, processes } if apps.len() == processes.len() => {
                Ok(apps.into_iter().zip(processes).collect())
            }
            _ => Err(ClientError::Unexpected),
        }
    }

    /// What every app uses.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn stats(&self) -> Result<Vec<(AppName, AppStats)>, ClientError> {
        match self.ask(Request::Stats)? {
            Response::Stats { apps } => Ok(apps),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Asks every app to end, and kills what is left after the grace period. Returns at once.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn stop(&self, grace: Duration) -> Result<(), ClientError> {
        self.ask_done(Request::Stop { grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX) })
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn signal(&self, target: SignalTarget, signal: i32) -> Result<(), ClientError> {
        self.ask_done(Request::Signal { target, signal })
    }

    /// Closes one of a process's output streams: nobody reads it any more.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn close_stream(&self, process: ProcessId, stream: StreamKind) -> Result<(), ClientError> {
        self.ask_done(Request::Close { process, stream })
    }

    /// Sets the size of a process's terminal.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn resize(&self, process: ProcessId, size: crate::console::TerminalSize) -> Result<(), ClientError> {
        self.ask_done(Request::Resize { process, rows: size.rows, columns: size.columns })
    }

    /// Makes another process in an app; it waits for [`Self::start`].
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn prepare(&self, spec: ExecSpec) -> Result<ProcessId, ClientError> {
        match self.ask(Request::Exec(Box::new(spec)))? {
            Response::Process { process } => Ok(process),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Makes a process that packs or unpacks files in an app; it waits for [`Self::start`].
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn prepare_archive(&self, app: AppName, what: Archived) -> Result<ProcessId, ClientError> {
        match self.ask(Request::Archive { app, what })? {
            Response::Process { process } => Ok(process),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// The processes of an app.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn processes(&self, app: AppName) -> Result<Vec<ProcessInfo>, ClientError> {
        match self.ask(Request::Processes { app })? {
            Response::Processes { processes } => Ok(processes),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Holds the processes of an app, or of all, still, or lets them go on.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn freeze(&self, app: Option<AppName>, frozen: bool) -> Result<(), ClientError> {
        self.ask_done(Request::Freeze { app, frozen })
    }

    /// Lets a process that was made by [`Self::prepare`] go.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn start(&self, process: ProcessId) -> Result<(), ClientError> {
        self.ask_done(Request::Start { process })
    }

    /// Waits for a process's end, however long it takes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn wait(&self, process: ProcessId) -> Result<ExitStatus, ClientError> {
        let mut connection = self.send(Request::Wait { process })?.into_untimed()?;
        match answer(&mut connection)? {
            Response::Exited { status } => Ok(status),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Opens one of a process's streams: the connection then carries its bytes and nothing else.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn open_stream(&self, process: ProcessId, stream: StreamKind) -> Result<UnixStream, ClientError> {
        self.open(Request::Stream { process, stream })
    }

    /// Connects to one of the sockets that the supervisor has made for an app.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn open_socket(&self, app: AppName, index: usize) -> Result<UnixStream, ClientError> {
        self.open(Request::Socket { app, index })
    }

    fn open(&self, request: Request) -> Result<UnixStream, ClientError> {
        let mut connection = self.send(request)?;
        match answer(&mut connection)? {
            Response::Stream => Ok(connection.into_untimed()?),
            _ => Err(ClientError::Unexpected),
        }
    }

    fn ask_done(&self, request: Request) -> Result<(), ClientError> {
        match self.ask(request)? {
            Response::Done => Ok(()),
            _ => Err(ClientError::Unexpected),
        }
    }

    fn ask(&self, request: Request) -> Result<Response, ClientError> {
        answer(&mut self.send(request)?)
    }

    fn send(&self, request: Request) -> Result<Timed, ClientError> {
        let latest = Instant::now() + self.patience;
        let mut connection = (self.connect)(latest).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => ClientError::Silent,
            _ => ClientError::Unreachable(error),
        })?;
        write_frame(&mut connection, &Envelope::new(request))?;
        Ok(connection)
    }
}

/// Reads an answer; the supervisor's refusal is an error.
fn answer(connection: &mut impl io::Read) -> Result<Response, ClientError> {
    match read_frame(connection)? {
        Response::Error { message, code } => {
            Err(ClientError::Refused { message: crate::console::printable(&message), code })
        }
        response => Ok(response),
    }
}

/// Connects to a port behind a Unix socket. The socket's folder is opened first, so that its path may be of any length.
fn connect_to_port(socket: &Path, port: u32, latest: Instant) -> io::Result<Timed> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let folder = std::fs::File::open(socket.parent().ok_or_else(invalid)?)?;
    let name = socket.file_name().ok_or_else(invalid)?;
    let mut connection = Timed::connect(&in_directory(&folder, name), latest)?;
    connection.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let line = read_line(&mut connection)?;
    if line.starts_with(b"OK ") { Ok(connection) } else { Err(io::ErrorKind::ConnectionRefused.into()) }
}

/// Reads up to the first newline and not a byte further: what follows belongs to the frames.
fn read_line(connection: &mut impl io::Read) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < MAX_HANDSHAKE_BYTES {
        match connection.read(&mut byte) {
            Ok(0) => return Err(io::ErrorKind::ConnectionRefused.into()),
            Ok(_) if byte[0] == b'\n' => return Ok(line),
            Ok(_) => line.push(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;

    use super::*;

    fn serve_one(listener: UnixListener, reply: &'static str, response: Response) -> std::thread::JoinHandle<Request> {
        std::thread::spawn(move || {
            let (mut connection, _) = listener.accept().unwrap();
            assert_eq!(read_line(&mut connection).unwrap(), b"CONNECT 1024");
            connection.write_all(reply.as_bytes()).unwrap();
            let envelope: Envelope = read_frame(&mut connection).unwrap();
            write_frame(&mut connection, &response).unwrap();
            envelope.request
        })
    }

    /// A socket whose path is longer than an address can hold.
    fn deep_socket() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a".repeat(80)).join("b".repeat(80));
        std::fs::create_dir_all(&deep).unwrap();
        (folder, deep.join("supervisor.sock"))
    }

    fn client(socket: PathBuf) -> SupervisorClient {
        let connect = move |latest| connect_to_port(&socket, REQUEST_PORT, latest);
        SupervisorClient { connect: Arc::new(connect), patience: ANSWER_TIMEOUT }
    }

    fn listen(socket: &Path) -> UnixListener {
        let folder = std::fs::File::open(socket.parent().unwrap()).unwrap();
        UnixListener::bind(in_directory(&folder, "supervisor.sock")).unwrap()
    }

    #[test]
    fn a_request_goes_through_the_handshake_at_any_path_length() {
        let (_folder, socket) = deep_socket();
        let server = serve_one(listen(&socket), "OK 1073741824\n", Response::Done);
        let client = client(socket);
        client.stop(Duration::from_secs(3)).unwrap();
        assert_eq!(server.join().unwrap(), Request::Stop { grace_ms: 3_000 });
    }

    #[test]
    fn a_refusal_keeps_its_exit_code_and_loses_its_control_characters() {
        let (_folder, socket) = deep_socket();
        let refusal = Response::Error { message: "no \u{1b}[31mway".into(), code: 127 };
        let _server = serve_one(listen(&socket), "OK 1\n", refusal);
        let error = client(socket).stats().unwrap_err();
        assert_eq!(error.exit_code(), 127);
        assert!(!error.to_string().contains('\u{1b}'), "{error}");
    }

    #[test]
    fn a_pod_without_a_socket_is_unreachable() {
        let (_folder, socket) = deep_socket();
        assert!(matches!(client(socket).status(), Err(ClientError::Unreachable(_))));
    }

    #[test]
    fn an_answer_that_comes_byte_by_byte_is_given_up_in_time() {
        let (_folder, socket) = deep_socket();
        for (reply, frame) in [("OK 1\n", (1_u32 << 20).to_le_bytes()), ("", *b"OK 1")] {
            let listener = listen(&socket);
            let _server = std::thread::spawn(move || {
                let (mut connection, _) = listener.accept().unwrap();
                let drip = |connection: &mut UnixStream| {
                    std::thread::sleep(Duration::from_millis(50));
                    connection.write_all(b" ")
                };
                connection.write_all(reply.as_bytes()).and_then(|()| connection.write_all(&frame)).unwrap();
                while drip(&mut connection).is_ok() {}
            });
            let begun = Instant::now();
            let error = client(socket.clone()).with_patience(Duration::from_millis(300)).stats().unwrap_err();
            assert!(matches!(error, ClientError::Silent), "{error}");
            assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
            std::fs::remove_file(&socket).unwrap();
        }
    }
}
