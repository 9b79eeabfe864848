//! Connections to the guest that other threads of the VMM's process ask for.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

/// Connects to ports of the guest. Cheap to clone; usable from any thread.
#[derive(Clone, Debug)]
pub struct VsockConnector {
    mailbox: Arc<Mailbox>,
}

impl VsockConnector {
    /// Connects to a port of the guest.
    ///
    /// Returns at once: what is written flows when the guest accepts, and if it refuses the stream ends.
    /// Before the guest's driver is up, the request waits for it.
    ///
    /// # Errors
    /// [`io::ErrorKind::ConnectionRefused`] if the device is gone; else that of socketpair(2).
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        match &mut *self.mailbox.requests() {
            Some(requests) => requests.push_back(Requested { port, stream: theirs }),
            None => return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "the guest is gone")),
        }
        // A full counter means that the bell rings already.
        let _ = self.mailbox.bell.write(1);
        Ok(ours)
    }
}

/// A connection asked for: the guest's port, and the end of the stream that the device is to serve.
#[derive(Debug)]
pub(super) struct Requested {
    pub port: u32,
    pub stream: UnixStream,
}

/// What connectors and the device share; `None` when the device is gone.
#[derive(Debug)]
struct Mailbox {
    requests: Mutex<Option<VecDeque<Requested>>>,
    bell: EventFd,
}

impl Mailbox {
    fn requests(&self) -> MutexGuard<'_, Option<VecDeque<Requested>>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The device's side. When it is dropped, requests that wait are refused.
#[derive(Debug)]
pub(super) struct Inbox {
    mailbox: Arc<Mailbox>,
}

impl Inbox {
    /// # Errors
    /// The error of eventfd(2).
    pub fn new() -> io::Result<Self> {
        let bell = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Self { mailbox: Arc::new(Mailbox { requests: Mutex::new(Some(VecDeque::new())), bell }) })
    }

    pub fn connector(&self) -> VsockConnector {
        VsockConnector { mailbox: Arc::clone(&self.mailbox) }
    }

    /// Readable when there are requests.
    pub fn bell(&self) -> &EventFd {
        &self.mailbox.bell
    }

    /// Takes all requests.
    pub fn take(&self) -> VecDeque<Requested> {
        let _ = self.mailbox.bell.read();
        self.mailbox.requests().as_mut().map(std::mem::take).unwrap_or_default()
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        *self.mailbox.requests() = None;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_request_that_waits_is_refused_when_the_device_goes() {
        let inbox = Inbox::new().unwrap();
        let connector = inbox.connector();
        let mut stream = connector.connect(7).unwrap();
        drop(inbox);
        assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
        assert_eq!(connector.connect(7).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
