//! The card in front of a guest's driver, on a socket that stands for the tap, and on a real tap.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};

use proptest::prelude::*;

use super::tap::Tap;
use super::*;
use crate::devices::testing::{Bench, Buffer, survives_hostile_rings};
use crate::sandbox;
use crate::virtio::COMMON_FEATURES;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];
const EVENT_IDX: u64 = 1 << 29;

/// A pair of packet sockets: what one writes at once, the other reads at once.
fn packet_sockets() -> (File, File) {
    let mut fds = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: socketpair writes two descriptors into the array.
    assert_eq!(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) }, 0);
    // SAFETY: both are new and nobody else's.
    fds.map(|fd| File::from(unsafe { OwnedFd::from_raw_fd(fd) })).into()
}

/// A card and the network behind it.
fn card(mtu: Option<u16>) -> (Net, File) {
    let (tap, network) = packet_sockets();
    (Net::on(Link::Tap(Tap::from_socket(tap)), MAC, mtu), network)
}

fn common() -> u64 {
    COMMON_FEATURES & !EVENT_IDX
}

/// A driver with all features.
fn start() -> (Bench<Net>, File) {
    let (card, network) = card(None);
    (Bench::start(card), network)
}

/// A driver that agrees to `features` of the device's own only.
fn start_with(features: Features) -> (Bench<Net>, File) {
    let (card, network) = card(None);
    (Bench::start_with_features(card, common() | features.bits()), network)
}

/// A frame behind an empty header.
fn frame(length: usize, seed: u8) -> Vec<u8> {
    let mut frame = vec![0; HEADER_BYTES];
    frame.extend((0..length).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)));
    frame
}

fn receive_buffers(bench: &mut Bench<Net>, count: usize, length: u32) -> Vec<u16> {
    let heads = (0..count).map(|_| bench.add_chain(RX, &[Buffer::writable(length)])).collect();
    bench.kick(RX);
    heads
}

fn next_frame(network: &mut File) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 1 << 17];
    network.read(&mut bytes).ok().map(|count| bytes[..count].to_vec())
}

#[test]
fn the_configuration_holds_address_and_mtu() {
    let (card, _network) = card(Some(9000));
    assert_eq!(card.config(), [2, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0x28, 0x23]);
    assert!(Features::from_bits(card.features()).has(Features::MTU));
}

#[test]
fn a_frame_of_the_guest_reaches_the_network_whole() {
    let (mut bench, mut network) = start();
    let sent = frame(1400, 1);
    let parts: Vec<_> = [&sent[..12], &sent[12..26], &sent[26..]].map(Buffer::readable).to_vec();
    let head = bench.add_chain(TX, &parts);
    bench.kick(TX);
    assert_eq!(bench.used(TX), [(head, 0)]);
    assert_eq!(next_frame(&mut network), Some(sent));
    assert!(bench.interrupted());
}

#[test]
fn a_received_frame_says_in_how_many_buffers_it_lies() {
    let (mut bench, mut network) = start();
    let heads = receive_buffers(&mut bench, 50, 1526);
    network.write_all(&frame(4000, 7)).unwrap();
    bench.run();
    let used = bench.used(RX);
    assert_eq!(used, [(heads[0], 1526), (heads[1], 1526), (heads[2], 960)]);
    let mut bytes: Vec<u8> = used.iter().flat_map(|&(head, _)| bench.written(RX, head)).collect();
    bytes.truncate(HEADER_BYTES + 4000);
    assert_eq!(bytes[10..12], [3, 0]);
    assert_eq!(bytes[12..], frame(4000, 7)[12..]);
    assert!(bench.interrupted());
}

#[test]
fn buffers_that_were_not_needed_serve_the_next_frames() {
    let (mut bench, mut network) = start();
    let heads = receive_buffers(&mut bench, 60, 1526);
    for seed in 0..5 {
        network.write_all(&frame(100, seed)).unwrap();
        bench.run();
        let head = heads[usize::from(seed)];
        assert_eq!(bench.used(RX), [(head, 112)]);
        assert_eq!(bench.written(RX, head)[10..112], [&[1, 0], &frame(100, seed)[12..]].concat());
    }
}

#[test]
fn frames_wait_in_the_tap_for_buffers_and_keep_their_order() {
    let (mut bench, mut network) = start_with(Features::MRG_RXBUF);
    for seed in 0..20 {
        network.write_all(&frame(60, seed)).unwrap();
        bench.run();
    }
    assert_eq!(bench.used(RX), []);
    let heads = receive_buffers(&mut bench, 25, 1600);
    let used = bench.used(RX);
    assert_eq!(used.len(), 20);
    for (seed, (&head, used)) in heads.iter().zip(used).enumerate() {
        assert_eq!(used, (head, 72));
        assert_eq!(bench.written(RX, head)[12..72], frame(60, seed as u8)[12..]);
    }
}

