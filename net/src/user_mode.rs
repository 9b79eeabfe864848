//! The network of an ordinary user's pod: pasta(1) carries its connections as this user's own, since no privilege over the
//! host's network is there to be had.
//!
//! pasta is a child of the pod's process and dies with it. Every such pod has the same addresses: it is alone in its network.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use podvm_pod::manifest::{Protocol, PublishedPort};
use podvm_pod::protocol::InterfaceSpec;

use crate::link::mac_of;
use crate::pod_network::CreateError;
use crate::port;
use crate::request::{Endpoint, NetworkRequest};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 16, 28, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 16, 28, 1);
const PREFIX_LENGTH: u8 = 24;
const NETMASK: &str = "255.255.255.0";
/// How long pasta may take to set the interface up.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(1);

/// Why an ordinary user's pod has no network.
#[derive(Debug, thiserror::Error)]
pub enum UserModeError {
    /// There is no pasta.
    #[error(
        "pasta cannot be run ({0}), which carries the network of ordinary users' pods; install the package passt, or use --net=none"
    )]
    NoPasta(#[source] io::Error),
    /// It gave up.
    #[error(
        "pasta cannot make the pod's network: {0}; it needs a host with a default route, and /dev/net/tun open to this user"
    )]
    Failed(String),
    /// It is there and does nothing.
    #[error("pasta did not set the pod's network up within {} s", PATIENCE.as_secs())]
    Silent,
    /// pasta hands connections to the host's loopback to the namespace's own, past a VM.
    #[error("an ordinary user's VM has no network yet; use --net=none or --stage1=ns, or run podvm as root")]
    NotForVms,
    /// A descriptor or file.
    #[error("the pod's network cannot be made: {0}")]
    Io(#[from] io::Error),
}

/// pasta, which carries one pod's connections. Dropped, it is ended.
#[derive(Debug)]
pub(crate) struct Pasta {
    child: Child,
    /// What it says.
    messages: File,
}

impl Drop for Pasta {
    fn drop(&mut self) {
        // One that has ended needs no killing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The pod's interface as pasta makes it.
pub(crate) fn interface(mtu: u32) -> InterfaceSpec {
    InterfaceSpec {
        name: crate::pod_network::POD_LINK.into(),
        mac: mac_of(ADDRESS),
        mtu,
        addresses: vec![(ADDRESS.into(), PREFIX_LENGTH)],
        gateways: vec![GATEWAY.into()],
    }
}

impl Pasta {
    /// Starts pasta for the network namespace `namespace`. To be called in the host's; [`Self::wait_until_ready`] in the pod's.
    pub fn start(request: &NetworkRequest, namespace: BorrowedFd<'_>) -> Result<Self, UserModeError> {
        let messages: File = memory_file()?.into();
        let mac = mac_of(ADDRESS).map(|byte| format!("{byte:02x}")).join(":");
        // A number that is not closed when pasta is executed.
        let inherited = namespace.try_clone_to_owned()?;
        let mut command = Command::new("pasta");
        command
            .args(["--foreground", "--quiet", "--ipv4-only", "--no-map-gw"])
            .args(["--address", &ADDRESS.to_string(), "--netmask", NETMASK, "--gateway", &GATEWAY.to_string()])
            .args(["--ns-ifname", crate::pod_network::POD_LINK, "--ns-mac-addr", &mac])
            .args(["--mtu", &request.config.mtu.to_string()])
            // From the host to the pod what was published; from the pod's loopback to the host's nothing.
            .args(forwards(Protocol::Tcp, "-t", &request.ports))
            .args(forwards(Protocol::Udp, "-u", &request.ports))
            .args(["-T", "none", "-U", "none", "--config-net"]);
        let number = inherited.as_raw_fd();
        command.args(["--netns", &format!("/proc/self/fd/{number}")]);
        command.stdin(Stdio::null()).stdout(messages.try_clone()?).stderr(messages.try_clone()?);
        // SAFETY: both calls are safe between fork and exec.
        unsafe {
            command.pre_exec(move || {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) < 0 || libc::fcntl(number, libc::F_SETFD, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
                // Signals of the terminal are the pod's to obey.
                libc::setsid();
                Ok(())
            })
        };
        let child = command.spawn().map_err(UserModeError::NoPasta)?;
        Ok(Self { child, messages })
    }

    /// Waits until the pod's interface is there, in the calling thread's network namespace.
    pub fn wait_until_ready(&mut self) -> Result<(), UserModeError> {
        // The default route comes last.
        let (file, sign) = ("/proc/thread-self/net/route", "eth0\t00000000\t");
        let start = Instant::now();
        while !fs::read_to_string(file)?.contains(sign) {
            if self.child.try_wait()?.is_some() {
                return Err(UserModeError::Failed(self.last_words()));
            }
            if start.elapsed() > PATIENCE {
                return Err(UserModeError::Silent);
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    fn last_words(&mut self) -> String {
        let mut text = String::new();
        let read = self.messages.rewind().and_then(|()| self.messages.read_to_string(&mut text));
        // What it says of its own log is of no use here.
        let words = |text: &str| text.lines().filter(|line| !line.contains("syslog")).collect::<Vec<_>>().join("; ");
        match read.map(|_| words(text.trim())) {
            Ok(words) if !words.is_empty() => words,
            _ => "it said nothing".into(),
        }
    }
}

/// Finds out whether pasta can do what is wished for; of ports it does not say itself which one it cannot publish.
pub(crate) fn check(request: &NetworkRequest) -> Result<(), CreateError> {
    if request.endpoint == Endpoint::Vm {
        return Err(UserModeError::NotForVms.into());
    }
    Ok(port::forwards(&request.ports, false)?.iter().try_for_each(port::check)?)
}

fn forwards(protocol: Protocol, option: &str, ports: &[PublishedPort]) -> Vec<String> {
    let of_protocol = ports.iter().filter(|port| port.protocol == protocol);
    let specs: Vec<String> = of_protocol
        .map(|PublishedPort { host_ip, host_port, pod_port, .. }| {
            let at = host_ip.map(|ip: IpAddr| format!("{ip}/")).unwrap_or_default();
            format!("{at}{host_port}:{pod_port}")
        })
        .collect();
    if specs.is_empty() {
        return vec![option.into(), "none".into()];
    }
    specs.into_iter().flat_map(|spec| [option.to_owned(), spec]).collect()
}

fn memory_file() -> io::Result<OwnedFd> {
    Ok(nix::sys::memfd::memfd_create(c"pasta", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_ports_are_told_in_pastas_words() {
        let port = |protocol, host_ip: Option<&str>, host_port, pod_port| PublishedPort {
            name: "x".into(),
            protocol,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            host_port,
            pod_port,
        };
        let ports = [port(Protocol::Tcp, None, 8080, 80), port(Protocol::Tcp, Some("127.0.0.1"), 81, 81)];
        assert_eq!(forwards(Protocol::Tcp, "-t", &ports), ["-t", "8080:80", "-t", "127.0.0.1/81:81"]);
        assert_eq!(forwards(Protocol::Udp, "-u", &ports), ["-u", "none"]);
    }
}
