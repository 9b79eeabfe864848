//! Makes EROFS images from tar streams: a layer becomes a file that Linux mounts as it is.
//!
//! The image keeps all the archive says: owners, modes, times to the nanosecond, extended attributes,
//! hard links, devices, holes, names of any bytes. It is uncompressed, so that it can be mapped; the same
//! archive always gives the same bytes. File data goes straight to the image; memory holds only names,
//! inodes and attributes, within [`Limits`].

mod archive;
mod dirents;
mod error;
mod image;
mod layer;
mod limits;
mod merge;
mod ondisk;
mod output;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod reader;
#[cfg(test)]
mod tests;
mod tree;
mod unpack;
mod volume;
mod xattr;

use std::fs::File;
use std::io::{self, Read};

pub use archive::write_tar;
pub(crate) use archive::{Part, write_part};
pub use error::{BuildError, EntryError};
pub use limits::{Limits, MAX_FILE, MAX_NAME, MAX_PATH, MAX_SYMLINK};
pub use merge::FindError;
pub(crate) use merge::Merged;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use merge::Node;
pub use output::image_digest;
pub use unpack::{Loss, Losses, UnpackError, unpack};
pub(crate) use unpack::{Strictness, unpack_directory, unpack_file};
pub use volume::ReadError;
pub(crate) use volume::Volume;

use crate::digest::Digest;
use crate::tar::{Entry, Streamed, TarReader};

/// What became of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// Size of the image in bytes, a multiple of 4096.
    pub size: u64,
    /// Digest of the image's blocks with block 0 last, as [`image_digest`] computes it.
    pub digest: Digest,
    /// Files, directories and links in it.
    pub inodes: u64,
    /// Directories that the archive only implied; they belong to root with mode 0755.
    pub implied_directories: u64,
    /// Attributes that have no form on Linux and were left out.
    pub dropped_attributes: u64,
}

/// Makes an image of the uncompressed tar stream `tar` in `image`, which must be empty.
///
/// `tails` is an empty file for scratch data. The stream is read to its end, also behind the
/// archive's end marker. Nothing is synced; on an error `image` holds garbage.
pub fn build(tar: impl Read, image: &File, tails: &File, limits: &Limits) -> Result<Built, BuildError> {
    build_from(tar, layer::Layer::new(image, tails, *limits), tails, limits, Some)
}

/// As [`build`], of those entries that `select` gives, as it gives them; and names such as `.wh.x` mean nothing but themselves.
pub(crate) fn build_selected(
    tar: impl Read,
    image: &File,
    tails: &File,
    limits: &Limits,
    select: impl FnMut(Entry) -> Option<Entry>,
) -> Result<Built, BuildError> {
    let mut layer = layer::Layer::new(image, tails, *limits);
    layer.has_whiteouts = false;
    build_from(tar, layer, tails, limits, select)
}

fn build_from(
    tar: impl Read,
    mut layer: layer::Layer<'_>,
    tails: &File,
    limits: &Limits,
    mut select: impl FnMut(Entry) -> Option<Entry>,
) -> Result<Built, BuildError> {
    let mut reader = TarReader::new(Streamed::new(Bounded::new(tar, limits.stream_bytes)));
    while let Some(entry) = reader.next_entry()? {
        if let Some(entry) = select(entry) {
            layer.apply(entry, &mut reader)?;
        }
    }
    let offset = reader.offset();
    let mut rest = reader.into_input().into_inner();
    io::copy(&mut rest, &mut io::sink()).map_err(|source| crate::tar::TarError::Io { offset, source })?;
    let implied_directories = layer.tree.implied();
    let dropped_attributes = layer.dropped_attributes;
    let finished = image::finish(layer, tails)?;
    Ok(Built {
        size: finished.size,
        digest: finished.digest,
        inodes: finished.inodes,
        implied_directories,
        dropped_attributes,
    })
}

/// Whether an image's root directory hides all that is in the layers below.
pub(crate) fn hides_lower_layers(image: &File) -> Result<bool, ReadError> {
    let volume = Volume::open(image)?;
    Ok(!volume.attributes(&volume.inode(volume.root())?)?.marks.is_empty())
}

/// A stream that may not be longer than so many bytes: the guard against what unpacks without end.
pub(crate) struct Bounded<R> {
    inner: R,
    limit: u64,
    left: u64,
}

impl<R> Bounded<R> {
    pub fn new(inner: R, limit: u64) -> Self {
        Self { inner, limit, left: limit }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.left = self
            .left
            .checked_sub(n as u64)
            .ok_or_else(|| io::Error::other(format!("the layer unpacks to more than {} bytes", self.limit)))?;
        Ok(n)
    }
}
