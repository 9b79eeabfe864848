//! Published ports.

use podvm_net::{Endpoint, NetworkRequest, PodNetwork};
use podvm_pod::Uuid;
use podvm_pod::manifest::Protocol::{Tcp, Udp};
use podvm_pod::manifest::PublishedPort;

use crate::lab::*;

/// The answers of a pod's servers to a client in the calling thread's namespace: by TCP and by UDP.
fn ask_both(address: &str, port: u16) -> [Option<String>; 2] {
    [ask_tcp(address, port, PATIENCE), ask_udp(address, port, PATIENCE)]
}

fn both(answer: &str) -> [Option<String>; 2] {
    [Some(answer.into()), Some(answer.into())]
}

fn serve_everywhere(pod: &Pod) {
    // A UDP server at "any" address would answer from whichever address it likes; TCP has none of that.
    let own = addresses(pod);
    pod.run(move |_| {
        serve_tcp("::", 80);
        own.iter().for_each(|address| serve_udp(&address.to_string(), 80));
    });
}

fn published() -> Vec<PublishedPort> {
    vec![port(Tcp, None, 8080, 80), port(Udp, None, 8080, 80)]
}

#[test]
fn a_published_port_answers_the_outside_which_keeps_its_address() {
    let Some(host) = host() else { return };
    let outside = host.outside();
    let pod = host.pod(&published());
    serve_everywhere(&pod);
    assert_eq!(outside.run(|()| ask_both(HOST_V4, 8080)), both(OUTSIDE_V4));
    assert_eq!(outside.run(|()| ask_both(HOST_V6, 8080)), both(OUTSIDE_V6));
}

#[test]
fn a_published_port_answers_the_host_at_every_address_it_has() {
    let Some(host) = host() else { return };
    let _outside = host.outside();
    let pod = host.pod(&published());
    serve_everywhere(&pod);
    assert_eq!(ask_both("127.0.0.1", 8080), both("172.16.28.1"));
    assert_eq!(ask_both("::1", 8080), both("fd70:6f64:766d::ac10:1c01"));
    assert_eq!(ask_both(HOST_V4, 8080), both(HOST_V4));
    assert_eq!(ask_both(HOST_V6, 8080), both(HOST_V6));
}

#[test]
fn a_published_port_answers_other_pods_and_its_own() {
    let Some(host) = host() else { return };
    let pod = host.pod(&published());
    serve_everywhere(&pod);
    let other = host.pod(&[]);
    for (own, gateway) in addresses(&other).into_iter().zip(gateways(&other)) {
        let seen = other.run(move |_| ask_both(&gateway.to_string(), 8080));
        assert_eq!(seen, both(&own.to_string()));
        let seen = pod.run(move |_| ask_both(&gateway.to_string(), 8080));
        assert_eq!(seen, both(&gateway.to_string()));
    }
}

#[test]
fn a_udp_peer_that_never_pauses_reaches_each_pod_in_turn() {
    let Some(host) = host() else { return };
    let _outside = host.outside();
    let first = host.pod(&[]);
    for peer in ["127.0.0.1:8080", "[::1]:8080"] {
        let bind = if peer.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
        let socket = std::net::UdpSocket::bind(bind).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let ask = || {
            let mut buffer = [0; 64];
            socket.send_to(b"?", peer).unwrap();
            socket.recv(&mut buffer).map(|length| buffer[..length].to_vec())
        };
        // Nobody is there yet, but the flow is remembered.
        socket.send_to(b"?", peer).unwrap();
        for _ in 0..2 {
            let pod = host.pod(&published());
            serve_everywhere(&pod);
            ask().expect("the pod answers a flow that began without it");
            let leases = host.leases();
            drop(pod);
            while podvm_net::gc(&leases).unwrap().addresses.is_empty() {}
        }
    }
    drop(first);
}

#[test]
fn a_port_published_at_one_address_is_closed_at_the_others() {
    let Some(host) = host() else { return };
    let outside = host.outside();
    let pod = host.pod(&[port(Tcp, Some("127.0.0.1"), 8080, 80), port(Tcp, Some(HOST_V6), 8081, 80)]);
    serve_everywhere(&pod);
    assert_eq!(ask_tcp("127.0.0.1", 8080, PATIENCE).as_deref(), Some("172.16.28.1"));
    assert_eq!(ask_tcp(HOST_V4, 8080, BRIEF), None);
    assert_eq!(outside.run(|()| ask_tcp(HOST_V4, 8080, BRIEF)), None);
    assert_eq!(outside.run(|()| ask_tcp(HOST_V6, 8081, PATIENCE)).as_deref(), Some(OUTSIDE_V6));
}

#[test]
fn two_pods_publish_different_ports_side_by_side() {
    let Some(host) = host() else { return };
    let pods = [8080, 8081].map(|number| host.pod(&[port(Tcp, None, number, 80)]));
    pods.iter().for_each(serve_everywhere);
    for number in [8080, 8081] {
        assert_eq!(ask_tcp("127.0.0.1", number, PATIENCE).as_deref(), Some("172.16.28.1"));
        assert_eq!(ask_tcp("::1", number, PATIENCE).as_deref(), Some("fd70:6f64:766d::ac10:1c01"));
    }
}

/// What creating a pod with this port says, in a thread of its own.
fn refusal(host: &Host, port: PublishedPort) -> String {
    let leases = host.leases();
    let request = NetworkRequest { ports: vec![port], ..NetworkRequest::new(Uuid::new_v4(), Endpoint::Namespace) };
    let create = move || PodNetwork::create(&request, &leases).err().expect("a refusal").to_string();
    std::thread::spawn(create).join().unwrap()
}

#[test]
fn a_port_of_another_pod_is_in_use_until_that_pod_ends() {
    let Some(host) = host() else { return };
    let pod = host.pod(&published());
    for protocol in [Tcp, Udp] {
        let error = refusal(&host, port(protocol, None, 8080, 80));
        let expected = format!(
            "port 8080/{protocol} is in use on this host; stop what uses it (see `ss -lntup`), or publish another port"
        );
        assert_eq!(error, expected);
    }
    drop(pod);
    let start = std::time::Instant::now();
    while let Err(error) = std::net::TcpListener::bind("0.0.0.0:8080") {
        assert!(start.elapsed() < PATIENCE, "the port is free once the pod has ended: {error}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    host.pod(&published());
}

#[test]
fn a_port_of_a_service_is_in_use_and_a_later_service_finds_the_pods_so() {
    let Some(host) = host() else { return };
    serve_tcp("::", 8080);
    let error = refusal(&host, port(Tcp, None, 8080, 80));
    assert!(error.starts_with("port 8080/tcp is in use on this host; "), "{error}");
    let _pod = host.pod(&[port(Tcp, None, 8081, 80)]);
    assert!(std::net::TcpListener::bind("127.0.0.1:8081").is_err());
    assert!(std::net::TcpListener::bind("[::]:8081").is_err());
}

#[test]
fn a_port_that_only_old_connections_linger_on_is_free() {
    let Some(host) = host() else { return };
    let service = std::net::TcpListener::bind("127.0.0.1:8080").unwrap();
    let client = std::net::TcpStream::connect("127.0.0.1:8080").unwrap();
    // The server closes first, so that its end stays in TIME_WAIT.
    drop(service.accept().unwrap());
    drop(service);
    drop(client);
    host.pod(&[port(Tcp, None, 8080, 80)]);
}
