//! The host's end of a connection: a Unix stream socket, and the bytes that did not fit into it yet.
//!
//! All calls are non-blocking by flag, whatever the mode of the socket, and none raises SIGPIPE.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use crate::virtio::chain::Buffers;

/// What came of reading from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// So many bytes, at least one.
    Bytes(usize),
    /// Nothing for now.
    Nothing,
    /// The host will send no more.
    End,
}

/// A stream socket of the host with a backlog. The backlog's bound is the guest's credit.
#[derive(Debug)]
pub(super) struct HostStream {
    stream: UnixStream,
    backlog: VecDeque<u8>,
    broken: bool,
}

impl HostStream {
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, backlog: VecDeque::new(), broken: false }
    }

    pub fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// Whether bytes wait for room in the socket.
    pub fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Whether the host receives no more: what is sent is dropped.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Reads into guest memory. `target` must not be empty.
    pub fn receive(&self, target: &Buffers<'_>) -> Received {
        let mut iovecs = target.iovecs();
        let mut message = message(&mut iovecs);
        loop {
            // SAFETY: the iovecs point to guest memory that `target` keeps mapped, and only the kernel writes there.
            let count = unsafe { libc::recvmsg(self.fd(), &raw mut message, libc::MSG_DONTWAIT) };
            return match usize::try_from(count) {
                Ok(0) => Received::End,
                Ok(count) => Received::Bytes(count),
                Err(_) => match io::Error::last_os_error().kind() {
                    io::ErrorKind::WouldBlock => Received::Nothing,
                    io::ErrorKind::Interrupted => continue,
                    // The peer closed with unread data: there is nothing more to come.
                    _ => Received::End,
                },
            };
        }
    }

    /// Sends bytes of the guest behind those sent before; what does not fit is kept. Says how many left the
    /// backlog's account at once: sent, or dropped because the host receives no more.
    pub fn send(&mut self, mut source: Buffers<'_>) -> usize {
        let total = source.len();
        let mut sent = 0;
        if self.backlog.is_empty() {
            while !self.broken && !source.is_empty() {
                let mut iovecs = source.iovecs();
                let count = self.send_once(&mut iovecs);
                if count == 0 {
                    break;
                }
                sent += source.take(count).len();
            }
        }
        if self.broken {
            return total;
        }
        // Only what the socket has no room for is copied on the host.
        let mut rest = vec![0; source.len()];
        source.copy_to(&mut rest);
        self.backlog.extend(rest);
        sent
    }

    /// Sends a short text past the backlog's account; `false` if it does not fit.
    pub fn send_text(&mut self, text: &str) -> bool {
        let bytes = text.as_bytes();
        let mut iovecs = [iovec(bytes)];
        self.send_once(&mut iovecs) == bytes.len()
    }

    /// Sends from the backlog what fits; says how many bytes left it.
    pub fn flush(&mut self) -> usize {
        let mut gone = 0;
        while !self.backlog.is_empty() {
            let (front, back) = self.backlog.as_slices();
            let mut iovecs = [iovec(front), iovec(back)];
            let count = self.send_once(&mut iovecs);
            let count = if self.broken { self.backlog.len() } else { count };
            if count == 0 {
                break;
            }
            self.backlog.drain(..count);
            gone += count;
        }
        if self.backlog.is_empty() {
            // Idle connections hold no memory.
            self.backlog = VecDeque::new();
        }
        gone
    }

    /// The guest sends no more; call it when the backlog is empty.
    pub fn end_sending(&self) {
        // The only failure is a peer that is gone already.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// The guest receives no more: the host's further writes fail.
    pub fn end_receiving(&self) {
        let _ = self.stream.shutdown(Shutdown::Read);
    }

    /// One sendmsg(2); 0 if there is no room or the host receives no more.
    fn send_once(&mut self, iovecs: &mut [libc::iovec]) -> usize {
        let message = message(iovecs);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        loop {
            // SAFETY: the iovecs point to memory that the caller keeps alive, and the kernel only reads it.
            let count = unsafe { libc::sendmsg(self.fd(), &raw const message, flags) };
            if let Ok(count) = usize::try_from(count) {
                return count;
            }
            match io::Error::last_os_error().kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => return 0,
                _ => {
                    self.broken = true;
                    return 0;
                }
            }
        }
    }
}

fn iovec(bytes: &[u8]) -> libc::iovec {
    let slice = IoSlice::new(bytes);
    libc::iovec { iov_base: slice.as_ptr().cast_mut().cast(), iov_len: slice.len() }
}

fn message(iovecs: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: all zeroes is a msghdr without address, buffers and control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iovecs.as_mut_ptr();
    message.msg_iovlen = iovecs.len();
    message
}

/// Looks at the first bytes that wait in a socket, without taking them. 0 is the end of the stream.
///
/// # Errors
/// The error of recv(2); [`io::ErrorKind::WouldBlock`] if nothing waits.
pub(super) fn peek(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<usize> {
    receive_bytes(stream, bytes, libc::MSG_PEEK)
}

/// Takes bytes from a socket without waiting.
///
/// # Errors
/// As [`peek`].
pub(super) fn take(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<usize> {
    receive_bytes(stream, bytes, 0)
}

fn receive_bytes(stream: &UnixStream, bytes: &mut [u8], flags: i32) -> io::Result<usize> {
    let flags = flags | libc::MSG_DONTWAIT;
    let fd = stream.as_raw_fd();
    let mut iovecs = [libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }];
    let mut message = message(&mut iovecs);
    // SAFETY: the iovec is `bytes`, whole and writable.
    let count = unsafe { libc::recvmsg(fd, &raw mut message, flags) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}
