//! What a new process and the supervisor say to each other before the program is executed: messages on a pair of sockets, the
//! first byte being the kind.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use podvm_pod::exit::PODVM_ERROR;

use crate::sys::socket::{receive_message, send_message};

const PREPARED: u8 = b'P';
const FAILED: u8 = b'F';
const GO: u8 = b'G';

/// What a new process reports.
#[derive(Debug)]
pub enum Report {
    /// It waits for [`go`]. Comes with the other end of its terminal if it has one.
    Prepared(Option<OwnedFd>),
    /// It cannot be started.
    Failed {
        /// Why.
        message: String,
        /// The exit code this counts as.
        code: u8,
    },
    /// The socket is closed: the program is executed, or the process has ended.
    Closed,
}

/// Reports that the process is prepared.
///
/// # Errors
/// When the supervisor is gone.
pub fn report_prepared(control: BorrowedFd<'_>, terminal: Option<BorrowedFd<'_>>) -> io::Result<()> {
    send_message(control, &[PREPARED], terminal)
}

/// Reports why the process cannot be started.
pub fn report_failure(control: BorrowedFd<'_>, message: &str, code: u8) {
    let mut bytes = vec![FAILED, code];
    bytes.extend(message.as_bytes());
    // The supervisor sees the process end in any case.
    let _ = send_message(control, &bytes, None);
}

/// Waits for the word to go; false when the supervisor is gone.
pub fn wait_for_go(control: BorrowedFd<'_>) -> bool {
    receive_message(control, true).is_ok_and(|(bytes, _)| bytes == [GO])
}

/// Gives the word to go.
///
/// # Errors
/// When the process is gone.
pub fn go(control: BorrowedFd<'_>) -> io::Result<()> {
    send_message(control, &[GO], None)
}

/// The next report, if one has come.
pub fn next_report(control: BorrowedFd<'_>) -> Option<Report> {
    match receive_message(control, false) {
        Ok((bytes, attached)) => Some(match bytes.as_slice() {
            [] => Report::Closed,
            [PREPARED] => Report::Prepared(attached),
            [FAILED, code, message @ ..] => {
                Report::Failed { message: String::from_utf8_lossy(message).into_owned(), code: *code }
            }
            _ => Report::Failed { message: "the new process reported nonsense".into(), code: PODVM_ERROR },
        }),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => None,
        Err(_) => Some(Report::Closed),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys::socket::message_pair;

    #[test]
    fn reports_arrive_in_order_and_then_the_end() {
        let (ours, theirs) = message_pair().unwrap();
        assert!(next_report(ours.as_fd()).is_none());
        report_prepared(theirs.as_fd(), Some(theirs.as_fd())).unwrap();
        report_failure(theirs.as_fd(), "no such thing", 127);
        go(ours.as_fd()).unwrap();
        assert!(wait_for_go(theirs.as_fd()));
        drop(theirs);
        // The copy of the other end that came along keeps the pair connected until it is dropped.
        assert!(matches!(next_report(ours.as_fd()), Some(Report::Prepared(Some(_)))));
        assert!(
            matches!(next_report(ours.as_fd()), Some(Report::Failed { message, code: 127 }) if message == "no such thing")
        );
        assert!(matches!(next_report(ours.as_fd()), Some(Report::Closed)));
    }
}
