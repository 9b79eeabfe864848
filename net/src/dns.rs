//! The name service a pod is told of: the host's own, without what only the host can reach.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use podvm_pod::protocol::DnsSpec;

/// Where a host's resolver configuration is (resolv.conf(5)).
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where systemd-resolved writes the real servers when [`RESOLV_CONF`] names its stub at 127.0.0.53.
const SYSTEMD_RESOLV_CONF: &str = "/run/systemd/resolve/resolv.conf";

/// The name service of this host as a pod can use it. Without any usable server the list is empty.
pub fn host_dns() -> DnsSpec {
    usable_dns(Path::new(RESOLV_CONF), Path::new(SYSTEMD_RESOLV_CONF))
}

/// The name service of this host as the host itself uses it, for a pod on the host's own network.
pub(crate) fn hosts_own_dns() -> DnsSpec {
    read(Path::new(RESOLV_CONF), |_| true)
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

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic_or_tell_of_loopback(text in "(nameserver|search|options|[ -~\n])*") {
            prop_assert!(parse(&text).servers.iter().all(|server| !server.is_loopback()));
        }
    }
}
