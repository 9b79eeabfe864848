//! What goes wrong with the store.

use std::io;
use std::path::PathBuf;

use crate::appc::{ArchiveError, discovery::DiscoveryError};
use crate::digest::Digest;
use crate::erofs::{BuildError, FindError, UnpackError};
use crate::oci::OciError;
use crate::registry::RegistryError;
use crate::trust::{PolicyError, Refused, TrustError};

/// Most images, each placed upon the next.
pub(super) const MAX_DEPENDENCIES: usize = 32;

/// Why something about the store could not be done.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("image store: {}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is imported from a stream is something else.
    #[error(
        "what comes from standard input is no archive: neither a tar nor one packed by gzip, zstd, xz or bzip2; give an archive of an image"
    )]
    NoArchive,
    /// A layer that could not be unpacked.
    #[error("image store: layer {layer} cannot be unpacked: {source}")]
    Unpack {
        /// The layer.
        layer: Digest,
        /// Why.
        source: UnpackError,
    },
    /// An image's files that could not be written to where they are wanted.
    #[error("image {image} cannot be unpacked: {source}")]
    Render {
        /// The image.
        image: String,
        /// Why.
        source: UnpackError,
    },
    /// A path that the image does not have.
    #[error("image {image}: {source}")]
    Find {
        /// The image.
        image: String,
        /// Why.
        source: FindError,
    },
    /// A place that has something in it.
    #[error("{} is there and not an empty directory; name another place, or replace it by --overwrite", path.display())]
    PlaceTaken {
        /// The place.
        path: PathBuf,
    },
    /// A place that cannot be replaced.
    #[error("{} is a mount point and not empty, so that it cannot be replaced; empty it first", path.display())]
    PlaceMounted {
        /// The place.
        path: PathBuf,
    },
    /// A record that cannot be read.
    #[error("image store: {} is damaged ({source}); remove the image and import it again", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// A name's record that cannot be read.
    #[error("image store: {} is damaged ({source}); `podvm image verify --repair` removes it", path.display())]
    DamagedName {
        /// Which file.
        path: PathBuf,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// A record by a later version.
    #[error("image store: {} is of version {version}; use a newer podvm", path.display())]
    TooNew {
        /// Which file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// No image of that name or id.
    #[error("no image {wanted}: {hint}")]
    NotFound {
        /// What was asked for.
        wanted: String,
        /// What exists, or how to get it.
        hint: String,
    },
    /// The start of several ids.
    #[error("image id {wanted} is ambiguous: it is the start of {}", candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        wanted: String,
        /// The images it could mean.
        candidates: Vec<String>,
    },
    /// A layer is gone.
    #[error("image {image} is incomplete: {} is missing; import the image again", path.display())]
    MissingLayer {
        /// The image.
        image: String,
        /// The layer's file.
        path: PathBuf,
    },
    /// Pods run from it.
    #[error("image {image} is used by pod {}; remove the pod first", pods.join(", "))]
    InUse {
        /// The image.
        image: String,
        /// Who uses it.
        pods: Vec<String>,
    },
    /// Which images pods use could not be found out.
    #[error("cannot tell which images are in use: {0}")]
    Uses(#[source] io::Error),
    /// The image cannot be read where it is.
    #[error(transparent)]
    Oci(#[from] OciError),
    /// The policy cannot be used.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The policy does not take the image.
    #[error(transparent)]
    Refused(Box<Refused>),
    /// A registry does not give the image.
    #[error(transparent)]
    Registry(#[from] Box<RegistryError>),
    /// An archive that is no image of appc, or a broken one.
    #[error("{file}: {source}")]
    Archive {
        /// Which.
        file: String,
        /// Why.
        source: ArchiveError,
    },
    /// No place of an image of appc is found.
    #[error(transparent)]
    Discovery(#[from] Box<DiscoveryError>),
    /// A signature that does not count.
    #[error(transparent)]
    Trust(#[from] Box<TrustError>),
    /// A signature that is not there.
    #[error(
        "{what} is not signed: {why}; an image that is fetched must be, unless signatures are done without by \
         --insecure-options=image"
    )]
    Unsigned {
        /// The image.
        what: String,
        /// What is wrong with its signature.
        why: String,
    },
    /// Another image than the one that was asked for.
    #[error("{file} is {actual}, not {wanted}; whoever offers it is mistaken")]
    OtherImage {
        /// Where it is.
        file: String,
        /// What it is.
        actual: String,
        /// What was asked for.
        wanted: String,
    },
    /// An image that depends on itself.
    #[error("the dependencies of {} lead back to it: {}", .0[0], .0.join(" is placed upon "))]
    Circle(Vec<String>),
    /// Dependencies of dependencies.
    #[error("the dependencies of {0} go deeper than {MAX_DEPENDENCIES} images")]
    TooDeep(String),
    /// A dependency that cannot be had.
    #[error("{image} is placed upon {dependency}: {source}")]
    Dependency {
        /// The image.
        image: String,
        /// What it depends on.
        dependency: String,
        /// Why that cannot be had.
        source: Box<StoreError>,
    },
    /// Not an image of appc.
    #[error("image {0} is none of appc, and has no .aci; export it as an OCI layout or archive")]
    NotAppc(String),
    /// An image without an archive of its own.
    #[error(
        "image {0} is put together from several images or a list of paths, and has no .aci of its own; export it as an OCI \
         layout or archive"
    )]
    Rendered(String),
    /// A layer's bytes do not arrive; the message says whose and why.
    #[error("{0}")]
    Transfer(io::Error),
    /// A layer cannot be made into an EROFS image.
    #[error("{file}: {source}")]
    Layer {
        /// The layer's file.
        file: String,
        /// Why.
        source: BuildError,
    },
    /// The unpacked layer is not what the configuration says.
    #[error(
        "{file} is not the layer that the image's configuration names: unpacked, its digest is \
         {actual}, expected {expected}; get the image anew"
    )]
    DiffIdMismatch {
        /// The layer's file.
        file: String,
        /// What the configuration says.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
}

/// Names the file of a failed operation.
pub(crate) fn at(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.into();
    move |source| StoreError::Io { path, source }
}

impl From<DiscoveryError> for StoreError {
    fn from(error: DiscoveryError) -> Self {
        Self::Discovery(Box::new(error))
    }
}

impl From<TrustError> for StoreError {
    fn from(error: TrustError) -> Self {
        Self::Trust(Box::new(error))
    }
}

impl From<RegistryError> for StoreError {
    fn from(error: RegistryError) -> Self {
        Self::Registry(Box::new(error))
    }
}
