//! The host's side of pod networks: namespaces, veth, leases, port forwards.
//!
//! [`PodNetwork::create`] is called by the process that becomes the pod. It gives the pod a network namespace of its own, with a
//! veth pair to the host, a leased IPv4 and IPv6 address, masquerade, and the host's ports that were asked for; for a VM,
//! [`PodNetwork::attach_card`] then puts a tap in the namespace's place. Everything is done by netlink, without other programs.
//!
//! Nothing outlives the pod: namespace and links, rules, leases and claims on ports are all held by its process, and the kernel
//! releases them when it ends, however it ends. [`gc`] sweeps up the rest, which is files.
//!
//! | module | subject |
//! |---|---|
//! | [`NetworkRequest`] | what a network is made from |
//! | [`PodNetwork`] | the order in which its parts are made |
//! | `rules`, `nft` | what is let through, forwarded and masqueraded; nftables' wire form |
//! | `link`, `tap` | links, addresses, routes; the VM's tap |
//! | `netlink` | messages and sockets under both |
//! | [`LeaseDir`] | which pod has which address |
//! | `port`, `conntrack` | claims on the host's ports, and flows to them from before |
//! | `user_mode` | the network of ordinary users' pods, by pasta(1) and passt(1) |
//! | [`host_dns`], [`host_names`] | the host's name servers, and its `/etc/hosts` |
//!
//! Settings of the host that are made for the first pod and stay: `net.ipv4.ip_forward=1`, `net.ipv6.conf.all.forwarding=1`, and
//! `net.ipv6.conf.LINK.accept_ra=2` where it was 1 when forwarding was turned on.
//!
//! A pod has its address with a prefix that covers nothing else, and reaches its gateway by a route that says "on this link"
//! (`ip route add default via GATEWAY dev eth0 onlink`). All pods of a host share the gateway's addresses.

#![warn(missing_docs)]

mod conntrack;
mod dns;
mod gc;
mod lease;
mod link;
mod netlink;
mod nft;
mod pod_network;
mod port;
mod request;
mod rules;
mod subnet;
mod sysctl;
mod tap;
mod user_mode;

pub use dns::{host_dns, host_names};
pub use gc::{GcError, GcReport, gc};
pub use lease::{Lease, LeaseDir, LeaseError};
pub use netlink::NetlinkError;
pub use pod_network::{CreateError, PodNetwork};
pub use port::PortError;
pub use request::{Endpoint, NetworkConfig, NetworkRequest};
pub use subnet::{Ipv4Subnet, Ipv6Subnet, SubnetError};
pub use sysctl::SysctlError;
pub use tap::{Card, Tap, TapError};
pub use user_mode::UserModeError;
