//! Claims on the host's ports.
//!
//! A forwarded port is claimed by a listening (TCP) or bound (UDP) socket in the host's network namespace, held for the pod's
//! life. So the kernel itself says that a port is in use, by another pod or by any service of the host; it says the same
//! to services that start later; `ss -lntup` shows who has the port; and the kernel ends the claim with the process.
//!
//! The socket never carries anything: the pod's rules divert packets before they reach it, and a socket filter that cannot be
//! removed drops all that should still arrive. So it is of no use to an intruder in the pod's process either.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, shutdown, socket,
    sockopt,
};
use podvm_pod::manifest::{Protocol, PublishedPort};

/// Why a port of the host cannot be the pod's.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// Somebody has it.
    #[error("port {port}/{protocol} is in use on this host{at}; stop what uses it (see `ss -lntup`), or publish another port", at = at(.address))]
    InUse {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// The address asked for.
        address: IpAddr,
    },
    /// The same port is asked for more than once.
    #[error("port {port}/{protocol} is published twice; publish each port of the host once")]
    Twice {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
    },
    /// The host does not have that address.
    #[error("port {port}/{protocol}: {address} is not an address of this host; `ip address` shows those there are")]
    NotLocal {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// The address asked for.
        address: IpAddr,
    },
    /// The pod has no address of that family.
    #[error(
        "port {port}/{protocol}: {address} cannot be forwarded, since pods have no IPv6 address on this host; enable IPv6, or publish at an IPv4 address"
    )]
    NoIpv6 {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// The address asked for.
        address: IpAddr,
    },
    /// There is nothing to forward from or to.
    #[error(
        "port {port}/{protocol} cannot be published by a pod without network; leave --port out, or use --net=default"
    )]
    NoNetwork {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
    },
    /// On the host's own network nothing is translated.
    #[error(
        "port {port}/{protocol} cannot lead elsewhere on the host's own network; publish it as it is, or use --net=default"
    )]
    HostNetwork {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
    },
    /// A low port, and an ordinary user.
    #[error(
        "port {port}/{protocol} is not an ordinary user's to publish; publish one from 1024 on, or lower net.ipv4.ip_unprivileged_port_start by sysctl"
    )]
    Privileged {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
    },
    /// The socket cannot be made for another reason.
    #[error("port {port}/{protocol} cannot be claimed on this host: {source}")]
    Io {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// Why.
        source: io::Error,
    },
}

fn at(address: &IpAddr) -> String {
    if address.is_unspecified() { String::new() } else { format!(" at {address}") }
}

/// Refuses ports that a pod without a network of its own cannot have.
pub(crate) fn check_without_network(ports: &[PublishedPort], host_network: bool) -> Result<(), PortError> {
    for PublishedPort { protocol, host_ip, host_port: port, pod_port, .. } in ports {
        let (port, protocol) = (*port, *protocol);
        match host_network {
            false => return Err(PortError::NoNetwork { port, protocol }),
            true if host_ip.is_some() || port != *pod_port => return Err(PortError::HostNetwork { port, protocol }),
            true => {}
        }
    }
    Ok(())
}

/// A published port at one address of the host, or at all of a family when unspecified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Forward {
    pub(crate) protocol: Protocol,
    pub(crate) address: IpAddr,
    pub(crate) host_port: u16,
    pub(crate) pod_port: u16,
}

/// Splits published ports by address family, and finds what cannot be before anything is acquired.
pub(crate) fn forwards(ports: &[PublishedPort], ipv6: bool) -> Result<Vec<Forward>, PortError> {
    let mut forwards: Vec<Forward> = Vec::new();
    for published in ports {
        let (port, protocol) = (published.host_port, published.protocol);
        let addresses = match published.host_ip {
            Some(address) if address.is_ipv6() && !ipv6 => return Err(PortError::NoIpv6 { port, protocol, address }),
            Some(address) => vec![address],
            None if ipv6 => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
            None => vec![Ipv4Addr::UNSPECIFIED.into()],
        };
        for address in addresses {
            let overlaps = |other: &Forward| {
                other.address == address
                    || (other.address.is_ipv4() == address.is_ipv4()
                        && (other.address.is_unspecified() || address.is_unspecified()))
            };
            if forwards.iter().any(|o| o.protocol == protocol && o.host_port == port && overlaps(o)) {
                return Err(PortError::Twice { port, protocol });
            }
            forwards.push(Forward { protocol, address, host_port: port, pod_port: published.pod_port });
        }
    }
    Ok(forwards)
}

/// A port of the host that is this process's until it is closed.
#[derive(Debug)]
pub(crate) struct PortClaim {
    _socket: OwnedFd,
}

/// Claims a port in the calling thread's network namespace.
pub(crate) fn claim(forward: &Forward) -> Result<PortClaim, PortError> {
    let socket = explained(forward, claim_socket(forward, refuse_all_packets))?;
    Ok(PortClaim { _socket: socket })
}

/// Finds out whether a port could be claimed, for who carries its packets in another way.
pub(crate) fn check(forward: &Forward) -> Result<(), PortError> {
    explained(forward, claim_socket(forward, |_| Ok(()))).map(drop)
}

fn explained<T>(forward: &Forward, claimed: nix::Result<T>) -> Result<T, PortError> {
    let Forward { protocol, address, host_port: port, .. } = *forward;
    match claimed {
        Ok(claimed) => Ok(claimed),
        Err(Errno::EACCES) => Err(PortError::Privileged { port, protocol }),
        Err(Errno::EADDRINUSE) => Err(PortError::InUse { port, protocol, address }),
        Err(Errno::EADDRNOTAVAIL) => Err(PortError::NotLocal { port, protocol, address }),
        Err(errno) => Err(PortError::Io { port, protocol, source: errno.into() }),
    }
}

