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
mod spec;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

pub use error::OciError;
pub(crate) use files::Files;
pub use files::Slice;
pub(crate) use spec::{ConfigFile, Platform};
pub use spec::{ImageConfig, MAX_CONFIG, MAX_LAYERS, MAX_MANIFEST, host_architecture};

use crate::digest::Digest;
use crate::reference::Reference;

/// Which form a path is to be read in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// By what is found.
    Any,
    /// An OCI layout, as a directory or an archive.
    Oci,
    /// An archive of `docker save`.
    Docker,
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
}

/// A layer, still packed.
#[derive(Debug, Clone)]
pub struct FoundLayer {
    /// The digest of its uncompressed tar.
    pub diff_id: Digest,
    /// The digest of the file as it is, when it is known.
    pub digest: Option<Digest>,
    /// The file.
    pub slice: Slice,
    /// How messages name the file.
    pub file: String,
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
    let files = Files::open(path, scratch)?;
    let source = Source { path, files: &files, filter };
    let is_oci = files.find("index.json")?.is_some();
    let is_docker = files.find("manifest.json")?.is_some();
    match format {
        Format::Any | Format::Oci if is_oci => layout::open(&source),
        Format::Any | Format::Docker if is_docker => docker::open(&source),
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

    /// Joins manifest, configuration and layers into an image, when they fit each other.
    fn image(&self, name: &str, parts: Parts) -> Result<Found, OciError> {
        let Parts { id, manifest_digest, manifest, config, config_file, layers, names } = parts;
        let file = || self.files.describe(name);
        let diff_ids = &config_file.rootfs.diff_ids;
        if layers.len() != diff_ids.len() {
            let (layers, diff_ids) = (layers.len(), diff_ids.len());
            return Err(OciError::LayerCount { file: file(), layers, diff_ids });
        }
        if layers.len() > MAX_LAYERS {
            return Err(OciError::TooManyLayers { file: file(), layers: layers.len() });
        }
        if !config_file.platform.runs_here() {
            return Err(OciError::NoPlatform {
                path: self.path.to_owned(),
                wanted: here(),
                have: vec![config_file.platform.to_string()],
            });
        }
        let layers = layers
            .into_iter()
            .zip(diff_ids)
            .map(|((layer, digest, slice), diff_id)| {
                let diff_id = self.digest(name, diff_id)?;
                Ok(FoundLayer { diff_id, digest, slice, file: self.files.describe(&layer) })
            })
            .collect::<Result<_, _>>()?;
        Ok(Found { id, manifest_digest, manifest, config, config_file, layers, names })
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
    /// Name, digest and content of each layer.
    layers: Vec<(String, Option<Digest>, Slice)>,
    names: Vec<Reference>,
}

/// This machine's platform.
fn here() -> String {
    let architecture = host_architecture().to_owned();
    Platform { os: "linux".into(), architecture, variant: String::new() }.to_string()
}
