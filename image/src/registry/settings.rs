//! What the configuration file says of registries: where short names are looked for, mirrors, certificates.
//!
//! ```toml
//! [registries]
//! search = ["docker.io/library", "quay.io/coreos"]
//!
//! [registries.hosts."docker.io"]
//! mirrors = ["mirror.example:5000/hub"]
//!
//! [registries.hosts."mirror.example:5000"]
//! ca = "/etc/podvm/mirror.pem"
//! insecure = ["http"]
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

/// Where names without a registry are looked for when nothing else is said.
pub const DEFAULT_SEARCH: &str = "docker.io/library";

/// The `[registries]` table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistrySettings {
    /// Places, `HOST` or `HOST/PATH`, where a name without a registry is looked for, in this order. A name with a
    /// slash in it is looked for at the host itself.
    pub search: Vec<String>,
    /// What is particular to single registries, by host and port as image names have them.
    pub hosts: BTreeMap<String, HostSettings>,
}

impl Default for RegistrySettings {
    fn default() -> Self {
        Self { search: vec![DEFAULT_SEARCH.to_owned()], hosts: BTreeMap::new() }
    }
}

/// What is particular to one registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HostSettings {
    /// Registries, `HOST` or `HOST/PATH`, that are asked before this one. What they have is below their path under the
    /// same name.
    pub mirrors: Vec<String>,
    /// Certificates in PEM form of authorities that are trusted beside the system's.
    pub ca: Option<PathBuf>,
    /// Checks that are left out.
    pub insecure: Vec<Insecure>,
}

/// A check that can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Insecure {
    /// Registries may be spoken to without TLS, if they do not speak TLS.
    Http,
    /// Certificates are not checked.
    Tls,
}

/// How patient the client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For a connection, with all addresses of a host together.
    pub connect: Duration,
    /// For an answer to begin, and for each further piece of it.
    pub read: Duration,
    /// Before the second attempt; doubled before each further one.
    pub backoff: Duration,
    /// How often something is attempted before it has failed.
    pub attempts: u32,
    /// Longest wait that a registry may ask for.
    pub longest_wait: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            read: Duration::from_secs(60),
            backoff: Duration::from_millis(500),
            attempts: 5,
            longest_wait: Duration::from_secs(120),
        }
    }
}
