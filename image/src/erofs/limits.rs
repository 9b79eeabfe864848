//! Bounds on what one layer may make us hold and write.

/// What a layer may be at most. Beyond it, the layer is refused by name.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Names of files, directories and links, hard ones too, those replaced later included.
    pub entries: u32,
    /// Bytes of names, link targets, attributes and chunk maps, which are held in memory.
    pub metadata_bytes: u64,
    /// Bytes of file data stored. Holes do not count.
    pub data_bytes: u64,
    /// Bytes of zeros that are stored around the data of files with holes, once they are also more than the tar itself.
    pub padding_bytes: u64,
    /// Bytes of the layer's tar, unpacked.
    pub stream_bytes: u64,
}

impl Default for Limits {
    /// Two million entries, half a GiB of metadata, 256 GiB of data: twenty times the largest images in use. Zeros as
    /// [`decode`](crate::decode) lets any stream have them.
    fn default() -> Self {
        Self {
            entries: 1 << 21,
            metadata_bytes: 512 << 20,
            data_bytes: 256 << 30,
            padding_bytes: 1 << 30,
            stream_bytes: 320 << 30,
        }
    }
}

/// Longest path of an entry, in bytes (Linux's `PATH_MAX` without its NUL).
pub const MAX_PATH: usize = 4095;
/// Longest name in a directory, in bytes.
pub const MAX_NAME: usize = 255;
/// Longest target of a symbolic link, in bytes.
pub const MAX_SYMLINK: usize = 4095;
/// Largest size of one file, holes included.
pub const MAX_FILE: u64 = 16 << 40;
