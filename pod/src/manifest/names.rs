//! How a pod finds others by name: name servers (resolv.conf(5)) and fixed entries (hosts(5)).

use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The name service of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsSettings {
    /// Where `/etc/resolv.conf` comes from.
    pub source: DnsSource,
    /// Search domains instead of the host's.
    pub search: Vec<String>,
    /// Options instead of the host's.
    pub options: Vec<String>,
}

/// Where an app's `/etc/resolv.conf` comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DnsSource {
    /// From the host, without the servers that only the host itself can reach; left to the image where there is no network.
    #[default]
    Network,
    /// From the host, all of it.
    Host,
    /// From the image.
    Image,
    /// These servers.
    Servers(Vec<IpAddr>),
}

/// One `--dns`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DnsChoice {
    /// `host`.
    Host,
    /// `none`.
    None,
    /// A server.
    Server(IpAddr),
}

/// Not a `--dns`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no name server: write its IP address, or host or none")]
pub struct DnsError(pub String);

impl FromStr for DnsChoice {
    type Err = DnsError;

    fn from_str(text: &str) -> Result<Self, DnsError> {
        match text {
            "host" => Ok(Self::Host),
            "none" => Ok(Self::None),
            address => address.parse().map(Self::Server).map_err(|_| DnsError(text.into())),
        }
    }
}

/// A word of `/etc/resolv.conf`: a search domain or an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsWord(pub String);

/// Not a word.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot stand in resolv.conf(5): write one word without spaces")]
pub struct DnsWordError(pub String);

impl FromStr for DnsWord {
    type Err = DnsWordError;

    fn from_str(text: &str) -> Result<Self, DnsWordError> {
        let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && b != b'#' && b != b';');
        if plain { Ok(Self(text.into())) } else { Err(DnsWordError(text.into())) }
    }
}

/// A line of `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostsEntry {
    /// Address.
    pub address: IpAddr,
    /// Names, at least one.
    pub names: Vec<String>,
}

/// One `--hosts-entry`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostsChoice {
    /// `host`: what the host's `/etc/hosts` says of other machines.
    Host,
    /// These.
    Entries(Vec<HostsEntry>),
}

/// Not a `--hosts-entry`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no entry of /etc/hosts: write IP=NAME[,NAME…], such as 10.0.0.5=db,db.local, or host")]
pub struct HostsError(pub String);

/// `host`, or `IP=NAME[,NAME…][,IP=NAME…]`.
impl FromStr for HostsChoice {
    type Err = HostsError;

    fn from_str(text: &str) -> Result<Self, HostsError> {
        let wrong = || HostsError(text.into());
        if text == "host" {
            return Ok(Self::Host);
        }
        let mut entries: Vec<HostsEntry> = Vec::new();
        for word in text.split(',') {
            let name = match word.split_once('=') {
                Some((address, name)) => {
                    let address = address.parse().map_err(|_| wrong())?;
                    entries.push(HostsEntry { address, names: Vec::new() });
                    name
                }
                None => word,
            };
            let entry = entries.last_mut().filter(|_| is_host_name(name)).ok_or_else(wrong)?;
            entry.names.push(name.into());
        }
        Ok(Self::Entries(entries))
    }
}

/// Whether a text can stand as a name in `/etc/hosts`.
pub fn is_host_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(address: &str, names: &[&str]) -> HostsEntry {
        HostsEntry { address: address.parse().unwrap(), names: names.iter().map(ToString::to_string).collect() }
    }

    #[test]
    fn entries_have_one_or_more_names() {
        assert_eq!("10.0.0.5=db".parse(), Ok(HostsChoice::Entries(vec![entry("10.0.0.5", &["db"])])));
        assert_eq!(
            "10.0.0.5=db,db.local,fd00::1=six".parse(),
            Ok(HostsChoice::Entries(vec![entry("10.0.0.5", &["db", "db.local"]), entry("fd00::1", &["six"])]))
        );
        assert_eq!("host".parse(), Ok(HostsChoice::Host));
        for wrong in
            ["", "db", "10.0.0.5", "10.0.0.5=", "db=10.0.0.5", "10.0.0.5=a b", "10.0.0.5=a,,b", "10.0.0.5=a\nb"]
        {
            assert!(wrong.parse::<HostsChoice>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn servers_and_words_are_checked() {
        assert_eq!("1.1.1.1".parse(), Ok(DnsChoice::Server("1.1.1.1".parse().unwrap())));
        assert_eq!(("host".parse(), "none".parse()), (Ok(DnsChoice::Host), Ok(DnsChoice::None)));
        assert!("dns.example".parse::<DnsChoice>().is_err());
        assert!("ndots:2".parse::<DnsWord>().is_ok());
        for wrong in ["", "a b", "a\nnameserver", "#"] {
            assert!(wrong.parse::<DnsWord>().is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn no_entry_brings_another_line(text in "[0-9a-z.:=,# \n-]{0,40}") {
            if let Ok(HostsChoice::Entries(entries)) = text.parse() {
                prop_assert!(entries.iter().flat_map(|entry| &entry.names).all(|name| is_host_name(name)));
            }
        }
    }
}
