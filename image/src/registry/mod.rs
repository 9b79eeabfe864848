//! Images from registries, over HTTP (OCI distribution-spec 1.1, and Docker's registries, which speak the same).
//!
//! | module | subject |
//! |---|---|
//! | [`settings`] | what the configuration file says |
//! | [`credentials`], `challenge` | who we are, and how a registry asks for it |
//! | `http`, `url` | requests, redirects, further attempts |
//! | `repository`, `image`, `blob` | manifests, the image for this machine, layers |
//!
//! Nothing a registry says is believed: documents are bounded and checked against their digests, layers are checked
//! while they are converted, and what is shown to a registry is not shown to whom it redirects to.

mod blob;
mod challenge;
mod credentials;
mod error;
mod http;
mod image;
mod repository;
mod settings;
#[cfg(test)]
mod tests;
mod url;

use std::sync::Arc;

pub use blob::RemoteBlob;
pub use credentials::{Credentials, Login, Secret};
pub use error::RegistryError;
pub use settings::{DEFAULT_SEARCH, HostSettings, Insecure, Patience, PullPolicy, RegistrySettings};

use crate::digest::Digest;
use crate::oci::{Found, OciError};
use crate::reference::{DEFAULT_TAG, Reference};
use http::Http;
use repository::{Endpoint, Repository};
use settings::place_of;

/// Everything that is known of registries, and the connections to them.
#[derive(Debug, Clone)]
pub struct Registries {
    http: Arc<Http>,
    settings: RegistrySettings,
    credentials: Credentials,
}

impl Registries {
    /// With these settings; `insecure` goes for all hosts. Connects to nothing yet.
    pub fn new(
        settings: RegistrySettings,
        credentials: Credentials,
        insecure: Vec<Insecure>,
        patience: Patience,
    ) -> Self {
        let http = Arc::new(Http::new(patience, insecure, &settings));
        Self { http, settings, credentials }
    }

    /// The names with a registry that a name stands for, the first to be asked first.
    pub fn full_names(&self, name: &Reference) -> Vec<Reference> {
        if name.domain().is_some() { vec![name.clone()] } else { name.searched(&self.settings.search) }
    }

    /// The repository of a name that has a registry.
    pub(crate) fn remote(&self, name: &Reference) -> Result<Remote, RegistryError> {
        let host = name.domain().unwrap_or("docker.io");
        let mut endpoints = Vec::new();
        for mirror in self.settings.hosts.get(host).iter().flat_map(|host| &host.mirrors) {
            let (host, folder) = place_of("mirror", mirror)?;
            let path = if folder.is_empty() { name.path().to_owned() } else { format!("{folder}/{}", name.path()) };
            endpoints.push(Endpoint::new(&host, &path));
        }
        endpoints.push(Endpoint::new(host, name.path()));
        let repository = Repository::new(Arc::clone(&self.http), self.credentials.clone(), endpoints);
        Ok(Remote { repository: Arc::new(repository), name: name.clone() })
    }
}

/// An image at a registry.
#[derive(Debug)]
pub(crate) struct Remote {
    repository: Arc<Repository>,
    name: Reference,
}

impl Remote {
    /// The digest that the name stands for now, if the registry tells it cheaply.
    pub fn digest(&self) -> Result<Option<Digest>, RegistryError> {
        match self.name.digest() {
            Some(pinned) => Ok(Some(*pinned)),
            None => self.repository.digest_of(self.name.tag().unwrap_or(DEFAULT_TAG)),
        }
    }

    /// Reads its documents. Gives the image for this machine, and the digest that the name stands for.
    pub fn open(&self) -> Result<(Found, Digest), OciError> {
        image::open(&self.repository, &self.name)
    }
}
