//! Sockets that an app is started with (sd_listen_fds(3)): opened once for the pod, so that connections wait while the app is
//! started again.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixListener;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, connect, listen, socket,
};
use podvm_pod::manifest::EnvironmentVariable;
use podvm_pod::protocol::{AppSpec, SocketSource};

use crate::step::{Step, StepError};

/// Number of the first socket in the app's process.
pub const FIRST: RawFd = 3;

/// A socket of an app.
#[derive(Debug)]
pub struct AppSocket {
    name: String,
    socket: OwnedFd,
    /// Where the supervisor connects to, if it has made the socket.
    address: Option<Address>,
}

#[derive(Debug)]
enum Address {
    Tcp(SocketAddr),
    /// In the abstract namespace (unix(7)).
    Unix(String),
}

impl AsFd for AppSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AppSocket {
    /// Opens the sockets of an app, or takes over those that the supervisor has inherited for it.
    ///
    /// # Errors
    /// What could not be opened.
    pub fn open_all(app: &AppSpec) -> Result<Vec<Self>, StepError> {
        let name = &app.app.name;
        let open = |(index, spec): (usize, &podvm_pod::protocol::SocketSpec)| {
            let opened = match &spec.source {
                SocketSource::Inherited(number) => inherited(*number).map(|socket| (socket, None)),
                SocketSource::Tcp(address) => listen_tcp(*address),
                SocketSource::Unix => listen_unix(format!("podvm/{name}/{index}")),
            };
            let (socket, address) = opened.step(|| format!("open the socket {} of app {name}", spec.name))?;
            Ok(Self { name: spec.name.clone(), socket, address })
        };
        app.sockets.iter().enumerate().map(open).collect()
    }

    /// Connects to it, without waiting for the app.
    ///
    /// # Errors
    /// Those of connect(2); that it is a socket of the host's own.
    pub fn connect(&self) -> io::Result<OwnedFd> {
        let address: Box<dyn SockaddrLike> = match &self.address {
            Some(Address::Tcp(address)) => Box::new(SockaddrStorage::from(*address)),
            Some(Address::Unix(name)) => Box::new(UnixAddr::new_abstract(name.as_bytes())?),
            None => return Err(io::Error::other("it is the host's, and takes connections there")),
        };
        let family = address.family().unwrap_or(AddressFamily::Unspec);
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let connection = socket(family, SockType::Stream, flags, None)?;
        match connect(connection.as_raw_fd(), address.as_ref()) {
            Ok(()) | Err(Errno::EINPROGRESS) => Ok(connection),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// The variables that tell a process of its sockets, to be made by that process itself.
pub fn variables(sockets: &[AppSocket]) -> Vec<EnvironmentVariable> {
    if sockets.is_empty() {
        return Vec::new();
    }
    let variable = |name: &str, value: String| EnvironmentVariable { name: name.into(), value };
    let names: Vec<&str> = sockets.iter().map(|socket| socket.name.as_str()).collect();
    vec![
        variable("LISTEN_PID", std::process::id().to_string()),
        variable("LISTEN_FDS", sockets.len().to_string()),
        variable("LISTEN_FDNAMES", names.join(":")),
    ]
}

/// Gives the sockets their numbers in the calling process and lets its program inherit them. Returns the number after the last.
///
/// # Errors
/// Those of dup(2).
///
/// # Safety
/// Nothing in this process may use the descriptors of these numbers any more.
pub unsafe fn place(sockets: &[AppSocket]) -> io::Result<RawFd> {
    let end = FIRST + sockets.len() as RawFd;
    // All are copied beyond those numbers first, so that none is overwritten before its turn.
    let copies = sockets.iter().map(|socket| rustix::io::fcntl_dupfd_cloexec(socket, end));
    let copies = copies.collect::<Result<Vec<_>, _>>()?;
    for (number, copy) in (FIRST..).zip(&copies) {
        // SAFETY: the caller promises that nobody uses what this number was before.
        if unsafe { libc::dup2(copy.as_raw_fd(), number) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(end)
}

fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: whoever started the supervisor gave it this descriptor for this app alone; if it is none, copying it fails.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    let socket = rustix::io::fcntl_dupfd_cloexec(borrowed, number + 1)?;
    // SAFETY: it was inherited, and nothing else in this program knows of it.
    drop(unsafe { OwnedFd::from_raw_fd(number) });
    Ok(socket)
}

/// Listens at an address; where the pod has none such, or another socket is there, at one of its loopback addresses.
fn listen_tcp(address: SocketAddr) -> io::Result<(OwnedFd, Option<Address>)> {
    let loopback = match address.ip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    let listener = TcpListener::bind(address)
        .or_else(|_| TcpListener::bind((loopback, address.port())))
        .or_else(|_| TcpListener::bind((loopback, 0)))?;
    listen(&listener, Backlog::MAXCONN)?;
    let mut bound = listener.local_addr()?;
    if bound.ip().is_unspecified() {
        bound.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    Ok((listener.into(), Some(Address::Tcp(bound))))
}

fn listen_unix(name: String) -> io::Result<(OwnedFd, Option<Address>)> {
    let listener = UnixListener::bind_addr(&std::os::unix::net::SocketAddr::from_abstract_name(&name)?)?;
    listen(&listener, Backlog::MAXCONN)?;
    Ok((listener.into(), Some(Address::Unix(name))))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_tcp_socket_is_at_its_address_or_else_at_a_loopback_address() {
        let (first, at) = listen_tcp("0.0.0.0:0".parse().unwrap()).unwrap();
        let Some(Address::Tcp(at)) = at else { panic!("{at:?}") };
        assert_eq!(at.ip(), Ipv4Addr::LOCALHOST);
        // Nobody has this address, which is for documentation (RFC 5737).
        for unusable in [format!("192.0.2.1:{}", at.port()), format!("0.0.0.0:{}", at.port())] {
            let (_, other) = listen_tcp(unusable.parse().unwrap()).unwrap();
            let Some(Address::Tcp(other)) = other else { panic!("{other:?}") };
            assert!(other.ip() == Ipv4Addr::LOCALHOST && other.port() != at.port(), "{other}");
        }
        let socket = AppSocket { name: "x".into(), socket: first, address: Some(Address::Tcp(at)) };
        let mut outside = TcpStream::from(socket.connect().unwrap());
        let (mut inside, _) = TcpListener::from(socket.socket).accept().unwrap();
        inside.write_all(b"hello").unwrap();
        drop(inside);
        outside.set_nonblocking(false).unwrap();
        let mut text = String::new();
        outside.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn a_unix_socket_needs_no_place_in_the_filesystem() {
        let (socket, address) = listen_unix(format!("podvm-test/{}", std::process::id())).unwrap();
        let socket = AppSocket { name: "x".into(), socket, address };
        let outside = UnixStream::from(socket.connect().unwrap());
        let (mut inside, _) = UnixListener::from(socket.socket).accept().unwrap();
        (&outside).write_all(b"hello").unwrap();
        drop(outside);
        let mut text = String::new();
        inside.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn a_program_learns_names_and_number() {
        let socket = |name: &str| {
            let (socket, _) = listen_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
            AppSocket { name: name.into(), socket, address: None }
        };
        let both = [socket("one"), socket("two")];
        let told: Vec<String> = variables(&both).iter().map(|it| format!("{}={}", it.name, it.value)).collect();
        assert_eq!(told[1..], ["LISTEN_FDS=2", "LISTEN_FDNAMES=one:two"]);
        assert_eq!(variables(&[]), []);
        assert!(both[0].connect().unwrap_err().to_string().contains("the host's"));
    }
}
