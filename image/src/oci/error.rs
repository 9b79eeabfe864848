//! Why an image cannot be read from where it is.

use std::io;
use std::path::PathBuf;

use super::spec::MAX_LAYERS;
use crate::digest::{Digest, DigestError};
use crate::registry::RegistryError;
use crate::tar::TarError;

/// Most names that a message lists.
const MAX_LISTED: usize = 20;

/// Names of an image's maker in a message: not ever so many, and nothing that a terminal would obey.
fn listed(names: &[String]) -> String {
    let mut text: String = names.iter().take(MAX_LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > MAX_LISTED {
        text.push_str(", …");
    }
    harmless(&text)
}

/// A text without what a terminal would obey.
pub(super) fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Why an image cannot be read from a layout or an archive.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// A registry does not give it.
    #[error(transparent)]
    Registry(#[from] Box<RegistryError>),
    /// A file operation failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Neither of the known forms.
    #[error(
        "{}: neither an OCI image layout nor an archive of one nor of `docker save`", path.display()
    )]
    NotAnImage {
        /// What was named.
        path: PathBuf,
    },
    /// The archive is broken.
    #[error("{}: {source}", path.display())]
    Archive {
        /// Which archive.
        path: PathBuf,
        /// What is wrong.
        source: TarError,
    },
    /// A file of the archive has holes; its bytes cannot be read in place.
    #[error("{}: {name} is stored as a sparse file; pack the archive without --sparse", path.display())]
    SparseMember {
        /// Which archive.
        path: PathBuf,
        /// Which file of it.
        name: String,
    },
    /// Too many files.
    #[error("{}: more than {most} files", path.display())]
    TooManyFiles {
        /// Which archive.
        path: PathBuf,
        /// The limit.
        most: usize,
    },
    /// A file is missing.
    #[error("{file} is missing: the image is incomplete")]
    MissingFile {
        /// Which one.
        file: String,
    },
    /// A document is too large.
    #[error("{file} has {size} bytes; at most {most} are accepted")]
    TooLarge {
        /// Which one.
        file: String,
        /// Its size.
        size: u64,
        /// The limit.
        most: u64,
    },
    /// A document is not what it should be.
    #[error("{file}: {source}")]
    Json {
        /// Which one.
        file: String,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// A digest that cannot be used.
    #[error("{file}: {source}")]
    Digest {
        /// Where it is written.
        file: String,
        /// What is wrong.
        source: DigestError,
    },
    /// The bytes are not those that the digest stands for.
    #[error("{file} is corrupt: its digest is {actual}, expected {expected}; get the image anew")]
    DigestMismatch {
        /// Which file.
        file: String,
        /// What it should be.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// The file has another size than its descriptor says.
    #[error("{file} is corrupt: it has {actual} bytes, expected {expected}; get the image anew")]
    SizeMismatch {
        /// Which file.
        file: String,
        /// What it should be.
        expected: u64,
        /// What it is.
        actual: u64,
    },
    /// Two things at once, or another than it says.
    #[error(
        "{file} could be taken for an index and for a manifest, and is refused; ask its maker for one that says what it is"
    )]
    Contradiction {
        /// Which document.
        file: String,
    },
    /// No image at all.
    #[error("{}: holds no image", path.display())]
    Empty {
        /// The layout or archive.
        path: PathBuf,
    },
    /// None for this machine.
    #[error("{}: no image for {wanted}; it has {}", path.display(), listed(have))]
    NoPlatform {
        /// The layout or archive.
        path: PathBuf,
        /// This machine's platform.
        wanted: String,
        /// What there is.
        have: Vec<String>,
    },
    /// The wanted name is not there.
    #[error("{}: holds no image {wanted}; it has {}", path.display(), listed(have))]
    NoSuchImage {
        /// The layout or archive.
        path: PathBuf,
        /// What was asked for.
        wanted: String,
        /// What there is.
        have: Vec<String>,
    },
    /// Several images and none chosen.
    #[error(
        "{path} holds several images; choose one by {path}:NAME: {}", listed(have),
        path = path.display()
    )]
    Ambiguous {
        /// The layout or archive.
        path: PathBuf,
        /// The choices.
        have: Vec<String>,
    },
    /// Indexes within indexes.
    #[error("{file}: indexes are nested too deeply, or too many")]
    TooDeep {
        /// The innermost.
        file: String,
    },
    /// Neither a manifest nor an index.
    #[error("{file}: not an image manifest (no config); artifacts cannot be run")]
    NotAManifest {
        /// Which file.
        file: String,
    },
    /// Something else than an image in an image's form: a chart, a signature, a model.
    #[error("{file}: an artifact of type {:?}, not an image; it cannot be run", harmless(kind))]
    Artifact {
        /// Which manifest.
        file: String,
        /// What it is, by its maker.
        kind: String,
    },
    /// A kind of layer that is no tar.
    #[error("{file}: layers of type {media_type:?} are not supported")]
    LayerType {
        /// Which layer.
        file: String,
        /// Its media type.
        media_type: String,
    },
    /// Manifest and configuration disagree.
    #[error("{file}: {layers} layers, but the configuration names {diff_ids}")]
    LayerCount {
        /// The manifest.
        file: String,
        /// Layers in it.
        layers: usize,
        /// Layers in the configuration.
        diff_ids: usize,
    },
    /// More layers than overlayfs can stack.
    #[error("{file}: {layers} layers; at most {MAX_LAYERS} are supported")]
    TooManyLayers {
        /// The manifest.
        file: String,
        /// Layers in it.
        layers: usize,
    },
}

impl From<RegistryError> for OciError {
    fn from(error: RegistryError) -> Self {
        Self::Registry(Box::new(error))
    }
}
