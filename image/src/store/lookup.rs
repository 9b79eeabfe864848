//! Finding images: by name, by id, by the start of an id. Reads a few small files, however large the images are.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};

use super::Store;
use super::error::{StoreError, at};
use super::records::{AppcRecord, ImageRecord, NameRecord, Readable};
use super::scratch::Lock;
use crate::appc::AppcName;
use crate::appc::id::PREFIX as APPC_ID;
use crate::digest::Digest;
use crate::erofs::hides_lower_layers;
use crate::oci::{ConfigFile, HistoryEntry, ImageConfig, OciError};
use crate::reference::Reference;

/// Fewest hex digits that count as the start of an id: shorter ones are more often mistyped names.
const MIN_PREFIX: usize = 4;
/// What may stand before a name of appc.
pub(crate) const APPC_PREFIX: &str = "appc:";
/// Most names that a message lists.
const MAX_LISTED: usize = 10;

/// A stored image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The digest of its configuration.
    pub id: Digest,
    /// The digest of the manifest it came with, if any.
    pub manifest_digest: Option<Digest>,
    /// Its names, sorted; none when another image has taken them over.
    pub names: Vec<Reference>,
    /// What it runs on, such as `amd64`.
    pub architecture: String,
    /// When it was made, in its maker's words (RFC 3339).
    pub created: Option<String>,
    /// When it was imported, in seconds since 1970.
    pub imported: u64,
    /// When it was last imported, fetched, or asked for to be run, in seconds since 1970.
    pub used: u64,
    /// Bytes of its layers in the store, those it shares with others included.
    pub size: u64,
    /// The layers' names in the store, lowest first.
    pub layers: Vec<Digest>,
    /// How it wants to be run.
    pub config: ImageConfig,
    /// What it is in terms of appc, if it came as such.
    pub appc: Option<AppcRecord>,
}

/// What the store holds.
#[derive(Debug)]
pub struct Listing {
    /// All images that can be read, by name; those without a name last.
    pub images: Vec<Image>,
    /// What is wrong with the other images, and with names.
    pub damaged: Vec<StoreError>,
}

/// A layer in the store: an EROFS image that can be mounted or mapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The digest of the layer's plain tar.
    pub diff_id: Digest,
    /// The EROFS image.
    pub path: PathBuf,
    /// Its size in bytes, a multiple of 4096.
    pub size: u64,
}

/// A step by which an image was built.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// When, in its maker's words.
    pub created: Option<String>,
    /// The command; empty when it is not known.
    pub created_by: String,
    /// What its maker says of it.
    pub comment: String,
    /// The layer that it made, if any, and the layer's size in the store.
    pub layer: Option<(Digest, u64)>,
}

/// An image to run a pod from. While this lives, the image cannot be removed.
///
/// Keep it until the pod is recorded as a user of the image (see [`Store::remove`]), then drop it:
/// removals wait for it.
#[derive(Debug)]
pub struct ResolvedImage {
    /// The digest of the image's configuration.
    pub id: Digest,
    /// How it wants to be run.
    pub config: ImageConfig,
    /// Lowest first.
    pub layers: Vec<Layer>,
    /// What it is in terms of appc, if it came as such.
    pub appc: Option<AppcRecord>,
    _hold: Lock,
}

impl Store {
    /// Finds an image and its layers, ready to run: one that the policy takes.
    ///
    /// # Errors
    /// [`StoreError::Refused`], when the policy does not take it, and those of looking.
    pub fn resolve(&self, wanted: &str) -> Result<ResolvedImage, StoreError> {
        let image = self.hold(wanted)?;
        self.check_stored(wanted, &image)?;
        Ok(image)
    }

    /// Finds an image and its layers, to look at.
    pub(super) fn hold(&self, wanted: &str) -> Result<ResolvedImage, StoreError> {
        let hold = self.using()?;
        let id = self.find_id(wanted)?;
        let record = self.image_record(&id)?.ok_or_else(|| self.not_found(wanted))?;
        let layers = record
            .layers
            .iter()
            .map(|diff_id| {
                let path = self.blob_path(diff_id);
                match self.stored_layer(diff_id)? {
                    Some(size) => Ok(Layer { diff_id: *diff_id, path, size }),
                    None => Err(StoreError::MissingLayer { image: wanted.to_owned(), path }),
                }
            })
            .collect::<Result<Vec<_>, _>>()?;
        let layers = seen(layers)?;
        self.note_use(&id);
        Ok(ResolvedImage { id, config: record.config, layers, appc: record.appc, _hold: hold })
    }

    /// Finds an image.
    pub fn find(&self, wanted: &str) -> Result<Image, StoreError> {
        let id = self.find_id(wanted)?;
        let record = self.image_record(&id)?.ok_or_else(|| self.not_found(wanted))?;
        let (names, used) = (self.names_of(&id)?, self.last_use(&id));
        Ok(image(record, names, used))
    }

