//! The user's terminal: its size, and its raw mode while a program in a pod has it (termios(3), "raw mode").

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

impl TerminalSize {
    /// The size of the terminal that is open as `fd`; none when it is no terminal or does not know.
    pub fn of(fd: BorrowedFd<'_>) -> Option<Self> {
        // SAFETY: winsize is plain numbers, for which zeroes are valid.
        let mut size: nix::libc::winsize = unsafe { std::mem::zeroed() };
        // SAFETY: TIOCGWINSZ writes one winsize to the pointer, which is that of a live one.
        let result = unsafe { nix::libc::ioctl(fd.as_raw_fd(), nix::libc::TIOCGWINSZ, &raw mut size) };
        (result == 0 && size.ws_row > 0 && size.ws_col > 0).then_some(Self { rows: size.ws_row, columns: size.ws_col })
    }
}

/// A terminal in raw mode: every key goes to the program in the pod. The mode it had before is back when this is dropped,
/// and when the process panics, even if it is built to abort then.
#[derive(Debug)]
pub struct RawTerminal(Arc<Saved>);

#[derive(Debug)]
struct Saved {
    terminal: OwnedFd,
    before: libc_termios::Settings,
}

/// termios settings that may be shared between threads: nix's own type holds a cell.
mod libc_termios {
    use super::Termios;

    #[derive(Debug, Clone, Copy)]
    pub struct Settings(nix::libc::termios);

    impl From<Termios> for Settings {
        fn from(termios: Termios) -> Self {
            Self(termios.into())
        }
    }

    impl From<Settings> for Termios {
        fn from(settings: Settings) -> Self {
            settings.0.into()
        }
    }
}

impl RawTerminal {
    /// Puts the terminal into raw mode; none when `fd` is no terminal.
    ///
    /// # Errors
    /// Those of dup(2) and tcsetattr(3).
    pub fn enter(fd: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        let Ok(before) = tcgetattr(fd) else { return Ok(None) };
        let saved = Arc::new(Saved { terminal: fd.try_clone_to_owned()?, before: before.clone().into() });
        let mut raw = before;
        cfmakeraw(&mut raw);
        let guard = Self(saved.clone());
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            saved.restore();
            previous(panic);
        }));
        tcsetattr(fd, SetArg::TCSADRAIN, &raw)?;
        Ok(Some(guard))
    }
}

impl Saved {
    /// There is nobody to tell when this fails: the terminal is gone then.
    fn restore(&self) {
        let _ = tcsetattr(self.terminal.as_fd(), SetArg::TCSADRAIN, &self.before.into());
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        self.0.restore();
    }
}

#[cfg(test)]
mod tests {
    use nix::pty::openpty;
    use nix::sys::termios::LocalFlags;

    use super::*;

    #[test]
    fn raw_mode_ends_with_its_guard() {
        let pty = openpty(None, None).unwrap();
        let echoes = || tcgetattr(&pty.slave).unwrap().local_flags.contains(LocalFlags::ECHO);
        assert!(echoes());
        let raw = RawTerminal::enter(pty.slave.as_fd()).unwrap().unwrap();
        assert!(!echoes());
        drop(raw);
        assert!(echoes());
    }

    #[test]
    fn what_is_no_terminal_is_left_alone() {
        let (reader, _writer) = nix::unistd::pipe().unwrap();
        assert!(RawTerminal::enter(reader.as_fd()).unwrap().is_none());
        assert_eq!(TerminalSize::of(reader.as_fd()), None);
    }
}
