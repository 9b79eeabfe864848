//! The store as its users see it.

mod appc;
mod crash;
mod export;
mod hostile;
mod import;
mod lookup;
mod removal;
mod render;
mod signer;
pub(crate) mod steps;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use super::{Collected, Image, ImportOptions, Imported, Store, StoreError, Uses};
use crate::digest::Digest;
use crate::oci::fixture::{Layout, Packing, config, docker_archive, layer, layout, pack};
use crate::oci::host_architecture;
use crate::progress::Silent;

struct Place {
    directory: tempfile::TempDir,
    store: Store,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path().join("images")).unwrap();
        Self { directory, store }
    }

    fn images(&self) -> Vec<Image> {
        self.store.list().unwrap().images
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    fn layout(&self, name: &str, layout: &Layout) -> PathBuf {
        layout.write(&self.path(name));
        self.path(name)
    }

    fn import(&self, path: &Path) -> Result<Imported, StoreError> {
        self.store.import(path, &ImportOptions::default(), &Silent)
    }

    /// Imports an image of one layer under `name`.
    fn simple(&self, name: &str, text: &str) -> Imported {
        let (base, tag) = name.split_once(':').unwrap_or((name, "latest"));
        let path = self.layout(base, &layout(tag, Packing::Plain, &[layer(text)]));
        let imported = self.import(&path).unwrap();
        fs::remove_dir_all(path).unwrap();
        imported
    }

    fn error(&self, path: &Path) -> String {
        let error = self.import(path).expect_err("the import is refused");
        self.assert_empty();
        error.to_string()
    }

    /// Nothing can be found, nothing half-made is left, and what is there is right.
    fn assert_empty(&self) {
        assert!(self.images().is_empty());
        self.assert_clean();
        let refs = fs::read_dir(self.store.refs()).unwrap().count();
        assert_eq!(refs, 0);
    }

    fn assert_clean(&self) {
        assert_eq!(fs::read_dir(self.store.tmp()).unwrap().count(), 0);
        let problems = self.store.verify(false).unwrap();
        assert!(problems.is_empty(), "{problems:?}");
    }

    /// Collects until there is nothing more to be collected. Once would do, if other tests did not start processes meanwhile: until
    /// those are programs of their own, they hold all locks of this one.
    fn settle(&self, when: &str) {
        for _ in 0..20 {
            if self.store.gc(&unused).unwrap() == Collected::default() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{when}: there is always something to collect");
    }

    fn blobs(&self) -> usize {
        let names = super::records::names_in(&self.store.blobs()).unwrap();
        names.iter().filter(|name| name.ends_with(".erofs")).count()
    }
}

fn unused() -> io::Result<Uses> {
    Ok(Uses::default())
}