    /// All images. What is damaged does not hide the rest.
    pub fn list(&self) -> Result<Listing, StoreError> {
        let Readable { records, mut damaged } = self.all_names()?;
        let mut names: HashMap<Digest, Vec<Reference>> = HashMap::new();
        for (name, id) in records {
            names.entry(id).or_default().push(name);
        }
        let all = self.all_records()?;
        damaged.extend(all.damaged);
        let mut images: Vec<Image> = Vec::new();
        for record in all.records {
            let (names, used) = (names.remove(&record.id).unwrap_or_default(), self.last_use(&record.id));
            images.push(image(record, names, used));
        }
        images.sort_by_cached_key(|image| {
            let of_appc = || image.appc.as_ref().map(|appc| appc.manifest.full_name().to_string());
            let name = image.names.first().map(Reference::to_string).or_else(of_appc);
            (name.is_none(), name, image.id)
        });
        Ok(Listing { images, damaged })
    }

    /// How an image was built, the first step first. Layers of which the image tells nothing are steps without words.
    pub fn history(&self, wanted: &str) -> Result<Vec<Step>, StoreError> {
        let id = self.find_id(wanted)?;
        let record = self.image_record(&id)?.ok_or_else(|| self.not_found(wanted))?;
        let config = self.config(&id)?;
        let damaged = |source| StoreError::Damaged { path: self.config_path(&id), source };
        let config: ConfigFile = serde_json::from_slice(&config).map_err(damaged)?;
        let mut layers = record.layers.iter();
        let mut steps = Vec::new();
        let sized = |layer: &Digest| Ok::<_, StoreError>((*layer, self.stored_layer(layer)?.unwrap_or(0)));
        for entry in config.history {
            let layer = if entry.empty_layer { None } else { layers.next().map(sized).transpose()? };
            let HistoryEntry { created, created_by, comment, .. } = entry;
            steps.push(Step { created, created_by, comment, layer });
        }
        for layer in layers {
            steps.push(Step { layer: Some(sized(layer)?), ..Step::default() });
        }
        Ok(steps)
    }

    /// An image's configuration, if it is the one that the image is named after.
    pub(super) fn config(&self, id: &Digest) -> Result<Vec<u8>, StoreError> {
        let path = self.config_path(id);
        let bytes = fs::read(&path).map_err(at(&path))?;
        let actual = Digest::of(&bytes);
        if actual == *id {
            return Ok(bytes);
        }
        let file = path.display().to_string();
        Err(OciError::DigestMismatch { file, expected: *id, actual }.into())
    }

    /// Notes that an image is used now, by the time of its record. That it cannot be noted, as in a store that is only to be read,
    /// keeps nobody from using it.
    pub(super) fn note_use(&self, id: &Digest) {
        let path = self.image_directory(id).join("image.json");
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let _ = utimensat(CWD, &path, &Timestamps { last_access: now, last_modification: now }, AtFlags::empty());
    }

    fn last_use(&self, id: &Digest) -> u64 {
        let record = fs::metadata(self.image_directory(id).join("image.json"));
        record.map_or(0, |record| u64::try_from(record.mtime()).unwrap_or(0))
    }

    /// An image's configuration as it came, byte for byte: the digest of it is the image's id.
    pub fn config_path(&self, id: &Digest) -> PathBuf {
        self.image_directory(id).join("config.json")
    }

    /// An image's manifest as it came.
    pub fn manifest_path(&self, id: &Digest) -> PathBuf {
        self.image_directory(id).join("manifest.json")
    }

    pub(super) fn names_of(&self, id: &Digest) -> Result<Vec<Reference>, StoreError> {
        let all = self.all_names()?.records;
        Ok(all.into_iter().filter(|(_, named)| named == id).map(|(name, _)| name).collect())
    }

    /// The name in the store that `wanted` means, and its image.
    pub(super) fn find_name(&self, wanted: &str) -> Result<Option<(Reference, Digest)>, StoreError> {
        let Ok(reference) = wanted.parse::<Reference>() else { return Ok(None) };
        for candidate in reference.candidates(&self.search) {
            if let Some(id) = reference.digest().map(|_| self.named(&candidate.stored())).transpose()?.flatten() {
                return Ok(Some((candidate.stored(), id)));
            }
            let name = candidate.without_digest();
            let Some(NameRecord { id, digest, .. }) = self.name_record(&name)? else { continue };
            if let Some(pinned) = reference.digest() {
                let manifest = self.image_record(&id)?.and_then(|record| record.manifest_digest);
                // The digest of a manifest, of the index that led to it, or of the image itself.
                if ![manifest, digest, Some(id)].contains(&Some(*pinned)) {
                    continue;
                }
            }
            return Ok(Some((name, id)));
        }
        Ok(None)
    }

