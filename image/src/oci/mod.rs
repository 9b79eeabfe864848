//! Images as they are handed over: OCI layouts (image-spec, image-layout.md), archives of them, and archives
//! of `docker save`.
//!
//! Opening one finds the manifest for this machine and checks all documents against their digests; the
//! layers are only named, and checked while they are read.

mod docker;
mod error;
mod files;
#[cfg(test)]
pub(crate) mod fixture;
mod layout;
mod manifest;
mod spec;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

pub use error::OciError;
pub use files::Slice;
pub(crate) use files::{Files, open_without_waiting};
pub(crate) use manifest::{Documents, read_image, select};
pub(crate) use spec::{ConfigFile, Descriptor, HistoryEntry, Platform};
pub use spec::{ImageConfig, ImageHealthcheck, MAX_CONFIG, MAX_LAYERS, MAX_MANIFEST, host_architecture};

use crate::digest::Digest;
use crate::reference::Reference;
use crate::registry::RemoteBlob;
use crate::store::Transport;

/// Which form a path is to be read in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// By what is found.
    Any,
    /// An OCI layout, as a directory or an archive.
    Oci,
    /// An archive of `docker save`.
    Docker,
    /// An App Container image.
    Aci,
}

/// An image that has been found and whose documents are right.
#[derive(Debug)]
pub struct Found {
    /// The digest of the configuration: the image's identity.
    pub id: Digest,
    /// The digest of the manifest; a Docker archive has none.
    pub manifest_digest: Option<Digest>,
    /// The manifest as it was.
    pub manifest: Vec<u8>,
    /// The configuration as it was, and what it says.
    pub config: Vec<u8>,
    pub(crate) config_file: ConfigFile,
    /// Lowest first.
    pub layers: Vec<FoundLayer>,
    /// The names it has where it was found.
    pub names: Vec<Reference>,
    /// As which form it was found, unless at a registry.
    pub(crate) transport: Transport,
}

/// A layer, still packed.
#[derive(Debug, Clone)]
pub struct FoundLayer {
    /// The digest of its uncompressed tar.
    pub diff_id: Digest,
    /// The digest of the file as it is, when it is known.
    pub digest: Option<Digest>,
    /// Where its bytes come from.
    pub packed: Packed,
    /// How messages name the file.
    pub file: String,
}

/// Where a packed layer's bytes come from.
#[derive(Debug, Clone)]
pub enum Packed {
    /// A file, or a part of one.
    Slice(Slice),
    /// A registry.
    Remote(RemoteBlob),
}

impl Packed {
    /// How many bytes there are.
    pub fn size(&self) -> u64 {
        match self {
            Self::Slice(slice) => slice.remaining(),
            Self::Remote(blob) => blob.size,
        }
    }

    /// The bytes, from the first on.
    pub fn open(&self) -> Box<dyn Read + Send> {
        match self {
            Self::Slice(slice) => Box::new(slice.clone()),
            Self::Remote(blob) => Box::new(blob.open()),
        }
    }
}

/// Finds the image in `path` that `filter` names, or the only one.
///
/// `scratch` makes a file for the plain form of a compressed archive.
pub fn open(
    path: &Path,
    format: Format,
    filter: Option<&str>,
    scratch: &dyn Fn() -> io::Result<File>,
) -> Result<Found, OciError> {
    open_files(&Files::open(path, scratch)?, path, format, filter)
}

/// Finds the only image in an archive that arrives as a stream. `path` is what messages call it.
pub fn open_stream(
    stream: &mut dyn Read,
    path: &Path,
    format: Format,
    scratch: &dyn Fn() -> io::Result<File>,
) -> Result<Found, OciError> {
    open_files(&Files::from_stream(stream, path, scratch)?, path, format, None)
}

fn open_files(files: &Files, path: &Path, format: Format, filter: Option<&str>) -> Result<Found, OciError> {
    let source = Source { path, files, filter };
    let is_oci = files.find("index.json")?.is_some();
    let is_docker = files.find("manifest.json")?.is_some();
    let transport = match files {
        Files::Directory(_) => Transport::Oci,
        Files::Archive { .. } => Transport::OciArchive,
    };
    match format {
        Format::Any | Format::Oci if is_oci => Ok(Found { transport, ..layout::open(&source)? }),
        Format::Any | Format::Docker if is_docker => {
            Ok(Found { transport: Transport::DockerArchive, ..docker::open(&source)? })
        }
        _ => Err(OciError::NotAnImage { path: path.to_owned() }),
    }
}

/// What is being opened.
pub(crate) struct Source<'a> {
    path: &'a Path,
    files: &'a Files,
    filter: Option<&'a str>,
}

impl Source<'_> {
    /// Parses a document that was read from `name`.
    fn parse<T: serde::de::DeserializeOwned>(&self, name: &str, bytes: &[u8]) -> Result<T, OciError> {
        serde_json::from_slice(bytes).map_err(|source| OciError::Json { file: self.files.describe(name), source })
    }

    fn digest(&self, name: &str, text: &str) -> Result<Digest, OciError> {
        text.parse().map_err(|source| OciError::Digest { file: self.files.describe(name), source })
    }

    /// A name from the path's own, for images that bring only a tag or nothing.
    fn name_from_path(&self, tag: Option<&str>) -> Option<Reference> {
        let base = self.path.file_name().map(PathBuf::from)?;
        let base = base.to_str()?.to_ascii_lowercase();
        let suffixes = [".gz", ".zst", ".tgz", ".tar", ".oci", ".docker"];
        let mut stem = base.as_str();
        while let Some(shorter) = suffixes.iter().find_map(|suffix| stem.strip_suffix(suffix)) {
            stem = shorter;
        }
        Reference::from_parts(stem, tag).ok()
    }
}

/// What [`Source::image`] joins.
struct Parts {
    id: Digest,
    manifest_digest: Option<Digest>,
    manifest: Vec<u8>,
    config: Vec<u8>,
    config_file: ConfigFile,
    /// What messages call it, digest and content of each layer.
    layers: Vec<(String, Option<Digest>, Packed)>,
    names: Vec<Reference>,
}

/// Joins manifest, configuration and layers into an image, when they fit each other. `place` is the manifest's.
fn join(place: &str, parts: Parts) -> Result<Found, OciError> {
    let Parts { id, manifest_digest, manifest, config, config_file, layers, names } = parts;
    let file = || place.to_owned();
    let diff_ids = &config_file.rootfs.diff_ids;
    if layers.len() != diff_ids.len() {
        let (layers, diff_ids) = (layers.len(), diff_ids.len());
        return Err(OciError::LayerCount { file: file(), layers, diff_ids });
    }
    if layers.len() > MAX_LAYERS {
        return Err(OciError::TooManyLayers { file: file(), layers: layers.len() });
    }
    if !config_file.platform.runs_here() {
        let have = vec![config_file.platform.to_string()];
        return Err(OciError::NoPlatform { path: place.into(), wanted: here(), have });
    }
    let layers = layers
        .into_iter()
        .zip(diff_ids)
        .map(|((file, digest, packed), diff_id)| {
            let diff_id = diff_id.parse().map_err(|source| OciError::Digest { file: place.to_owned(), source })?;
            Ok(FoundLayer { diff_id, digest, packed, file })
        })
        .collect::<Result<_, OciError>>()?;
    Ok(Found { id, manifest_digest, manifest, config, config_file, layers, names, transport: Transport::Oci })
}

/// This machine's platform.
fn here() -> String {
    let architecture = host_architecture().to_owned();
    Platform { os: "linux".into(), architecture, variant: String::new() }.to_string()
}
