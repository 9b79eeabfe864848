//! What a network consists of, and what it costs.

use std::collections::HashSet;
use std::time::Instant;

use podvm_net::{LeaseDir, NetworkRequest, PodNetwork};
use podvm_pod::manifest::{NetworkMode, Protocol};

use crate::lab::*;

#[test]
fn a_pod_reaches_the_outside_by_the_hosts_address() {
    let Some(host) = host() else { return };
    let outside = host.outside();
    outside.run(|()| {
        serve_tcp(OUTSIDE_V4, 7);
        serve_tcp(OUTSIDE_V6, 7);
        serve_udp(OUTSIDE_V4, 7);
        serve_udp(OUTSIDE_V6, 7);
    });
    let pod = host.pod(&[]);
    for (outside, host) in [(OUTSIDE_V4, HOST_V4), (OUTSIDE_V6, HOST_V6)] {
        assert_eq!(pod.run(move |_| ask_tcp(outside, 7, PATIENCE)).as_deref(), Some(host));
        assert_eq!(pod.run(move |_| ask_udp(outside, 7, PATIENCE)).as_deref(), Some(host));
    }
}

#[test]
fn a_pods_first_packet_is_not_lost() {
    let Some(host) = host() else { return };
    serve_tcp("::", 7);
    for _ in 0..5 {
        let (leases, request) = (host.leases(), request());
        let pod = Place::start(move || {
            let network = PodNetwork::create(&request, &leases).unwrap();
            for (address, _) in network.interface().unwrap().addresses.clone() {
                let gateway = network.interface().unwrap().gateways.iter().find(|g| g.is_ipv4() == address.is_ipv4());
                let start = Instant::now();
                let seen = ask_tcp(&gateway.unwrap().to_string(), 7, PATIENCE).expect("the gateway answers");
                assert_eq!(seen, address.to_string());
                assert!(start.elapsed().as_millis() < 500, "a packet was lost: {:?}", start.elapsed());
            }
            network
        });
        pod.run(|_| {});
    }
}

#[test]
fn pods_reach_each_other_by_their_own_addresses() {
    let Some(host) = host() else { return };
    let (one, other) = (host.pod(&[]), host.pod(&[]));
    other.run(|_| serve_tcp("::", 7));
    for (own, peer) in addresses(&one).into_iter().zip(addresses(&other)) {
        assert_eq!(one.run(move |_| ask_tcp(&peer.to_string(), 7, PATIENCE)), Some(own.to_string()));
    }
}

#[test]
fn pods_of_another_state_directory_have_other_addresses() {
    let Some(host) = host() else { return };
    let others = tempfile::tempdir().unwrap();
    let mine = host.pod(&[]);
    let (leases, request) = (LeaseDir::open(others.path()).unwrap(), request());
    let other = Place::start(move || PodNetwork::create(&request, &leases).unwrap());
    assert_eq!(
        (addresses(&mine)[0], addresses(&other)[0]),
        ("172.16.28.2".parse().unwrap(), "172.16.28.3".parse().unwrap())
    );
    // The one that was passed over is nobody's in that folder.
    assert!(!others.path().join("172.16.28.2").exists());
}

#[test]
fn the_interface_is_as_described() {
    let Some(host) = host() else { return };
    let pod = host.pod(&[]);
    let (interface, links) = pod.run(|network| (network.interface().unwrap().clone(), ip("-o address show dev eth0")));
    assert_eq!(interface.mac, [0x0a, 0x58, 172, 16, 28, 2]);
    assert!(links.contains("172.16.28.2/32"), "{links}");
    assert!(links.contains("fd70:6f64:766d::ac10:1c02/128"), "{links}");
    // The kernel's own, link-local address is made in the background.
    assert!(!links.lines().any(|line| line.contains("scope global") && line.contains("tentative")), "{links}");
    let link = pod.run(|_| ip("link show dev eth0"));
    assert!(link.contains("0a:58:ac:10:1c:02") && link.contains("mtu 1500") && link.contains("LOWER_UP"), "{link}");
    assert!(ip("route get 172.16.28.2").contains("src 172.16.28.1"));
}

#[test]
fn without_ipv6_at_the_host_a_pod_has_ipv4_only() {
    let Some(host) = host() else { return };
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
    let pod = host.pod(&[port(Protocol::Tcp, None, 8080, 80)]);
    pod.run(|_| serve_tcp("0.0.0.0", 80));
    assert_eq!(addresses(&pod).len(), 1);
    assert_eq!(ask_tcp("127.0.0.1", 8080, PATIENCE).as_deref(), Some("172.16.28.1"));
}

#[test]
fn with_packets_too_short_for_ipv6_a_pod_has_ipv4_only() {
    let Some(host) = host() else { return };
    let mut request = request();
    request.config.mtu = 1000;
    let pod = host.pod_by(request);
    assert_eq!(addresses(&pod).len(), 1);
    assert!(pod.run(|_| ip("link show dev eth0")).contains("mtu 1000"));
}

#[test]
fn forwarding_does_not_cost_the_host_its_router_advertisements() {
    let Some(host) = host() else { return };
    let _outside = host.outside();
    let read = |name: &str| std::fs::read_to_string(format!("/proc/sys/net/{name}")).unwrap().trim().to_string();
    assert_eq!((read("ipv6/conf/up0/accept_ra"), read("ipv4/ip_forward")), ("1".into(), "0".into()));
    let _pod = host.pod(&[]);
    assert_eq!((read("ipv6/conf/up0/accept_ra"), read("ipv4/ip_forward")), ("2".into(), "1".into()));
    assert_eq!(read("ipv6/conf/all/forwarding"), "1");
}

#[test]
fn with_no_network_there_is_only_loopback() {
    let Some(host) = host() else { return };
    let pod = host.pod_by(NetworkRequest { mode: NetworkMode::None, ..request() });
    let (links, has_interface) = pod.run(|network| (ip("-o link show up"), network.interface().is_some()));
    assert!(links.lines().count() == 1 && links.contains("lo:"), "{links}");
    assert!(!has_interface);
    assert!(pod.run(|network| network.attach_card().unwrap().is_none()));
    assert_eq!(nft("list tables"), "");
}

#[test]
fn with_the_hosts_network_nothing_changes_and_a_vm_is_refused() {
    let Some(host) = host() else { return };
    let namespace = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let pod = host.pod_by(NetworkRequest { mode: NetworkMode::Host, ..request() });
    assert_eq!(pod.run(move |_| namespace()), namespace());
    let error = pod.run(|network| network.attach_card().unwrap_err().to_string());
    assert_eq!(error, "a VM cannot share the host's network; use --net=default, or --stage1=ns");
}

#[test]
fn fifty_pods_at_once_have_fifty_addresses_and_all_answer() {
    let Some(host) = host() else { return };
    serve_tcp("0.0.0.0", 7);
    let start = Instant::now();
    let pods: Vec<Pod> = (0..50)
        .map(|_| {
            let (leases, request) = (host.leases(), request());
            Place::start(move || PodNetwork::create(&request, &leases).unwrap())
        })
        .collect();
    let all: HashSet<_> = pods.iter().map(|pod| addresses(pod)[0]).collect();
    println!("50 pod networks in {:?}", start.elapsed());
    assert_eq!(all.len(), 50);
    for pod in &pods {
        let own = addresses(pod)[0].to_string();
        assert_eq!(pod.run(|_| ask_tcp("172.16.28.1", 7, PATIENCE)), Some(own));
    }
    let links = ip("-o link show type veth").lines().count();
    assert_eq!((links, nft("list tables").lines().count()), (50, 50));
}
