//! Pods that are killed, and what is left of them.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use podvm_net::{GcReport, LeaseDir, NetworkRequest, PodNetwork, gc};
use podvm_pod::manifest::Protocol;

use crate::lab::*;

/// Where the pod process's leases are.
const LEASES: &str = "PODVM_NET_TEST_LEASES";

/// Not a test by itself: the process that the other tests kill. It becomes a pod, says so, and waits.
#[test]
fn pod_process() {
    let Ok(leases) = std::env::var(LEASES) else { return };
    let request = NetworkRequest { ports: vec![port(Protocol::Tcp, None, 8080, 80)], ..request() };
    let network = PodNetwork::create(&request, &LeaseDir::open(leases).unwrap()).unwrap();
    println!("\nready {}", nix::unistd::gettid());
    std::thread::sleep(Duration::from_secs(600));
    drop(network);
}

/// Starts a process that is a pod of the calling thread's host. Returns it, and the number of its thread that is the pod.
fn start_pod_process(leases: &Path) -> (Child, u32) {
    let program = std::env::current_exe().unwrap();
    let mut child = Command::new(program)
        .args(["--exact", "crash::pod_process", "--nocapture"])
        .env(LEASES, leases)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines().map_while(Result::ok);
    let thread = lines.filter_map(|line| line.strip_prefix("ready ")?.parse().ok()).next();
    (child, thread.expect("the pod process starts"))
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The kernel takes a dead process's namespace down in its own time.
fn wait_for_no_veth() {
    let start = Instant::now();
    while !ip("-o link show type veth").is_empty() {
        assert!(start.elapsed() < Duration::from_secs(10), "the dead pod's link stays");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// All of the host that a pod changes, as text.
fn snapshot() -> String {
    [nft("list ruleset"), ip("link"), ip("route show table all"), ip("-6 route show table all"), ip("neigh")].join("\n")
}

#[test]
fn a_killed_pod_leaves_nothing_and_a_second_gc_changes_nothing() {
    let Some(host) = host() else { return };
    // The first pod makes settings that stay.
    kill(start_pod_process(&host.lease_path()).0);
    wait_for_no_veth();
    gc(&host.leases()).unwrap();
    let before = snapshot();

    let (child, _) = start_pod_process(&host.lease_path());
    assert_ne!(snapshot(), before);
    kill(child);
    assert_eq!(nft("list ruleset"), "", "rules outlive the pod");
    std::net::TcpListener::bind("0.0.0.0:8080").expect("the port is free at once");
    wait_for_no_veth();
    assert_eq!(snapshot(), before);

    let report = gc(&host.leases()).unwrap();
    assert_eq!(report, GcReport { addresses: vec!["172.16.28.3".parse().unwrap()], links: vec![] });
    assert_eq!(gc(&host.leases()).unwrap(), GcReport::default());
    assert_eq!(snapshot(), before);
}

/// How many nfnetlink sockets the calling thread's host has open.
fn netfilter_sockets() -> usize {
    let table = std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
    table.lines().filter(|line| line.split_whitespace().nth(1) == Some("12")).count()
}

#[test]
fn a_pod_that_ends_by_itself_leaves_nothing_to_collect() {
    let Some(host) = host() else { return };
    let sockets = netfilter_sockets();
    let (leases, request) =
        (host.leases(), NetworkRequest { ports: vec![port(Protocol::Tcp, None, 8080, 80)], ..request() });
    let pod = Place::start(move || Some(PodNetwork::create(&request, &leases).unwrap()));
    pod.run(|_| {});
    assert_eq!(netfilter_sockets(), sockets + 1);
    let leases = host.leases();
    pod.run(move |network| network.take().unwrap().end(&leases));
    assert_eq!(nft("list ruleset"), "");
    std::net::TcpListener::bind("0.0.0.0:8080").expect("the port is free");
    assert_eq!(gc(&host.leases()).unwrap(), GcReport::default());
    let start = Instant::now();
    while netfilter_sockets() > sockets {
        assert!(start.elapsed() < Duration::from_secs(10), "the rules' socket was never closed");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_living_pod_is_not_collected() {
    let Some(host) = host() else { return };
    let pod = host.pod(&[]);
    let before = snapshot();
    assert_eq!(gc(&host.leases()).unwrap(), GcReport::default());
    assert_eq!(snapshot(), before);
    assert_eq!(addresses(&pod)[0].to_string(), "172.16.28.2");
}

#[test]
fn a_link_that_outlives_its_pod_is_collected() {
    let Some(host) = host() else { return };
    let (child, thread) = start_pod_process(&host.lease_path());
    // Somebody keeps the pod's namespace.
    let kept = std::fs::File::open(format!("/proc/{thread}/ns/net")).unwrap();
    kill(child);
    let links = ip("-o link show type veth");
    assert_eq!(links.lines().count(), 1);
    let report = gc(&host.leases()).unwrap();
    assert!(links.contains(&report.links[0]), "{report:?}");
    assert_eq!(ip("-o link show type veth"), "");
    drop(kept);
}
