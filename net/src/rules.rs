//! What a pod's nftables table says.
//!
//! - `guard`: from the pod come only packets with the pod's own addresses, and none to the host's 127.0.0.0/8 (which
//!   `route_localnet` would otherwise let through).
//! - `arriving` and `sent`: published ports lead to the pod, for peers outside, for other pods, and for the host itself.
//! - `passing`: into the pod comes what belongs to a connection of the pod's, to a published port, or from another pod. The pod's
//!   private addresses are no way in for the host's neighbours.
//! - `leaving`: what leaves the subnet is masqueraded; so is what the pod or the host's loopback sends to a published port, so
//!   that the answer comes back the same way.
//!
//! `accept` in one table is no answer to `drop` in another: on a host whose firewall drops what it forwards, the administrator has to let
//! `pv-*` links pass.

use std::net::IpAddr;

use crate::nft::rule::Rule;
use crate::nft::{Hook, Table};
use crate::port::Forward;
use crate::subnet::Prefix;

/// What the names of all host ends begin with.
pub(crate) const LINK_PREFIX: &str = "pv-";

/// A pod's address and the subnet it is from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PodAddress {
    pub(crate) address: IpAddr,
    pub(crate) subnet: Prefix,
}

const LOOPBACK_V4: Prefix = Prefix::v4(127, 0, 0, 0, 8);
const MULTICAST_V4: Prefix = Prefix::v4(224, 0, 0, 0, 4);
const LOOPBACK_V6: Prefix = Prefix { address: IpAddr::V6(std::net::Ipv6Addr::LOCALHOST), length: 128 };
const MULTICAST_V6: Prefix =
    Prefix { address: IpAddr::V6(std::net::Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), length: 8 };

/// The table of a pod behind the host link `link`.
pub(crate) fn pod_table(name: String, link: &str, addresses: &[PodAddress], forwards: &[Forward]) -> Table {
    let mut table = Table::new(name);
    table.chain("guard", Hook::PreroutingRaw, guard(link, addresses));
    if !forwards.is_empty() {
        table.chain("arriving", Hook::PreroutingNat, published(addresses, forwards));
        table.chain("sent", Hook::OutputNat, published(addresses, forwards));
    }
    table.chain("passing", Hook::Forward, passing(link));
    table.chain("leaving", Hook::PostroutingNat, leaving(link, addresses));
    table
}

fn guard(link: &str, addresses: &[PodAddress]) -> Vec<Rule> {
    let rule = Rule::default;
    let mut rules = vec![rule().arriving_not_by(link).accept(), rule().destination(LOOPBACK_V4).drop_packet()];
    rules.extend(addresses.iter().map(|pod| rule().source(Prefix::host(pod.address)).accept()));
    rules.extend([rule().neighbour_discovery().accept(), rule().drop_packet()]);
    rules
}

fn published(addresses: &[PodAddress], forwards: &[Forward]) -> Vec<Rule> {
    let to_pod = |forward: &Forward| {
        let pod = addresses.iter().find(|pod| pod.address.is_ipv4() == forward.address.is_ipv4())?;
        let at_host = if forward.address.is_unspecified() {
            Rule::default().local_destination(forward.address)
        } else {
            Rule::default().destination(Prefix::host(forward.address))
        };
        Some(at_host.destination_port(forward.protocol, forward.host_port).translate_to(pod.address, forward.pod_port))
    };
    forwards.iter().filter_map(to_pod).collect()
}

fn passing(link: &str) -> Vec<Rule> {
    let rule = Rule::default;
    vec![
        rule().leaving_not_by(link).accept(),
        rule().established().accept(),
        rule().translated().accept(),
        rule().arriving_by_any(LINK_PREFIX).accept(),
        rule().drop_packet(),
    ]
}

fn leaving(link: &str, addresses: &[PodAddress]) -> Vec<Rule> {
    let rule = Rule::default;
    let mut rules = Vec::new();
    for PodAddress { address, subnet } in addresses {
        let (loopback, multicast) =
            if address.is_ipv4() { (LOOPBACK_V4, MULTICAST_V4) } else { (LOOPBACK_V6, MULTICAST_V6) };
        let pod = Prefix::host(*address);
        rules.extend([
            rule().leaving_by(link).source(pod).masquerade(),
            rule().leaving_by(link).source(loopback).masquerade(),
            rule().source(pod).not_destination(*subnet).not_destination(multicast).masquerade(),
        ]);
    }
    rules
}
