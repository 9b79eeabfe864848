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

use super::error::RegistryError;
use crate::reference::Reference;

/// Where names without a registry are looked for when nothing else is said.
pub const DEFAULT_SEARCH: &str = "docker.io/library";

/// The `[registries]` table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RegistrySettings {
    /// Places, `HOST` or `HOST/PATH`, where a name without a registry is looked for, in this order. A name with a
    /// slash in it is looked for at the host itself.
    pub search: Vec<String>,
    /// When images are asked for that may be stored already.
    pub pull_policy: PullPolicy,
    /// Certificates in PEM form of all authorities that are trusted, instead of the system's.
    pub ca: Option<PathBuf>,
    /// What is particular to single registries, by host and port as image names have them.
    pub hosts: BTreeMap<String, HostSettings>,
}

impl Default for RegistrySettings {
    fn default() -> Self {
        Self { search: vec![DEFAULT_SEARCH.to_owned()], pull_policy: PullPolicy::New, ca: None, hosts: BTreeMap::new() }
    }
}

impl RegistrySettings {
    /// Whether all places named are ones.
    ///
    /// # Errors
    /// [`RegistryError::Setting`] names one that is not.
    pub fn check(&self) -> Result<(), RegistryError> {
        let mirrors = self.hosts.values().flat_map(|host| host.mirrors.iter().map(|place| ("mirror", place)));
        for (setting, place) in self.search.iter().map(|place| ("search", place)).chain(mirrors) {
            place_of(setting, place)?;
        }
        Ok(())
    }
}

/// Host and path of a place such as `mirror.example:5000/hub`.
pub(super) fn place_of(setting: &'static str, place: &str) -> Result<(String, String), RegistryError> {
    let wrong = || RegistryError::Setting { setting, value: place.to_owned() };
    // Read as an image's name, so that it has the form of one.
    let name: Reference = format!("{place}/x").parse().map_err(|_| wrong())?;
    let path = name.path().strip_suffix('x').unwrap_or_default().trim_end_matches('/');
    Ok((name.domain().ok_or_else(wrong)?.to_owned(), path.to_owned()))
}

/// When a registry is asked for an image that is named.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PullPolicy {
    /// When it is not stored.
    #[default]
    New,
    /// Always; what is stored is used if it is what the registry has.
    Update,
    /// Never.
    Never,
}

/// What is particular to one registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
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
    /// For an answer to begin, for each further piece of it, and for each further 64 KiB.
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
