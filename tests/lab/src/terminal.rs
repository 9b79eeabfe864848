//! The caller's terminal, for commands that are used by hand.

use std::io::{self, IsTerminal};
use std::os::fd::AsRawFd;

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use podvm_lab_agent::protocol::TerminalSize;

/// Passes every key through unchanged until it is dropped.
pub struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Turns raw mode on; `None` if standard input is no terminal.
    pub fn enter() -> io::Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.before);
    }
}

/// The size of the terminal on standard output, or the classic one.
pub fn size() -> TerminalSize {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize, which lives on this stack.
    let known = unsafe { libc::ioctl(io::stdout().as_raw_fd(), libc::TIOCGWINSZ, &mut size) } == 0;
    if known && size.ws_row > 0 {
        return TerminalSize { rows: size.ws_row, columns: size.ws_col };
    }
    TerminalSize { rows: 24, columns: 80 }
}
