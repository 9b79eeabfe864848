//! Undoing what pods left behind.
//!
//! The kernel itself undoes nearly all when a pod's process ends: its namespace and with it the veth pair, its rules, its claims on ports, the
//! locks of its leases. What can remain are lease files, and a veth pair if somebody else keeps the pod's namespace. A lease is
//! written before its pod's link is made and names the pod, so that whatever a crash left is found by it.

use std::net::Ipv4Addr;

use crate::lease::{LeaseDir, LeaseError};
use crate::link::delete_link;
use crate::netlink::{NetlinkError, Socket};
use crate::pod_network::host_link_name;

/// Why leftovers remain.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    /// A lease cannot be looked at or removed.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// A link cannot be removed.
    #[error("a dead pod's link cannot be removed: {0}")]
    Link(#[from] NetlinkError),
}

/// What was undone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Addresses whose pods had ended.
    pub addresses: Vec<Ipv4Addr>,
    /// Links of ended pods that were still there.
    pub links: Vec<String>,
}

/// Removes what ended pods left in the calling thread's network namespace and among the leases. Living pods are not touched, and
/// doing it twice is harmless.
///
/// # Errors
/// [`GcError`]; what was undone until then stays undone.
pub fn gc(leases: &LeaseDir) -> Result<GcReport, GcError> {
    let mut links = Vec::new();
    let mut socket = None;
    let addresses = leases.collect(|pod| {
        let Some(name) = pod.map(host_link_name) else { return Ok(()) };
        let socket = match &socket {
            Some(socket) => socket,
            None => socket.insert(Socket::route()?),
        };
        if delete_link(socket, &name)? {
            links.push(name);
        }
        Ok::<_, GcError>(())
    })?;
    Ok(GcReport { addresses, links })
}
