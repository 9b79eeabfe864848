//! The network of an ordinary user's pod: pasta(1) carries its connections as this user's own, and passt(1) a VM's, since no
//! privilege over the host's network is there to be had.
//!
//! Either is a child of the pod's process and ends with it. Every such pod has the same addresses: it is alone in its network.
//! pasta sets up an interface in the pod's network namespace. passt carries the frames of a VM's card, which it gets and gives by
//! a socket; pasta would not do for VMs, since it hands connections to the host's loopback to the namespace's own, past the VM.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use podvm_pod::manifest::{Protocol, PublishedPort};
use podvm_pod::protocol::InterfaceSpec;

use crate::link::mac_of;
use crate::pod_network::CreateError;
use crate::port;
use crate::request::NetworkRequest;
use crate::tap::TapError;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 16, 28, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 16, 28, 1);
const PREFIX_LENGTH: u8 = 24;
const NETMASK: &str = "255.255.255.0";
/// How long the program may take to set the network up.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(1);

/// Why an ordinary user's pod has no network.
#[derive(Debug, thiserror::Error)]
pub enum UserModeError {
    /// The program is not there.
    #[error(
        "{program} cannot be run ({source}), which carries the network of ordinary users' pods; install the package passt, or use --net=none"
    )]
    NotInstalled {
        /// Which.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// It gave up.
    #[error("{program} cannot make the pod's network: {words}; it needs a host with a default route{also}")]
    Failed {
        /// Which.
        program: &'static str,
        /// Its last words.
        words: String,
        /// What else it needs.
        also: &'static str,
    },
    /// It is there and does nothing.
    #[error("{0} did not set the pod's network up within {patience} s", patience = PATIENCE.as_secs())]
    Silent(&'static str),
    /// A descriptor or file.
    #[error("the pod's network cannot be made: {0}")]
    Io(#[from] io::Error),
}

/// The pod's interface as it looks from inside.
pub(crate) fn interface(mtu: u32) -> InterfaceSpec {
    InterfaceSpec {
        name: crate::pod_network::POD_LINK.into(),
        mac: mac_of(ADDRESS),
        mtu,
        addresses: vec![(ADDRESS.into(), PREFIX_LENGTH)],
        gateways: vec![GATEWAY.into()],
    }
}

/// pasta, which carries one pod's connections. Dropped, it is ended.
#[derive(Debug)]
pub(crate) struct Pasta(Carrier);

impl Drop for Pasta {
    fn drop(&mut self) {
        // One that has ended needs no killing.
        let _ = self.0.child.kill();
        let _ = self.0.child.wait();
    }
}

impl Pasta {
    /// Starts pasta for the network namespace `namespace`. To be called in the host's; [`Self::wait_until_ready`] in the pod's.
    pub fn start(request: &NetworkRequest, namespace: BorrowedFd<'_>) -> Result<Self, UserModeError> {
        let mac = mac_of(ADDRESS).map(|byte| format!("{byte:02x}")).join(":");
        let namespace = namespace.try_clone_to_owned()?;
        let mut command = command("pasta", request);
        command
            .args(["--ns-ifname", crate::pod_network::POD_LINK, "--ns-mac-addr", &mac])
            // From the pod's loopback to the host's nothing.
            .args(["-T", "none", "-U", "none", "--config-net"])
            .args(["--netns", &path_of(&namespace)]);
        Ok(Self(Carrier::spawn("pasta", ", and /dev/net/tun open to this user", command, &[namespace.as_raw_fd()])?))
    }

    /// Waits until the pod's interface is there, in the calling thread's network namespace.
    pub fn wait_until_ready(&mut self) -> Result<(), UserModeError> {
        // The default route comes last.
        let (file, sign) = ("/proc/thread-self/net/route", "eth0\t00000000\t");
        self.0.wait_until(|| Ok(fs::read_to_string(file)?.contains(sign)))
    }
}

/// passt, which carries the connections of one VM. It ends when the VM's end of its socket is closed.
#[derive(Debug)]
pub(crate) struct Passt {
    _carrier: Carrier,
    /// A stream of frames, each behind its length.
    card: OwnedFd,
}

impl Passt {
    /// Starts passt in the calling thread's network namespace, and waits until it listens at the published ports.
    pub fn start(request: &NetworkRequest) -> Result<Self, UserModeError> {
        let (card, its_end) = UnixStream::pair()?;
        // It writes its process ID when it is ready.
        let ready = memory_file()?;
        let mut command = command("passt", request);
        command.args(["--fd", &its_end.as_raw_fd().to_string(), "--pid", &path_of(&ready)]);
        let inherited = [its_end.as_raw_fd(), ready.as_raw_fd()];
        let mut carrier = Carrier::spawn("passt", "", command, &inherited)?;
        let ready = File::from(ready);
        carrier.wait_until(|| Ok(ready.metadata()?.len() > 0))?;
        Ok(Self { _carrier: carrier, card: card.into() })
    }

    /// The VM's end of the socket.
    pub fn card(&self) -> Result<File, TapError> {
        Ok(self.card.try_clone().map_err(TapError::Descriptor)?.into())
    }
}

/// A running program, and what it says.
#[derive(Debug)]
struct Carrier {
    program: &'static str,
    needs_also: &'static str,
    child: Child,
    messages: File,
}

impl Carrier {
    /// Starts the program with these descriptors of this process, under their numbers.
    fn spawn(
        program: &'static str,
        needs_also: &'static str,
        mut command: Command,
        inherited: &[RawFd],
    ) -> Result<Self, UserModeError> {
        let messages: File = memory_file()?.into();
        command.stdin(Stdio::null()).stdout(messages.try_clone()?).stderr(messages.try_clone()?);
        let inherited = inherited.to_owned();
        // SAFETY: all calls are safe between fork and exec.
        unsafe {
            command.pre_exec(move || {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) < 0 {
                    return Err(io::Error::last_os_error());
                }
                for &number in &inherited {
                    if libc::fcntl(number, libc::F_SETFD, 0) < 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                // Signals of the terminal are the pod's to obey.
                libc::setsid();
                Ok(())
            })
        };
        let child = command.spawn().map_err(|source| UserModeError::NotInstalled { program, source })?;
        Ok(Self { program, needs_also, child, messages })
    }

    fn wait_until(&mut self, is_ready: impl Fn() -> io::Result<bool>) -> Result<(), UserModeError> {
        let start = Instant::now();
        while !is_ready()? {
            if self.child.try_wait()?.is_some() {
                let (program, words, also) = (self.program, self.last_words(), self.needs_also);
                return Err(UserModeError::Failed { program, words, also });
            }
            if start.elapsed() > PATIENCE {
                return Err(UserModeError::Silent(self.program));
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

/// What both programs are told.
fn command(program: &str, request: &NetworkRequest) -> Command {
    let mut command = Command::new(program);
    command
        .args(["--foreground", "--quiet", "--ipv4-only", "--no-map-gw"])
        .args(["--address", &ADDRESS.to_string(), "--netmask", NETMASK, "--gateway", &GATEWAY.to_string()])
        .args(["--mtu", &request.config.mtu.to_string()])
        .args(forwards(Protocol::Tcp, "-t", &request.ports))
        .args(forwards(Protocol::Udp, "-u", &request.ports));
    command
}

/// A path by which the program opens a descriptor that it inherits.
fn path_of(descriptor: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}

/// Finds out whether the published ports are this user's to have; the programs do not say themselves which one is not.
pub(crate) fn check(request: &NetworkRequest) -> Result<(), CreateError> {
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
    Ok(nix::sys::memfd::memfd_create(c"podvm-network", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?)
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
            app: None,
            socket_activated: false,
        };
        let ports = [port(Protocol::Tcp, None, 8080, 80), port(Protocol::Tcp, Some("127.0.0.1"), 81, 81)];
        assert_eq!(forwards(Protocol::Tcp, "-t", &ports), ["-t", "8080:80", "-t", "127.0.0.1/81:81"]);
        assert_eq!(forwards(Protocol::Udp, "-u", &ports), ["-u", "none"]);
    }
}
