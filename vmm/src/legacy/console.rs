//! What the guest writes to its serial port: the last of it is kept, and a panic report is found in it.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes kept. A panic report of Linux has some 4 KiB.
pub const KEPT_BYTES: usize = 64 << 10;

/// Longest panic message that is reported.
const MAX_MESSAGE_BYTES: usize = 1024;

/// Where console output also goes, besides being kept.
pub type Sink = Box<dyn Write + Send>;

/// The last output of the guest's console. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct ConsoleLog {
    kept: Arc<Mutex<VecDeque<u8>>>,
}

impl ConsoleLog {
    /// An empty log.
    pub fn new() -> Self {
        Self::default()
    }

    fn append(&self, bytes: &[u8]) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = &bytes[bytes.len().saturating_sub(KEPT_BYTES)..];
        let excess = (kept.len() + bytes.len()).saturating_sub(KEPT_BYTES);
        kept.drain(..excess);
        kept.extend(bytes);
    }

    /// The kept output as text; bytes that are not UTF-8 or are control characters are shown as `?`.
    pub fn text(&self) -> String {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = kept.iter().copied().filter(|byte| *byte != b'\r').collect();
        let printable = |c: char| if c.is_control() && c != '\n' && c != '\t' { '?' } else { c };
        String::from_utf8_lossy(&bytes).chars().map(printable).collect()
    }

    /// The last line that is not empty.
    pub fn last_line(&self) -> Option<String> {
        self.text().lines().rev().find(|line| !line.trim().is_empty()).map(|line| line.trim().to_owned())
    }

    /// The message of the kernel's panic, if it reported one: the first, as the kernel's last words may be many.
    pub fn panic_message(&self) -> Option<String> {
        const MARK: &str = "Kernel panic - not syncing: ";
        let text = self.text();
        let message = text.split(MARK).nth(1)?.lines().next()?.trim();
        Some(message.chars().take(MAX_MESSAGE_BYTES).collect())
    }
}

/// The serial port's far end: keeps the bytes and hands them to the sink.
pub struct ConsoleWriter {
    log: ConsoleLog,
    sink: Option<Sink>,
}

impl ConsoleWriter {
    /// A writer into `log`, and into `sink` too if there is one.
    pub fn new(log: ConsoleLog, sink: Option<Sink>) -> Self {
        Self { log, sink }
    }
}

impl Write for ConsoleWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.log.append(bytes);
        // A sink that is full or closed must not stop the guest: its output is lost there, not here.
        if let Some(sink) = &mut self.sink
            && sink.write_all(bytes).is_err()
        {
            self.sink = None;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if let Some(sink) = &mut self.sink {
            let _ = sink.flush();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_bytes_are_kept() {
        let log = ConsoleLog::new();
        log.append(&[b'a'; KEPT_BYTES]);
        log.append(b"end");
        assert_eq!(log.text().len(), KEPT_BYTES);
        assert!(log.text().ends_with("aend"));
        log.append(&[b'b'; KEPT_BYTES + 5]);
        assert_eq!(log.text(), "b".repeat(KEPT_BYTES));
    }

    #[test]
    fn a_panic_is_found_with_its_message() {
        let log = ConsoleLog::new();
        log.append(
            b"[ 0.1] hello\r\n[ 0.2] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n[ 0.2] CPU: 0\r\n",
        );
        assert_eq!(log.panic_message().unwrap(), "VFS: Unable to mount root fs");
        assert_eq!(log.last_line().unwrap(), "[ 0.2] CPU: 0");
    }

    #[test]
    fn output_without_panic_has_no_message() {
        let log = ConsoleLog::new();
        log.append(b"all is well\n");
        assert_eq!(log.panic_message(), None);
    }

    #[test]
    fn control_characters_do_not_reach_the_hosts_terminal() {
        let log = ConsoleLog::new();
        log.append(b"\x1b[2Jcleared");
        assert_eq!(log.text(), "?[2Jcleared");
    }
}
