//! Images from layouts and archives into the store.

use std::fs::{self, File};
use std::io::{self, Read};
use std::num::NonZero;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::Store;
use super::error::{StoreError, at};
use super::origins::{Origin, Source};
use super::records::{AppcRecord, ImageRecord, to_bytes};
use super::scratch::{Lock, Scratch, sweep, sync_directory, write_atomically};
use crate::digest::Digest;
use crate::erofs::{BuildError, Limits};
use crate::oci::{self, Format, Found, FoundLayer, OciError};
use crate::progress::{Event, Progress};
use crate::reference::Reference;
use crate::source::split_choice;

/// Most layers unpacked at once: each needs a few MiB and two threads.
pub(super) const MAX_WORKERS: usize = 4;

/// How an image is to be imported.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// How to read the path.
    pub format: Format,
    /// The name to store it under, instead of those it brings.
    pub name: Option<Reference>,
    /// What a layer may be at most.
    pub limits: Limits,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self { format: Format::Any, name: None, limits: Limits::default() }
    }
}

/// What an import did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The image.
    pub id: Digest,
    /// The names that now stand for it; none when it brought none that can be used.
    pub names: Vec<Reference>,
    /// Bytes of its layers in the store.
    pub size: u64,
    /// Number of different layers, and how many of them were stored already.
    pub layers: usize,
    /// How many of `layers` were stored already.
    pub present: usize,
    /// What it is in terms of appc, if it came as such.
    pub appc: Option<AppcRecord>,
}

/// How layers are stored.
#[derive(Clone, Copy)]
pub(super) struct Work<'a> {
    /// What a layer may be at most.
    pub limits: &'a Limits,
    /// Most layers at once; never more than [`MAX_WORKERS`].
    pub most_workers: usize,
    /// Who watches.
    pub progress: &'a dyn Progress,
}

impl Store {
    /// Imports the image at `path`: a layout, an archive, or one of several by `PATH:NAME`.
    ///
    /// All bytes are checked against their digests. On an error nothing of the image can be found;
    /// layers that were right stay until the next collection and make a second try short.
    pub fn import(
        &self,
        path: &Path,
        options: &ImportOptions,
        progress: &dyn Progress,
    ) -> Result<Imported, StoreError> {
        let (path, choice) = split_choice(path);
        let whole = std::path::absolute(&path).map_err(at(&path))?;
        let open =
            |scratch: &dyn Fn() -> io::Result<File>| oci::open(&path, options.format, choice.as_deref(), scratch);
        self.import_found(options, progress, Some(&whole), choice.clone(), open)
    }

    /// Imports the only image of an archive that arrives as a stream. `name` is what messages call it.
    pub fn import_stream(
        &self,
        stream: &mut dyn Read,
        name: &str,
        options: &ImportOptions,
        progress: &dyn Progress,
    ) -> Result<Imported, StoreError> {
        let open =
            |scratch: &dyn Fn() -> io::Result<File>| oci::open_stream(stream, name.as_ref(), options.format, scratch);
        self.import_found(options, progress, None, None, open)
    }

    fn import_found(
        &self,
        options: &ImportOptions,
        progress: &dyn Progress,
        place: Option<&Path>,
        chosen: Option<String>,
        open: impl FnOnce(&dyn Fn() -> io::Result<File>) -> Result<Found, OciError>,
    ) -> Result<Imported, StoreError> {
        let what = place.map_or_else(|| "from standard input".to_owned(), |place| place.display().to_string());
        let tmp = self.tmp();
        sweep(&tmp).map_err(at(&tmp))?;
        let _importing = self.importing()?;
        let found = open(&|| Scratch::file(&tmp).and_then(Scratch::anonymous))?;
        let origin = Origin {
            digests: found.manifest_digest.into_iter().collect(),
            ..Origin::unsigned(Source::Path { transport: found.transport, path: place.map(Path::to_owned), chosen })
        };
        self.check_origin(&origin, &what)?;
        let names: Vec<Reference> = match &options.name {
            Some(name) => vec![name.without_digest()],
            None => found.names.iter().map(Reference::without_digest).collect(),
        };
        let cpus = thread::available_parallelism().map_or(1, NonZero::get);
        self.store_found(&found, names, None, &origin, &Work { limits: &options.limits, most_workers: cpus, progress })
    }

    /// Stores an image that has been found, under these names, which stood for `digest` where it was found. It must have been held
    /// against the policy.
    pub(super) fn store_found(
        &self,
        found: &Found,
        names: Vec<Reference>,
        digest: Option<Digest>,
        origin: &Origin,
        work: &Work<'_>,
    ) -> Result<Imported, StoreError> {
        let (layers, present) = self.store_layers(&found.layers, work)?;
        let size = layers.iter().sum();
        let config = &found.config_file;
        let diff_ids = found.layers.iter().map(|layer| layer.diff_id).collect();
        let record = ImageRecord {
            manifest_digest: found.manifest_digest,
            config: config.config.clone(),
            ..ImageRecord::new(found.id, &config.platform, config.created.clone(), size, diff_ids)
        };
        self.publish(&record, [&found.config, &found.manifest], &names, digest, Some(origin))?;
        Ok(Imported { id: found.id, names, size, layers: layers.len(), present, appc: None })
    }

