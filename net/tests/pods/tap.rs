//! A VM's tap. The VM is played by the test, frame by frame.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use podvm_net::{Card, Endpoint, NetworkRequest};

use crate::lab::*;

/// Length of `struct virtio_net_hdr` as a tap has it unless told otherwise.
const VNET_HEADER: usize = 10;
const BROADCAST: [u8; 6] = [0xff; 6];
const GATEWAY: [u8; 4] = [172, 16, 28, 1];

fn ones_complement_sum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (folded + (folded >> 16)) as u16
}

/// An Ethernet frame with a UDP packet from port 7000.
pub fn udp_frame(
    source_mac: [u8; 6],
    target_mac: [u8; 6],
    source: [u8; 4],
    target: [u8; 4],
    port: u16,
    text: &[u8],
) -> Vec<u8> {
    let udp_length = 8 + text.len() as u16;
    let mut ip = [[0x45, 0, 0, 0], [0, 0, 0, 0], [64, 17, 0, 0], source, target].concat();
    ip[2..4].copy_from_slice(&(20 + udp_length).to_be_bytes());
    let checksum = !ones_complement_sum(&ip);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let udp = [7000_u16, port, udp_length, 0].map(u16::to_be_bytes).concat();
    [&target_mac[..], &source_mac, &[8, 0], &ip, &udp, text].concat()
}

/// An Ethernet frame that asks for the MAC address of `target`.
fn arp_request(mac: [u8; 6], source: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    [&BROADCAST[..], &mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &mac, &source, &[0; 6], &target].concat()
}

/// Sends a frame out of a link of the calling thread's namespace, past its network stack.
pub fn send_raw(link: &str, frame: &[u8]) {
    let index = nix::net::if_::if_nametoindex(link).unwrap();
    // SAFETY: plain system calls on a new socket; the address is alive for the call and of the length given.
    let sent = unsafe {
        let socket = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        assert!(socket >= 0, "a packet socket");
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = index as i32;
        let length = size_of::<libc::sockaddr_ll>() as u32;
        let sent = libc::sendto(socket, frame.as_ptr().cast(), frame.len(), 0, (&raw const address).cast(), length);
        libc::close(socket);
        sent
    };
    assert_eq!(sent, frame.len() as isize, "{}", std::io::Error::last_os_error());
}

fn write_frame(tap: &mut File, frame: &[u8]) {
    let bytes = [&[0; VNET_HEADER][..], frame].concat();
    assert_eq!(tap.write(&bytes).unwrap(), bytes.len());
}

/// The next frame from the tap that `wanted` says yes to.
fn read_frame(tap: &mut File, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let start = Instant::now();
    let mut buffer = [0; 2048];
    while start.elapsed() < PATIENCE {
        let mut ready = [PollFd::new(tap.as_fd(), PollFlags::POLLIN)];
        poll(&mut ready, PollTimeout::from(100_u8)).unwrap();
        match tap.read(&mut buffer) {
            Ok(length) if wanted(&buffer[VNET_HEADER..length]) => return buffer[VNET_HEADER..length].to_vec(),
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
    }
    panic!("no such frame came out of the tap");
}

/// A pod for a VM with its tap, and its MAC address and IPv4 address.
fn vm_pod(host: &Host) -> (Pod, File, [u8; 6], [u8; 4]) {
    let pod = host.pod_by(NetworkRequest { endpoint: Endpoint::Vm, ..request() });
    let (tap, interface) = pod.run(|network| (network.attach_card().unwrap(), network.interface().unwrap().clone()));
    let Some(Card::Tap(tap)) = tap else { panic!("no tap") };
    let IpAddr::V4(address) = interface.addresses[0].0 else { panic!("IPv4 first") };
    (pod, tap.file, interface.mac, address.octets())
}

#[test]
fn frames_pass_between_the_vm_and_the_host_both_ways() {
    let Some(host) = host() else { return };
    let (_pod, mut tap, mac, address) = vm_pod(&host);
    write_frame(&mut tap, &arp_request(mac, address, GATEWAY));
    let reply = read_frame(&mut tap, |frame| frame.len() >= 42 && frame[12..14] == [8, 6] && frame[21] == 2);
    assert_eq!(reply[28..32], GATEWAY);
    let gateway_mac: [u8; 6] = reply[22..28].try_into().unwrap();

    let server = UdpSocket::bind("172.16.28.1:7").unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    write_frame(&mut tap, &udp_frame(mac, gateway_mac, address, GATEWAY, 7, b"from the VM"));
    let mut buffer = [0; 64];
    let (length, peer) = server.recv_from(&mut buffer).expect("the VM's packet arrives");
    assert_eq!(&buffer[..length], b"from the VM");
    server.send_to(b"to the VM", peer).unwrap();
    let answer = read_frame(&mut tap, |frame| frame.ends_with(b"to the VM"));
    assert_eq!((&answer[..6], &answer[30..34]), (&mac[..], &address[..]));
}

/// An Ethernet frame that asks for the MAC address of `target` (RFC 4861, section 4.3), from a VM's link-local address.
fn neighbour_solicitation(mac: [u8; 6], target: Ipv6Addr) -> Vec<u8> {
    let source = "fe80::1234".parse::<Ipv6Addr>().unwrap().octets();
    let [.., x, y, z] = target.octets();
    let group = [[0xff, 2, 0, 0], [0; 4], [0, 0, 0, 1], [0xff, x, y, z]].concat();
    let mut message = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target.octets(), &[1, 1], &mac].concat();
    let pseudo_header = [&source[..], &group, &[0, 0, 0, message.len() as u8, 0, 0, 0, 58]].concat();
    let checksum = !ones_complement_sum(&[pseudo_header, message.clone()].concat());
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let ip = [&[0x60, 0, 0, 0, 0, message.len() as u8, 58, 255][..], &source, &group].concat();
    [&[0x33, 0x33, 0xff, x, y, z][..], &mac, &[0x86, 0xdd], &ip, &message].concat()
}

