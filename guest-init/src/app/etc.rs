//! The files of `/etc` that tell an app where it is: mounted over the image's own, from memory, so that the image and the
//! writable layer stay as they are.

use std::fmt::Write;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use podvm_pod::protocol::{DnsSpec, PodSpec};

use super::path::Root;
use crate::step::{Step, StepError};
use crate::sys::mount::{Detached, MountAttrFlags};

/// Writes the files into `directory` and mounts them into `root`.
///
/// # Errors
/// Which file could not be written or mounted.
pub fn mount(root: &Root, directory: &Path, spec: &PodSpec, read_only: bool) -> Result<(), StepError> {
    fs::create_dir_all(directory).step(|| format!("make {}", directory.display()))?;
    mount_file(root, directory, "hosts", &hosts(spec), read_only)?;
    mount_file(root, directory, "hostname", &format!("{}\n", spec.hostname), read_only)?;
    if let Some(dns) = &spec.network.dns {
        mount_file(root, directory, "resolv.conf", &resolv_conf(dns), read_only)?;
    }
    Ok(())
}

fn mount_file(root: &Root, directory: &Path, name: &str, text: &str, read_only: bool) -> Result<(), StepError> {
    let file: PathBuf = directory.join(name);
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    if read_only {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    fs::write(&file, text).step(|| format!("write {}", file.display()))?;
    let target = Path::new("/etc").join(name);
    let place = root.file(&target).step(|| format!("make {}", target.display()))?;
    use std::os::fd::AsFd;
    let mount = || {
        let mount = Detached::bind_path(&file, false)?;
        mount.restrict(attributes, false)?;
        mount.attach(place.fd.as_fd())
    };
    mount().map(drop).step(|| format!("mount {}", target.display()))
}

/// `/etc/hosts`: localhost, the pod by its addresses, and what was asked for besides (hosts(5)).
fn hosts(spec: &PodSpec) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    let mut line = |address: IpAddr, names: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{address}\t{names}");
    };
    let own: Vec<IpAddr> = spec
        .network
        .interfaces
        .iter()
        .flat_map(|interface| &interface.addresses)
        .map(|(address, _)| *address)
        .collect();
    own.iter().for_each(|address| line(*address, &spec.hostname));
    let named = spec.network.hosts.iter().any(|entry| entry.names.contains(&spec.hostname));
    if own.is_empty() && !named {
        line(Ipv4Addr::LOCALHOST.into(), &spec.hostname);
    }
    spec.network.hosts.iter().for_each(|entry| line(entry.address, &entry.names.join(" ")));
    text
}

/// `/etc/resolv.conf` (resolv.conf(5)).
fn resolv_conf(dns: &DnsSpec) -> String {
    let mut text = String::new();
    if !dns.search.is_empty() {
        let _ = writeln!(text, "search {}", dns.search.join(" "));
    }
    for server in &dns.servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !dns.options.is_empty() {
        let _ = writeln!(text, "options {}", dns.options.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use podvm_pod::manifest::ByteSize;
    use podvm_pod::protocol::{HostsEntry, InterfaceSpec, NetworkSpec, WritableSource};

    use super::*;

    fn spec(network: NetworkSpec) -> PodSpec {
        PodSpec {
            uuid: uuid::Uuid::nil(),
            hostname: "pod".into(),
            apps: Vec::new(),
            volumes: Vec::new(),
            writable: WritableSource::Tmpfs(ByteSize::mib(1)),
            shm: None,
            network,
        }
    }

    #[test]
    fn a_pod_finds_itself_by_its_addresses_or_else_by_loopback() {
        assert!(hosts(&spec(NetworkSpec::default())).ends_with("127.0.0.1\tpod\n"));
        let interface = InterfaceSpec {
            name: "eth0".into(),
            mac: [2; 6],
            mtu: 1500,
            addresses: vec![("10.0.0.2".parse().unwrap(), 24), ("fd00::2".parse().unwrap(), 64)],
            gateways: Vec::new(),
        };
        let entry = HostsEntry { address: "10.9.9.9".parse().unwrap(), names: vec!["db".into(), "db.local".into()] };
        let network = NetworkSpec { interfaces: vec![interface], dns: None, hosts: vec![entry] };
        let text = hosts(&spec(network));
        assert!(text.ends_with("10.0.0.2\tpod\nfd00::2\tpod\n10.9.9.9\tdb db.local\n"), "{text}");
        assert!(!text.contains("127.0.0.1\tpod"));
    }

    #[test]
    fn name_servers_searches_and_options_are_written() {
        let dns = DnsSpec {
            servers: vec!["1.1.1.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            search: vec!["a.b".into(), "c".into()],
            options: vec!["ndots:2".into()],
        };
        assert_eq!(resolv_conf(&dns), "search a.b c\nnameserver 1.1.1.1\nnameserver fd00::1\noptions ndots:2\n");
    }
}