    /// Stores all layers, several at once. Returns the sizes of the different ones, and how many were there.
    fn store_layers(&self, layers: &[FoundLayer], work: &Work<'_>) -> Result<(Vec<u64>, usize), StoreError> {
        let Work { limits, most_workers, progress } = *work;
        let mut unique: Vec<&FoundLayer> = Vec::new();
        for layer in layers {
            if !unique.iter().any(|other| other.diff_id == layer.diff_id) {
                unique.push(layer);
            }
        }
        let most = limits.stream_bytes;
        if let Some(layer) = unique.iter().find(|layer| layer.packed.size() > most) {
            let source = BuildError::Announced { announced: layer.packed.size(), most };
            return Err(StoreError::Layer { file: layer.file.clone(), source });
        }
        let bytes = unique.iter().fold(0, |all: u64, layer| all.saturating_add(layer.packed.size()));
        progress.event(Event::Begin { layers: unique.len(), bytes });
        let stored = unique.iter().map(|layer| self.stored_layer(&layer.diff_id));
        let present = stored.collect::<Result<Vec<_>, _>>()?.iter().flatten().count();
        let next = AtomicUsize::new(0);
        let sizes = Mutex::new(vec![0; unique.len()]);
        let failure = Mutex::new(None);
        let work = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(layer) = unique.get(number) else { return };
                match self.store_layer(layer, number, limits, progress) {
                    Ok(size) => held(&sizes)[number] = size,
                    Err(error) => {
                        held(&failure).get_or_insert(error);
                        // The others finish what they have begun and take nothing new.
                        next.store(unique.len(), Ordering::Relaxed);
                    }
                }
            }
        };
        let workers = unique.len().min(most_workers).min(MAX_WORKERS);
        thread::scope(|scope| {
            for _ in 1..workers {
                scope.spawn(work);
            }
            work();
        });
        match held(&failure).take() {
            Some(error) => Err(error),
            None => Ok((std::mem::take(&mut held(&sizes)), present)),
        }
    }

    /// Records an image whose layers are stored, with its configuration and manifest, where it has come from, and its names, which stood
    /// for `digest` there. An image that cannot be given its first name is not stored.
    pub(super) fn publish(
        &self,
        record: &ImageRecord,
        [config, manifest]: [&[u8]; 2],
        names: &[Reference],
        digest: Option<Digest>,
        origin: Option<&Origin>,
    ) -> Result<(), StoreError> {
        let id = record.id;
        // A removal sees the image with its names or not at all.
        let _hold = self.using()?;
        let mut is_found_by_this_only = !self.image_directory(&id).exists();
        self.store_image(record, config, manifest)?;
        let mut give_names = || -> Result<(), StoreError> {
            origin.map_or(Ok(()), |origin| self.keep_origin(&id, origin))?;
            for name in names {
                self.set_name(name, id, digest)?;
                is_found_by_this_only = false;
            }
            Ok(())
        };
        let named = give_names();
        if named.is_err() && is_found_by_this_only {
            // Without it, an image is left that only its ID finds.
            let _ = self.remove_image(&id);
        }
        named
    }

    /// Records an image whose layers are stored.
    fn store_image(&self, record: &ImageRecord, config: &[u8], manifest: &[u8]) -> Result<(), StoreError> {
        // One image may come with several manifests, from several importers at once.
        let lock = self.lock_path("publish");
        let _alone = Lock::exclusive(&lock).map_err(at(lock))?;
        let place = self.image_directory(&record.id);
        let record_path = place.join("image.json");
        if place.exists() {
            self.replace_manifest(record, &record_path, manifest)?;
            return self.write(&record_path, record);
        }
        let tmp = self.tmp();
        let scratch = Scratch::directory(&tmp).map_err(at(&tmp))?;
        let record = to_bytes(record, &record_path)?;
        let files = [("image.json", &record[..]), ("config.json", config), ("manifest.json", manifest)];
        for (name, content) in files {
            write_atomically(&tmp, &scratch.path().join(name), content).map_err(at(&place))?;
        }
        scratch.seal().map_err(at(&place))?;
        scratch.keep(&place).map_err(at(&place))?;
        sync_directory(&self.images()).map_err(at(self.images()))
    }

    /// Makes `manifest` the one that is stored with an image. Until the record names it, the record names none: a crash in between
    /// leaves none that is wrong.
    fn replace_manifest(&self, record: &ImageRecord, record_path: &Path, manifest: &[u8]) -> Result<(), StoreError> {
        let path = self.manifest_path(&record.id);
        if fs::read(&path).is_ok_and(|stored| stored == manifest) {
            return Ok(());
        }
        self.write(record_path, &ImageRecord { manifest_digest: None, ..record.clone() })?;
        write_atomically(&self.tmp(), &path, manifest).map_err(at(path))
    }
}

/// What a mutex guards; a panic elsewhere does not make it worse.
fn held<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
