//! One rule: conditions that must all hold, then what is done with the packet.
//!
//! Each method appends what nft(8) would write for the same words, so that `nft list ruleset` shows the rules as one would type them.

use std::net::IpAddr;

use podvm_pod::manifest::Protocol;

use super::uapi::*;
use crate::netlink::{Attributes, address_bytes};
use crate::subnet::Prefix;

/// The register that conditions use, and the one beside it for a translation's port.
const REGISTER: u32 = libc::NFT_REG_1 as u32;
const PORT_REGISTER: u32 = libc::NFT_REG_2 as u32;
/// Lengths and places in headers.
const LINK_NAME_BYTES: usize = libc::IFNAMSIZ;
const DESTINATION_PORT: (i32, u32, u32) = (libc::NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2);
const ICMP_TYPE: (i32, u32, u32) = (libc::NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1);
/// ICMPv6 types of neighbour solicitation and advertisement (RFC 4861).
const NEIGHBOUR_TYPES: [u8; 2] = [135, 136];
/// Bits of `ct state` for ESTABLISHED and RELATED, and of `ct status` for "destination translated" (nf_conntrack_common.h).
const ESTABLISHED_OR_RELATED: u32 = 1 << 1 | 1 << 2;
const DESTINATION_TRANSLATED: u32 = 1 << 5;

/// Which address of a packet.
#[derive(Clone, Copy)]
enum End {
    Source,
    Destination,
}

/// A rule that is being written.
#[derive(Default)]
pub(crate) struct Rule {
    expressions: Vec<u8>,
    /// The address family that a condition has already asked for.
    family: Option<i32>,
}

impl Rule {
    /// The rule as the kernel takes it: a list of expressions.
    pub(crate) fn expressions(&self) -> &[u8] {
        &self.expressions
    }

