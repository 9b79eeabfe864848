//! Why a layer cannot be made into an image.

use std::io;

use super::limits::{MAX_FILE, MAX_NAME, MAX_PATH, MAX_SYMLINK};
use crate::tar::{TarError, show};

/// Why a tar stream cannot be made into an EROFS image.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The archive itself is broken.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An entry that cannot be in a file system, or must not be.
    #[error("{}: {source}", show(.path))]
    Entry {
        /// The entry's name.
        path: Vec<u8>,
        /// What is wrong with it.
        source: EntryError,
    },
    /// The image cannot be written.
    #[error("writing the image: {0}")]
    Output(#[source] io::Error),
    /// More bytes are announced than a layer may have.
    #[error("the layer is said to have {announced} bytes; at most {most} are taken")]
    Announced {
        /// What its manifest says, packed.
        announced: u64,
        /// Most that a layer may have.
        most: u64,
    },
    /// The image would have more blocks than the format can number.
    #[error("the layer is larger than 16 TiB")]
    TooLarge,
}

/// What is wrong with an entry.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// No name at all.
    #[error("an entry has an empty name")]
    EmptyName,
    /// `..` in the name.
    #[error("the name leads out of the root by '..'")]
    ParentInPath,
    /// A NUL byte in a name.
    #[error("the name holds a NUL byte")]
    NulInName,
    /// A name longer than file systems allow.
    #[error("a part of the name is longer than {MAX_NAME} bytes")]
    NameTooLong,
    /// A path longer than Linux allows.
    #[error("the name is longer than {MAX_PATH} bytes")]
    PathTooLong,
    /// The root is something else than a directory.
    #[error("the root of a layer must be a directory")]
    RootNotADirectory,
    /// Something below a file.
    #[error("{} is not a directory", show(.name))]
    NotADirectory {
        /// The file in the way.
        name: Vec<u8>,
    },
    /// Symbolic links that lead in a circle.
    #[error("too many levels of symbolic links")]
    TooManyLinks,
    /// Names that lead through ever so many directories.
    #[error("the layer's names go through too many directories and links together")]
    TooMuchWalking,
    /// A whiteout of the directory that it is in, or of the one above.
    #[error("a whiteout of '.' or '..' hides nothing that a layer may hide")]
    BadWhiteout,
    /// A symbolic link to nothing, or to more than Linux allows.
    #[error("the target of a symbolic link must have 1 to {MAX_SYMLINK} bytes and no NUL")]
    BadSymlink,
    /// A hard link to what the layer does not have.
    #[error("hard link to {}, which is not in this layer", show(.target))]
    MissingLink {
        /// The link's target.
        target: Vec<u8>,
    },
    /// A directory on the way that is not there.
    #[error("a directory on the way does not exist")]
    MissingTarget,
    /// A hard link to a directory.
    #[error("hard link to the directory {}", show(.target))]
    LinkToDirectory {
        /// The link's target.
        target: Vec<u8>,
    },
    /// A device number that Linux cannot have.
    #[error("device number {major}:{minor} is out of range")]
    Device {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// An attribute that does not fit.
    #[error("{0}")]
    Xattr(&'static str),
    /// A file that is too large.
    #[error("the file is larger than {} TiB", MAX_FILE >> 40)]
    FileTooLarge,
    /// [`Limits::entries`](super::Limits::entries) is passed.
    #[error("the layer has more than {limit} entries")]
    TooManyEntries {
        /// The limit.
        limit: u32,
    },
    /// [`Limits::metadata_bytes`](super::Limits::metadata_bytes) is passed.
    #[error("names, links and attributes of the layer are larger than {} MiB", limit >> 20)]
    TooMuchMetadata {
        /// The limit.
        limit: u64,
    },
    /// [`Limits::data_bytes`](super::Limits::data_bytes) is passed.
    #[error("the files of the layer are larger than {} MiB", limit >> 20)]
    TooMuchData {
        /// The limit.
        limit: u64,
    },
    /// [`Limits::padding_bytes`](super::Limits::padding_bytes) is passed.
    #[error(
        "the layer's files with holes would be stored with more than {} MiB of zeros; if that is meant, pack them without holes",
        limit >> 20
    )]
    TooSparse {
        /// The limit: that of the limits, or the size of the archive so far.
        limit: u64,
    },
}
