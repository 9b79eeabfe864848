//! Sockets that podvm was started with (socket activation, sd_listen_fds(3)), and which app each is for.
//!
//! Behind namespaces an app gets the very socket. In a VM, whose kernel is another, it gets one that the supervisor has made like
//! it, and the pod's process ties each connection that comes to the host's socket to one to the app's ([`crate::runner`]).

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::sockopt::{AcceptConn, SockType as SocketTypeOption};
use nix::sys::socket::{AddressFamily, SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt};
use rustix::fs::FileType;

use crate::manifest::{AppName, PodManifest, Protocol, PublishedPort};

/// Why sockets cannot be given to apps.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SocketError {
    /// Several apps, and nothing says whose it is.
    #[error(
        "the passed socket {name} ({kind}) could be for any of the pod's apps; publish its port with --port, or give it an app's name \
         (FileDescriptorName= in the .socket unit)"
    )]
    ForWhom {
        /// What its sender calls it.
        name: String,
        /// What it is.
        kind: SocketKind,
    },
    /// Something else: by a directory of the host, an app could go anywhere.
    #[error(
        "what was passed as {name} is no socket; apps can be started with sockets and FIFOs only (systemd.socket(5))"
    )]
    NoSocket {
        /// What its sender calls it.
        name: String,
    },
    /// A kind that cannot be carried through a VM's wall.
    #[error(
        "the passed socket {name} ({kind}) cannot be passed into a VM, where only listening TCP and Unix stream sockets can; use --stage1=ns"
    )]
    NotForVm {
        /// What its sender calls it.
        name: String,
        /// What it is.
        kind: SocketKind,
    },
}

/// What a passed descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketKind {
    /// A TCP socket that listens there.
    TcpListener(SocketAddr),
    /// A Unix stream socket that listens.
    UnixListener,
    /// A UDP socket that is bound there.
    Udp(SocketAddr),
    /// Another socket, such as a connection, or a FIFO.
    Other,
}

impl std::fmt::Display for SocketKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TcpListener(address) => write!(f, "TCP at {address}"),
            Self::UnixListener => f.write_str("a Unix socket"),
            Self::Udp(address) => write!(f, "UDP at {address}"),
            Self::Other => f.write_str("not one that listens"),
        }
    }
}

impl SocketKind {
    /// Looks at a descriptor; none when it is neither a socket nor a FIFO.
    pub fn of(fd: BorrowedFd<'_>) -> Option<Self> {
        let file_type = rustix::fs::fstat(fd).map(|stat| FileType::from_raw_mode(stat.st_mode));
        matches!(file_type, Ok(FileType::Socket | FileType::Fifo)).then(|| Self::of_socket(fd))
    }

    fn of_socket(fd: BorrowedFd<'_>) -> Self {
        let (Ok(kind), Ok(address)) =
            (getsockopt(&fd, SocketTypeOption), getsockname::<SockaddrStorage>(fd.as_raw_fd()))
        else {
            return Self::Other;
        };
        let listens = getsockopt(&fd, AcceptConn).unwrap_or(false);
        match (kind, ip_address(&address)) {
            (SockType::Stream, Some(address)) if listens => Self::TcpListener(address),
            (SockType::Stream, None) if listens && address.family() == Some(AddressFamily::Unix) => Self::UnixListener,
            (SockType::Datagram, Some(address)) => Self::Udp(address),
            _ => Self::Other,
        }
    }

    /// Whether it is what a published port would lead to the pod.
    fn is_at(&self, port: &PublishedPort) -> bool {
        let (protocol, address) = match self {
            Self::TcpListener(address) => (Protocol::Tcp, address),
            Self::Udp(address) => (Protocol::Udp, address),
            Self::UnixListener | Self::Other => return false,
        };
        let overlaps = |ip: IpAddr| ip.is_unspecified() || address.ip().is_unspecified() || ip == address.ip();
        (protocol, address.port()) == (port.protocol, port.host_port) && port.host_ip.is_none_or(overlaps)
    }
}

fn ip_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|it| SocketAddr::from((it.ip(), it.port())));
    v4.or_else(|| address.as_sockaddr_in6().map(|it| SocketAddr::from((it.ip(), it.port()))))
}

/// A socket that podvm was started with.
#[derive(Debug)]
pub struct PassedSocket {
    /// What its sender calls it.
    pub name: String,
    /// The descriptor.
    pub socket: OwnedFd,
}

/// A socket that an app is to be started with.
#[derive(Debug, Clone)]
pub struct AppSocket {
    /// The app.
    pub app: AppName,
    /// What the app is told that it is called: the published port's name, or its sender's name for it.
    pub name: String,
    /// The host's socket.
    pub socket: Arc<OwnedFd>,
    /// What it is.
    pub kind: SocketKind,
    /// The published port that it takes the place of.
    pub port: Option<PublishedPort>,
}

