//! Address ranges that pods' addresses are taken from, and the addresses within them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is no address range that pods can be given addresses from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    /// Not of the form ADDRESS/LENGTH.
    #[error("{0:?} is no subnet; write it as 172.16.28.0/24 or fd70:6f64:766d::/64")]
    Malformed(String),
    /// Too few or too many addresses.
    #[error("{text:?} cannot hold pods; the prefix's length must be from {least} to {most}")]
    Length {
        /// What was given.
        text: String,
        /// Shortest prefix allowed.
        least: u8,
        /// Longest prefix allowed.
        most: u8,
    },
    /// Bits beyond the prefix are set.
    #[error("{text:?} is not the first address of its subnet; write {network}")]
    HostBits {
        /// What was given.
        text: String,
        /// What was probably meant.
        network: String,
    },
}

fn split(text: &str, least: u8, most: u8) -> Result<(&str, u8), SubnetError> {
    let malformed = || SubnetError::Malformed(text.into());
    let (address, length) = text.split_once('/').ok_or_else(malformed)?;
    let length: u8 = length.parse().map_err(|_| malformed())?;
    if (least..=most).contains(&length) {
        Ok((address, length))
    } else {
        Err(SubnetError::Length { text: text.into(), least, most })
    }
}

/// A range of IPv4 addresses. The first one is the gateway's, the others but the broadcast address are the pods'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Subnet {
    network: Ipv4Addr,
    prefix: u8,
}

impl Ipv4Subnet {
    /// 172.16.28.0/24, the default network of rkt.
    pub const DEFAULT: Self = Self { network: Ipv4Addr::new(172, 16, 28, 0), prefix: 24 };

    /// The first address: as such nobody's.
    pub fn network(&self) -> Ipv4Addr {
        self.network
    }

    /// Length of the prefix in bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The address of the host in this subnet.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() + 1)
    }

    /// How many pods can have an address at a time.
    pub fn capacity(&self) -> u32 {
        (1_u32 << (32 - self.prefix)) - 3
    }

    /// The pods' address of this number, counted from 0; numbers beyond [`Ipv4Subnet::capacity`] begin anew.
    pub fn pod_address(&self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() + 2 + number % self.capacity())
    }
}

impl FromStr for Ipv4Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let (address, prefix) = split(text, 8, 30)?;
        let address: Ipv4Addr = address.parse().map_err(|_| SubnetError::Malformed(text.into()))?;
        let network = Ipv4Addr::from_bits(address.to_bits() & (u32::MAX << (32 - prefix)));
        if network != address {
            return Err(SubnetError::HostBits { text: text.into(), network: format!("{network}/{prefix}") });
        }
        Ok(Self { network, prefix })
    }
}

/// A range of IPv6 addresses. A pod's address ends in its IPv4 address, so that one lease stands for both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv6Subnet {
    network: Ipv6Addr,
    prefix: u8,
}

impl Ipv6Subnet {
    /// `fd70:6f64:766d::/64`. A unique local prefix (RFC 4193) whose global ID spells "podvm". It can be the same at every host
    /// because it is never seen outside: what leaves the host is masqueraded.
    pub const DEFAULT: Self = Self { network: Ipv6Addr::new(0xfd70, 0x6f64, 0x766d, 0, 0, 0, 0, 0), prefix: 64 };

    /// The first address.
    pub fn network(&self) -> Ipv6Addr {
        self.network
    }

    /// Length of the prefix in bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The address that stands beside this IPv4 address.
    pub fn beside(&self, address: Ipv4Addr) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.network.to_bits() | u128::from(address.to_bits()))
    }
}

impl FromStr for Ipv6Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let (address, prefix) = split(text, 16, 96)?;
        let address: Ipv6Addr = address.parse().map_err(|_| SubnetError::Malformed(text.into()))?;
        let network = Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << (128 - prefix)));
        if network != address {
            return Err(SubnetError::HostBits { text: text.into(), network: format!("{network}/{prefix}") });
        }
        Ok(Self { network, prefix })
    }
}

