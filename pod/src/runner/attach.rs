//! The streams of a pod's apps: carried into their logs and, when the pod is attached, to this process's own streams.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::PodIo;
use super::log::{AppLog, LogStream};
use super::shown::{Shown, Terminals};
use crate::client::{ClientError, SupervisorClient};
use crate::console::{Outputs, RawTerminal, TerminalSize, feed, spawn};
use crate::manifest::{App, AppName, PodManifest};
use crate::protocol::{ProcessId, StreamKind};

/// Attaches each app's streams once.
pub(super) struct Attacher {
    /// Whom requests of the apps go to.
    pub client: SupervisorClient,
    logs: OwnedFd,
    attached: bool,
    /// Whether several apps share this process's output, so that each line must say whose it is.
    is_shared: bool,
    /// The app that gets what is typed.
    typed_to: Option<AppName>,
    terminals: Option<Terminals>,
    raw: Option<RawTerminal>,
    /// The streams that are being carried.
    pub outputs: Outputs,
    /// Whether output of the apps could not be shown.
    pub is_output_lost: Arc<AtomicBool>,
}

impl Attacher {
    /// For the apps of this pod; `logs` is the open folder of their logs.
    pub fn new(client: SupervisorClient, logs: OwnedFd, io: &PodIo, manifest: &PodManifest) -> Self {
        let typed_to = manifest.apps.iter().find(|app| io.attached && app.stdin).map(|app| app.name.clone());
        Self {
            client,
            logs,
            attached: io.attached,
            is_shared: manifest.apps.len() > 1,
            typed_to,
            terminals: None,
            raw: None,
            outputs: Outputs::default(),
            is_output_lost: Arc::default(),
        }
    }

    /// Attaches the streams of an app's main process.
    ///
    /// # Errors
    /// A log cannot be opened, a thread cannot be made, or the terminal cannot be put into raw mode.
    pub fn attach(&mut self, app: &App, process: ProcessId) -> io::Result<()> {
        let log = Arc::new(Mutex::new(AppLog::open(self.logs.try_clone()?, &app.name)?));
        if app.terminal {
            return self.attach_terminal(app, process, log);
        }
        for (kind, stream) in [(StreamKind::Stdout, LogStream::Stdout), (StreamKind::Stderr, LogStream::Stderr)] {
            let client = self.client.clone();
            self.carry(app, (process, kind), stream, log.clone(), move || client.open_stream(process, kind))?;
        }
        if self.takes_typed(app) {
            let client = self.client.clone();
            let trouble = report_trouble(&app.name);
            spawn("input", move || {
                let fed = client.open_stream(process, StreamKind::Stdin).and_then(|stream| {
                    if feed(io::stdin().as_fd(), &stream)? {
                        let _ = stream.shutdown(Shutdown::Write);
                    }
                    Ok(())
                });
                fed.unwrap_or_else(trouble);
            })?;
        }
        Ok(())
    }

    /// Whether an app gets what is typed: once, for what is typed to its first life is lost to a later one.
    fn takes_typed(&mut self, app: &App) -> bool {
        self.typed_to.take_if(|name| *name == app.name).is_some()
    }

    fn attach_terminal(&mut self, app: &App, process: ProcessId, log: Arc<Mutex<AppLog>>) -> io::Result<()> {
        if self.attached {
            let terminals = match &self.terminals {
                Some(terminals) => terminals,
                None => self.terminals.insert(Terminals::watch(self.client.clone())?),
            };
            terminals.follow(&app.name, process);
        }
        let typed = self.takes_typed(app);
        if typed {
            self.raw = RawTerminal::enter(io::stdin().as_fd())?;
        }
        let (attached, client, trouble) = (self.attached, self.client.clone(), report_trouble(&app.name));
        self.carry(app, (process, StreamKind::Terminal), LogStream::Stdout, log, move || {
            if let (true, Some(size)) = (attached, TerminalSize::of(io::stdout().as_fd())) {
                client.resize(process, size)?;
            }
            let stream = client.open_stream(process, StreamKind::Terminal)?;
            if typed {
                let keys = stream.try_clone()?;
                spawn("input", move || {
                    feed(io::stdin().as_fd(), &keys).map(drop).map_err(ClientError::from).unwrap_or_else(trouble);
                })?;
            }
            Ok(stream)
        })
    }

    /// Tells the apps' terminals that this process's own has another size.
    pub fn resize(&self) {
        if let Some(terminals) = &self.terminals {
            terminals.resize();
        }
    }

    /// Gives the user's terminal back.
    pub fn leave_terminal(&mut self) {
        self.raw = None;
    }

    fn carry(
        &mut self,
        app: &App,
        (process, kind): (ProcessId, StreamKind),
        stream: LogStream,
        log: Arc<Mutex<AppLog>>,
        open: impl FnOnce() -> Result<UnixStream, ClientError> + Send + 'static,
    ) -> io::Result<()> {
        let prefix = self.is_shared.then(|| app.name.clone());
        let mut shown = self.attached.then(|| Shown::new(stream, prefix)).transpose()?;
        let (name, client, is_output_lost) = (app.name.clone(), self.client.clone(), self.is_output_lost.clone());
        let mut is_logged = true;
        let sink = move |piece: &[u8]| {
            if is_logged && let Err(error) = log.lock().unwrap_or_else(PoisonError::into_inner).append(stream, piece) {
                is_logged = false;
                eprintln!("podvm: the log of app {name} ends here: {error}");
            }
            let Some(Err(error)) = shown.as_mut().map(|shown| shown.write(piece)) else { return };
            shown = None;
            if error.kind() == io::ErrorKind::BrokenPipe {
                // Nobody reads any longer, which the app is told as any program is. A supervisor that is gone has closed it.
                let _ = client.close_stream(process, kind);
            } else {
                is_output_lost.store(true, Ordering::Relaxed);
                eprintln!(
                    "podvm: the {} of app {name} cannot be written, and goes into its log alone: {error}",
                    stream.name()
                );
            }
        };
        self.outputs.carry(stream.name(), open, sink, report_trouble(&app.name))
    }
}

fn report_trouble(app: &AppName) -> impl FnOnce(ClientError) + Send + 'static {
    let app = app.clone();
    move |error| eprintln!("podvm: a stream of app {app} is lost: {error}")
}
