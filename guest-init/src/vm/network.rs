//! The VM's network: interfaces found by their hardware addresses, named and configured as told.

use std::fs;
use std::io;
use std::net::IpAddr;

use podvm_pod::protocol::{InterfaceSpec, NetworkSpec};

use super::netlink::{Message, Netlink, Request, attribute};
use crate::step::{Step, StepError, note};

/// Length of `struct ifinfomsg`.
const LINK_FIXED: usize = 16;
/// Index of the loopback interface in every network namespace.
const LOOPBACK: u32 = 1;
/// `RTNH_F_ONLINK` of linux/rtnetlink.h: the gateway is on the link, whatever the addresses say.
const ONLINK: u32 = 4;

/// Brings loopback up and sets up the interfaces.
///
/// # Errors
/// What could not be set.
pub fn configure(network: &NetworkSpec) -> Result<(), StepError> {
    let mut netlink = Netlink::open().step(|| "open a netlink socket")?;
    netlink.change(link_up(LOOPBACK)).step(|| "bring loopback up")?;
    // Anybody may ping and serve at low ports, as under docker; without it these would need a capability.
    set_sysctl("ipv4/ping_group_range", "0 2147483647");
    set_sysctl("ipv4/ip_unprivileged_port_start", "0");
    network.interfaces.iter().try_for_each(|interface| set_up(&mut netlink, interface))
}

fn set_up(netlink: &mut Netlink, interface: &InterfaceSpec) -> Result<(), StepError> {
    let name = &interface.name;
    let index = find(netlink, interface.mac)?;
    let named =
        link_change(index).with(libc::IFLA_IFNAME, &c_name(name)?).with(libc::IFLA_MTU, &interface.mtu.to_ne_bytes());
    netlink.change(named).step(|| format!("name interface {name} and set its MTU to {}", interface.mtu))?;
    // The addresses are leased: there is nothing to detect or to be told of.
    set_sysctl(&format!("ipv6/conf/{name}/accept_dad"), "0");
    set_sysctl(&format!("ipv6/conf/{name}/accept_ra"), "0");
    netlink.change(link_up(index)).step(|| format!("bring {name} up"))?;
    for (address, prefix) in &interface.addresses {
        netlink
            .change(add_address(index, *address, *prefix))
            .step(|| format!("give {name} the address {address}/{prefix}"))?;
    }
    for gateway in &interface.gateways {
        netlink.change(add_default_route(index, *gateway)).step(|| format!("route by {gateway} on {name}"))?;
    }
    Ok(())
}

fn find(netlink: &mut Netlink, mac: [u8; 6]) -> Result<u32, StepError> {
    let what = || {
        let octets: Vec<String> = mac.iter().map(|octet| format!("{octet:02x}")).collect();
        format!("find the interface with the address {}", octets.join(":"))
    };
    let links = netlink.list(Request::new(libc::RTM_GETLINK, 0, &[0; LINK_FIXED])).step(what)?;
    let has_mac = |link: &&Message| attribute(link, LINK_FIXED, libc::IFLA_ADDRESS) == Some(&mac[..]);
    let link = links.iter().find(has_mac).ok_or_else(|| StepError::because(what(), "the VM has none"))?;
    let index = link.get(4..8).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
    index.ok_or_else(|| StepError::because(what(), "the kernel's answer is too short"))
}

fn c_name(name: &str) -> Result<Vec<u8>, StepError> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(['\0', '/']) {
        return Err(StepError::because(format!("name an interface {name:?}"), "that is no interface's name"));
    }
    Ok([name.as_bytes(), b"\0"].concat())
}

/// `struct ifinfomsg`: family, type, index, flags and which of them to change.
fn link_message(index: u32, flags: u32) -> Request {
    let mut fixed = [0; LINK_FIXED];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&flags.to_ne_bytes());
    Request::new(libc::RTM_NEWLINK, 0, &fixed)
}

fn link_change(index: u32) -> Request {
    link_message(index, 0)
}

fn link_up(index: u32) -> Request {
    link_message(index, libc::IFF_UP as u32)
}

