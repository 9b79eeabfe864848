//! Images from registries, over HTTP (OCI distribution-spec 1.1, and Docker's registries, which speak the same).
//!
//! | module | subject |
//! |---|---|
//! | [`settings`] | what the configuration file says |
//! | [`credentials`], `challenge` | who we are, and how a registry asks for it |
//! | `http`, `url` | requests, redirects, further attempts |
//! | `repository`, `image`, `blob` | manifests, the image for this machine, layers |
//! | `signatures`, `lookaside` | signatures over images, and where those are that registries do not keep |
//!
//! Nothing a registry says is believed: documents are bounded and checked against their digests, layers are checked
//! while they are converted, and what is shown to a registry is not shown to whom it redirects to.

mod blob;
mod challenge;
mod credentials;
mod error;
mod http;
mod image;
mod lookaside;
mod pace;
mod repository;
mod settings;
mod signatures;
#[cfg(test)]
pub(crate) mod tests;
mod url;

use std::sync::Arc;

pub use blob::RemoteBlob;
pub use credentials::{Credentials, Login, Secret};
pub use error::RegistryError;
pub use lookaside::{Lookaside, LookasideError};
pub use settings::{DEFAULT_SEARCH, HostSettings, Insecure, Patience, PullPolicy, RegistrySettings};

use crate::digest::Digest;
use crate::oci::{Found, OciError};
use crate::reference::{DEFAULT_TAG, Reference};
pub(crate) use http::{Http, Request, Response};
use repository::{Endpoint, Repository};
use settings::place_of;
pub use url::Url;
pub(crate) use url::percent_encoded;

/// Everything that is known of registries, and the connections to them.
#[derive(Debug, Clone)]
pub struct Registries {
    http: Arc<Http>,
    settings: RegistrySettings,
    credentials: Credentials,
    lookaside: Lookaside,
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
        Self { http, settings, credentials, lookaside: Lookaside::default() }
    }

    /// The same, with signatures by GPG keys where this configuration says.
    pub fn with_signatures_in(self, lookaside: Lookaside) -> Self {
        Self { lookaside, ..self }
    }

    /// What sends requests to them, and to other hosts under the same rules.
    pub(crate) fn http(&self) -> &Http {
        &self.http
    }

    /// All of a small file at a URL.
    ///
    /// # Errors
    /// It is not to be had, or larger than `most` bytes. `what` is its name in messages.
    pub fn file(&self, what: &str, url: &Url, most: u64) -> Result<Vec<u8>, RegistryError> {
        if !url.is_https() && !self.http.is_insecure(url.authority(), Insecure::Http) {
            return Err(RegistryError::Plain { url: url.to_string() });
        }
        let response = self.http.send(&Request::get(url.clone()), None)?;
        let host = response.url.authority().to_owned();
        match response.status {
            200 => {}
            404 => return Err(RegistryError::NotFound { what: what.to_owned(), host, login: String::new() }),
            status => {
                let url = response.url.to_string();
                return Err(RegistryError::Status { url, status, message: String::new() });
            }
        }
        response.read(most)?.ok_or_else(|| RegistryError::TooLarge { what: what.to_owned(), host, most })
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
        Ok(Remote { repository: Arc::new(repository), name: name.clone(), lookaside: self.lookaside.clone() })
    }
}

/// An image at a registry.
#[derive(Debug)]
pub(crate) struct Remote {
    repository: Arc<Repository>,
    name: Reference,
    lookaside: Lookaside,
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
