//! Links, addresses, routes and neighbours, by rtnetlink(7).
//!
//! Constants that the libc crate lacks stand here with the names they have in the kernel's headers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use crate::netlink::{Attributes, Batch, NetlinkError, Socket, find_attribute};
use crate::rules::LINK_PREFIX;

/// `VETH_INFO_PEER` (linux/veth.h).
const VETH_INFO_PEER: u16 = 1;
/// `IFLA_INET_CONF` and the `IPV4_DEVCONF_*` indices in it (linux/if_link.h, linux/ip.h).
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_FORWARDING: u16 = 1;
const IPV4_DEVCONF_SEND_REDIRECTS: u16 = 6;
const IPV4_DEVCONF_ROUTE_LOCALNET: u16 = 26;
/// `IFLA_INET6_ADDR_GEN_MODE` and its value "none" (linux/if_link.h).
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
/// `RTNH_F_ONLINK` (linux/rtnetlink.h): the gateway is reachable though no prefix says so.
const RTNH_F_ONLINK: u32 = 4;

/// Length of `struct ifinfomsg`.
const LINK_HEADER_BYTES: usize = 16;
/// A link's state when it carries packets (RFC 2863, linux/if.h).
const IF_OPER_UP: u8 = 6;
/// Length of `struct rtmsg`, and where `rtm_type` stands in it.
const ROUTE_HEADER_BYTES: usize = 12;
const ROUTE_TYPE_AT: usize = 7;

/// How long a link may take to carry packets, and how often to look.
const READY_TIMEOUT: Duration = Duration::from_secs(1);
const READY_POLL: Duration = Duration::from_micros(200);

/// A network card's address.
pub(crate) type Mac = [u8; 6];

/// Index of a network namespace's loopback link: it is always the first.
pub(crate) const LOOPBACK_INDEX: i32 = 1;

/// The MAC address that belongs to an IPv4 address: `0a:58` (locally administered, as CNI plugins use it) and the address.
pub(crate) fn mac_of(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

/// `struct ifinfomsg` of a link, with its IFF_UP flag set or left alone.
pub(crate) fn link_header(index: i32, up: bool) -> Vec<u8> {
    let flags = if up { libc::IFF_UP as u32 } else { 0 };
    [[0; 4], index.to_ne_bytes(), flags.to_ne_bytes(), flags.to_ne_bytes()].concat()
}

/// One end of a veth pair.
pub(crate) struct VethEnd<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: Mac,
}

/// Creates a veth pair: one end in the socket's namespace, the other in `pod_namespace`, both down.
/// Returns the index of the first.
pub(crate) fn create_veth(
    socket: &Socket,
    host: &VethEnd<'_>,
    pod: &VethEnd<'_>,
    pod_namespace: BorrowedFd<'_>,
    mtu: u32,
) -> Result<i32, NetlinkError> {
    let describe = |end: &VethEnd<'_>, attributes: &mut Attributes<'_>| {
        attributes.put_string(libc::IFLA_IFNAME, end.name);
        attributes.put(libc::IFLA_ADDRESS, &end.mac);
        attributes.put_u32(libc::IFLA_MTU, mtu);
    };
    let mut batch = Batch::default();
    let exclusive = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    batch.push("create the veth pair", libc::RTM_NEWLINK, exclusive, &link_header(0, false), |link| {
        describe(host, link);
        link.nest(libc::IFLA_LINKINFO, |info| {
            info.put_string(libc::IFLA_INFO_KIND, "veth");
            info.nest(libc::IFLA_INFO_DATA, |data| {
                data.nest_after(VETH_INFO_PEER, &link_header(0, false), |peer| {
                    describe(pod, peer);
                    peer.put_u32(libc::IFLA_NET_NS_FD, pod_namespace.as_raw_fd() as u32);
                });
            });
        });
    });
    push_find(&mut batch, host.name);
    let replies = socket.transact(batch)?;
    Ok(replies.iter().find_map(|reply| index_in(&reply.payload)).unwrap_or_default())
}

fn push_find(batch: &mut Batch, name: &str) {
    batch.push("look for a link", libc::RTM_GETLINK, 0, &link_header(0, false), |link| {
        link.put_string(libc::IFLA_IFNAME, name);
    });
}

