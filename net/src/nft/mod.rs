//! nftables by nfnetlink: one table with its chains and rules, made in one transaction, without the program nft(8).
//!
//! The table is created with `NFT_TABLE_F_OWNER`: it belongs to the socket that made it. Nobody else can change it, a firewall's
//! `flush ruleset` leaves it alone, and the kernel removes it when the socket is closed, whatever ends the process that
//! holds it. That needs Linux 5.12; podvm refuses older kernels, since rules that outlive their pod would lead its ports
//! to another pod.
//!
//! [`rule`] writes single rules. The numbers are those of linux/netfilter/nf_tables.h.

pub(crate) mod rule;
mod uapi;

use rule::Rule;
use uapi::*;

use crate::netlink::{Batch, NetlinkError, Socket};

const CREATE: i32 = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
const APPEND: i32 = libc::NLM_F_CREATE | libc::NLM_F_APPEND;

/// What a base chain is for; both the type and the place in the packet's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    /// All packets as they arrive, before connections are tracked.
    PreroutingRaw,
    /// Translate destinations of what arrives.
    PreroutingNat,
    /// Translate destinations of what the host sends.
    OutputNat,
    /// What passes through the host.
    Forward,
    /// Translate sources of what leaves.
    PostroutingNat,
}

impl Hook {
    /// Chain type, hook and priority.
    fn place(self) -> (&'static str, i32, i32) {
        match self {
            Self::PreroutingRaw => ("filter", libc::NF_INET_PRE_ROUTING, libc::NF_IP_PRI_RAW),
            Self::PreroutingNat => ("nat", libc::NF_INET_PRE_ROUTING, libc::NF_IP_PRI_NAT_DST),
            Self::OutputNat => ("nat", libc::NF_INET_LOCAL_OUT, libc::NF_IP_PRI_NAT_DST),
            Self::Forward => ("filter", libc::NF_INET_FORWARD, libc::NF_IP_PRI_FILTER),
            Self::PostroutingNat => ("nat", libc::NF_INET_POST_ROUTING, libc::NF_IP_PRI_NAT_SRC),
        }
    }
}

/// A table of family inet that is being written.
pub(crate) struct Table {
    name: String,
    batch: Batch,
    messages: u32,
}

/// `struct nfgenmsg`.
fn header(family: i32, resource: u16) -> [u8; 4] {
    let resource = resource.to_be_bytes();
    [family as u8, 0, resource[0], resource[1]]
}

impl Table {
    pub(crate) fn new(name: String) -> Self {
        let mut table = Self::begin(name);
        let name = table.name.clone();
        table.push("create the pod's nftables table", libc::NFT_MSG_NEWTABLE, CREATE, |attributes| {
            attributes.put_string(NFTA_TABLE_NAME, &name);
            attributes.put_be32(NFTA_TABLE_FLAGS, NFT_TABLE_F_OWNER);
        });
        table
    }

    fn begin(name: String) -> Self {
        let mut table = Self { name, batch: Batch::default(), messages: 0 };
        table.push_marker("begin an nftables transaction", libc::NFNL_MSG_BATCH_BEGIN);
        table
    }

    fn push_marker(&mut self, what: &'static str, kind: i32) {
        self.messages += 1;
        self.batch.push(what, kind as u16, 0, &header(libc::AF_UNSPEC, libc::NFNL_SUBSYS_NFTABLES as u16), |_| {});
    }

    fn push(
        &mut self,
        what: &'static str,
        message: i32,
        flags: i32,
        write: impl FnOnce(&mut crate::netlink::Attributes<'_>),
    ) {
        self.messages += 1;
        let kind = (libc::NFNL_SUBSYS_NFTABLES << 8 | message) as u16;
        self.batch.push(what, kind, flags, &header(libc::NFPROTO_INET, 0), write);
    }

    /// Adds a base chain that lets pass what its rules do not stop, with its rules in order.
    pub(crate) fn chain(&mut self, name: &str, hook: Hook, rules: impl IntoIterator<Item = Rule>) {
        let table = self.name.clone();
        let (kind, number, priority) = hook.place();
        self.push("create a chain of the pod's nftables table", libc::NFT_MSG_NEWCHAIN, CREATE, |chain| {
            chain.put_string(NFTA_CHAIN_TABLE, &table);
            chain.put_string(NFTA_CHAIN_NAME, name);
            chain.nest(NFTA_CHAIN_HOOK, |hook| {
                hook.put_be32(NFTA_HOOK_HOOKNUM, number as u32);
                hook.put_be32(NFTA_HOOK_PRIORITY, priority as u32);
            });
            chain.put_be32(NFTA_CHAIN_POLICY, libc::NF_ACCEPT as u32);
            chain.put_string(NFTA_CHAIN_TYPE, kind);
        });
        for rule in rules {
            self.push("add a rule to the pod's nftables table", libc::NFT_MSG_NEWRULE, APPEND, |message| {
                message.put_string(NFTA_RULE_TABLE, &table);
                message.put_string(NFTA_RULE_CHAIN, name);
                message.nest(NFTA_RULE_EXPRESSIONS, |expressions| expressions.put_written(rule.expressions()));
            });
        }
    }

    /// Deletes a table by the socket that owns it, as closing the socket would, but without waiting: the kernel cleans up in the
    /// background, while at a close it keeps the process for several milliseconds.
    pub(crate) fn delete(name: String, socket: &Socket) -> Result<(), NetlinkError> {
        let mut table = Self::begin(name);
        let name = table.name.clone();
        table.push("delete the pod's nftables table", libc::NFT_MSG_DELTABLE, 0, |attributes| {
            attributes.put_string(NFTA_TABLE_NAME, &name);
        });
        table.commit(socket)
    }

    /// Sends what was written, to be done as a whole or not at all. A table lives as long as the `socket` that made it.
    pub(crate) fn commit(mut self, socket: &Socket) -> Result<(), NetlinkError> {
        self.batch.acknowledge_last();
        let last = self.messages;
        self.push_marker("end an nftables transaction", libc::NFNL_MSG_BATCH_END);
        socket.exchange(&self.batch, last).map(drop)
    }
}