/// Finds out which app each socket is for: the one whose published port it is, the one that it is named after, or the only one.
///
/// # Errors
/// [`SocketError::ForWhom`], [`SocketError::NoSocket`].
pub fn assign(passed: Vec<PassedSocket>, manifest: &PodManifest) -> Result<Vec<AppSocket>, SocketError> {
    let only = match manifest.apps.as_slice() {
        [app] => Some(&app.name),
        _ => None,
    };
    let assign_one = |PassedSocket { name, socket }: PassedSocket| {
        let Some(kind) = SocketKind::of(socket.as_fd()) else { return Err(SocketError::NoSocket { name }) };
        let port = manifest.ports.iter().find(|port| kind.is_at(port));
        let named = manifest.apps.iter().map(|app| &app.name).find(|app| app.as_str() == name);
        let app = port.and_then(|port| port.app.as_ref()).or(named).or(only);
        let Some(app) = app.cloned() else { return Err(SocketError::ForWhom { name, kind }) };
        let name = port.map_or(name, |port| port.name.clone());
        Ok(AppSocket { app, name, socket: Arc::new(socket), kind, port: port.cloned() })
    };
    passed.into_iter().map(assign_one).collect()
}

/// The published ports that no socket takes the place of, and that are therefore to be forwarded.
pub fn forwarded(ports: &[PublishedPort], sockets: &[AppSocket]) -> Vec<PublishedPort> {
    let is_taken = |port: &&PublishedPort| sockets.iter().any(|socket| socket.port.as_ref() == Some(*port));
    ports.iter().filter(|port| !is_taken(port)).cloned().collect()
}

/// Checks that all of these can be carried through a VM's wall.
///
/// # Errors
/// [`SocketError::NotForVm`].
pub fn check_for_vm(sockets: &[AppSocket]) -> Result<(), SocketError> {
    let unfit = |socket: &&AppSocket| !matches!(socket.kind, SocketKind::TcpListener(_) | SocketKind::UnixListener);
    match sockets.iter().find(unfit) {
        Some(AppSocket { name, kind, .. }) => Err(SocketError::NotForVm { name: name.clone(), kind: *kind }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::manifest::{ByteSize, MANIFEST_VERSION};

    fn manifest_of_apps(names: &[&str]) -> PodManifest {
        let app = |name: &&str| {
            serde_json::json!({
                "name": name, "image": {"name": name, "id": "sha256:0", "layers": []},
                "exec": ["/app"], "working_directory": "/", "stop_signal": 15,
            })
        };
        serde_json::from_value(serde_json::json!({
            "version": MANIFEST_VERSION, "uuid": crate::Uuid::new_v4(), "created": 1, "hostname": "pod",
            "apps": names.iter().map(app).collect::<Vec<_>>(),
            "resources": {"memory": ByteSize::mib(64), "cpus": 1},
        }))
        .unwrap()
    }

    fn passed(name: &str, socket: impl Into<OwnedFd>) -> PassedSocket {
        PassedSocket { name: name.into(), socket: socket.into() }
    }

    fn published(app: Option<&str>, port: u16) -> PublishedPort {
        PublishedPort {
            name: "client".into(),
            protocol: Protocol::Tcp,
            host_ip: None,
            host_port: port,
            pod_port: 80,
            app: app.map(|app| app.parse().unwrap()),
            socket_activated: false,
        }
    }

    #[test]
    fn a_socket_is_for_the_app_whose_port_it_is_and_the_port_is_not_forwarded() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut manifest = manifest_of_apps(&["one", "two"]);
        manifest.ports = vec![published(Some("two"), port), published(Some("one"), port ^ 1)];
        let sockets = assign(vec![passed("unknown", listener)], &manifest).unwrap();
        assert_eq!((sockets[0].app.as_str(), sockets[0].name.as_str()), ("two", "client"));
        assert_eq!(forwarded(&manifest.ports, &sockets), [published(Some("one"), port ^ 1)]);
        check_for_vm(&sockets).unwrap();
    }

    #[test]
    fn a_name_or_being_alone_says_whose_a_socket_is() {
        let folder = tempfile::tempdir().unwrap();
        let listener = |name: &str| UnixListener::bind(folder.path().join(name)).unwrap();
        let two = manifest_of_apps(&["one", "two"]);
        let sockets = assign(vec![passed("two", listener("a"))], &two).unwrap();
        assert_eq!((sockets[0].app.as_str(), sockets[0].kind), ("two", SocketKind::UnixListener));
        let error = assign(vec![passed("x.socket", listener("b"))], &two).unwrap_err().to_string();
        assert!(error.contains("x.socket (a Unix socket)") && error.contains("--port"), "{error}");
        let sockets = assign(vec![passed("x.socket", listener("c"))], &manifest_of_apps(&["one"])).unwrap();
        assert_eq!((sockets[0].app.as_str(), sockets[0].name.as_str()), ("one", "x.socket"));
    }

    #[test]
    fn what_does_not_go_through_a_vms_wall_is_refused() {
        let manifest = manifest_of_apps(&["one"]);
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = udp.local_addr().unwrap();
        let sockets = assign(vec![passed("dns", udp)], &manifest).unwrap();
        assert_eq!(
            check_for_vm(&sockets),
            Err(SocketError::NotForVm { name: "dns".into(), kind: SocketKind::Udp(at) })
        );
        let sockets = assign(vec![passed("pipe", std::io::pipe().unwrap().0)], &manifest).unwrap();
        assert_eq!(sockets[0].kind, SocketKind::Other);
        assert!(check_for_vm(&sockets).unwrap_err().to_string().contains("--stage1=ns"));
        let directory = std::fs::File::open("/").unwrap();
        let error = assign(vec![passed("root", directory)], &manifest).unwrap_err();
        assert_eq!(error, SocketError::NoSocket { name: "root".into() });
    }
}
