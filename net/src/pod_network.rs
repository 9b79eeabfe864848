//! A pod's network, from the host's side: made by the process that becomes the pod, and gone with it.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use nix::sched::{CloneFlags, setns, unshare};
use podvm_pod::fault::{FaultPoint, reach};
use podvm_pod::manifest::{HostsEntry, NetworkMode};
use podvm_pod::protocol::{DnsSpec, InterfaceSpec, NetworkSpec};
use uuid::Uuid;

use crate::conntrack::forget_udp_flows;
use crate::dns::pod_dns;
use crate::lease::{Lease, LeaseDir, LeaseError};
use crate::link::{self, LOOPBACK_INDEX, VethEnd, mac_of};
use crate::netlink::{Batch, NetlinkError, Socket};
use crate::nft::Table;
use crate::port::{self, Forward, PortClaim, PortError};
use crate::request::{Endpoint, NetworkRequest};
use crate::rules::{LINK_PREFIX, PodAddress, pod_table};
use crate::subnet::Prefix;
use crate::sysctl::{self, SysctlError};
use crate::tap::{self, Card, TapError};
use crate::user_mode::{self, Passt, Pasta, UserModeError};

/// Name of a pod's interface inside its network namespace, and inside its VM.
pub(crate) const POD_LINK: &str = "eth0";
/// Name of the VM's tap in the pod's network namespace.
const TAP_LINK: &str = "tap0";