#[test]
fn without_mergeable_buffers_each_frame_takes_one() {
    let (mut bench, mut network) = start_with(Features::GUEST_CSUM);
    let heads = receive_buffers(&mut bench, 2, 1526);
    network.write_all(&frame(1000, 1)).unwrap();
    network.write_all(&frame(1514, 2)).unwrap();
    bench.run();
    assert_eq!(bench.used(RX), [(heads[0], 1012), (heads[1], 1526)]);
    assert_eq!(bench.written(RX, heads[0])[10..12], [1, 0]);
}

#[test]
fn a_frame_larger_than_its_buffer_is_dropped_not_cut() {
    let (mut bench, mut network) = start_with(Features::GUEST_CSUM);
    let heads = receive_buffers(&mut bench, 2, 500);
    network.write_all(&frame(1000, 1)).unwrap();
    network.write_all(&frame(100, 2)).unwrap();
    bench.run();
    assert_eq!(bench.used(RX), [(heads[0], 112)]);
    assert_eq!(bench.written(RX, heads[0])[12..112], frame(100, 2)[12..]);
}

#[test]
fn a_network_that_takes_no_more_delays_frames_and_loses_none() {
    let (mut bench, mut network) = start();
    let mut sent = 0_usize;
    for seed in 0..200 {
        bench.add_chain(TX, &[Buffer::readable(&frame(8000, seed))]);
        bench.kick(TX);
        sent += bench.used(TX).len();
    }
    assert!(sent < 200, "the socket never filled up");
    for seed in 0..200 {
        assert_eq!(next_frame(&mut network), Some(frame(8000, seed)), "frame {seed}");
        bench.run();
        sent += bench.used(TX).len();
    }
    assert_eq!(sent, 200);
}

#[test]
fn a_frame_beyond_any_network_is_dropped() {
    let (mut bench, mut network) = start();
    let head = bench.add_chain(TX, &[Buffer::readable(&vec![0; LARGEST_FRAME + 1])]);
    bench.add_chain(TX, &[Buffer::readable(&frame(60, 9))]);
    bench.kick(TX);
    assert_eq!(bench.used(TX)[0], (head, 0));
    assert_eq!(next_frame(&mut network), Some(frame(60, 9)));
}

#[test]
fn a_chain_shorter_than_the_header_stops_the_card() {
    for queue in [RX, TX] {
        let (mut bench, mut network) = start();
        network.write_all(&frame(60, 0)).unwrap();
        let short = if queue == RX { Buffer::writable(11) } else { Buffer::readable(&[0; 11]) };
        bench.add_chain(queue, &[short]);
        bench.kick(queue);
        assert!(bench.link().health.reason().unwrap().contains("shorter than"));
        bench.restart();
        bench.add_chain(TX, &[Buffer::readable(&frame(60, 1))]);
        bench.kick(TX);
        assert_eq!(next_frame(&mut network), Some(frame(60, 1)));
    }
}

#[test]
fn a_driver_that_polls_is_not_interrupted() {
    let (card, mut network) = card(None);
    let features = common() | EVENT_IDX | Features::MRG_RXBUF.bits();
    let mut bench = Bench::start_with_features(card, features);
    receive_buffers(&mut bench, 30, 2048);
    // The driver wishes for an interrupt at the third used buffer only: `used_event` stays zero at first.
    network.write_all(&frame(60, 0)).unwrap();
    bench.run();
    assert!(bench.interrupted());
    network.write_all(&frame(60, 1)).unwrap();
    bench.run();
    assert!(!bench.interrupted());
    assert_eq!(bench.used(RX).len(), 2);
}

#[test]
fn an_mtu_below_ipv4_is_refused_with_its_number() {
    let tap = tempfile::tempfile().unwrap();
    let error = Net::new(NetConfig { network: NetworkEnd::Tap(tap), mac: MAC, mtu: Some(67) }).unwrap_err();
    assert!(error.to_string().contains("67"), "{error}");
}