#[test]
fn a_vm_finds_its_ipv6_gateway() {
    let Some(host) = host() else { return };
    let (pod, mut tap, mac, _) = vm_pod(&host);
    let IpAddr::V6(gateway) = gateways(&pod)[1] else { panic!("IPv6 second") };
    write_frame(&mut tap, &neighbour_solicitation(mac, gateway));
    let is_advertisement = |frame: &[u8]| frame.len() >= 78 && frame[12..14] == [0x86, 0xdd] && frame[54] == 136;
    let reply = read_frame(&mut tap, is_advertisement);
    assert_eq!(reply[62..78], gateway.octets());
}

#[test]
fn the_namespace_around_a_vm_has_no_address_and_answers_nothing() {
    let Some(host) = host() else { return };
    let (pod, mut tap, mac, _) = vm_pod(&host);
    let shown = pod.run(|_| ip("-o address show scope global"));
    assert_eq!(shown, "");
    assert!(pod.run(|_| ip("-o -6 address show dev eth0")).is_empty());
    // What the host asks reaches the VM and is answered by nobody else.
    let socket = UdpSocket::bind("172.16.28.1:0").unwrap();
    socket.send_to(b"hello", "172.16.28.2:9").unwrap();
    read_frame(&mut tap, |frame| frame.ends_with(b"hello") && frame[..6] == mac);
    socket.set_read_timeout(Some(BRIEF)).unwrap();
    let error = socket.recv(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "somebody refused the packet");
}

#[test]
fn a_tap_takes_the_addresses_of_whatever_made_the_interface() {
    let Some(host) = host() else { return };
    let (pod, _tap) = {
        let pod = host.pod_by(NetworkRequest { endpoint: Endpoint::Namespace, ..request() });
        let tap = pod.run(|network| network.attach_card().unwrap());
        (pod, tap)
    };
    assert_eq!(pod.run(|_| ip("-o address show dev eth0")), "");
}

#[test]
fn a_vms_tap_is_non_blocking_and_closed_at_exec() {
    let Some(host) = host() else { return };
    let (_pod, tap, ..) = vm_pod(&host);
    // SAFETY: fcntl with these commands touches no memory.
    let (status, descriptor) =
        unsafe { (libc::fcntl(tap.as_raw_fd(), libc::F_GETFL), libc::fcntl(tap.as_raw_fd(), libc::F_GETFD)) };
    assert_ne!(status & libc::O_NONBLOCK, 0);
    assert_ne!(descriptor & libc::FD_CLOEXEC, 0);
}