fn octets(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (libc::AF_INET as u8, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6 as u8, address.octets().to_vec()),
    }
}

/// `struct ifaddrmsg`: family, prefix length, flags, scope, index.
fn add_address(index: u32, address: IpAddr, prefix: u8) -> Request {
    let (family, octets) = octets(address);
    let mut fixed = vec![family, prefix, 0, libc::RT_SCOPE_UNIVERSE];
    fixed.extend(index.to_ne_bytes());
    let request = Request::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, &fixed)
        .with(libc::IFA_LOCAL, &octets)
        .with(libc::IFA_ADDRESS, &octets);
    match address {
        IpAddr::V4(_) => request,
        IpAddr::V6(_) => request.with(libc::IFA_FLAGS, &libc::IFA_F_NODAD.to_ne_bytes()),
    }
}

/// `struct rtmsg`: family, lengths of prefixes, type of service, table, protocol, scope, type, flags.
fn add_default_route(index: u32, gateway: IpAddr) -> Request {
    let (family, octets) = octets(gateway);
    let (table, protocol, scope) = (libc::RT_TABLE_MAIN, libc::RTPROT_BOOT, libc::RT_SCOPE_UNIVERSE);
    let mut fixed = vec![family, 0, 0, 0, table, protocol, scope, libc::RTN_UNICAST];
    fixed.extend(ONLINK.to_ne_bytes());
    Request::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, &fixed)
        .with(libc::RTA_GATEWAY, &octets)
        .with(libc::RTA_OIF, &index.to_ne_bytes())
}

fn set_sysctl(name: &str, value: &str) {
    match fs::write(format!("/proc/sys/net/{name}"), value) {
        // A kernel without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => note(format_args!("set net/{name} to {value}: {error}")),
        Ok(()) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_interface_can_have_are_refused() {
        for bad in ["", "a/b", "sixteen-letters-", "nul\0"] {
            assert!(c_name(bad).is_err(), "{bad:?}");
        }
        assert_eq!(c_name("eth0").unwrap(), b"eth0\0");
    }

    /// Runs `ip` of the host in the calling thread's network namespace.
    fn ip(words: &str) -> String {
        let output = std::process::Command::new("ip").args(words.split(' ')).output().unwrap();
        assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn an_interface_gets_its_name_addresses_and_routes() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            ip("link add tmp0 address 02:00:00:00:00:07 type veth peer name peer0");
            ip("link set peer0 up");
            let interface = InterfaceSpec {
                name: "eth0".into(),
                mac: [2, 0, 0, 0, 0, 7],
                mtu: 1400,
                addresses: vec![("10.7.0.2".parse().unwrap(), 32), ("fd00:7::2".parse().unwrap(), 128)],
                gateways: vec!["10.7.0.1".parse().unwrap(), "fd00:7::1".parse().unwrap()],
            };
            let network = NetworkSpec { interfaces: vec![interface.clone()], ..Default::default() };
            configure(&network).unwrap();
            let link = ip("-o address show dev eth0");
            for part in ["inet 10.7.0.2/32", "inet6 fd00:7::2/128"] {
                assert!(link.contains(part), "{part} is not in {link}");
            }
            assert!(!link.contains("tentative fd00"), "{link}");
            assert!(ip("link show eth0").contains("mtu 1400"));
            assert!(ip("link show lo").contains("UP"));
            assert!(ip("route").contains("default via 10.7.0.1 dev eth0 onlink"));
            assert!(ip("-6 route").contains("default via fd00:7::1 dev eth0"));
            // A second time changes nothing.
            configure(&network).unwrap();
            assert_eq!(ip("-o address show dev eth0").lines().filter(|line| line.contains("global")).count(), 2);

            let missing = InterfaceSpec { mac: [9; 6], ..interface };
            let network = NetworkSpec { interfaces: vec![missing], ..Default::default() };
            let message = configure(&network).unwrap_err().to_string();
            assert!(message.contains("09:09:09:09:09:09"), "{message}");
        })
        .join()
        .unwrap();
    }
}
