//! The store's small files: images, names, and what is known of layers.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Serialize};

use super::Store;
use super::error::{StoreError, at};
use super::scratch::write_atomically;
use crate::appc::{ImageId, ImageManifest};
use crate::digest::Digest;
use crate::oci::{ImageConfig, Platform};
use crate::reference::Reference;
use crate::trust::Keyring;

/// Version of all records. A reader refuses what is newer than itself.
pub(super) const VERSION: u32 = 1;

/// `images/<id>/image.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageRecord {
    pub version: u32,
    pub id: Digest,
    pub manifest_digest: Option<Digest>,
    pub os: String,
    pub architecture: String,
    /// When the image was made, as its maker wrote it.
    pub created: Option<String>,
    /// When it came into the store, in seconds since 1970.
    pub imported: u64,
    /// Bytes of its layers in the store.
    pub size: u64,
    /// Lowest first.
    pub layers: Vec<Digest>,
    pub config: ImageConfig,
    /// What it is in terms of appc, if it came as such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub appc: Option<AppcRecord>,
}

/// What is known of an image that came as an App Container image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppcRecord {
    /// The ID of its archive.
    pub id: ImageId,
    /// Its manifest, without the whitelist of paths.
    pub manifest: ImageManifest,
    /// Who has signed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<String>,
    /// Where it was fetched from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// What the server told this state of the URL from others by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validator: Option<String>,
}

/// `refs/….json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NameRecord {
    pub version: u32,
    pub name: Reference,
    pub id: Digest,
    /// What the name stood for at the registry: a manifest or an index. None when it came from elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
}

/// `blobs/sha256/….json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRecord {
    pub version: u32,
    pub size: u64,
    /// As [`crate::erofs::image_digest`] computes it.
    pub digest: Digest,
}

impl ImageRecord {
    /// An image that comes into the store now.
    pub fn new(id: Digest, platform: &Platform, created: Option<String>, size: u64, layers: Vec<Digest>) -> Self {
        Self {
            version: VERSION,
            id,
            manifest_digest: None,
            os: platform.os.clone(),
            architecture: platform.architecture.clone(),
            created,
            imported: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs()),
            size,
            layers,
            config: ImageConfig::default(),
            appc: None,
        }
    }
}

impl AppcRecord {
    /// The fingerprint of the key that has signed it.
    pub fn signer_fingerprint(&self) -> Option<&str> {
        self.signer.as_deref().and_then(|signer| signer.split(' ').next())
    }

    /// Whether it may be used where signatures are checked: what was taken from a server must have one, and whoever has signed
    /// must still be trusted.
    pub fn counts(&self, keys: &Keyring) -> bool {
        match self.signer_fingerprint() {
            Some(fingerprint) => keys.check_signer(&self.manifest.name, fingerprint).is_ok(),
            None => self.url.is_none(),
        }
    }
}

impl BlobRecord {
    pub fn new(size: u64, digest: Digest) -> Self {
        Self { version: VERSION, size, digest }
    }
}

/// Just the version of any record.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// Reads a record; `None` when there is none.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(path)(error)),
    };
    let damaged = |source| StoreError::Damaged { path: path.to_owned(), source };
    match serde_json::from_slice(&bytes) {
        Ok(record) => Ok(Some(record)),
        Err(source) => match serde_json::from_slice::<Versioned>(&bytes) {
            Ok(Versioned { version }) if version > VERSION => {
                Err(StoreError::TooNew { path: path.to_owned(), version })
            }
            _ => Err(damaged(source)),
        },
    }
}

/// Those of some records that can be read, and what is wrong with the others: one does not hide the rest.
#[derive(Debug)]
pub(super) struct Readable<T> {
    pub records: Vec<T>,
    pub damaged: Vec<StoreError>,
}

impl<T> Readable<T> {
    /// A record that was removed since its name was read is simply not there.
    fn of(results: impl Iterator<Item = Result<Option<T>, StoreError>>) -> Self {
        let mut all = Self { records: Vec::new(), damaged: Vec::new() };
        for result in results {
            match result {
                Ok(record) => all.records.extend(record),
                Err(error) => all.damaged.push(error),
            }
        }
        all
    }

