//! One layer from its packed file into the store.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use super::Store;
use super::error::{StoreError, at};
use super::pipe::{Passed, unpack};
use super::records::{BlobRecord, to_bytes};
use super::scratch::{Lock, Scratch, sync_directory, write_atomically};
use crate::digest::Digest;
use crate::erofs::{self, BuildError, Built, Limits};
use crate::oci::{FoundLayer, OciError, Packed};
use crate::progress::{Event, Progress};

/// See [`FoundLayer::rest`]; what a registry sends is not read without end.
const MAX_REMOTE_REST: u64 = 256 << 20;

/// Smallest packed layer of which parts are kept.
const MIN_KEPT: u64 = 4 << 20;

impl Store {
    /// Size of a stored layer, or `None` when it is not stored.
    pub(super) fn stored_layer(&self, diff_id: &Digest) -> Result<Option<u64>, StoreError> {
        let path = self.blob_path(diff_id);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(at(path)(error)),
        }
    }

    /// Waits until nobody else makes this layer.
    pub(super) fn layer_lock(&self, diff_id: &Digest) -> Result<Lock, StoreError> {
        // One of 256 lock files, so that they do not grow in number with the store.
        let path = self.lock_path(&format!("layer-{}", &diff_id.hex()[..2]));
        Lock::exclusive(&path).map_err(at(path))
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
                // A crash may have come between the two.
                self.forget_arrived(layer)?;
                let bytes = layer.packed.size();
                progress.event(Event::Present { layer: number, bytes });
            }
            Ok(size)
        };
        if let Some(size) = present()? {
            return Ok(size);
        }
        let _lock = self.layer_lock(&layer.diff_id)?;
        if let Some(size) = present()? {
            return Ok(size);
        }
        progress.event(Event::Start { layer: number, diff_id: layer.diff_id, bytes: layer.packed.size() });
        let (image, built) = self.convert_kept(layer, number, limits, progress)?;
        self.keep_layer(&layer.diff_id, image, &built)?;
        self.forget_arrived(layer)?;
        progress.event(Event::Stored { layer: number, diff_id: layer.diff_id });
        Ok(built.size)
    }

    /// Where what arrives of a layer is kept: of a large one from a registry.
    fn arrived_path(&self, layer: &FoundLayer) -> Option<PathBuf> {
        match &layer.packed {
            Packed::Remote(remote) if remote.size >= MIN_KEPT => Some(self.partial_path(&remote.digest)),
            _ => None,
        }
    }

    /// Removes what had arrived of a layer, once it is of no more use.
    fn forget_arrived(&self, layer: &FoundLayer) -> Result<(), StoreError> {
        let Some(path) = self.arrived_path(layer) else { return Ok(()) };
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
            _ => Ok(()),
        }
    }

    /// Makes the EROFS image. Of a large layer from a registry, what arrives is kept until the image is in its place, so that
    /// it need not come again after a crash. The layer's lock is held, so that nobody else does the same.
    fn convert_kept(
        &self,
        layer: &FoundLayer,
        number: usize,
        limits: &Limits,
        progress: &dyn Progress,
    ) -> Result<(Scratch, Built), StoreError> {
        let (Some(path), Packed::Remote(remote)) = (self.arrived_path(layer), &layer.packed) else {
            return self.convert(layer, number, limits, progress);
        };
        let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(at(&path))?;
        let had = file.metadata().map_err(at(&path))?.len();
        let attempt = |file: File| {
            let packed = Packed::Remote(remote.keeping(file, path.clone()));
            self.convert(&FoundLayer { packed, ..layer.clone() }, number, limits, progress)
        };
        let mut result = attempt(file.try_clone().map_err(at(&path))?);
        if had > 0 && result.as_ref().is_err_and(condemns_bytes) {
            // What was kept may have been damaged by a crash; all of it comes again.
            file.set_len(0).map_err(at(&path))?;
            result = attempt(file);
        }
        if result.as_ref().is_err_and(condemns_bytes) {
            self.forget_arrived(layer)?;
        }
        result
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
        let (built, passed) = unpack(layer.packed.open(), layer.rest(), count, |plain| {
            erofs::build(plain, image.handle(), &tails, limits)
        });
        let built = built.map_err(|source| StoreError::Layer { file: layer.file.clone(), source });
        let passed = match passed {
            Ok(passed) => passed,
            Err(source) => return Err(read_error(layer, source)),
        };
        // A wrong digest comes first: it is the reason for whatever else is wrong.
        check_packed(layer, &passed)?;
        let built = built?;
        match passed.plain {
            Some(plain) if plain == layer.diff_id => Ok((image, built)),
            plain => Err(StoreError::DiffIdMismatch {
                file: layer.file.clone(),
                expected: layer.diff_id,
                actual: plain.or(passed.packed).unwrap_or(Digest::of(&[])),
            }),
        }
    }

    /// Puts a finished layer in its place: its record first, so that the layer is never without one.
    pub(super) fn keep_layer(&self, diff_id: &Digest, image: Scratch, built: &Built) -> Result<(), StoreError> {
        let record_path = self.blob_record_path(diff_id);
        let record = to_bytes(&BlobRecord::new(built.size, built.digest), &record_path)?;
        image.seal().map_err(at(image.path()))?;
        write_atomically(&self.tmp(), &record_path, &record).map_err(at(&record_path))?;
        let path = self.blob_path(diff_id);
        image.keep(&path).map_err(at(&path))?;
        sync_directory(&self.blobs()).map_err(at(self.blobs()))
    }
}

impl FoundLayer {
    /// Most bytes that are still read of a layer that cannot be used, to find out whether it is the right one.
    fn rest(&self) -> u64 {
        match self.packed {
            Packed::Slice(_) => u64::MAX,
            Packed::Remote(_) => MAX_REMOTE_REST,
        }
    }
}

/// Whether an error says that the layer's bytes are of no use. A connection that ends and a disk that is full say nothing
/// against what has arrived.
fn condemns_bytes(error: &StoreError) -> bool {
    !matches!(
        error,
        StoreError::Transfer(_) | StoreError::Io { .. } | StoreError::Layer { source: BuildError::Output(_), .. }
    )
}

fn read_error(layer: &FoundLayer, source: io::Error) -> StoreError {
    match layer.packed {
        Packed::Slice(_) => at(&layer.file)(source),
        Packed::Remote(_) => StoreError::Transfer(source),
    }
}

fn check_packed(layer: &FoundLayer, passed: &Passed) -> Result<(), OciError> {
    let Some(actual) = passed.packed else { return Ok(()) };
    let mismatch = |expected| OciError::DigestMismatch { file: layer.file.clone(), expected, actual };
    match layer.digest {
        Some(expected) if expected != actual => Err(mismatch(expected)),
        // Without a digest of its own, a layer that is stored plain is known by that of its content.
        None if passed.plain == Some(actual) && actual != layer.diff_id => Err(mismatch(layer.diff_id)),
        _ => Ok(()),
    }
}
