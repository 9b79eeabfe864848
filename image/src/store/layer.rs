//! One layer from its packed file into the store.

use std::fs;

use super::Store;
use super::error::{StoreError, at};
use super::pipe::{Passed, unpack};
use super::records::{BlobRecord, to_bytes};
use super::scratch::{Lock, Scratch, sync_directory, write_atomically};
use crate::digest::Digest;
use crate::erofs::{self, Built, Limits};
use crate::oci::{FoundLayer, OciError};
use crate::progress::{Event, Progress};

impl Store {
    /// Size of a stored layer, or `None` when it is not stored.
    pub(super) fn stored_layer(&self, diff_id: &Digest) -> Result<Option<u64>, StoreError> {
        let path = self.blob_path(diff_id);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(at(path)(error)),
        }
    }

    /// Stores a layer unless it is stored already. Returns its size in the store.
    ///
    /// Of several importers of one layer the first does the work and the others wait for it.
    pub(super) fn store_layer(
        &self,
        layer: &FoundLayer,
        number: usize,
        limits: &Limits,
        progress: &dyn Progress,
    ) -> Result<u64, StoreError> {
        let present = || -> Result<Option<u64>, StoreError> {
            let size = self.stored_layer(&layer.diff_id)?;
            if size.is_some() {
                let bytes = layer.slice.remaining();
                progress.event(Event::Present { layer: number, bytes });
            }
            Ok(size)
        };
        if let Some(size) = present()? {
            return Ok(size);
        }
        // One of 256 lock files, so that they do not grow in number with the store.
        let path = self.lock_path(&format!("layer-{}", &layer.diff_id.hex()[..2]));
        let _lock = Lock::exclusive(&path).map_err(at(path))?;
        if let Some(size) = present()? {
            return Ok(size);
        }
        let (image, built) = self.convert(layer, number, limits, progress)?;
        self.keep_layer(&layer.diff_id, image, &built)?;
        progress.event(Event::Stored { layer: number, diff_id: layer.diff_id });
        Ok(built.size)
    }

    /// Makes the EROFS image in a scratch file and verifies all bytes that went into it.
    fn convert(
        &self,
        layer: &FoundLayer,
        number: usize,
        limits: &Limits,
        progress: &dyn Progress,
    ) -> Result<(Scratch, Built), StoreError> {
        let tmp = self.tmp();
        let image = Scratch::file(&tmp).map_err(at(&tmp))?;
        let tails = Scratch::file(&tmp).and_then(Scratch::anonymous).map_err(at(&tmp))?;
        let count = |bytes| progress.event(Event::Read { layer: number, bytes });
        let (built, passed) =
            unpack(layer.slice.clone(), count, |plain| erofs::build(plain, image.handle(), &tails, limits));
        let built = built.map_err(|source| StoreError::Layer { file: layer.file.clone(), source });
        let passed = match passed {
            Ok(passed) => passed,
            Err(source) => return Err(at(&layer.file)(source)),
        };
        // A wrong digest comes first: it is the reason for whatever else is wrong.
        check_packed(layer, &passed)?;
        let built = built?;
        match passed.plain {
            Some(plain) if plain == layer.diff_id => Ok((image, built)),
            plain => Err(StoreError::DiffIdMismatch {
                file: layer.file.clone(),
                expected: layer.diff_id,
                actual: plain.unwrap_or(passed.packed),
            }),
        }
    }

    /// Puts a finished layer in its place: its record first, so that the layer is never without one.
    fn keep_layer(&self, diff_id: &Digest, image: Scratch, built: &Built) -> Result<(), StoreError> {
        let record_path = self.blob_record_path(diff_id);
        let record = to_bytes(&BlobRecord::new(built.size, built.digest), &record_path)?;
        image.seal().map_err(at(image.path()))?;
        write_atomically(&self.tmp(), &record_path, &record).map_err(at(&record_path))?;
        let path = self.blob_path(diff_id);
        image.keep(&path).map_err(at(&path))?;
        sync_directory(&self.blobs()).map_err(at(self.blobs()))
    }
}

fn check_packed(layer: &FoundLayer, passed: &Passed) -> Result<(), OciError> {
    match layer.digest {
        Some(expected) if expected != passed.packed => {
            Err(OciError::DigestMismatch { file: layer.file.clone(), expected, actual: passed.packed })
        }
        // Without a digest of its own, a layer that is stored plain is known by that of its content.
        None if passed.plain == Some(passed.packed) && passed.packed != layer.diff_id => {
            Err(OciError::DigestMismatch { file: layer.file.clone(), expected: layer.diff_id, actual: passed.packed })
        }
        _ => Ok(()),
    }
}