    fn map<U>(self, change: impl FnMut(T) -> U) -> Readable<U> {
        Readable { records: self.records.into_iter().map(change).collect(), damaged: self.damaged }
    }
}

/// Reads a name's record.
pub fn read_name(path: &Path) -> Result<Option<NameRecord>, StoreError> {
    read(path).map_err(|error| match error {
        StoreError::Damaged { path, source } => StoreError::DamagedName { path, source },
        error => error,
    })
}

/// Names of the files in a directory, without those that are no UTF-8, which the store never writes.
pub fn names_in(directory: &Path) -> Result<Vec<String>, StoreError> {
    let entries = fs::read_dir(directory).map_err(at(directory))?;
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(at(directory))?.file_name().into_string().ok());
    }
    Ok(names)
}

impl Store {
    /// Writes a record so that it is there wholly or not at all.
    pub(super) fn write<T: Serialize>(&self, path: &Path, record: &T) -> Result<(), StoreError> {
        let bytes = to_bytes(record, path)?;
        write_atomically(&self.tmp(), path, &bytes).map_err(at(path))
    }

    pub(super) fn image_record(&self, id: &Digest) -> Result<Option<ImageRecord>, StoreError> {
        let path = self.image_directory(id).join("image.json");
        match read::<ImageRecord>(&path)? {
            Some(record) if record.id != *id => {
                let source = serde_json::Error::custom(format_args!("it is that of {}", record.id));
                Err(StoreError::Damaged { path, source })
            }
            record => Ok(record),
        }
    }

    pub(super) fn blob_record(&self, diff_id: &Digest) -> Result<Option<BlobRecord>, StoreError> {
        read(&self.blob_record_path(diff_id))
    }

    fn name_path(&self, name: &Reference) -> PathBuf {
        self.refs().join(format!("{}.json", Digest::of(name.to_string().as_bytes()).hex()))
    }

    /// The image that a name stands for.
    pub(super) fn named(&self, name: &Reference) -> Result<Option<Digest>, StoreError> {
        Ok(self.name_record(name)?.map(|record| record.id))
    }

    /// The record of a name.
    pub(super) fn name_record(&self, name: &Reference) -> Result<Option<NameRecord>, StoreError> {
        read_name(&self.name_path(name))
    }

    pub(super) fn set_name(&self, name: &Reference, id: Digest, digest: Option<Digest>) -> Result<(), StoreError> {
        let record = NameRecord { version: VERSION, name: name.clone(), id, digest };
        self.write(&self.name_path(name), &record)
    }

    pub(super) fn remove_name(&self, name: &Reference) -> Result<(), StoreError> {
        let path = self.name_path(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
            _ => Ok(()),
        }
    }

    /// All names and what they stand for, sorted by name.
    pub(super) fn all_names(&self) -> Result<Readable<(Reference, Digest)>, StoreError> {
        let files = names_in(&self.refs())?.into_iter();
        let mut all = Readable::of(files.map(|file| read_name(&self.refs().join(file))))
            .map(|NameRecord { name, id, .. }| (name, id));
        all.records.sort();
        Ok(all)
    }

    /// The ids of all images.
    pub(super) fn all_images(&self) -> Result<Vec<Digest>, StoreError> {
        let names = names_in(&self.images())?;
        Ok(names.iter().filter_map(|name| Digest::from_hex(name).ok()).collect())
    }

    /// The records of all images.
    pub(super) fn all_records(&self) -> Result<Readable<ImageRecord>, StoreError> {
        Ok(Readable::of(self.all_images()?.iter().map(|id| self.image_record(id))))
    }
}

/// A record's bytes. Maps with text keys and numbers always have a form in JSON.
pub fn to_bytes<T: Serialize>(record: &T, path: &Path) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(record).map_err(|source| StoreError::Damaged { path: path.to_owned(), source })
}