#[test]
fn hostile_rings_only_stop_the_card() {
    survives_hostile_rings(|| {
        let (card, mut network) = card(None);
        for seed in 0..4 {
            network.write_all(&frame(700, seed)).unwrap();
        }
        // The network's end stays open as long as the test's process: closed, it would end the tap.
        std::mem::forget(network);
        card
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn frames_of_any_size_cross_in_both_directions(
        sizes in prop::collection::vec(prop_oneof![14_usize..200, 14_usize..65_000], 1..12),
        buffer in 600_u32..5000,
    ) {
        let (mut bench, mut network) = start();
        receive_buffers(&mut bench, 240, buffer);
        for (i, &size) in sizes.iter().enumerate() {
            let frame = frame(size, i as u8);
            bench.add_chain(TX, &[Buffer::readable(&frame)]);
            bench.kick(TX);
            prop_assert_eq!(next_frame(&mut network), Some(frame.clone()));

            network.write_all(&frame).unwrap();
            bench.run();
            let used = bench.used(RX);
            let mut bytes: Vec<u8> = used.iter().flat_map(|&(head, _)| bench.written(RX, head)).collect();
            bytes.truncate(frame.len());
            prop_assert_eq!(&bytes[10..12], &(used.len() as u16).to_le_bytes());
            prop_assert_eq!(&bytes[12..], &frame[12..]);
            prop_assert_eq!(used.iter().map(|&(_, length)| length as usize).sum::<usize>(), frame.len());
            let again: Vec<_> = used.iter().map(|_| Buffer::writable(buffer)).collect();
            for buffer in again {
                bench.add_chain(RX, &[buffer]);
            }
            bench.kick(RX);
        }
    }
}

#[test]
fn a_restored_card_keeps_its_mtu() {
    let (card, _network) = card(Some(1400));
    let state = crate::persist::decode(&crate::persist::encode(&card.save()).unwrap()).unwrap();
    let tap = tempfile::tempfile().unwrap();
    let error = Net::restore(NetConfig { network: NetworkEnd::Tap(tap), mac: MAC, mtu: None }, state).unwrap_err();
    assert!(error.to_string().contains("1400"), "{error}");
}

/// On a tap of the kernel, in a network namespace that is gone with the test's thread.
mod real_tap {
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;

    use super::*;

    const HOST: [u8; 4] = [192, 0, 2, 1];
    const GUEST: [u8; 4] = [192, 0, 2, 2];

    /// A tap with an address in a new namespace of this thread; `None` with the reason printed if this host or
    /// user cannot have one.
    fn tap() -> Option<File> {
        // SAFETY: moves only this thread into a new network namespace.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            eprintln!("skipped: no network namespace: {}", std::io::Error::last_os_error());
            return None;
        }
        let file = match std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
            Ok(file) => file,
            Err(error) => {
                eprintln!("skipped: no /dev/net/tun: {error}");
                return None;
            }
        };
        let mut request = request();
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
        control(file.as_raw_fd(), libc::TUNSETIFF, &mut request);
        set_up();
        Some(file)
    }

    fn request() -> libc::ifreq {
        // SAFETY: all zeroes is a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(b"tap0") {
            *to = *from as libc::c_char;
        }
        request
    }

    #[track_caller]
    fn control<T>(fd: i32, operation: impl TryInto<libc::Ioctl>, argument: &mut T) {
        let Ok(operation) = operation.try_into() else { panic!("not an ioctl number") };
        // SAFETY: every operation here takes the structure that the caller passes.
        let result = unsafe { libc::ioctl(fd, operation, std::ptr::from_mut(argument)) };
        assert!(result >= 0, "{}", std::io::Error::last_os_error());
    }

    fn internet_address(address: [u8; 4]) -> libc::sockaddr {
        // SAFETY: both are plain bytes of the same length.
        unsafe {
            std::mem::transmute(libc::sockaddr_in {
                sin_family: libc::AF_INET as u16,
                sin_port: 0,
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address) },
                sin_zero: [0; 8],
            })
        }
    }

    fn set_up() {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let fd = socket.as_raw_fd();
        let mut address = request();
        address.ifr_ifru.ifru_addr = internet_address(HOST);
        control(fd, libc::SIOCSIFADDR, &mut address);
        let mut flags = request();
        flags.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
        control(fd, libc::SIOCSIFFLAGS, &mut flags);
    }

    /// Tells the host's network stack the guest's address, so that it sends without asking.
    fn introduce_guest() {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        // SAFETY: all zeroes is a valid arpreq.
        let mut entry: libc::arpreq = unsafe { std::mem::zeroed() };
        entry.arp_pa = internet_address(GUEST);
        entry.arp_ha.sa_family = libc::ARPHRD_ETHER;
        for (to, from) in entry.arp_ha.sa_data.iter_mut().zip(MAC) {
            *to = from as libc::c_char;
        }
        entry.arp_flags = libc::ATF_COM | libc::ATF_PERM;
        control(socket.as_raw_fd(), libc::SIOCSARP, &mut entry);
    }

    /// Asks who has the host's address.
    fn arp_request() -> Vec<u8> {
        let mut frame = vec![0; HEADER_BYTES];
        frame.extend([0xff; 6]);
        frame.extend(MAC);
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(MAC);
        frame.extend(GUEST);
        frame.extend([0; 6]);
        frame.extend(HOST);
        frame
    }

    /// Frames that reach the guest, without what the host's stack sends on its own account.
    fn received(bench: &mut Bench<Net>, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        for _ in 0..100 {
            for (head, length) in bench.used(RX) {
                let mut bytes = bench.written(RX, head);
                bytes.truncate(length as usize);
                if wanted(&bytes[HEADER_BYTES..]) {
                    return bytes;
                }
            }
            bench.wait(50);
        }
        panic!("no such frame within five seconds");
    }

    fn start_on(tap: File, features: Features) -> Bench<Net> {
        let card = Net::new(NetConfig { network: NetworkEnd::Tap(tap), mac: MAC, mtu: None }).unwrap();
        let mut bench = Bench::start_with_features(card, common() | features.bits());
        receive_buffers(&mut bench, 100, 2048);
        bench
    }

    fn is_arp_reply(frame: &[u8]) -> bool {
        frame[12..14] == [8, 6] && frame[20..22] == [0, 2]
    }

    fn is_udp(frame: &[u8]) -> bool {
        frame[12..14] == [8, 0] && frame[23] == 17 && frame[30..34] == GUEST
    }

    #[test]
    fn the_hosts_network_stack_answers_the_guest() {
        let Some(tap) = tap() else { return };
        let mut bench = start_on(tap, Features::plain() | Features::offloads());
        // A header that asks for a checksum beyond the frame: the kernel refuses it, and the card goes on.
        let mut wrong = arp_request();
        (wrong[0], wrong[6], wrong[8]) = (1, 0xff, 0xff);
        for frame in [wrong, arp_request()] {
            bench.add_chain(TX, &[Buffer::readable(&frame)]);
        }
        bench.kick(TX);
        assert_eq!(bench.used(TX).len(), 2);
        let reply = received(&mut bench, is_arp_reply);
        assert_eq!(reply[10..12], [1, 0]);
        assert_eq!(reply[HEADER_BYTES..HEADER_BYTES + 6], MAC);
    }

    #[test]
    fn the_kernel_leaves_checksums_to_a_guest_that_agreed_only() {
        for (features, flag) in [(Features::GUEST_CSUM, 1), (Features::default(), 0)] {
            let Some(tap) = tap() else { return };
            let mut bench = start_on(tap, features | Features::MRG_RXBUF);
            introduce_guest();
            let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
            socket.send_to(b"checksum", "192.0.2.2:9").unwrap();
            let frame = received(&mut bench, is_udp);
            assert_eq!(frame[0] & 1, flag);
        }
    }

    #[test]
    fn a_confined_thread_can_do_all_that_the_card_does() {
        let Some(tap) = tap() else { return };
        let card = Net::new(NetConfig { network: NetworkEnd::Tap(tap), mac: MAC, mtu: None }).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let body = move || {
            let mut bench = Bench::start(card);
            receive_buffers(&mut bench, 100, 2048);
            bench.add_chain(TX, &[Buffer::readable(&arp_request())]);
            bench.kick(TX);
            received(&mut bench, is_arp_reply);
            bench.restart();
        };
        let profile = sandbox::profiles::device(DeviceKind::Net);
        let ended = move |result| sender.send(result).unwrap();
        sandbox::spawn("net", profile, sandbox::Sandbox::On, body, ended).unwrap().join().unwrap();
        receiver.recv().unwrap().unwrap();
    }

    #[test]
    fn a_tap_without_the_header_is_refused() {
        if tap().is_none() {
            return;
        }
        let file = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
        let mut other = request();
        other.ifr_name[3] = b'1' as libc::c_char;
        other.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as i16;
        control(file.as_raw_fd(), libc::TUNSETIFF, &mut other);
        let error = Net::new(NetConfig { network: NetworkEnd::Tap(file), mac: MAC, mtu: None }).unwrap_err();
        assert!(error.to_string().contains("IFF_VNET_HDR"), "{error}");
    }
}