    pub(super) fn find_id(&self, wanted: &str) -> Result<Digest, StoreError> {
        // A whole ID means that image and no other, whatever an archive has called one.
        if let Some(id) = whole_id(wanted) {
            let is_there = self.image_directory(&id).join("image.json").exists();
            return if is_there { Ok(id) } else { Err(self.not_found(wanted)) };
        }
        if let Some((_, id)) = self.find_name(wanted)? {
            return Ok(id);
        }
        // A digest pins the manifest, whatever name it is stored under by now.
        if let Some(pinned) = wanted.parse::<Reference>().ok().and_then(|r| r.digest().copied()) {
            let all = self.all_records()?.records;
            if let Some(record) = all.iter().find(|record| record.manifest_digest == Some(pinned)) {
                return Ok(record.id);
            }
        }
        if let Some(digits) = wanted.strip_prefix(APPC_ID) {
            return self.find_appc_id(wanted, digits);
        }
        let prefix = wanted.strip_prefix("sha256:").unwrap_or(wanted);
        let is_prefix = prefix.len() >= MIN_PREFIX && prefix.bytes().all(|b| b.is_ascii_hexdigit());
        let mut fitting: Vec<(Digest, String)> = Vec::new();
        if is_prefix {
            let prefix = prefix.to_ascii_lowercase();
            let all = self.all_images()?.into_iter().filter(|id| id.hex().starts_with(&prefix));
            fitting.extend(all.map(|id| (id, id.short())));
        }
        if fitting.is_empty() {
            let name = wanted.strip_prefix(APPC_PREFIX).unwrap_or(wanted).parse::<AppcName>();
            let found = name.ok().map(|name| self.find_appc(&name)).transpose()?.flatten();
            return found.ok_or_else(|| self.not_found(wanted));
        }
        only_one(wanted, fitting).ok_or_else(|| self.not_found(wanted))?
    }

    /// The stored image of appc that a name means; of several, the one that came last.
    pub(super) fn find_appc(&self, name: &AppcName) -> Result<Option<Digest>, StoreError> {
        let mut best: Option<(u64, Digest)> = None;
        for record in self.all_records()?.records {
            let means = |appc: &AppcRecord| name.means(&appc.manifest.name, &appc.manifest.labels());
            if record.appc.as_ref().is_some_and(means) {
                best = best.max(Some((record.imported, record.id)));
            }
        }
        Ok(best.map(|(_, id)| id))
    }

    /// The stored image of appc whose ID begins so.
    fn find_appc_id(&self, wanted: &str, digits: &str) -> Result<Digest, StoreError> {
        let mut fitting = Vec::new();
        if digits.len() >= MIN_PREFIX {
            for ImageRecord { id, appc, .. } in self.all_records()?.records {
                let fits = appc.filter(|appc| appc.id.to_string().starts_with(wanted));
                fitting.extend(fits.map(|appc| (id, appc.id.short())));
            }
        }
        only_one(wanted, fitting).ok_or_else(|| self.not_found(wanted))?
    }

    /// Says what there is instead.
    fn not_found(&self, wanted: &str) -> StoreError {
        let names = self.all_names().map(|all| all.records).unwrap_or_default();
        let listed: Vec<String> = names.iter().take(MAX_LISTED).map(|(name, _)| name.to_string()).collect();
        let more = if names.len() > listed.len() { ", …" } else { "" };
        let hint = if Path::new(wanted).exists() {
            format!("to use the file or directory of that name, write ./{wanted}")
        } else if let Err(error) = wanted.parse::<Reference>() {
            error.to_string()
        } else if listed.is_empty() {
            "there are none yet; get one with `podvm image fetch NAME` or `podvm image import PATH`".to_owned()
        } else {
            format!("there are {}{more}; `podvm image fetch NAME` brings more", listed.join(", "))
        };
        StoreError::NotFound { wanted: wanted.to_owned(), hint }
    }
}

/// The layers from the uppermost down to one whose root hides all below it, which overlayfs would not obey.
fn seen(mut layers: Vec<Layer>) -> Result<Vec<Layer>, StoreError> {
    for number in (1..layers.len()).rev() {
        let path = &layers[number].path;
        let hides = File::open(path).map_err(at(path)).and_then(|file| {
            hides_lower_layers(&file)
                .map_err(|source| StoreError::Unpack { layer: layers[number].diff_id, source: source.into() })
        })?;
        if hides {
            return Ok(layers.split_off(number));
        }
    }
    Ok(layers)
}

/// The ID that is written out, with or without its algorithm.
fn whole_id(text: &str) -> Option<Digest> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text).to_ascii_lowercase();
    format!("sha256:{digits}").parse().ok()
}

/// The one image that fits; an error when several do, nothing when none does.
fn only_one(wanted: &str, mut fitting: Vec<(Digest, String)>) -> Option<Result<Digest, StoreError>> {
    fitting.sort();
    match fitting.as_slice() {
        [] => None,
        [(id, _)] => Some(Ok(*id)),
        several => {
            let candidates = several.iter().take(MAX_LISTED).map(|(_, short)| short.clone()).collect();
            Some(Err(StoreError::Ambiguous { wanted: wanted.to_owned(), candidates }))
        }
    }
}

fn image(record: ImageRecord, names: Vec<Reference>, used: u64) -> Image {
    Image {
        used: used.max(record.imported),
        id: record.id,
        manifest_digest: record.manifest_digest,
        names,
        architecture: record.architecture,
        created: record.created,
        imported: record.imported,
        size: record.size,
        layers: record.layers,
        config: record.config,
        appc: record.appc,
    }
}
