//! Network settings that only /proc/sys/net has. The files show the network namespace of the thread that opens them.

use std::fs;
use std::io;
use std::path::PathBuf;

const ROOT: &str = "/proc/sys/net";

/// Why a setting could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot set {path} to {value}: {source}", path = .path.display())]
pub struct SysctlError {
    /// The setting's file.
    pub path: PathBuf,
    /// What it should be.
    pub value: &'static str,
    /// Why it is not.
    pub source: io::Error,
}

fn read(name: &str) -> Option<String> {
    Some(fs::read_to_string(PathBuf::from(ROOT).join(name)).ok()?.trim().into())
}

fn write(name: &str, value: &'static str) -> Result<(), SysctlError> {
    let path = PathBuf::from(ROOT).join(name);
    fs::write(&path, value).map_err(|source| SysctlError { path, value, source })
}

/// Whether new links of this namespace speak IPv6.
pub(crate) fn has_ipv6() -> bool {
    read("ipv6/conf/default/disable_ipv6").as_deref() == Some("0")
}

/// Makes this namespace a router, if it is none yet. The setting stays: others may rely on it by the time the pod ends.
pub(crate) fn enable_forwarding(ipv6: bool) -> Result<(), SysctlError> {
    if read("ipv4/ip_forward").as_deref() != Some("1") {
        write("ipv4/ip_forward", "1")?;
    }
    if ipv6 && read("ipv6/conf/all/forwarding").as_deref() != Some("1") {
        keep_router_advertisements()?;
        write("ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// A router ignores router advertisements, so that the host would lose a default route that it has by them as soon as it
/// forwards. `accept_ra` 2 says: take them even so.
fn keep_router_advertisements() -> Result<(), SysctlError> {
    let links = fs::read_dir(PathBuf::from(ROOT).join("ipv6/conf")).into_iter().flatten().flatten();
    for name in links.filter_map(|entry| entry.file_name().into_string().ok()) {
        let setting = format!("ipv6/conf/{name}/accept_ra");
        if !["all", "default", "lo"].contains(&name.as_str()) && read(&setting).as_deref() == Some("1") {
            write(&setting, "2")?;
        }
    }
    Ok(())
}

/// Lets every user of the pod's namespace open low ports and ping, as under docker: it is the pod's own network. Neither takes
/// part in making the network, so a kernel that refuses is let be.
pub(crate) fn free_pod_network() {
    let _ = write("ipv4/ip_unprivileged_port_start", "0");
    // A user namespace maps fewer groups.
    let _ = write("ipv4/ping_group_range", "0 2147483647").or_else(|_| write("ipv4/ping_group_range", "0 65535"));
}

/// Prepares the pod's namespace for its interface, which takes these settings over when it is created. A VM's interface speaks
/// no IPv6 itself, so that nothing but the VM answers; others skip the wait for duplicate addresses.
pub(crate) fn prepare_pod_ipv6(for_vm: bool) -> Result<(), SysctlError> {
    if for_vm {
        return write("ipv6/conf/default/disable_ipv6", "1");
    }
    write("ipv6/conf/all/accept_dad", "0")?;
    write("ipv6/conf/default/accept_dad", "0")
}
