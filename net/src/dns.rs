//! The name service a pod is told of: the host's own, without what only the host can reach, or what it asks for.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use podvm_pod::manifest::{DnsSettings, DnsSource, HostsEntry, NetworkMode, is_host_name};
use podvm_pod::protocol::DnsSpec;

/// Where a host's resolver configuration is (resolv.conf(5)).
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where systemd-resolved writes the real servers when [`RESOLV_CONF`] names its stub at 127.0.0.53.
const SYSTEMD_RESOLV_CONF: &str = "/run/systemd/resolve/resolv.conf";

/// The name service of this host as a pod can use it. Without any usable server the list is empty.
pub fn host_dns() -> DnsSpec {
    usable_dns(Path::new(RESOLV_CONF), Path::new(SYSTEMD_RESOLV_CONF))
}

/// The name service of this host as the host itself uses it.
fn hosts_own_dns() -> DnsSpec {
    read(Path::new(RESOLV_CONF), |_| true)
}

/// The name service of a pod; none when its images' own files are left alone.
pub(crate) fn pod_dns(settings: &DnsSettings, mode: &NetworkMode) -> Option<DnsSpec> {
    let base = match (&settings.source, mode) {
        (DnsSource::Image, _) => return None,
        (DnsSource::Host, _) | (DnsSource::Network, NetworkMode::Host) => hosts_own_dns(),
        (DnsSource::Network, NetworkMode::Default) => host_dns(),
        (DnsSource::Network, NetworkMode::None) if settings.search.is_empty() && settings.options.is_empty() => {
            return None;
        }
        (DnsSource::Network, NetworkMode::None) => DnsSpec::default(),
        // What the host searches belongs to the host's servers.
        (DnsSource::Servers(servers), _) => DnsSpec { servers: servers.clone(), ..DnsSpec::default() },
    };
    let instead = |given: &Vec<String>, of: Vec<String>| if given.is_empty() { of } else { given.clone() };
    Some(DnsSpec {
        servers: base.servers,
        search: instead(&settings.search, base.search),
        options: instead(&settings.options, base.options),
    })
}

/// What this host's `/etc/hosts` says of other machines (hosts(5)).
pub fn host_names() -> Vec<HostsEntry> {
    parse_hosts(&String::from_utf8_lossy(&fs::read("/etc/hosts").unwrap_or_default()))
}

/// Reads hosts(5), without the entries of the host itself.
fn parse_hosts(text: &str) -> Vec<HostsEntry> {
    let entry = |line: &str| {
        let mut words = line.split('#').next()?.split_whitespace();
        let address = words.next()?.parse().ok().filter(is_reachable)?;
        let names: Vec<String> = words.filter(|name| is_host_name(name)).map(String::from).collect();
        (!names.is_empty()).then_some(HostsEntry { address, names })
    };
    text.lines().filter_map(entry).collect()
}

/// The first file with a server that can be reached from a pod counts whole; if there is none, the first file without servers.
fn usable_dns(first: &Path, second: &Path) -> DnsSpec {
    let dns = read(first, is_reachable);
    if !dns.servers.is_empty() {
        return dns;
    }
    let other = read(second, is_reachable);
    if other.servers.is_empty() { dns } else { other }
}

fn read(path: &Path, keep: fn(&IpAddr) -> bool) -> DnsSpec {
    parse(&String::from_utf8_lossy(&fs::read(path).unwrap_or_default()), keep)
}

/// Reads resolv.conf(5), with the servers that `keep` says yes to.
fn parse(text: &str, keep: fn(&IpAddr) -> bool) -> DnsSpec {
    let mut dns = DnsSpec::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => dns.servers.extend(words.next().and_then(|word| word.parse().ok()).filter(keep)),
            Some("search" | "domain") => dns.search = words.map(String::from).collect(),
            Some("options") => dns.options.extend(words.map(String::from)),
            _ => {}
        }
    }
    dns
}

/// Whether a server can be reached from a pod. Loopback servers are the host's own, and link-local ones mean nothing without the
/// host's interface.
fn is_reachable(server: &IpAddr) -> bool {
    let link_local = match server {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !server.is_loopback() && !server.is_unspecified() && !link_local
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> DnsSpec {
        super::parse(text, is_reachable)
    }

    fn write(folder: &Path, name: &str, text: &str) -> std::path::PathBuf {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn servers_search_and_options_are_passed_on() {
        let dns = parse(
            "# x\nnameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch a.example b.example\noptions ndots:2 rotate\n",
        );
        assert_eq!(dns.servers, ["192.0.2.53".parse::<IpAddr>().unwrap(), "2001:db8::53".parse().unwrap()]);
        assert_eq!(dns.search, ["a.example", "b.example"]);
        assert_eq!(dns.options, ["ndots:2", "rotate"]);
    }

    #[test]
    fn servers_only_the_host_can_reach_are_left_out() {
        let dns = parse(
            "nameserver 127.0.0.53\nnameserver ::1\nnameserver fe80::1%eth0\nnameserver fe80::1\nnameserver 169.254.1.1\nnameserver 0.0.0.0\nnameserver 192.0.2.1",
        );
        assert_eq!(dns.servers, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn on_the_hosts_own_network_loopback_servers_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let stub = write(folder.path(), "stub", "nameserver 127.0.0.53\n");
        assert_eq!(read(&stub, |_| true).servers, ["127.0.0.53".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn a_stub_resolver_is_replaced_by_what_is_behind_it() {
        let folder = tempfile::tempdir().unwrap();
        let stub = write(folder.path(), "stub", "nameserver 127.0.0.53\nsearch stub.example\n");
        let real = write(folder.path(), "real", "nameserver 192.0.2.1\nsearch real.example\n");
        assert_eq!(usable_dns(&stub, &real).search, ["real.example"]);
        let none = usable_dns(&stub, &folder.path().join("missing"));
        assert!(none.servers.is_empty());
        assert_eq!(none.search, ["stub.example"]);
    }

    #[test]
    fn a_pod_has_the_servers_words_and_source_it_asks_for() {
        let settings = DnsSettings {
            source: DnsSource::Servers(vec!["192.0.2.7".parse().unwrap()]),
            search: vec!["a.example".into()],
            options: vec!["ndots:3".into()],
        };
        for mode in [NetworkMode::Default, NetworkMode::None, NetworkMode::Host] {
            let dns = pod_dns(&settings, &mode).unwrap();
            assert_eq!(dns.servers, ["192.0.2.7".parse::<IpAddr>().unwrap()]);
            assert_eq!((dns.search, dns.options), (settings.search.clone(), settings.options.clone()));
        }
        let image = DnsSettings { source: DnsSource::Image, ..settings };
        assert_eq!(pod_dns(&image, &NetworkMode::Default), None);
        assert_eq!(pod_dns(&DnsSettings::default(), &NetworkMode::None), None);
        assert_eq!(pod_dns(&DnsSettings::default(), &NetworkMode::Default), Some(host_dns()));
    }

    #[test]
    fn the_hosts_names_for_itself_are_left_out() {
        let text =
            "127.0.0.1 localhost\n::1 ip6-localhost\n192.0.2.9 db db.example # data\n#192.0.2.8 old\n192.0.2.7\nx y\n";
        let entry = HostsEntry { address: "192.0.2.9".parse().unwrap(), names: vec!["db".into(), "db.example".into()] };
        assert_eq!(parse_hosts(text), [entry]);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic_or_tell_of_loopback(text in "(nameserver|search|options|[ -~\n])*") {
            prop_assert!(parse(&text).servers.iter().all(|server| !server.is_loopback()));
        }
    }
}
