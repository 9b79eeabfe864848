//! The way to the host: vsock (vsock(7)).

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, connect as connect_socket, socket,
};
use podvm_pod::protocol::{PRIMARY_PORT, REQUEST_PORT};

use crate::step::{Step, StepError};

/// How often the host is tried, and how long between two tries: it listens before the VM starts, so one is enough unless
/// it is very busy.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

fn stream_socket() -> nix::Result<OwnedFd> {
    socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
}

/// Opens the primary connection.
///
/// # Errors
/// When the host does not answer.
pub fn connect() -> Result<OwnedFd, StepError> {
    let host = VsockAddr::new(libc::VMADDR_CID_HOST, PRIMARY_PORT);
    let mut attempt = 1;
    loop {
        let socket = stream_socket().step(|| "make a vsock socket")?;
        match connect_socket(socket.as_raw_fd(), &host) {
            Ok(()) => return Ok(socket),
            Err(Errno::ECONNRESET | Errno::ECONNREFUSED | Errno::ETIMEDOUT | Errno::EINTR) if attempt < ATTEMPTS => {
                attempt += 1;
                std::thread::sleep(PAUSE);
            }
            Err(error) => return Err(error).step(|| format!("connect to the host's vsock port {PRIMARY_PORT}")),
        }
    }
}

/// Listens for request connections.
///
/// # Errors
/// Those of the system.
pub fn listen() -> Result<OwnedFd, StepError> {
    let attempt = || {
        let socket = stream_socket()?;
        bind(socket.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, REQUEST_PORT))?;
        nix::sys::socket::listen(&socket, Backlog::new(128)?)?;
        Ok::<_, Errno>(socket)
    };
    attempt().step(|| format!("listen on vsock port {REQUEST_PORT}"))
}