/// What a rule compares addresses with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Prefix {
    pub(crate) address: IpAddr,
    pub(crate) length: u8,
}

impl Prefix {
    pub(crate) const fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> Self {
        Self { address: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), length }
    }

    /// The prefix that holds just this address.
    pub(crate) fn host(address: IpAddr) -> Self {
        Self { address, length: if address.is_ipv4() { 32 } else { 128 } }
    }
}

impl From<Ipv4Subnet> for Prefix {
    fn from(subnet: Ipv4Subnet) -> Self {
        Self { address: subnet.network.into(), length: subnet.prefix }
    }
}

impl From<Ipv6Subnet> for Prefix {
    fn from(subnet: Ipv6Subnet) -> Self {
        Self { address: subnet.network.into(), length: subnet.prefix }
    }
}

macro_rules! as_text {
    ($subnet:ty) => {
        impl fmt::Display for $subnet {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}/{}", self.network, self.prefix)
            }
        }

        impl From<$subnet> for String {
            fn from(subnet: $subnet) -> Self {
                subnet.to_string()
            }
        }

        impl TryFrom<String> for $subnet {
            type Error = SubnetError;

            fn try_from(text: String) -> Result<Self, SubnetError> {
                text.parse()
            }
        }
    };
}
as_text!(Ipv4Subnet);
as_text!(Ipv6Subnet);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_subnet_holds_253_pods_beside_the_gateway() {
        let subnet = Ipv4Subnet::DEFAULT;
        assert_eq!(subnet, "172.16.28.0/24".parse().unwrap());
        assert_eq!(subnet.gateway(), Ipv4Addr::new(172, 16, 28, 1));
        assert_eq!(subnet.capacity(), 253);
        assert_eq!(subnet.pod_address(0), Ipv4Addr::new(172, 16, 28, 2));
        assert_eq!(subnet.pod_address(252), Ipv4Addr::new(172, 16, 28, 254));
        assert_eq!(subnet.pod_address(253), subnet.pod_address(0));
    }

    #[test]
    fn the_smallest_subnet_holds_one_pod() {
        let subnet: Ipv4Subnet = "10.9.8.4/30".parse().unwrap();
        assert_eq!((subnet.capacity(), subnet.pod_address(5)), (1, Ipv4Addr::new(10, 9, 8, 6)));
    }

    #[test]
    fn an_ipv6_address_tells_its_ipv4_neighbour() {
        let subnet = Ipv6Subnet::DEFAULT;
        assert_eq!(subnet, "fd70:6f64:766d::/64".parse().unwrap());
        assert_eq!(subnet.beside(Ipv4Addr::new(172, 16, 28, 7)).to_string(), "fd70:6f64:766d::ac10:1c07");
    }

    #[test]
    fn what_is_no_subnet_is_refused_with_the_cure() {
        assert!(matches!("172.16.28.0".parse::<Ipv4Subnet>(), Err(SubnetError::Malformed(_))));
        assert!(matches!("172.16.28.0/31".parse::<Ipv4Subnet>(), Err(SubnetError::Length { .. })));
        assert!(matches!("fd00::/97".parse::<Ipv6Subnet>(), Err(SubnetError::Length { .. })));
        let error = "172.16.28.1/24".parse::<Ipv4Subnet>().unwrap_err();
        assert!(error.to_string().ends_with("write 172.16.28.0/24"), "{error}");
    }

    #[test]
    fn a_subnet_is_a_text_in_a_file() {
        let text = serde_json::to_string(&Ipv4Subnet::DEFAULT).unwrap();
        assert_eq!(text, "\"172.16.28.0/24\"");
        assert_eq!(serde_json::from_str::<Ipv4Subnet>(&text).unwrap(), Ipv4Subnet::DEFAULT);
    }
}
