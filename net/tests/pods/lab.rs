//! Network namespaces to test in: the test's own "host", pods behind it, and an "outside" in front of it.
//!
//! A network namespace belongs to a thread. Each of these is a thread that moved into a namespace of its own and runs what it is
//! given; the machine's own network is never touched. All ends with the threads.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use podvm_net::{Endpoint, LeaseDir, NetworkRequest, PodNetwork};
use podvm_pod::Uuid;
use podvm_pod::manifest::{Protocol, PublishedPort};

/// How long a packet that should arrive may take, and one that should not is waited for.
pub const PATIENCE: Duration = Duration::from_secs(5);
pub const BRIEF: Duration = Duration::from_millis(300);

/// The host's and the outside's addresses on the wire between them.
pub const HOST_V4: &str = "192.0.2.1";
pub const HOST_V6: &str = "2001:db8::1";
pub const OUTSIDE_V4: &str = "192.0.2.2";
pub const OUTSIDE_V6: &str = "2001:db8::2";

type Job<T> = Box<dyn FnOnce(&mut T) + Send>;

/// A thread in a network namespace, with what it holds there.
pub struct Place<T> {
    jobs: Sender<Job<T>>,
}

impl<T: 'static> Place<T> {
    /// Starts a thread in the namespace of the calling one; `enter` may move it, and makes what it holds.
    pub fn start(enter: impl FnOnce() -> T + Send + 'static) -> Self {
        let (jobs, work) = channel::<Job<T>>();
        thread::spawn(move || {
            let mut holds = enter();
            work.into_iter().for_each(|job| job(&mut holds));
        });
        Self { jobs }
    }

    /// Runs `job` there and waits for its result.
    pub fn run<R: Send + 'static>(&self, job: impl FnOnce(&mut T) -> R + Send + 'static) -> R {
        let (answer, result) = channel();
        self.jobs.send(Box::new(move |holds| drop(answer.send(job(holds))))).expect("the place's thread is alive");
        result.recv().expect("the job ended well")
    }
}

pub type Pod = Place<PodNetwork>;

/// A test's host.
pub struct Host {
    folder: tempfile::TempDir,
}

/// Moves the calling thread into a new, empty host; none, with a message, without the privileges for it.
pub fn host() -> Option<Host> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: making network namespaces needs root");
        return None;
    }
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
    // IPv4's settings are those of the real host at first (net.core.devconf_inherit_init_net), which may be a router already.
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").expect("a setting of the namespace");
    ip("link set lo up");
    Some(Host { folder: tempfile::tempdir().unwrap() })
}

impl Host {
    pub fn leases(&self) -> LeaseDir {
        LeaseDir::open(self.lease_path()).unwrap()
    }

    pub fn lease_path(&self) -> std::path::PathBuf {
        self.folder.path().join("leases")
    }

    /// A pod that holds its addresses itself, with these ports.
    pub fn pod(&self, ports: &[PublishedPort]) -> Pod {
        self.pod_by(NetworkRequest { ports: ports.into(), ..request() })
    }

    pub fn pod_by(&self, request: NetworkRequest) -> Pod {
        let leases = self.leases();
        let pod = Place::start(move || PodNetwork::create(&request, &leases).unwrap());
        pod.run(|_| {});
        pod
    }

    /// A namespace at the other end of a wire to the host. It has a route to the pods' subnets, as an attacker would.
    pub fn outside(&self) -> Place<()> {
        let outside = Place::start(|| unshare(CloneFlags::CLONE_NEWNET).unwrap());
        let thread = outside.run(|()| nix::unistd::gettid());
        ip(&format!("link add up0 type veth peer name up1 netns {thread}"));
        wire("up0", HOST_V4, HOST_V6);
        outside.run(|()| {
            ip("link set lo up");
            wire("up1", OUTSIDE_V4, OUTSIDE_V6);
            ip(&format!("route add 172.16.28.0/24 via {HOST_V4}"));
            ip(&format!("-6 route add fd70:6f64:766d::/64 via {HOST_V6}"));
        });
        ip(&format!("route add default via {OUTSIDE_V4}"));
        ip(&format!("-6 route add default via {OUTSIDE_V6}"));
        outside
    }
}

fn wire(link: &str, v4: &str, v6: &str) {
    ip(&format!("address add {v4}/24 dev {link}"));
    ip(&format!("address add {v6}/64 dev {link} nodad"));
    ip(&format!("link set {link} up"));
}

/// Runs ip(8) in the calling thread's namespace and returns what it prints.
pub fn ip(arguments: &str) -> String {
    output("ip", arguments)
}

/// Runs nft(8) in the calling thread's namespace and returns what it prints.
pub fn nft(arguments: &str) -> String {
    output("nft", arguments)
}

fn output(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split(' ')).output().expect("the program is installed");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn request() -> NetworkRequest {
    NetworkRequest::new(Uuid::new_v4(), Endpoint::Namespace)
}

pub fn port(protocol: Protocol, host_ip: Option<&str>, host_port: u16, pod_port: u16) -> PublishedPort {
    let host_ip = host_ip.map(|ip| ip.parse().unwrap());
    PublishedPort { name: "test".into(), protocol, host_ip, host_port, pod_port, app: None, socket_activated: false }
}

/// The pod's addresses, IPv4 first.
pub fn addresses(pod: &Pod) -> Vec<IpAddr> {
    pod.run(|network| network.interface().unwrap().addresses.iter().map(|(address, _)| *address).collect())
}

/// The pod's gateways, IPv4 first.
pub fn gateways(pod: &Pod) -> Vec<IpAddr> {
    pod.run(|network| network.interface().unwrap().gateways.clone())
}

fn socket_address(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

/// Starts a TCP server in the calling thread's namespace that tells each client the address it sees it by. At `::` it serves IPv4, too.
pub fn serve_tcp(address: &str, port: u16) {
    let listener = TcpListener::bind(socket_address(address, port)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            use std::io::Write;
            let mut stream = stream.unwrap();
            let peer = stream.peer_addr().unwrap().ip().to_canonical();
            let _ = stream.write_all(peer.to_string().as_bytes());
        }
    });
}

/// As [`serve_tcp`], by UDP.
pub fn serve_udp(address: &str, port: u16) {
    let socket = UdpSocket::bind(socket_address(address, port)).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(peer.ip().to_canonical().to_string().as_bytes(), peer);
        }
    });
}

/// What a server of [`serve_tcp`] says to the calling thread; none when it cannot be reached.
pub fn ask_tcp(address: &str, port: u16, patience: Duration) -> Option<String> {
    use std::io::Read;
    let mut stream = TcpStream::connect_timeout(&socket_address(address, port), patience).ok()?;
    stream.set_read_timeout(Some(patience)).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// As [`ask_tcp`], by UDP.
pub fn ask_udp(address: &str, port: u16, patience: Duration) -> Option<String> {
    let peer = socket_address(address, port);
    let local = if peer.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(local).unwrap();
    socket.set_read_timeout(Some(patience)).unwrap();
    socket.connect(peer).ok()?;
    socket.send(b"?").ok()?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
}
