//! What an attached pod shows: its apps' output on this process's own streams, and this terminal's size on theirs.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use super::log::LogStream;
use crate::client::SupervisorClient;
use crate::console::{TerminalSize, spawn, write_fully};
use crate::manifest::AppName;
use crate::protocol::ProcessId;

/// Longest line that is held back until it is whole, when lines of several apps are mixed.
const MAX_LINE_BYTES: usize = 8 * 1024;

/// One stream of one app on one of this process's own.
#[derive(Debug)]
pub(super) struct Shown {
    to: OwnedFd,
    prefix: Option<AppName>,
    /// The begun line, when lines are mixed.
    line: Vec<u8>,
}

impl Shown {
    /// Shown as it comes; or line by line behind `[prefix]` when there is one.
    pub fn new(stream: LogStream, prefix: Option<AppName>) -> io::Result<Self> {
        let to = match stream {
            LogStream::Stdout => io::stdout().as_fd().try_clone_to_owned(),
            LogStream::Stderr => io::stderr().as_fd().try_clone_to_owned(),
        }?;
        Ok(Self { to, prefix, line: Vec::new() })
    }

    /// Shows a piece.
    pub fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        if self.prefix.is_none() {
            return write_fully(self.to.as_fd(), piece);
        }
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if self.line.len() >= MAX_LINE_BYTES || self.line.ends_with(b"\n") {
                self.write_line()?;
            }
        }
        Ok(())
    }

    fn write_line(&mut self) -> io::Result<()> {
        if let Some(prefix) = &self.prefix {
            let mut line = format!("[{prefix}] ").into_bytes();
            line.append(&mut self.line);
            if !line.ends_with(b"\n") {
                line.push(b'\n');
            }
            write_fully(self.to.as_fd(), &line)?;
        }
        Ok(())
    }
}

/// A line that was begun is shown when its stream ends.
impl Drop for Shown {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            let _ = self.write_line();
        }
    }
}

/// The apps' terminals that follow the size of this process's own.
#[derive(Debug)]
pub(super) struct Terminals {
    processes: Arc<Mutex<BTreeMap<AppName, ProcessId>>>,
    wake: SyncSender<()>,
}

impl Terminals {
    /// Starts the thread that tells sizes: the pod's own must not wait for answers.
    pub fn watch(client: SupervisorClient) -> io::Result<Self> {
        let processes = Arc::<Mutex<BTreeMap<AppName, ProcessId>>>::default();
        // One waiting wake-up is enough: the size is looked at when it is told.
        let (wake, woken) = sync_channel(1);
        let list = processes.clone();
        spawn("resize", move || {
            while woken.recv().is_ok() {
                let processes = list.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let Some(size) = TerminalSize::of(io::stdout().as_fd()) else { continue };
                for process in processes.into_values() {
                    // A process that has ended has no size.
                    let _ = client.resize(process, size);
                }
            }
        })?;
        Ok(Self { processes, wake })
    }

    /// The terminal of this app's process follows, instead of that of its earlier life.
    pub fn follow(&self, app: &AppName, process: ProcessId) {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner).insert(app.clone(), process);
    }

    /// This process's own terminal has another size.
    pub fn resize(&self) {
        let _ = self.wake.try_send(());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn shown_by(prefix: Option<&str>, pieces: &[&[u8]]) -> String {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let prefix = prefix.map(|name| name.parse().unwrap());
        let mut shown = Shown { to: writer, prefix, line: Vec::new() };
        for piece in pieces {
            shown.write(piece).unwrap();
        }
        drop(shown);
        let mut text = String::new();
        std::fs::File::from(reader).read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_single_app_is_shown_as_it_prints() {
        assert_eq!(shown_by(None, &[b"a\nb", b"c"]), "a\nbc");
    }

    #[test]
    fn mixed_apps_are_shown_line_by_line_with_their_names() {
        assert_eq!(shown_by(Some("web"), &[b"a\nb", b"c\n", b"rest"]), "[web] a\n[web] bc\n[web] rest\n");
    }
}
