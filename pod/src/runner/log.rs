//! What apps print, kept as `logs/<app>.log` in the pod directory.
//!
//! Each line is `TIME STREAM TAG TEXT`, the log format of Kubernetes' container runtime interface (kubernetes,
//! design-proposals/node/kubelet-cri-logging.md): TIME as RFC 3339 with nanoseconds in UTC, STREAM `stdout` or `stderr`, TAG
//! `F` for a full line and `P` for a part that the next entry of the same stream continues. What an app prints is written
//! down at once, in parts if it comes in parts, so that a prompt without a newline is seen, too. A file that would grow
//! beyond [`MAX_LOG_BYTES`] becomes `<app>.log.1`, in place of an older one.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;

use crate::manifest::AppName;
use crate::timestamp::Timestamp;

/// Size in bytes at which a log file gives way to a new one.
pub const MAX_LOG_BYTES: u64 = 16 << 20;

/// Where a text was printed. What goes to a terminal counts as `Stdout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl LogStream {
    /// Its name in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// An app's log that is being written.
#[derive(Debug)]
pub struct AppLog {
    folder: OwnedFd,
    name: String,
    file: File,
    size: u64,
    limit: u64,
}

impl AppLog {
    /// Opens the app's log in an open folder, to go on behind what it already holds.
    ///
    /// # Errors
    /// Those of openat(2) and fstat(2).
    pub fn open(folder: OwnedFd, app: &AppName) -> io::Result<Self> {
        let name = file_name(app);
        let file = open_file(&folder, &name, OFlag::O_APPEND)?;
        let size = file.metadata()?.len();
        Ok(Self { folder, name, file, size, limit: MAX_LOG_BYTES })
    }

    /// Writes down what an app printed.
    ///
    /// # Errors
    /// Those of write(2), renameat(2) and openat(2).
    pub fn append(&mut self, stream: LogStream, printed: &[u8]) -> io::Result<()> {
        let mut entries = Vec::with_capacity(printed.len() + 64);
        let time = Timestamp::now();
        for piece in printed.split_inclusive(|byte| *byte == b'\n') {
            let (text, tag) = piece.strip_suffix(b"\n").map_or((piece, 'P'), |text| (text, 'F'));
            write!(entries, "{time:#} {} {tag} ", stream.name())?;
            entries.extend_from_slice(text);
            entries.push(b'\n');
        }
        if self.size > 0 && self.size + entries.len() as u64 > self.limit {
            let old = format!("{}.1", self.name);
            renameat(&self.folder, self.name.as_str(), &self.folder, old.as_str())?;
            self.file = open_file(&self.folder, &self.name, OFlag::O_APPEND | OFlag::O_TRUNC)?;
            self.size = 0;
        }
        self.file.write_all(&entries)?;
        self.size += entries.len() as u64;
        Ok(())
    }
}

fn open_file(folder: &OwnedFd, name: &str, how: OFlag) -> io::Result<File> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | how;
    Ok(File::from(openat(folder.as_fd(), name, flags, Mode::from_bits_truncate(0o600))?))
}

/// Name of an app's log file.
pub fn file_name(app: &AppName) -> String {
    format!("{app}.log")
}

/// One entry of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogEntry<'a> {
    /// When, as RFC 3339 with nanoseconds; comparing the texts compares the times.
    pub time: &'a str,
    /// Where it was printed.
    pub stream: LogStream,
    /// Whether the line ends here.
    pub is_full: bool,
    /// What was printed, without the newline.
    pub text: &'a [u8],
}

impl<'a> LogEntry<'a> {
    /// Reads a line of a log, without its newline; none when it is not one, as the last line of a log may be after a crash.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        let time = std::str::from_utf8(fields.next()?).ok()?;
        let stream = match fields.next()? {
            b"stdout" => LogStream::Stdout,
            b"stderr" => LogStream::Stderr,
            _ => return None,
        };
        let is_full = match fields.next()? {
            b"F" => true,
            b"P" => false,
            _ => return None,
        };
        Some(Self { time, stream, is_full, text: fields.next()? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn log_in(folder: &std::path::Path) -> AppLog {
        AppLog::open(File::open(folder).unwrap().into(), &"web".parse().unwrap()).unwrap()
    }

    fn text_of(log: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        for line in log.split_inclusive(|byte| *byte == b'\n') {
            let entry = LogEntry::parse(line.strip_suffix(b"\n").unwrap()).unwrap();
            text.extend_from_slice(entry.text);
            text.extend_from_slice(if entry.is_full { b"\n" } else { b"" });
        }
        text
    }

    #[test]
    fn a_full_log_gives_way_to_a_new_one_and_stays_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = log_in(folder.path());
        log.limit = 1_000;
        for _ in 0..200 {
            log.append(LogStream::Stderr, b"0123456789\n").unwrap();
        }
        let size = |name: &str| std::fs::metadata(folder.path().join(name)).unwrap().len();
        assert!(size("web.log") <= 1_000 && size("web.log.1") <= 1_000);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn an_opened_log_is_continued() {
        let folder = tempfile::tempdir().unwrap();
        log_in(folder.path()).append(LogStream::Stdout, b"first\n").unwrap();
        log_in(folder.path()).append(LogStream::Stdout, b"second\n").unwrap();
        assert_eq!(text_of(&std::fs::read(folder.path().join("web.log")).unwrap()), b"first\nsecond\n");
    }

    proptest! {
        #[test]
        fn what_was_printed_is_read_back(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..8)) {
            let folder = tempfile::tempdir().unwrap();
            let mut log = log_in(folder.path());
            for piece in &pieces {
                log.append(LogStream::Stdout, piece).unwrap();
            }
            prop_assert_eq!(text_of(&std::fs::read(folder.path().join("web.log")).unwrap()), pieces.concat());
        }

        #[test]
        fn no_line_makes_the_reader_panic(line in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = LogEntry::parse(&line);
        }
    }
}
