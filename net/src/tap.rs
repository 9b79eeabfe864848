//! A tap for a VM, tied to the pod's interface.
//!
//! What arrives at the interface is redirected to the tap, and what the VM sends is redirected out of the interface, by a
//! tc(8) ingress filter each way that takes every packet. The namespace's own network stack sees nothing of it. So whatever made the interface
//! (podvm's own network or a CNI plugin), the VM takes its place.
//!
//! The filters are of kind u32, which kernels have had for longer than `matchall`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use crate::link::{find_link, flush_addresses, push_up};
use crate::netlink::{Batch, NetlinkError, Socket};

/// `TC_H_INGRESS` and the handle of an ingress qdisc (linux/pkt_sched.h).
const TC_H_INGRESS: u32 = 0xffff_fff1;
const INGRESS_HANDLE: u32 = 0xffff_0000;
/// linux/pkt_cls.h, linux/tc_act/tc_mirred.h.
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TC_U32_TERMINAL: u8 = 1;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TC_ACT_STOLEN: i32 = 4;
const TCA_EGRESS_REDIR: i32 = 1;
/// Every protocol (`ETH_P_ALL`), at priority 1, as `tcm_info` carries it.
const EVERY_PROTOCOL: u32 = (1 << 16) | (libc::ETH_P_ALL as u16).to_be() as u32;

/// Why a VM could not be tied to the pod's network.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The pod shares the host's network.
    #[error("a VM cannot share the host's network; use --net=default, or --stage1=ns")]
    HostNetwork,
    /// `/dev/net/tun` cannot be opened, or makes no tap.
    #[error("no tap from /dev/net/tun: {0}; load the kernel module tun, and run as root")]
    Tun(#[source] io::Error),
    /// The pod's interface is gone.
    #[error("the pod has no interface {0}; what made its network is incomplete")]
    NoInterface(String),
    /// A descriptor cannot be had twice.
    #[error("no more descriptors for the VM's network ({0}); raise the limit of open files (ulimit -n)")]
    Descriptor(#[source] io::Error),
    /// The kernel refused to tie the two.
    #[error("{0}; the kernel modules sch_ingress, cls_u32 and act_mirred are needed")]
    Netlink(#[from] NetlinkError),
}

/// A tap whose other end is a pod's interface.
#[derive(Debug)]
pub struct Tap {
    /// The VM's end: reads and writes Ethernet frames, each after a virtio-net header; non-blocking, closed at exec. The size of that header
    /// and the offloads are for the VMM to set.
    pub file: File,
    /// Name of the tap in the pod's network namespace.
    pub name: String,
}

/// The network's end of a VM's card.
#[derive(Debug)]
pub enum Card {
    /// A tap whose other end is the pod's interface.
    Tap(Tap),
    /// A stream of Ethernet frames, each behind its length: four bytes in network byte order. Closed at exec.
    Stream(File),
}

/// Creates the tap `name` in the calling thread's network namespace and ties it to `interface`, whose addresses are removed: they
/// are the VM's.
pub(crate) fn attach(interface: &str, name: &str, mtu: u32) -> Result<Tap, TapError> {
    let socket = Socket::route()?;
    let outer = find_link(&socket, interface)?.ok_or_else(|| TapError::NoInterface(interface.into()))?;
    flush_addresses(&socket, outer)?;
    let file = open_tap(name).map_err(TapError::Tun)?;
    let inner = find_link(&socket, name)?.ok_or_else(|| TapError::NoInterface(name.into()))?;
    let mut batch = Batch::default();
    push_redirect(&mut batch, outer, inner);
    push_redirect(&mut batch, inner, outer);
    push_up(&mut batch, inner, Some(mtu));
    socket.transact(batch)?;
    Ok(Tap { file, name: name.into() })
}

fn open_tap(name: &str) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: all-zero bytes are a valid `ifreq`: its members are integers, arrays and unions of them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which is alive for the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as libc::Ioctl, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // A tap that goes with its file keeps the process that closes it waiting for the kernel's clean-up; one that goes with
    // its namespace does not. The namespace goes when the process does.
    // SAFETY: TUNSETPERSIST takes a number.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST as libc::Ioctl, 1) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(file) }
}

/// `struct tcmsg`.
fn tc_header(index: i32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    [[0; 4], index.to_ne_bytes(), handle.to_ne_bytes(), parent.to_ne_bytes(), info.to_ne_bytes()].concat()
}

/// Adds to the batch: all that arrives at one link leaves by the other.
fn push_redirect(batch: &mut Batch, from: i32, to: i32) {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let header = tc_header(from, INGRESS_HANDLE, TC_H_INGRESS, 0);
    batch.push("add an ingress qdisc", libc::RTM_NEWQDISC, flags, &header, |qdisc| {
        qdisc.put_string(libc::TCA_KIND, "ingress");
    });
    // `struct tc_u32_sel` with one `struct tc_u32_key` whose mask is zero, which every packet matches.
    let mut select_all = [0; 32];
    (select_all[0], select_all[2]) = (TC_U32_TERMINAL, 1);
    // `struct tc_mirred`: index, capabilities, action, two counters, kind, link.
    let redirect = [0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, to].map(i32::to_ne_bytes).concat();
    let header = tc_header(from, 0, INGRESS_HANDLE, EVERY_PROTOCOL);
    batch.push("add a redirecting filter", libc::RTM_NEWTFILTER, flags, &header, |filter| {
        filter.put_string(libc::TCA_KIND, "u32");
        filter.nest(libc::TCA_OPTIONS, |options| {
            options.put(TCA_U32_SEL, &select_all);
            options.nest(TCA_U32_ACT, |actions| {
                actions.nest(1, |action| {
                    action.put_string(TCA_ACT_KIND, "mirred");
                    action.nest(TCA_ACT_OPTIONS, |options| options.put(TCA_MIRRED_PARMS, &redirect));
                });
            });
        });
    });
}
