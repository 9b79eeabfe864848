//! Forgetting UDP flows from before a pod's port was published, by nfnetlink (linux/netfilter/nfnetlink_conntrack.h).
//!
//! The kernel decides where a flow's packets go at its first packet, and remembers as long as packets keep coming. A peer that kept sending
//! while the port led nowhere, or to an earlier pod, would never reach the new one. TCP has no such trouble: its peers
//! make new connections.

use podvm_pod::manifest::Protocol;

use crate::netlink::{Batch, NetlinkError, Socket, find_attribute};
use crate::port::Forward;

const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
/// Which parts of the original tuple a filter looks at: protocol and destination port (net/netfilter/nf_internals.h).
const CTA_FILTER_F_PROTO_NUM_AND_DST_PORT: u32 = 1 << 3 | 1 << 5;
/// Length of `struct nfgenmsg`.
const HEADER_BYTES: usize = 4;

const fn kind(message: u16) -> u16 {
    (libc::NFNL_SUBSYS_CTNETLINK as u16) << 8 | message
}

/// Forgets the UDP flows to these ports of the host.
pub(crate) fn forget_udp_flows(socket: &Socket, forwards: &[Forward]) -> Result<(), NetlinkError> {
    for forward in forwards.iter().filter(|forward| forward.protocol == Protocol::Udp) {
        let family = if forward.address.is_ipv4() { libc::NFPROTO_IPV4 } else { libc::NFPROTO_IPV6 } as u8;
        let mut deletions = Batch::default();
        let mut any = false;
        for tuple in udp_flows(socket, family, forward.host_port)? {
            any = true;
            deletions.push("forget a UDP flow", kind(IPCTNL_MSG_CT_DELETE), 0, &[family, 0, 0, 0], |flow| {
                flow.put(CTA_TUPLE_ORIG | libc::NLA_F_NESTED as u16, &tuple);
            });
        }
        match if any { socket.transact(deletions).map(drop) } else { Ok(()) } {
            // It ended by itself.
            Err(error) if error.is(libc::ENOENT) => {}
            other => other?,
        }
    }
    Ok(())
}

/// The original tuples of all UDP flows to a port.
fn udp_flows(socket: &Socket, family: u8, port: u16) -> Result<Vec<Vec<u8>>, NetlinkError> {
    let mut batch = Batch::default();
    let header = [family, 0, 0, 0];
    batch.push("list UDP flows", kind(IPCTNL_MSG_CT_GET), libc::NLM_F_DUMP, &header, |filter| {
        filter.nest(CTA_TUPLE_ORIG, |tuple| {
            tuple.nest(CTA_TUPLE_PROTO, |protocol| {
                protocol.put(CTA_PROTO_NUM, &[libc::IPPROTO_UDP as u8]);
                protocol.put(CTA_PROTO_DST_PORT, &port.to_be_bytes());
            });
        });
        filter.nest(CTA_FILTER, |flags| flags.put_u32(CTA_FILTER_ORIG_FLAGS, CTA_FILTER_F_PROTO_NUM_AND_DST_PORT));
    });
    let replies = socket.transact(batch)?;
    Ok(replies.iter().filter_map(|reply| udp_tuple(&reply.payload, port)).map(<[u8]>::to_vec).collect())
}

/// The original tuple in an answer, if it is a UDP flow to this port: the filter is the kernel's, the deletion is ours.
fn udp_tuple(payload: &[u8], port: u16) -> Option<&[u8]> {
    let tuple = find_attribute(payload.get(HEADER_BYTES..)?, CTA_TUPLE_ORIG)?;
    let protocol = find_attribute(tuple, CTA_TUPLE_PROTO)?;
    let is_udp = find_attribute(protocol, CTA_PROTO_NUM)? == [libc::IPPROTO_UDP as u8];
    let to_port = find_attribute(protocol, CTA_PROTO_DST_PORT)? == port.to_be_bytes();
    (is_udp && to_port).then_some(tuple)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..96), port: u16) {
            let _ = udp_tuple(&bytes, port);
        }
    }
}