/// Why a pod has no network.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// A network namespace cannot be made or opened.
    #[error("no network namespace for the pod: {0}; run as root, or use --net=host with --stage1=ns")]
    Namespace(#[source] io::Error),
    /// No address.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// A published port cannot be the pod's.
    #[error(transparent)]
    Port(#[from] PortError),
    /// A setting of the host or of the namespace.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// An ordinary user's network.
    #[error(transparent)]
    UserMode(#[from] UserModeError),
    /// The kernel refused a link, address or route.
    #[error("the pod's network cannot be made: {0}")]
    Link(#[from] NetlinkError),
    /// The kernel refused the nftables rules.
    #[error("the pod's packet rules cannot be made: {0}; nf_tables with NAT of Linux 5.12 or newer is needed")]
    Rules(#[source] NetlinkError),
}

/// A pod's network. Its parts live as long as this is held; after the process's death the kernel takes them down.
pub struct PodNetwork {
    mode: NetworkMode,
    interface: Option<InterfaceSpec>,
    dns: Option<DnsSpec>,
    hosts: Vec<HostsEntry>,
    holds: Option<Holds>,
}

/// What the kernel takes for the pod's life. All are closed at exec.
enum Holds {
    /// The host's own links and rules.
    Kernel(KernelHolds),
    /// A process that carries the pod's connections; ended when dropped.
    Pasta(#[expect(dead_code, reason = "held for the pod's life")] Pasta),
    /// A process that carries the VM's connections.
    Passt(Passt),
}

struct KernelHolds {
    /// Owner of the nftables table. It is the host's, but of no use to a process without capabilities: the kernel looks at the
    /// sender's, too.
    rules: Socket,
    table: String,
    lease: Lease,
    _ports: Vec<PortClaim>,
}

/// The pod's place in the built-in network.
struct Place {
    ipv4: Ipv4Addr,
    gateway: Ipv4Addr,
    /// IPv6 address and gateway.
    ipv6: Option<(Ipv6Addr, Ipv6Addr)>,
    /// Address and gateway of each family, IPv4 first.
    pairs: Vec<(PodAddress, IpAddr)>,
    host_link: String,
}

impl Place {
    fn new(request: &NetworkRequest, ipv4: Ipv4Addr, ipv6: bool) -> Self {
        let config = &request.config;
        let gateway = config.ipv4.gateway();
        let pod_v4 = PodAddress { address: ipv4.into(), subnet: config.ipv4.into() };
        let mut pairs = vec![(pod_v4, gateway.into())];
        let subnet = config.ipv6.filter(|_| ipv6);
        let ipv6 = subnet.map(|subnet| (subnet.beside(ipv4), subnet.beside(gateway)));
        if let (Some(subnet), Some((address, gateway))) = (subnet, ipv6) {
            let pod_v6 = PodAddress { address: address.into(), subnet: Prefix::from(subnet) };
            pairs.push((pod_v6, gateway.into()));
        }
        Self { ipv4, gateway, ipv6, pairs, host_link: host_link_name(request.pod) }
    }

    fn interface(&self, mtu: u32) -> InterfaceSpec {
        let prefix = |(pod, _): &(PodAddress, IpAddr)| {
            let host = Prefix::host(pod.address);
            (host.address, host.length)
        };
        InterfaceSpec {
            name: POD_LINK.into(),
            mac: mac_of(self.ipv4),
            mtu,
            addresses: self.pairs.iter().map(prefix).collect(),
            gateways: self.pairs.iter().map(|(_, gateway)| *gateway).collect(),
        }
    }
}

/// Name of the host's end of a pod's veth pair: `pv-` and the first eight digits of the UUID.
pub(crate) fn host_link_name(pod: Uuid) -> String {
    format!("{LINK_PREFIX}{:08x}", pod.as_fields().0)
}

impl PodNetwork {
    /// Makes a pod's network and moves the calling thread into the pod's network namespace, a new one unless
    /// the request has one.
    ///
    /// To be called by the process that becomes the pod, as root in the host's network namespace, before it has other threads
    /// (they would stay in the host's). On return, with [`NetworkMode::Default`], the pod's `eth0` is up, and the pod's rules
    /// are in force. With [`NetworkMode::None`] there is only loopback, and with [`NetworkMode::Host`] nothing changes.
    /// On an error the calling process may already be in the new namespace: it should end.
    ///
    /// # Errors
    /// [`CreateError`]; nothing is left but what ends with the process.
    pub fn create(request: &NetworkRequest, leases: &LeaseDir) -> Result<Self, CreateError> {
        let mode = request.mode.clone();
        let (dns, hosts) = (pod_dns(&request.dns, &mode), request.hosts.clone());
        match mode {
            NetworkMode::Host => {
                port::check_without_network(&request.ports, true)?;
                Ok(Self { mode, interface: None, dns, hosts, holds: None })
            }
            NetworkMode::None => {
                port::check_without_network(&request.ports, false)?;
                enter_namespace(request)?;
                let mut batch = Batch::default();
                link::push_up(&mut batch, LOOPBACK_INDEX, None);
                Socket::route()?.transact(batch)?;
                Ok(Self { mode, interface: None, dns, hosts, holds: None })
            }
            NetworkMode::Default if request.is_unprivileged => Self::create_user_mode(request),
            NetworkMode::Default => Self::create_default(request, leases),
        }
    }

    fn create_user_mode(request: &NetworkRequest) -> Result<Self, CreateError> {
        user_mode::check(request)?;
        let (dns, hosts) = (pod_dns(&request.dns, &NetworkMode::Default), request.hosts.clone());
        // Their own sockets are the host's, so they are started from there; and there is no way back for this process.
        let holds = if request.endpoint == Endpoint::Vm {
            let passt = Passt::start(request)?;
            enter_namespace(request)?;
            Holds::Passt(passt)
        } else {
            let Some(namespace) = &request.namespace else {
                return Err(CreateError::Namespace(io::ErrorKind::NotFound.into()));
            };
            let mut pasta = Pasta::start(request, namespace.as_fd())?;
            enter_namespace(request)?;
            pasta.wait_until_ready()?;
            Holds::Pasta(pasta)
        };
        let mut batch = Batch::default();
        link::push_up(&mut batch, LOOPBACK_INDEX, None);
        Socket::route()?.transact(batch)?;
        let interface = Some(user_mode::interface(request.config.mtu));
        Ok(Self { mode: NetworkMode::Default, interface, dns, hosts, holds: Some(holds) })
    }

    fn create_default(request: &NetworkRequest, leases: &LeaseDir) -> Result<Self, CreateError> {
        let ipv6 = request.config.speaks_ipv6() && sysctl::has_ipv6();
        let forwards = port::forwards(&request.ports, ipv6)?;
        let ports = forwards.iter().map(port::claim).collect::<Result<_, _>>()?;
        reach(FaultPoint::PortsClaimed);
        let lease = lease_free_address(request, leases)?;
        reach(FaultPoint::Leased);
        let place = Place::new(request, lease.address(), ipv6);
        let table = format!("podvm-{}", request.pod);
        match connect(request, &place, &forwards, &table) {
            Ok(rules) => Ok(Self {
                mode: NetworkMode::Default,
                interface: Some(place.interface(request.config.mtu)),
                dns: pod_dns(&request.dns, &NetworkMode::Default),
                hosts: request.hosts.clone(),
                holds: Some(Holds::Kernel(KernelHolds { table, rules, lease, _ports: ports })),
            }),
            Err(error) => {
                // The lease would end with the process anyway; its error must not hide the first one.
                let _ = leases.release(lease);
                Err(error)
            }
        }
    }

    /// The interface as it looks from inside; none without a network of the pod's own.
    pub fn interface(&self) -> Option<&InterfaceSpec> {
        self.interface.as_ref()
    }

    /// The name service the pod is to use; none when that is the image's affair.
    pub fn dns(&self) -> Option<&DnsSpec> {
        self.dns.as_ref()
    }

    /// The network as the supervisor is told of it.
    pub fn spec(&self) -> NetworkSpec {
        NetworkSpec {
            interfaces: self.interface.clone().into_iter().collect(),
            dns: self.dns.clone(),
            hosts: self.hosts.clone(),
        }
    }

    /// What a VM's card is to be plugged into: a tap that is tied to the pod's interface, in the calling thread's namespace, while
    /// privileges are there; or the socket of an ordinary user's network. None when the pod has no network.
    ///
    /// # Errors
    /// [`TapError::HostNetwork`] with [`NetworkMode::Host`]; the others when the kernel refuses.
    pub fn attach_card(&self) -> Result<Option<Card>, TapError> {
        match (&self.mode, &self.interface, &self.holds) {
            (NetworkMode::Host, ..) => Err(TapError::HostNetwork),
            (_, None, _) => Ok(None),
            (_, _, Some(Holds::Passt(passt))) => passt.card().map(|socket| Some(Card::Stream(socket))),
            (_, Some(interface), _) => {
                tap::attach(&interface.name, TAP_LINK, interface.mtu).map(|tap| Some(Card::Tap(tap)))
            }
        }
    }

    /// Takes the rules down, frees ports and address, and lets the kernel clean up in the background.
    ///
    /// Needed for nothing but speed: the kernel does the same at the process's end, but keeps the process waiting for it. Effective
    /// while the process has the capabilities of [`PodNetwork::create`]; without them it changes nothing.
    pub fn end(self, leases: &LeaseDir) {
        if let Some(Holds::Kernel(holds)) = self.holds {
            // What fails here is done by the kernel and by `gc` later.
            let _ = leases.release(holds.lease);
            reach(FaultPoint::LeaseReleased);
            if Table::delete(holds.table, &holds.rules).is_ok() {
                reach(FaultPoint::RulesDeleted);
                let _ = holds.rules.close_in_background();
            }
        }
    }
}

/// Leases an address that no pod's link has: pods of another state directory take theirs from another folder of leases.
fn lease_free_address(request: &NetworkRequest, leases: &LeaseDir) -> Result<Lease, LeaseError> {
    let mut passed_over = Vec::new();
    let leased = loop {
        match leases.lease(&request.config.ipv4, request.pod) {
            Ok(lease) if link::leads_to_a_pod(lease.address()) => passed_over.push(lease),
            leased => break leased,
        }
    };
    for lease in passed_over {
        leases.release(lease)?;
    }
    leased
}

/// Enters the pod's network namespace.
fn enter_namespace(request: &NetworkRequest) -> Result<File, CreateError> {
    let entered = match &request.namespace {
        Some(namespace) => setns(namespace, CloneFlags::CLONE_NEWNET),
        None => unshare(CloneFlags::CLONE_NEWNET),
    };
    entered.map_err(|errno| CreateError::Namespace(errno.into()))?;
    if request.endpoint == Endpoint::Namespace {
        sysctl::free_pod_network();
    }
    File::open("/proc/thread-self/ns/net").map_err(CreateError::Namespace)
}

/// Makes rules, namespace and links, and enters the namespace. Returns the socket that owns the rules.
///
/// The rules come first, so that the pod is never connected without them.
fn connect(request: &NetworkRequest, place: &Place, forwards: &[Forward], table: &str) -> Result<Socket, CreateError> {
    let rules = Socket::netfilter()?;
    let host = Socket::route()?;
    sysctl::enable_forwarding(place.ipv6.is_some())?;
    let addresses: Vec<_> = place.pairs.iter().map(|(pod, _)| *pod).collect();
    let table = pod_table(table.into(), &place.host_link, &addresses, forwards);
    table.commit(&rules).map_err(CreateError::Rules)?;
    reach(FaultPoint::RulesMade);
    // Without the kernel's nf_conntrack_netlink, old flows go astray until their peers pause for half a minute.
    let _ = forget_udp_flows(&rules, forwards);

    let namespace = enter_namespace(request)?;
    reach(FaultPoint::NamespaceMade);
    if place.ipv6.is_some() {
        sysctl::prepare_pod_ipv6(request.endpoint == Endpoint::Vm)?;
    }
    let host_end = VethEnd { name: &place.host_link, mac: mac_of(place.gateway) };
    let pod_end = VethEnd { name: POD_LINK, mac: mac_of(place.ipv4) };
    let index = link::create_veth(&host, &host_end, &pod_end, namespace.as_fd(), request.config.mtu)?;
    reach(FaultPoint::VethMade);
    host.transact(host_side(place, index, !forwards.is_empty()))?;
    reach(FaultPoint::HostSideMade);
    let pod = Socket::route()?;
    let pod_index = link::find_link(&pod, POD_LINK)?.unwrap_or_default();
    pod.transact(pod_side(request, place, pod_index))?;
    reach(FaultPoint::PodSideMade);
    link::wait_until_carrying(&host, index)?;
    if let Some((address, gateway)) = place.ipv6 {
        link::wait_until_local(&host, index, gateway)?;
        if request.endpoint == Endpoint::Namespace {
            link::wait_until_local(&pod, pod_index, address)?;
        }
    }
    Ok(rules)
}

/// The host's end. Published ports are reachable at the host's loopback addresses by settings that are otherwise left alone; the pod's
/// rules see to it that the pod cannot use them.
fn host_side(place: &Place, index: i32, publishes: bool) -> Batch {
    let mut batch = Batch::default();
    link::push_router_settings(&mut batch, index, place.ipv6.is_some(), publishes);
    link::push_up(&mut batch, index, None);
    for (pod, gateway) in &place.pairs {
        link::push_address(&mut batch, index, *gateway, Some(pod.address));
        link::push_neighbour(&mut batch, index, pod.address, mac_of(place.ipv4));
    }
    if publishes && place.ipv6.is_some() {
        link::push_loopback_route(&mut batch, index);
    }
    batch
}

fn pod_side(request: &NetworkRequest, place: &Place, index: i32) -> Batch {
    let mut batch = Batch::default();
    link::push_up(&mut batch, LOOPBACK_INDEX, None);
    link::push_up(&mut batch, index, None);
    if request.endpoint == Endpoint::Namespace {
        for (pod, gateway) in &place.pairs {
            link::push_address(&mut batch, index, pod.address, None);
            link::push_neighbour(&mut batch, index, *gateway, mac_of(place.gateway));
            link::push_default_route(&mut batch, index, *gateway);
        }
    }
    batch
}
