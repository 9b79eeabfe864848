//! Fetching from registries: honest ones, hostile ones, and the one that Debian ships.

mod hostile;
mod login;
mod mirrors;
mod real;
pub(crate) mod server;
mod simple;
mod transfer;
mod trust;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{Credentials, HostSettings, Insecure, Lookaside, Patience, Registries, RegistrySettings};
use crate::digest::Digest;
use crate::oci::fixture::{Layout, Packing, layer};
use crate::progress::{Progress, Silent};
use crate::reference::Reference;
use crate::store::{FetchOptions, Imported, Store, StoreError};
use server::{Reply, Seen, Server};

/// A store, and how it speaks with registries.
struct Place {
    directory: tempfile::TempDir,
    store: Store,
    settings: RegistrySettings,
    credentials: Credentials,
    patience: Patience,
    insecure: Vec<Insecure>,
    lookaside: Lookaside,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path().join("images")).unwrap();
        let patience = Patience {
            connect: Duration::from_secs(5),
            read: Duration::from_millis(500),
            backoff: Duration::from_millis(1),
            attempts: 4,
            longest_wait: Duration::from_secs(2),
        };
        let settings = RegistrySettings::default();
        let insecure = vec![Insecure::Http];
        let (credentials, lookaside) = (Credentials::default(), Lookaside::default());
        Self { directory, store, settings, credentials, patience, insecure, lookaside }
    }

    fn images(&self) -> Vec<crate::Image> {
        self.store.list().unwrap().images
    }

    fn registries(&self) -> Registries {
        let (settings, credentials) = (self.settings.clone(), self.credentials.clone());
        let registries = Registries::new(settings, credentials, self.insecure.clone(), self.patience);
        registries.with_signatures_in(self.lookaside.clone())
    }

    fn fetch(&self, name: &str) -> Result<Imported, StoreError> {
        self.fetch_watched(name, &Silent)
    }

    fn fetch_watched(&self, name: &str, progress: &dyn Progress) -> Result<Imported, StoreError> {
        let name: Reference = name.parse().unwrap();
        self.store.fetch(&name, &self.registries(), &FetchOptions::default(), progress)
    }

    /// The message of a fetch that must fail and leave nothing.
    fn error(&self, name: &str) -> String {
        let error = self.fetch(name).expect_err("the fetch is refused").to_string();
        assert!(self.images().is_empty());
        self.assert_clean();
        error
    }

    fn assert_clean(&self) {
        let problems = self.store.verify(false).unwrap();
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(std::fs::read_dir(self.store.root().join("tmp")).unwrap().count(), 0);
    }

    /// Credentials for one host, as a file of podman's.
    fn log_in(&mut self, host: &str, entry: &str) -> PathBuf {
        let path = self.directory.path().join("auth.json");
        std::fs::write(&path, format!(r#"{{"auths":{{"{host}":{entry}}}}}"#)).unwrap();
        self.credentials.files = vec![path.clone()];
        path
    }

    fn host(&mut self, host: &str) -> &mut HostSettings {
        self.settings.hosts.entry(host.to_owned()).or_default()
    }
}

/// What an honest registry has.
#[derive(Clone)]
struct Content {
    blobs: Arc<HashMap<Digest, Vec<u8>>>,
    tags: BTreeMap<String, Digest>,
}

impl Content {
    /// The blobs of a layout, one of its manifests or indexes tagged `latest`.
    fn new(layout: &Layout, top: Digest) -> Self {
        let blobs = layout.files.iter().filter(|(name, _)| name.starts_with("blobs/"));
        let blobs = blobs.map(|(_, bytes)| (Digest::of(bytes), bytes.clone())).collect();
        Self { blobs: Arc::new(blobs), tags: BTreeMap::from([("latest".to_owned(), top)]) }
    }

    /// An image of these layers.
    fn image(packing: Packing, layers: &[Vec<u8>]) -> (Self, Vec<Digest>) {
        let mut layout = Layout::new();
        let manifest = layout.image(crate::oci::host_architecture(), packing, layers);
        let top: Digest = serde_json::from_value(manifest["digest"].clone()).unwrap();
        let content = Self::new(&layout, top);
        let manifest: serde_json::Value = serde_json::from_slice(&content.blobs[&top]).unwrap();
        let digests = manifest["layers"].as_array().unwrap().iter();
        let digests = digests.map(|layer| serde_json::from_value(layer["digest"].clone()).unwrap()).collect();
        (content, digests)
    }

    /// What an honest registry answers, whatever the repository.
    fn answer(&self, seen: &Seen) -> Reply {
        let (path, wanted) = seen.path.rsplit_once('/').unwrap_or_default();
        let digest = self.tags.get(wanted).copied().or_else(|| wanted.parse().ok());
        let Some((digest, bytes)) = digest.and_then(|digest| Some((digest, self.blobs.get(&digest)?))) else {
            return Reply::new(404, r#"{"errors":[{"code":"UNKNOWN","message":"unknown"}]}"#);
        };
        match path.rsplit('/').next() {
            Some("manifests") => Reply::new(200, bytes.clone())
                .header("Docker-Content-Digest", digest)
                .header("Content-Type", "application/vnd.oci.image.manifest.v1+json"),
            _ => Reply::part(seen, bytes),
        }
    }

    fn serve(self) -> Server {
        Server::start(move |seen| self.answer(seen))
    }
}

/// A layer too large for one read, that does not get small when packed.
fn large_layer(seed: u64) -> Vec<u8> {
    noise_layer(seed, 3 << 20)
}

/// A layer with one file of so many bytes without a pattern.
fn noise_layer(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let noise = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    let noise = noise.take(size / 8).flatten().collect::<Vec<u8>>();
    crate::tar::builder::archive(&[crate::tar::builder::Member::file("noise", noise)])
}
