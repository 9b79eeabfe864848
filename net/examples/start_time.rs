//! Measures what a pod's network costs: `cargo run --release -p podvm-net --example start_time [COUNT]`, as root.
//!
//! In a network namespace that plays the host, makes COUNT pod networks one after the other, each in a thread of its own, with one
//! published port, connects from each to the host, and ends it; then the same for VMs. Prints the median and the maximum of each step in milliseconds.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use podvm_net::{Endpoint, LeaseDir, NetworkRequest, PodNetwork};
use podvm_pod::Uuid;
use podvm_pod::manifest::{Protocol, PublishedPort};

const SERVER_PORT: u16 = 7;

/// Milliseconds for: making the network, attaching a tap (for a VM), connecting by IPv4, connecting by IPv6.
fn measure(leases: &LeaseDir, endpoint: Endpoint, published: u16) -> Vec<(&'static str, f64)> {
    let mut request = NetworkRequest::new(Uuid::new_v4(), endpoint);
    request.ports = vec![PublishedPort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        host_ip: None,
        host_port: published,
        pod_port: 80,
        app: None,
        socket_activated: false,
    }];
    let mut steps = Vec::new();
    let mut last = Instant::now();
    let mut step = |name| {
        steps.push((name, last.elapsed().as_secs_f64() * 1e3));
        last = Instant::now();
    };
    let network = PodNetwork::create(&request, leases).expect("a pod network");
    step("create");
    if endpoint == Endpoint::Vm {
        let tap = network.attach_card().expect("a tap");
        step("attach tap");
        drop(tap);
        step("close tap");
        drop(network);
        step("close rules");
        return steps;
    }
    for gateway in &network.interface().expect("an interface").gateways {
        let server = SocketAddr::new(*gateway, SERVER_PORT);
        TcpStream::connect_timeout(&server, Duration::from_secs(5)).expect("the host answers");
        step(if gateway.is_ipv4() { "first IPv4 connection" } else { "first IPv6 connection" });
    }
    network.end(leases);
    step("end");
    steps
}

fn main() {
    let count: u16 = std::env::args().nth(1).map_or(50, |text| text.parse().expect("a number"));
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace; run as root");
    assert!(std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip(8)").success());
    let listener = TcpListener::bind(("::", SERVER_PORT)).expect("a server");
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let folder = tempfile::tempdir().expect("a folder");
    let leases = LeaseDir::open(folder.path()).expect("leases");
    for endpoint in [Endpoint::Namespace, Endpoint::Vm] {
        let runs: Vec<_> = (0..count)
            .map(|number| {
                let leases = leases.clone();
                std::thread::spawn(move || measure(&leases, endpoint, 8000 + number)).join().expect("a pod")
            })
            .collect();
        println!("{endpoint:?}, {count} pods:");
        for step in 0..runs[0].len() {
            let mut times: Vec<_> = runs.iter().map(|run| run[step].1).collect();
            times.sort_by(f64::total_cmp);
            println!(
                "  {:24} median {:8.2}  max {:8.2}",
                runs[0][step].0,
                times[times.len() / 2],
                times[times.len() - 1]
            );
        }
    }
}