    fn expression(mut self, name: &str, write: impl FnOnce(&mut Attributes<'_>)) -> Self {
        Attributes::detached(&mut self.expressions).nest(NFTA_LIST_ELEM, |element| {
            element.put_string(NFTA_EXPR_NAME, name);
            element.nest(NFTA_EXPR_DATA, write);
        });
        self
    }

    fn load_meta(self, key: i32) -> Self {
        self.expression("meta", |meta| {
            meta.put_be32(NFTA_META_DREG, REGISTER);
            meta.put_be32(NFTA_META_KEY, key as u32);
        })
    }

    fn load_payload(self, (base, offset, length): (i32, u32, u32)) -> Self {
        self.expression("payload", |payload| {
            payload.put_be32(NFTA_PAYLOAD_DREG, REGISTER);
            payload.put_be32(NFTA_PAYLOAD_BASE, base as u32);
            payload.put_be32(NFTA_PAYLOAD_OFFSET, offset);
            payload.put_be32(NFTA_PAYLOAD_LEN, length);
        })
    }

    fn mask(self, mask: &[u8]) -> Self {
        self.expression("bitwise", |bitwise| {
            bitwise.put_be32(NFTA_BITWISE_SREG, REGISTER);
            bitwise.put_be32(NFTA_BITWISE_DREG, REGISTER);
            bitwise.put_be32(NFTA_BITWISE_LEN, mask.len() as u32);
            bitwise.nest(NFTA_BITWISE_MASK, |data| data.put(NFTA_DATA_VALUE, mask));
            bitwise.nest(NFTA_BITWISE_XOR, |data| data.put(NFTA_DATA_VALUE, &vec![0; mask.len()]));
        })
    }

    fn compare(self, operator: i32, value: &[u8]) -> Self {
        self.expression("cmp", |compare| {
            compare.put_be32(NFTA_CMP_SREG, REGISTER);
            compare.put_be32(NFTA_CMP_OP, operator as u32);
            compare.nest(NFTA_CMP_DATA, |data| data.put(NFTA_DATA_VALUE, value));
        })
    }

    fn equals(self, value: &[u8]) -> Self {
        self.compare(libc::NFT_CMP_EQ, value)
    }

    fn link(self, key: i32, operator: i32, name: &str) -> Self {
        let mut padded = [0; LINK_NAME_BYTES];
        for (to, from) in padded.iter_mut().take(LINK_NAME_BYTES - 1).zip(name.bytes()) {
            *to = from;
        }
        self.load_meta(key).compare(operator, &padded)
    }

    /// The packet came in by another link.
    pub(crate) fn arriving_not_by(self, name: &str) -> Self {
        self.link(libc::NFT_META_IIFNAME, libc::NFT_CMP_NEQ, name)
    }

    /// The packet came in by a link whose name begins so.
    pub(crate) fn arriving_by_any(self, prefix: &str) -> Self {
        self.load_meta(libc::NFT_META_IIFNAME).equals(prefix.as_bytes())
    }

    /// The packet goes out by this link.
    pub(crate) fn leaving_by(self, name: &str) -> Self {
        self.link(libc::NFT_META_OIFNAME, libc::NFT_CMP_EQ, name)
    }

    /// The packet goes out by another link.
    pub(crate) fn leaving_not_by(self, name: &str) -> Self {
        self.link(libc::NFT_META_OIFNAME, libc::NFT_CMP_NEQ, name)
    }

    fn of_family(mut self, address: IpAddr) -> Self {
        let family = if address.is_ipv4() { libc::NFPROTO_IPV4 } else { libc::NFPROTO_IPV6 };
        if self.family == Some(family) {
            return self;
        }
        self.family = Some(family);
        self.load_meta(libc::NFT_META_NFPROTO).equals(&[family as u8])
    }

    fn address(self, end: End, operator: i32, prefix: Prefix) -> Self {
        let (offset, length) = match (end, prefix.address) {
            (End::Source, IpAddr::V4(_)) => (12, 4),
            (End::Destination, IpAddr::V4(_)) => (16, 4),
            (End::Source, IpAddr::V6(_)) => (8, 16),
            (End::Destination, IpAddr::V6(_)) => (24, 16),
        };
        let loaded = self.of_family(prefix.address).load_payload((libc::NFT_PAYLOAD_NETWORK_HEADER, offset, length));
        let masked = if u32::from(prefix.length) < length * 8 {
            loaded.mask(&prefix_mask(length as usize, prefix.length))
        } else {
            loaded
        };
        masked.compare(operator, &address_bytes(prefix.address))
    }

    /// The packet's source is within the prefix.
    pub(crate) fn source(self, prefix: Prefix) -> Self {
        self.address(End::Source, libc::NFT_CMP_EQ, prefix)
    }

    /// The packet's destination is within the prefix.
    pub(crate) fn destination(self, prefix: Prefix) -> Self {
        self.address(End::Destination, libc::NFT_CMP_EQ, prefix)
    }

    /// The packet's destination is outside the prefix.
    pub(crate) fn not_destination(self, prefix: Prefix) -> Self {
        self.address(End::Destination, libc::NFT_CMP_NEQ, prefix)
    }

    /// The packet's destination is any address of the host, of the same family as this one.
    pub(crate) fn local_destination(self, family: IpAddr) -> Self {
        self.of_family(family)
            .expression("fib", |fib| {
                fib.put_be32(NFTA_FIB_DREG, REGISTER);
                fib.put_be32(NFTA_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE);
                fib.put_be32(NFTA_FIB_FLAGS, NFTA_FIB_F_DADDR);
            })
            .equals(&u32::from(libc::RTN_LOCAL).to_ne_bytes())
    }

    /// The packet goes to this port.
    pub(crate) fn destination_port(self, protocol: Protocol, port: u16) -> Self {
        let number = match protocol {
            Protocol::Tcp => libc::IPPROTO_TCP,
            Protocol::Udp => libc::IPPROTO_UDP,
        };
        self.load_meta(libc::NFT_META_L4PROTO)
            .equals(&[number as u8])
            .load_payload(DESTINATION_PORT)
            .equals(&port.to_be_bytes())
    }

    /// The packet asks for a neighbour's MAC address, or answers (IPv6).
    pub(crate) fn neighbour_discovery(self) -> Self {
        self.load_meta(libc::NFT_META_L4PROTO).equals(&[libc::IPPROTO_ICMPV6 as u8]).load_payload(ICMP_TYPE).expression(
            "range",
            |range| {
                range.put_be32(NFTA_RANGE_SREG, REGISTER);
                range.put_be32(NFTA_RANGE_OP, libc::NFT_RANGE_EQ as u32);
                range.nest(NFTA_RANGE_FROM_DATA, |data| data.put(NFTA_DATA_VALUE, &NEIGHBOUR_TYPES[..1]));
                range.nest(NFTA_RANGE_TO_DATA, |data| data.put(NFTA_DATA_VALUE, &NEIGHBOUR_TYPES[1..]));
            },
        )
    }

    fn connection_has(self, key: i32, bits: u32) -> Self {
        self.expression("ct", |ct| {
            ct.put_be32(NFTA_CT_DREG, REGISTER);
            ct.put_be32(NFTA_CT_KEY, key as u32);
        })
        .mask(&bits.to_ne_bytes())
        .compare(libc::NFT_CMP_NEQ, &[0; 4])
    }

    /// The packet belongs to a connection that was let through before.
    pub(crate) fn established(self) -> Self {
        self.connection_has(libc::NFT_CT_STATE, ESTABLISHED_OR_RELATED)
    }

    /// The packet belongs to a connection whose destination was translated.
    pub(crate) fn translated(self) -> Self {
        self.connection_has(libc::NFT_CT_STATUS, DESTINATION_TRANSLATED)
    }

    fn load_value(self, register: u32, value: &[u8]) -> Self {
        self.expression("immediate", |immediate| {
            immediate.put_be32(NFTA_IMMEDIATE_DREG, register);
            immediate.nest(NFTA_IMMEDIATE_DATA, |data| data.put(NFTA_DATA_VALUE, value));
        })
    }

    fn verdict(self, code: i32) -> Self {
        self.expression("immediate", |immediate| {
            immediate.put_be32(NFTA_IMMEDIATE_DREG, libc::NFT_REG_VERDICT as u32);
            immediate.nest(NFTA_IMMEDIATE_DATA, |data| {
                data.nest(NFTA_DATA_VERDICT, |verdict| verdict.put_be32(NFTA_VERDICT_CODE, code as u32));
            });
        })
    }

    /// Then let it pass this chain.
    pub(crate) fn accept(self) -> Self {
        self.verdict(libc::NF_ACCEPT)
    }

    /// Then drop it.
    pub(crate) fn drop_packet(self) -> Self {
        self.verdict(libc::NF_DROP)
    }

    /// Then let it leave with the outgoing link's address as its source.
    pub(crate) fn masquerade(self) -> Self {
        self.expression("masq", |_| {})
    }

    /// Then send it on to this address and port.
    pub(crate) fn translate_to(self, address: IpAddr, port: u16) -> Self {
        let family = if address.is_ipv4() { libc::NFPROTO_IPV4 } else { libc::NFPROTO_IPV6 };
        self.load_value(REGISTER, &address_bytes(address)).load_value(PORT_REGISTER, &port.to_be_bytes()).expression(
            "nat",
            |nat| {
                nat.put_be32(NFTA_NAT_TYPE, libc::NFT_NAT_DNAT as u32);
                nat.put_be32(NFTA_NAT_FAMILY, family as u32);
                nat.put_be32(NFTA_NAT_REG_ADDR_MIN, REGISTER);
                nat.put_be32(NFTA_NAT_REG_PROTO_MIN, PORT_REGISTER);
            },
        )
    }
}

/// The first `bits` of so many bytes set.
fn prefix_mask(bytes: usize, bits: u8) -> Vec<u8> {
    let bits = usize::from(bits);
    (0..bytes).map(|at| !(0xff_u16 >> bits.saturating_sub(at * 8).min(8)) as u8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_mask_sets_the_leading_bits() {
        assert_eq!(prefix_mask(4, 24), [255, 255, 255, 0]);
        assert_eq!(prefix_mask(4, 4), [0xf0, 0, 0, 0]);
        assert_eq!(prefix_mask(4, 0), [0; 4]);
        assert_eq!(prefix_mask(4, 31), [255, 255, 255, 254]);
    }
}
