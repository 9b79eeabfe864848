//! What a pod's network is made from.

use std::os::fd::OwnedFd;

use podvm_pod::PodManifest;
use podvm_pod::manifest::{DnsSettings, HostsEntry, NetworkMode, PublishedPort};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::subnet::{Ipv4Subnet, Ipv6Subnet};

/// Most bytes in a packet of a pod unless configured otherwise: Ethernet's.
const DEFAULT_MTU: u32 = 1500;
const IPV6_MINIMUM_MTU: u32 = 1280;

/// The built-in network of a host, as the configuration file may change it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct NetworkConfig {
    /// Where pods' IPv4 addresses are from.
    pub ipv4: Ipv4Subnet,
    /// Where pods' IPv6 addresses are from; pods have none without, nor when the host has IPv6 disabled.
    pub ipv6: Option<Ipv6Subnet>,
    /// Most bytes in a packet. Below 1280 there is no IPv6 (RFC 8200, section 5).
    pub mtu: u32,
}

impl NetworkConfig {
    /// Whether pods are to have IPv6 addresses.
    pub(crate) fn speaks_ipv6(&self) -> bool {
        self.ipv6.is_some() && self.mtu >= IPV6_MINIMUM_MTU
    }
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self { ipv4: Ipv4Subnet::DEFAULT, ipv6: Some(Ipv6Subnet::DEFAULT), mtu: DEFAULT_MTU }
    }
}

/// What has the pod's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// The pod's network namespace: the apps are in it.
    Namespace,
    /// A VM: [`crate::PodNetwork::attach_card`] is called next, and the guest configures itself.
    Vm,
}

/// A pod's wish for a network.
#[derive(Debug)]
pub struct NetworkRequest {
    /// The pod.
    pub pod: Uuid,
    /// Which network.
    pub mode: NetworkMode,
    /// Who gets the addresses.
    pub endpoint: Endpoint,
    /// Ports of the host that lead to the pod. Only the built-in network has any to forward.
    pub ports: Vec<PublishedPort>,
    /// The built-in network.
    pub config: NetworkConfig,
    /// Name service.
    pub dns: DnsSettings,
    /// Names of others, for `/etc/hosts`.
    pub hosts: Vec<HostsEntry>,
    /// A network namespace that is the pod's already; a new one is made otherwise.
    pub namespace: Option<OwnedFd>,
    /// Whether this process has no privilege over the host's network, as one of an ordinary user.
    pub is_unprivileged: bool,
}

impl NetworkRequest {
    /// A wish for the built-in network as it comes, without published ports.
    pub fn new(pod: Uuid, endpoint: Endpoint) -> Self {
        Self {
            pod,
            mode: NetworkMode::Default,
            endpoint,
            ports: Vec::new(),
            config: NetworkConfig::default(),
            dns: DnsSettings::default(),
            hosts: Vec::new(),
            namespace: None,
            is_unprivileged: false,
        }
    }

    /// The wish of a pod as its manifest has it.
    pub fn of_pod(manifest: &PodManifest, endpoint: Endpoint, config: &NetworkConfig) -> Self {
        Self {
            pod: manifest.uuid,
            mode: manifest.network.clone(),
            endpoint,
            ports: manifest.ports.clone(),
            config: config.clone(),
            dns: manifest.dns.clone(),
            hosts: manifest.hosts.clone(),
            namespace: None,
            is_unprivileged: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_needs_to_name_only_what_differs() {
        let config: NetworkConfig = serde_json::from_str(r#"{"ipv4": "10.1.0.0/16"}"#).unwrap();
        assert_eq!(config, NetworkConfig { ipv4: "10.1.0.0/16".parse().unwrap(), ..NetworkConfig::default() });
        assert!(serde_json::from_str::<NetworkConfig>(r#"{"ipv4": "10.1.0.1/16"}"#).is_err());
        assert!(serde_json::from_str::<NetworkConfig>(r#"{"mtuu": 9000}"#).is_err());
    }
}