fn claim_socket(forward: &Forward, prepare: fn(&OwnedFd) -> nix::Result<()>) -> nix::Result<OwnedFd> {
    let family = if forward.address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let kind = match forward.protocol {
        Protocol::Tcp => SockType::Stream,
        Protocol::Udp => SockType::Datagram,
    };
    let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    prepare(&fd)?;
    if forward.address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    if forward.protocol == Protocol::Tcp {
        // What servers do: connections of a former owner that are in TIME_WAIT do not hinder; listening sockets do.
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(forward.address, forward.host_port)))?;
    match forward.protocol {
        Protocol::Tcp => listen(&fd, Backlog::new(1)?)?,
        // An unconnected socket is "not connected", but is shut down nevertheless.
        Protocol::Udp => match shutdown(fd.as_raw_fd(), Shutdown::Both) {
            Ok(()) | Err(Errno::ENOTCONN) => {}
            Err(errno) => return Err(errno),
        },
    }
    Ok(fd)
}

/// Makes the socket drop all that arrives, for good.
fn refuse_all_packets(fd: &OwnedFd) -> nix::Result<()> {
    let mut drop_all = libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 };
    let program = libc::sock_fprog { len: 1, filter: &raw mut drop_all };
    let lock: i32 = 1;
    let set = |option, value: *const libc::c_void, length: usize| {
        // SAFETY: `value` points to `length` bytes that outlive the call, and `program` to one instruction.
        let result =
            unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, option, value, length as libc::socklen_t) };
        Errno::result(result).map(drop)
    };
    set(libc::SO_ATTACH_FILTER, (&raw const program).cast(), size_of_val(&program))?;
    set(libc::SO_LOCK_FILTER, (&raw const lock).cast(), size_of_val(&lock))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    fn published(protocol: Protocol, host_ip: Option<&str>, host_port: u16) -> PublishedPort {
        let host_ip = host_ip.map(|ip| ip.parse().unwrap());
        PublishedPort {
            name: "test".into(),
            protocol,
            host_ip,
            host_port,
            pod_port: 80,
            app: None,
            socket_activated: false,
        }
    }

    fn at_loopback(protocol: Protocol, host_port: u16) -> Forward {
        Forward { protocol, address: Ipv4Addr::LOCALHOST.into(), host_port, pod_port: 80 }
    }

    #[test]
    fn a_port_that_a_service_listens_on_is_in_use() {
        let service = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = service.local_addr().unwrap().port();
        let error = claim(&at_loopback(Protocol::Tcp, port)).unwrap_err();
        assert!(error.to_string().starts_with(&format!("port {port}/tcp is in use on this host at 127.0.0.1; stop")));
        let everywhere = Forward { address: Ipv4Addr::UNSPECIFIED.into(), ..at_loopback(Protocol::Tcp, port) };
        assert!(matches!(claim(&everywhere), Err(PortError::InUse { .. })));
    }

    #[test]
    fn a_claimed_port_is_in_use_for_all_others_until_it_is_dropped() {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let port = match protocol {
                Protocol::Tcp => TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port(),
                Protocol::Udp => UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port(),
            };
            let held = claim(&at_loopback(protocol, port)).unwrap();
            assert!(matches!(claim(&at_loopback(protocol, port)), Err(PortError::InUse { .. })));
            match protocol {
                Protocol::Tcp => assert!(TcpListener::bind(("127.0.0.1", port)).is_err()),
                Protocol::Udp => assert!(UdpSocket::bind(("127.0.0.1", port)).is_err()),
            }
            drop(held);
            claim(&at_loopback(protocol, port)).unwrap();
        }
    }

    #[test]
    fn an_address_of_another_host_is_refused() {
        let elsewhere = Forward { address: "192.0.2.1".parse().unwrap(), ..at_loopback(Protocol::Tcp, 40_000) };
        assert!(matches!(claim(&elsewhere), Err(PortError::NotLocal { .. })));
    }

    #[test]
    fn without_a_network_of_its_own_a_pod_publishes_nothing_elsewhere() {
        let (plain, moved) = (published(Protocol::Tcp, None, 80), published(Protocol::Tcp, None, 8080));
        let narrowed = published(Protocol::Tcp, Some("127.0.0.1"), 80);
        assert!(check_without_network(&[], false).is_ok());
        assert!(check_without_network(std::slice::from_ref(&plain), true).is_ok());
        assert!(matches!(check_without_network(&[plain], false), Err(PortError::NoNetwork { port: 80, .. })));
        for elsewhere in [moved, narrowed] {
            assert!(matches!(check_without_network(&[elsewhere], true), Err(PortError::HostNetwork { .. })));
        }
    }

    #[test]
    fn a_port_published_twice_is_refused_only_where_it_overlaps() {
        let tcp = |ip, port| published(Protocol::Tcp, ip, port);
        assert_eq!(forwards(&[tcp(None, 80)], true).unwrap().len(), 2);
        assert_eq!(forwards(&[tcp(None, 80), tcp(None, 81)], false).unwrap().len(), 2);
        assert_eq!(forwards(&[tcp(None, 80), published(Protocol::Udp, None, 80)], false).unwrap().len(), 2);
        assert!(forwards(&[tcp(Some("127.0.0.1"), 80), tcp(Some("127.0.0.2"), 80)], false).is_ok());
        for twice in [[tcp(None, 80), tcp(None, 80)], [tcp(Some("127.0.0.1"), 80), tcp(None, 80)]] {
            assert!(matches!(forwards(&twice, false), Err(PortError::Twice { port: 80, .. })));
        }
        assert!(matches!(forwards(&[tcp(Some("::1"), 80)], false), Err(PortError::NoIpv6 { .. })));
    }
}
