//! Sockets: messages that carry a descriptor, and whether anyone still listens.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, accept4, recvmsg, sendmsg,
    socketpair,
};

/// Longest message on a [`message_pair`].
pub const MAX_MESSAGE: usize = 8 << 10;

/// Two connected sockets that keep messages apart.
///
/// # Errors
/// Those of socketpair(2).
pub fn message_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// The next connection to a listening socket; it never waits.
///
/// # Errors
/// Those of accept4(2); would-block when there is none and the listening socket does not wait.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
    // SAFETY: the descriptor is new, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a message, with a descriptor if given.
///
/// # Errors
/// Those of sendmsg(2).
pub fn send_message(socket: BorrowedFd<'_>, bytes: &[u8], attached: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let fds: Vec<RawFd> = attached.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &rights[..0] } else { &rights[..] };
    let bytes = [IoSlice::new(&bytes[..bytes.len().min(MAX_MESSAGE)])];
    sendmsg::<()>(socket.as_raw_fd(), &bytes, control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives a message and the descriptor that came with it; an empty message means that the other end is closed.
///
/// # Errors
/// Those of recvmsg(2); would-block when `wait` is false and there is none; out of descriptors when there was none left for what came.
pub fn receive_message(socket: BorrowedFd<'_>, wait: bool) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut control = nix::cmsg_space!([RawFd; 1]);
    let wait = if wait { MsgFlags::empty() } else { MsgFlags::MSG_DONTWAIT };
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let received =
        recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC | wait)?;
    let mut attached = None;
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = message {
            for fd in fds {
                // SAFETY: the kernel has just made this descriptor for us.
                attached = Some(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    if received.flags.contains(MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::from_raw_os_error(libc::EMFILE));
    }
    let length = received.bytes;
    bytes.truncate(length);
    Ok((bytes, attached))
}

/// Whether what is sent here could still arrive: a send of nothing tells when the other end is gone, where poll(2) cannot
/// (a vsock does not report a hang-up, and a closed direction is no hang-up).
pub fn is_heard(socket: BorrowedFd<'_>) -> bool {
    // SAFETY: no byte is read from the pointer.
    let sent = unsafe { libc::send(socket.as_raw_fd(), std::ptr::null(), 0, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) };
    sent >= 0 || io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock
}

/// Closes one or both directions; that it may be closed already does not matter.
pub fn shut_down(socket: BorrowedFd<'_>, how: libc::c_int) {
    // SAFETY: takes two integers.
    unsafe { libc::shutdown(socket.as_raw_fd(), how) };
}

/// Makes reads and writes return at once instead of waiting.
///
/// # Errors
/// Those of fcntl(2).
pub fn set_nonblocking(fd: BorrowedFd<'_>, nonblocking: bool) -> io::Result<()> {
    let mut flags = rustix::fs::fcntl_getfl(fd)?;
    flags.set(rustix::fs::OFlags::NONBLOCK, nonblocking);
    Ok(rustix::fs::fcntl_setfl(fd, flags)?)
}