/// `ifi_index` in `struct ifinfomsg`.
fn index_in(payload: &[u8]) -> Option<i32> {
    payload.get(4..8)?.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes))
}

/// The index of the link of this name, if there is one.
pub(crate) fn find_link(socket: &Socket, name: &str) -> Result<Option<i32>, NetlinkError> {
    let mut batch = Batch::default();
    push_find(&mut batch, name);
    match socket.transact(batch) {
        Ok(replies) => Ok(replies.iter().find_map(|reply| index_in(&reply.payload))),
        Err(error) if error.is(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Looks until something is ready, or [`READY_TIMEOUT`] has passed: then it is left to become so later.
fn wait_until(mut is_ready: impl FnMut() -> Result<bool, NetlinkError>) -> Result<(), NetlinkError> {
    let start = Instant::now();
    while !is_ready()? && start.elapsed() < READY_TIMEOUT {
        std::thread::sleep(READY_POLL);
    }
    Ok(())
}

/// Waits until the first end of a veth pair to be brought up really carries packets.
///
/// The kernel opens the way out of a link whose carrier comes later only when its link watcher gets to it (since Linux 6.8, when
/// asked about the link). What is sent before is lost, and a lost first packet costs its sender a second.
pub(crate) fn wait_until_carrying(socket: &Socket, index: i32) -> Result<(), NetlinkError> {
    wait_until(|| {
        let mut batch = Batch::default();
        batch.push("look at a link", libc::RTM_GETLINK, 0, &link_header(index, false), |_| {});
        Ok(socket.transact(batch)?.iter().any(|reply| is_link_up(&reply.payload)))
    })
}

/// Reads `struct ifinfomsg` and its attributes.
fn is_link_up(payload: &[u8]) -> bool {
    let attributes = payload.get(LINK_HEADER_BYTES..).unwrap_or_default();
    find_attribute(attributes, libc::IFLA_OPERSTATE) == Some(&[IF_OPER_UP])
}

/// Waits until packets to an IPv6 address of a link are really taken in: the kernel does not route to a new address before a
/// worker gets to it, and what comes before is lost.
pub(crate) fn wait_until_local(socket: &Socket, index: i32, address: Ipv6Addr) -> Result<(), NetlinkError> {
    let header = [[libc::AF_INET6 as u8, 0, 0, 0], [libc::RT_TABLE_LOCAL, 0, 0, 0], [0; 4]].concat();
    wait_until(|| {
        let mut batch = Batch::default();
        batch.push("list local routes", libc::RTM_GETROUTE, libc::NLM_F_DUMP, &header, |route| {
            route.put(libc::RTA_OIF, &index.to_ne_bytes());
        });
        Ok(socket.transact(batch)?.iter().any(|reply| is_local_route(&reply.payload, index, address)))
    })
}

/// Reads `struct rtmsg` and its attributes.
fn is_local_route(payload: &[u8], index: i32, address: Ipv6Addr) -> bool {
    let Some((header, attributes)) = payload.split_first_chunk::<ROUTE_HEADER_BYTES>() else { return false };
    header[ROUTE_TYPE_AT] == libc::RTN_LOCAL
        && find_attribute(attributes, libc::RTA_OIF) == Some(&index.to_ne_bytes()[..])
        && find_attribute(attributes, libc::RTA_DST) == Some(&address.octets()[..])
}

/// Deletes a link, and with it its peer. Returns whether there was one.
pub(crate) fn delete_link(socket: &Socket, name: &str) -> Result<bool, NetlinkError> {
    let mut batch = Batch::default();
    batch.push("delete a link", libc::RTM_DELLINK, 0, &link_header(0, false), |link| {
        link.put_string(libc::IFLA_IFNAME, name);
    });
    match socket.transact(batch) {
        Ok(_) => Ok(true),
        Err(error) if error.is(libc::ENODEV) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Adds to the batch: bring a link up, with this MTU if one is given.
pub(crate) fn push_up(batch: &mut Batch, index: i32, mtu: Option<u32>) {
    batch.push("bring a link up", libc::RTM_NEWLINK, 0, &link_header(index, true), |link| {
        if let Some(mtu) = mtu {
            link.put_u32(libc::IFLA_MTU, mtu);
        }
    });
}

/// Whether the link of some pod leads to an address already, in the calling thread's namespace (`/proc/net/route`, which shows a
/// destination as the number that its bytes make in this machine's order).
pub(crate) fn leads_to_a_pod(address: Ipv4Addr) -> bool {
    let routes = std::fs::read_to_string("/proc/thread-self/net/route").unwrap_or_default();
    let destination = format!("{:08X}", u32::from_ne_bytes(address.octets()));
    routes.lines().any(|route| {
        let mut fields = route.split_whitespace();
        fields.next().is_some_and(|link| link.starts_with(LINK_PREFIX)) && fields.next() == Some(&destination)
    })
}

/// Adds to the batch: make the host's end of a pod's veth pair a router's port. With IPv6, the link makes itself no address:
/// duplicate address detection would hold up the first packets for a second.
pub(crate) fn push_router_settings(batch: &mut Batch, index: i32, ipv6: bool, localnet: bool) {
    let what = "set the host's veth end up as a router";
    batch.push(what, libc::RTM_SETLINK, 0, &link_header(index, false), |link| {
        link.nest(libc::IFLA_AF_SPEC, |families| {
            families.nest(libc::AF_INET as u16, |inet| {
                inet.nest(IFLA_INET_CONF, |conf| {
                    conf.put_u32(IPV4_DEVCONF_FORWARDING, 1);
                    conf.put_u32(IPV4_DEVCONF_SEND_REDIRECTS, 0);
                    conf.put_u32(IPV4_DEVCONF_ROUTE_LOCALNET, localnet.into());
                });
            });
            if ipv6 {
                families.nest(libc::AF_INET6 as u16, |inet6| {
                    inet6.put(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
                });
            }
        });
    });
}

/// Adds to the batch: answers to the host's `::1` are taken in from this link, once translated. (The kernel drops what comes
/// with that address on the wire.) IPv4 has `route_localnet` for the same purpose.
pub(crate) fn push_loopback_route(batch: &mut Batch, index: i32) {
    let kind = [libc::RT_TABLE_LOCAL, libc::RTPROT_BOOT, libc::RT_SCOPE_UNIVERSE, libc::RTN_LOCAL];
    let header = [[libc::AF_INET6 as u8, 128, 0, 0], kind, [0; 4]].concat();
    // Not exclusive: other pods' links have such a route as well.
    batch.push("add a route to ::1", libc::RTM_NEWROUTE, libc::NLM_F_CREATE, &header, |route| {
        route.put_address(libc::RTA_DST, Ipv6Addr::LOCALHOST.into());
        route.put(libc::RTA_OIF, &index.to_ne_bytes());
    });
}

fn family_of(address: IpAddr) -> u8 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

/// `struct ifaddrmsg` of a global address that covers itself only. IPv6 addresses skip duplicate address detection: there is
/// nobody on the link who could have the same one.
fn address_header(index: i32, address: IpAddr) -> Vec<u8> {
    let (bits, flags) = if address.is_ipv4() { (32, 0) } else { (128, libc::IFA_F_NODAD as u8) };
    [[family_of(address), bits, flags, libc::RT_SCOPE_UNIVERSE], index.to_ne_bytes()].concat()
}

/// Adds to the batch: give a link an address; with a `peer`, the link then also leads to the peer's address.
pub(crate) fn push_address(batch: &mut Batch, index: i32, address: IpAddr, peer: Option<IpAddr>) {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    batch.push("add an address", libc::RTM_NEWADDR, flags, &address_header(index, address), |attributes| {
        attributes.put_address(libc::IFA_LOCAL, address);
        attributes.put_address(libc::IFA_ADDRESS, peer.unwrap_or(address));
    });
}

/// Adds to the batch: the default route of the gateway's family leads to `gateway`, which is directly at the link.
pub(crate) fn push_default_route(batch: &mut Batch, index: i32, gateway: IpAddr) {
    let kind = [libc::RT_TABLE_MAIN, libc::RTPROT_BOOT, libc::RT_SCOPE_UNIVERSE, libc::RTN_UNICAST];
    let header = [[family_of(gateway), 0, 0, 0], kind, RTNH_F_ONLINK.to_ne_bytes()].concat();
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    batch.push("add the default route", libc::RTM_NEWROUTE, flags, &header, |route| {
        route.put_address(libc::RTA_GATEWAY, gateway);
        route.put(libc::RTA_OIF, &index.to_ne_bytes());
    });
}

/// Adds to the batch: `address` is at `mac`, for good. Saves asking, and cannot be spoofed.
pub(crate) fn push_neighbour(batch: &mut Batch, index: i32, address: IpAddr, mac: Mac) {
    let state = libc::NUD_PERMANENT.to_ne_bytes();
    let header = [[family_of(address), 0, 0, 0], index.to_ne_bytes(), [state[0], state[1], 0, 0]].concat();
    let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    batch.push("add a neighbour", libc::RTM_NEWNEIGH, flags, &header, |neighbour| {
        neighbour.put_address(libc::NDA_DST, address);
        neighbour.put(libc::NDA_LLADDR, &mac);
    });
}

/// An address that a link has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LinkAddress {
    pub(crate) index: i32,
    pub(crate) address: IpAddr,
    pub(crate) prefix: u8,
}

/// All addresses of a link.
pub(crate) fn addresses(socket: &Socket, index: i32) -> Result<Vec<LinkAddress>, NetlinkError> {
    let mut batch = Batch::default();
    batch.push("list addresses", libc::RTM_GETADDR, libc::NLM_F_DUMP, &[0; 8], |_| {});
    let replies = socket.transact(batch)?;
    let all = replies.iter().filter_map(|reply| parse_address(&reply.payload));
    Ok(all.filter(|address| address.index == index).collect())
}

/// Removes all addresses of a link.
pub(crate) fn flush_addresses(socket: &Socket, index: i32) -> Result<(), NetlinkError> {
    let mut batch = Batch::default();
    let addresses = addresses(socket, index)?;
    for LinkAddress { address, prefix, .. } in &addresses {
        let header = [[family_of(*address), *prefix, 0, 0], index.to_ne_bytes()].concat();
        batch.push("remove an address", libc::RTM_DELADDR, 0, &header, |attributes| {
            attributes.put_address(libc::IFA_LOCAL, *address);
        });
    }
    if addresses.is_empty() { Ok(()) } else { socket.transact(batch).map(drop) }
}

/// Reads `struct ifaddrmsg` and its attributes.
fn parse_address(payload: &[u8]) -> Option<LinkAddress> {
    let header: &[u8; 8] = payload.first_chunk()?;
    let attributes = &payload[header.len()..];
    let value =
        find_attribute(attributes, libc::IFA_LOCAL).or_else(|| find_attribute(attributes, libc::IFA_ADDRESS))?;
    let address = match i32::from(header[0]) {
        libc::AF_INET => Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into(),
        libc::AF_INET6 => Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into(),
        _ => return None,
    };
    let index = i32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
    Some(LinkAddress { index, address, prefix: header[1] })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_loopback_link_and_its_address_are_found() {
        let socket = Socket::route().unwrap();
        assert_eq!(find_link(&socket, "lo").unwrap(), Some(LOOPBACK_INDEX));
        let loopback = LinkAddress { index: 1, address: Ipv4Addr::LOCALHOST.into(), prefix: 8 };
        assert!(addresses(&socket, LOOPBACK_INDEX).unwrap().contains(&loopback));
    }

    #[test]
    fn a_link_that_is_not_there_is_not_found() {
        assert_eq!(find_link(&Socket::route().unwrap(), "pv-nosuchlink").unwrap(), None);
    }

    #[test]
    fn a_mac_tells_the_address() {
        assert_eq!(mac_of(Ipv4Addr::new(172, 16, 28, 7)), [0x0a, 0x58, 172, 16, 28, 7]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_address_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse_address(&bytes);
            let _ = (index_in(&bytes), is_link_up(&bytes), is_local_route(&bytes, 1, Ipv6Addr::LOCALHOST));
        }
    }
}
