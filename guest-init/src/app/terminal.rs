//! Pseudo-terminals of an app's own devpts (pts(4)).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use super::path::Root;
use crate::sys::mount::Detached;

/// A pseudo-terminal.
#[derive(Debug)]
pub struct Terminal {
    /// The supervisor's end.
    pub outer: OwnedFd,
    /// The app's end.
    pub inner: OwnedFd,
}

impl Terminal {
    /// Makes a terminal in the devpts of the root the calling process is in.
    ///
    /// # Errors
    /// Those of opening `/dev/pts/ptmx` and its ioctls.
    pub fn open_here() -> io::Result<Self> {
        let outer: OwnedFd = File::options().read(true).write(true).open("/dev/pts/ptmx")?.into();
        let unlocked: libc::c_int = 0;
        // SAFETY: TIOCSPTLCK reads one int.
        if unsafe { libc::ioctl(outer.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        // SAFETY: TIOCGPTPEER takes flags as a number and returns a new descriptor.
        let inner = unsafe { libc::ioctl(outer.as_raw_fd(), libc::TIOCGPTPEER, flags) };
        if inner < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, and nobody else knows of it.
        Ok(Self { outer, inner: unsafe { OwnedFd::from_raw_fd(inner) } })
    }

    /// Shows the app's end as `/dev/console`.
    ///
    /// # Errors
    /// Those of mounting.
    pub fn show_as_console(&self) -> io::Result<()> {
        use std::os::fd::AsFd;
        let place = Root::open(Path::new("/"))?.file(Path::new("/dev/console"))?;
        Detached::bind(self.inner.as_fd(), false)?.attach(place.fd.as_fd()).map(drop)
    }
}

/// Makes the terminal on `fd` the controlling one of the calling process, which must lead a session.
///
/// # Errors
/// Those of the ioctl.
pub fn take_control(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes a number.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets the size of the terminal whose outer end is `fd`.
///
/// # Errors
/// Those of the ioctl.
pub fn resize(fd: BorrowedFd<'_>, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads a winsize.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
