//! What a pod cannot do, and what cannot be done to it.

use std::net::{TcpStream, UdpSocket};

use podvm_pod::manifest::Protocol;

use crate::lab::*;
use crate::tap::{send_raw, udp_frame};

const POD_MAC: [u8; 6] = [0x0a, 0x58, 172, 16, 28, 2];
const GATEWAY_MAC: [u8; 6] = [0x0a, 0x58, 172, 16, 28, 1];

#[test]
fn a_pod_cannot_speak_with_another_address() {
    let Some(host) = host() else { return };
    let server = UdpSocket::bind("172.16.28.1:0");
    assert!(server.is_err(), "the gateway's address is there with the first pod only");
    let pod = host.pod(&[]);
    let server = UdpSocket::bind("172.16.28.1:7").unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let send = |source: [u8; 4]| {
        pod.run(move |_| send_raw("eth0", &udp_frame(POD_MAC, GATEWAY_MAC, source, [172, 16, 28, 1], 7, b"x")));
    };
    send([172, 16, 28, 77]);
    send([172, 16, 28, 2]);
    let mut buffer = [0; 8];
    let (_, first) = server.recv_from(&mut buffer).expect("the honest packet arrives");
    assert_eq!(first.ip().to_string(), "172.16.28.2", "the spoofed packet came first");
}

#[test]
fn a_pod_cannot_reach_what_listens_on_the_hosts_loopback() {
    let Some(host) = host() else { return };
    let server = UdpSocket::bind("127.0.0.1:7").unwrap();
    server.set_read_timeout(Some(BRIEF)).unwrap();
    // A published port is what opens the way between the host's loopback and the pod.
    let pod = host.pod(&[port(Protocol::Tcp, None, 8080, 80)]);
    pod.run(|_| send_raw("eth0", &udp_frame(POD_MAC, GATEWAY_MAC, [172, 16, 28, 2], [127, 0, 0, 1], 7, b"x")));
    assert!(server.recv(&mut [0; 8]).is_err(), "a pod's packet reached 127.0.0.1");
}

#[test]
fn the_outside_cannot_reach_a_pod_but_by_its_published_ports() {
    let Some(host) = host() else { return };
    let outside = host.outside();
    let pod = host.pod(&[port(Protocol::Tcp, None, 8080, 80)]);
    let own = addresses(&pod);
    pod.run(|_| serve_tcp("::", 80));
    assert!(outside.run(|()| ask_tcp(HOST_V4, 8080, PATIENCE)).is_some());
    for address in own {
        assert_eq!(outside.run(move |()| ask_tcp(&address.to_string(), 80, BRIEF)), None, "{address}");
    }
}

#[test]
fn a_pods_claim_on_a_port_is_deaf() {
    let Some(host) = host() else { return };
    let _pod = host.pod(&[port(Protocol::Tcp, None, 8080, 80)]);
    nft(&format!("add table inet {}", "before"));
    nft("add chain inet before early { type filter hook output priority -200 ; }");
    nft("add rule inet before early tcp dport 8080 notrack");
    let tried = TcpStream::connect_timeout(&"127.0.0.1:8080".parse().unwrap(), BRIEF);
    assert!(tried.is_err(), "a connection that is not translated reached the claim's socket");
}

#[test]
fn the_rules_read_as_they_are_meant() {
    let Some(host) = host() else { return };
    let pod = host.pod(&[port(Protocol::Tcp, None, 2379, 2379), port(Protocol::Udp, Some("127.0.0.1"), 53, 5353)]);
    let links = ip("-o link show type veth");
    let link = links.split_whitespace().nth(1).unwrap().split('@').next().unwrap();
    let table = nft("list tables").trim().to_string();
    let shown = nft("list ruleset").replace(link, "LINK").replace(&table, "TABLE");
    let without_program: String =
        shown.lines().map(|line| line.split(" # progname").next().unwrap().to_owned() + "\n").collect();
    assert_eq!(without_program, include_str!("expected-rules.txt"));
    drop(pod);
}
