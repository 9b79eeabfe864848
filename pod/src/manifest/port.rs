//! Ports of a pod that are reachable at the host.

use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::name::AppName;

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A port forward from the host to the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// The port's name, as the image or the user gave it.
    pub name: String,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Address of the host it is reachable at; all addresses when none.
    pub host_ip: Option<IpAddr>,
    /// Port at the host.
    pub host_port: u16,
    /// Port inside the pod.
    pub pod_port: u16,
    /// The app whose image knows the port by this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// Whether that app expects the port as an open socket that it is started with ([`crate::sockets`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub socket_activated: bool,
}

/// What `--port` was given: `NAME:[IP:]PORT`. NAME is a port's name in the image, or a port of the pod such as `80` or `53/udp`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortRequest {
    /// What is before the first colon.
    pub name: String,
    /// Address of the host it shall be reachable at.
    pub host_ip: Option<IpAddr>,
    /// Port at the host.
    pub host_port: u16,
}

/// Why a text is no port request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// Not of the form `NAME:[IP:]PORT`.
    #[error("{0:?} is no port: write NAME:[IP:]PORT, such as client:2379, http:127.0.0.1:8080 or 80:8080")]
    Malformed(String),
    /// A port number out of range.
    #[error("{text:?}: {port:?} is no port number; it must be 1 to 65535")]
    BadPort {
        /// The whole text.
        text: String,
        /// The part that should be a port number.
        port: String,
    },
}

impl FromStr for PortRequest {
    type Err = PortError;

    fn from_str(text: &str) -> Result<Self, PortError> {
        let malformed = || PortError::Malformed(text.into());
        let (name, target) = text.split_once(':').ok_or_else(malformed)?;
        let (host_ip, port) = match target.rsplit_once(':') {
            Some((ip, port)) => {
                let bare = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
                (Some(bare.parse().map_err(|_| malformed())?), port)
            }
            None => (None, target),
        };
        let named_well = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b));
        if name.is_empty() || !named_well {
            return Err(malformed());
        }
        let bad_port = || PortError::BadPort { text: text.into(), port: port.into() };
        let host_port: u16 = port.parse().map_err(|_| bad_port())?;
        if host_port == 0 {
            return Err(bad_port());
        }
        Ok(Self { name: name.into(), host_ip, host_port })
    }
}

impl PortRequest {
    /// The pod's port and protocol when NAME is itself a port such as `80` or `53/udp`.
    pub fn numeric_pod_port(&self) -> Option<(u16, Protocol)> {
        let (port, protocol) = self.name.split_once('/').unwrap_or((&self.name, "tcp"));
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return None,
        };
        port.parse().ok().filter(|port| *port != 0).map(|port| (port, protocol))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_forms_are_read() {
        let port: PortRequest = "client:2379".parse().unwrap();
        assert_eq!((port.name.as_str(), port.host_ip, port.host_port), ("client", None, 2379));
        let port: PortRequest = "http:127.0.0.1:8080".parse().unwrap();
        assert_eq!(port.host_ip, Some("127.0.0.1".parse().unwrap()));
        let port: PortRequest = "http:[::1]:8080".parse().unwrap();
        assert_eq!(port.host_ip, Some("::1".parse().unwrap()));
        let port: PortRequest = "53/udp:5353".parse().unwrap();
        assert_eq!(port.numeric_pod_port(), Some((53, Protocol::Udp)));
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for bad in ["", "80", "a:", ":80", "a:0", "a:65536", "a:x:80", "a b:80", "a:1.2.3:80"] {
            assert!(bad.parse::<PortRequest>().is_err(), "{bad:?} was taken");
        }
    }
}
