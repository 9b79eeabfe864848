//! The image store: what pods run from, each layer once, immutable, found by digest.
//!
//! | path | content |
//! |---|---|
//! | `blobs/sha256/<diff id>.erofs` | a layer as an EROFS image, named by the digest of its plain tar |
//! | `blobs/sha256/<diff id>.json` | size and digest of that file, for `verify` |
//! | `trees/<diff id>/` | a layer's files, where the host cannot mount the EROFS image |
//! | `trees/<diff id>.<any>/` | the same, of a layer that was damaged: for the pods that still run from it |
//! | `images/<id>/image.json` | what running the image needs, named by its configuration's digest |
//! | `images/<id>/origins.json` | where it has come from, and the signatures that have come with it |
//! | `images/<id>/config.json`, `manifest.json` | configuration and manifest as they were |
//! | `refs/<sha256 of the name>.json` | a name and the id it stands for |
//! | `tmp/` | files in the making |
//! | `partial/<digest>` | what has arrived of large packed layers whose transfer was cut short |
//! | `locks/` | lock files; they hold nothing |
//!
//! Files appear whole and synced, by renames: a layer before the image that needs it, an image before its name.
//! So a crash at any point leaves a store in which all that can be found is right.
//!
//! Two locks order the rest. *import* is shared by imports and taken alone by the collection of
//! layers, which else might remove one whose image is not written yet. *use* is shared by those who start a pod, until the
//! pod is recorded, and taken alone by removals.

mod appc;
mod appc_fetch;
mod download;
mod error;
mod export;
mod fetch;
mod import;
mod layer;
mod lookup;
mod origins;
mod pipe;
mod records;
mod remove;
mod render;
pub(crate) mod scratch;
#[cfg(test)]
pub(crate) mod tests;
mod tree;
mod verify;

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

pub use appc_fetch::{AppcFetch, AppcOptions};
pub use error::StoreError;
pub use export::{Exported, LayerPacking};
pub use fetch::{FetchOptions, Origin};
pub use import::{ImportOptions, Imported};
pub(crate) use lookup::APPC_PREFIX;
pub use lookup::{Image, Layer, Listing, ResolvedImage, Step};
pub(crate) use origins::Transport;
pub use records::AppcRecord;
pub use remove::{Collected, Removed, Uses};
pub use render::{RenderOptions, What};
pub use verify::Problem;

use error::at;
use scratch::Lock;

use crate::digest::Digest;
use crate::registry::DEFAULT_SEARCH;
use crate::trust::{Keyring, PolicyFile};

/// Where the store is when nothing else is said.
pub const DEFAULT_ROOT: &str = "/var/lib/podvm/images";

/// A store of images.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    /// Places at which names without a registry are searched.
    search: Vec<String>,
    /// What images are held against, if anything.
    policy: Option<PolicyFile>,
    /// Whose images of appc are taken.
    keys: Keyring,
}

impl Store {
    /// Opens the store at `root`, making it if need be.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let store = Self {
            root: root.into(),
            search: vec![DEFAULT_SEARCH.to_owned()],
            policy: None,
            keys: Keyring::new(Vec::new()),
        };
        if let Some(parent) = store.root.parent() {
            fs::create_dir_all(parent).map_err(at(parent))?;
        }
        // Layers hold other people's files, readable ones and secret ones: only root looks in.
        for directory in [
            store.root.clone(),
            store.blobs(),
            store.images(),
            store.refs(),
            store.tmp(),
            store.partial(),
            store.locks(),
        ] {
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(0o700).create(&directory).map_err(at(&directory))?;
        }
        Ok(store)
    }

    /// The store, in which a name without a registry also finds what is stored under its name at one of these places
    /// (see [`Reference::candidates`](crate::Reference::candidates)).
    pub fn searching(self, search: Vec<String>) -> Self {
        Self { search, ..self }
    }

    /// Where the store is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    fn refs(&self) -> PathBuf {
        self.root.join("refs")
    }

    fn trees(&self) -> PathBuf {
        self.root.join("trees")
    }

    fn tree_path(&self, diff_id: &Digest) -> PathBuf {
        self.trees().join(diff_id.hex())
    }

    fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    fn partial(&self) -> PathBuf {
        self.root.join("partial")
    }

    /// What has arrived of a packed layer.
    fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.partial().join(digest.hex())
    }

    fn locks(&self) -> PathBuf {
        self.root.join("locks")
    }

    /// A layer's file.
    fn blob_path(&self, diff_id: &Digest) -> PathBuf {
        self.blobs().join(format!("{}.erofs", diff_id.hex()))
    }

    /// What is recorded of a layer's file.
    fn blob_record_path(&self, diff_id: &Digest) -> PathBuf {
        self.blobs().join(format!("{}.json", diff_id.hex()))
    }

    fn image_directory(&self, id: &Digest) -> PathBuf {
        self.images().join(id.hex())
    }

    fn lock_path(&self, name: &str) -> PathBuf {
        self.locks().join(name)
    }

    fn importing(&self) -> Result<Lock, StoreError> {
        let path = self.lock_path("import");
        Lock::shared(&path).map_err(at(path))
    }

    /// The import lock alone, if nobody imports now.
    fn nobody_imports(&self) -> Result<Option<Lock>, StoreError> {
        let path = self.lock_path("import");
        Lock::try_exclusive(&path).map_err(at(path))
    }

    fn using(&self) -> Result<Lock, StoreError> {
        let path = self.lock_path("use");
        Lock::shared(&path).map_err(at(path))
    }

    fn nobody_starts(&self) -> Result<Lock, StoreError> {
        let path = self.lock_path("use");
        Lock::exclusive(&path).map_err(at(path))
    }
}
