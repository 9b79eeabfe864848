//! Checking that the store holds what it says.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::Store;
use super::error::{StoreError, at};
use super::records::{NameRecord, names_in, read_name};
use super::scratch::Lock;
use crate::digest::Digest;
use crate::erofs::image_digest;
use crate::reference::Reference;

/// Something that is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// A layer's bytes have changed, or it was never finished.
    #[error("{}: digest {actual}, expected {expected}", path.display())]
    LayerChanged {
        /// The layer's file.
        path: PathBuf,
        /// What is recorded.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// A layer of which nothing is recorded.
    #[error("{}: nothing is recorded of it", path.display())]
    LayerUnknown {
        /// The layer's file.
        path: PathBuf,
    },
    /// A layer that cannot be read.
    #[error("{}: {source}", path.display())]
    LayerUnreadable {
        /// The layer's file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A layer that an image needs is not there.
    #[error("image {}: layer {layer} is missing", image.short())]
    LayerMissing {
        /// The image.
        image: Digest,
        /// The layer.
        layer: Digest,
    },
    /// An image's configuration is not the one it is named after.
    #[error("image {}: its configuration has digest {actual}", image.short())]
    ConfigChanged {
        /// The image.
        image: Digest,
        /// What it is.
        actual: Digest,
    },
    /// An image's manifest is not the one that is recorded.
    #[error("{}: digest {actual}, expected {expected}; import the image again", path.display())]
    ManifestChanged {
        /// The manifest's file.
        path: PathBuf,
        /// What is recorded.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// A record that cannot be read.
    #[error("{0}")]
    Record(StoreError),
    /// A name that leads to no image.
    #[error("name {name} stands for image {}, which is not stored", image.short())]
    NameLeadsNowhere {
        /// The name.
        name: Reference,
        /// The image.
        image: Digest,
    },
}

impl Store {
    /// Reads all there is but unpacked layers, and reports what is wrong. With `repair`, layers that are wrong are removed,
    /// so that importing their images again makes them new, and names that cannot be read; that waits until nobody imports.
    pub fn verify(&self, repair: bool) -> Result<Vec<Problem>, StoreError> {
        // An import must not count on a layer that is about to be removed.
        let path = self.lock_path("import");
        let _alone = if repair { Some(Lock::exclusive(&path).map_err(at(path))?) } else { None };
        let mut problems = Vec::new();
        for file in names_in(&self.blobs())? {
            let Some(hex) = file.strip_suffix(".erofs") else { continue };
            let Ok(diff_id) = Digest::from_hex(hex) else { continue };
            if let Some(problem) = self.verify_layer(&diff_id) {
                // Removed meanwhile.
                if !self.blob_path(&diff_id).exists() {
                    continue;
                }
                if repair {
                    // It may have been unpacked from what is damaged now.
                    self.set_tree_aside(&diff_id)?;
                    let path = self.blob_path(&diff_id);
                    fs::remove_file(&path).map_err(at(path))?;
                }
                problems.push(problem);
            }
        }
        let images = self.all_images()?;
        for id in &images {
            self.verify_image(id, &mut problems)?;
        }
        for file in names_in(&self.refs())? {
            problems.extend(self.verify_name(&self.refs().join(file), &images, repair)?);
        }
        Ok(problems)
    }

    fn verify_name(&self, path: &Path, images: &[Digest], repair: bool) -> Result<Option<Problem>, StoreError> {
        let NameRecord { name, id: image, .. } = match read_name(path) {
            Ok(Some(record)) => record,
            // Removed meanwhile.
            Ok(None) => return Ok(None),
            Err(error) => {
                // One by a later version is not damaged, and one that cannot be read now may be another time.
                if repair && matches!(error, StoreError::DamagedName { .. }) {
                    fs::remove_file(path).map_err(at(path))?;
                }
                return Ok(Some(Problem::Record(error)));
            }
        };
        let is_there = images.contains(&image) || self.image_directory(&image).exists();
        let leads_nowhere = !is_there && self.named(&name)? == Some(image);
        Ok(leads_nowhere.then_some(Problem::NameLeadsNowhere { name, image }))
    }

    fn verify_layer(&self, diff_id: &Digest) -> Option<Problem> {
        let path = self.blob_path(diff_id);
        let expected = match self.blob_record(diff_id) {
            Ok(Some(record)) => record.digest,
            Ok(None) => return Some(Problem::LayerUnknown { path }),
            Err(error) => return Some(Problem::Record(error)),
        };
        match File::open(&path).and_then(|file| image_digest(&file)) {
            Ok(actual) if actual == expected => None,
            Ok(actual) => Some(Problem::LayerChanged { path, expected, actual }),
            Err(source) => Some(Problem::LayerUnreadable { path, source }),
        }
    }

    fn verify_image(&self, id: &Digest, problems: &mut Vec<Problem>) -> Result<(), StoreError> {
        let record = match self.image_record(id) {
            Ok(Some(record)) => record,
            // Removed meanwhile.
            Ok(None) if !self.image_directory(id).exists() => return Ok(()),
            Ok(None) => {
                let path = self.image_directory(id).join("image.json");
                let missing = at(path)(std::io::ErrorKind::NotFound.into());
                problems.push(Problem::Record(missing));
                return Ok(());
            }
            Err(error) => {
                problems.push(Problem::Record(error));
                return Ok(());
            }
        };
        let path = self.config_path(id);
        let config = fs::read(&path).map_err(at(path));
        let mut missing = Vec::new();
        for layer in record.layers {
            if self.stored_layer(&layer)?.is_none() {
                missing.push(Problem::LayerMissing { image: *id, layer });
            }
        }
        if !self.image_directory(id).exists() {
            return Ok(());
        }
        let actual = Digest::of(&config?);
        if actual != *id {
            problems.push(Problem::ConfigChanged { image: *id, actual });
        }
        if let Some(expected) = record.manifest_digest {
            problems.extend(self.verify_manifest(id, expected)?);
        }
        if let Err(error) = self.origins(id) {
            problems.push(Problem::Record(error));
        }
        problems.append(&mut missing);
        Ok(())
    }

    fn verify_manifest(&self, id: &Digest, expected: Digest) -> Result<Option<Problem>, StoreError> {
        let path = self.manifest_path(id);
        let problem = match fs::read(&path) {
            Ok(manifest) if Digest::of(&manifest) == expected => return Ok(None),
            Ok(manifest) => Problem::ManifestChanged { path, expected, actual: Digest::of(&manifest) },
            Err(error) => Problem::Record(at(path)(error)),
        };
        // Removed or replaced meanwhile, if the record names it no more.
        let recorded = self.image_record(id)?.and_then(|record| record.manifest_digest);
        Ok((recorded == Some(expected)).then_some(problem))
    }
}
