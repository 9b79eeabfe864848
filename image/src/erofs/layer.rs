//! From tar entries to the tree: file data to the output, whiteouts to overlayfs's marks.
//!
//! The rules are those of extracting onto an empty directory: a later entry of a name replaces the earlier one,
//! a directory's entry on a directory only renews its attributes, missing parents appear, a hard link's entry renews the attributes
//! of the file that it is another name of.
//! Whiteouts follow the OCI image-spec, layer.md: `.wh.NAME` becomes a character device 0:0 and
//! `.wh..wh..opq` the attribute `trusted.overlay.opaque`, so that overlayfs stacks layers as they are meant.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;

use super::error::{BuildError, EntryError};
use super::limits::{Limits, MAX_FILE, MAX_SYMLINK};
use super::ondisk::{BLOCK, BLOCK_BITS, FileType, INODE_SIZE, NO_BLOCK, encode_device};
use super::output::{Output, OutputError};
use super::tree::{Attributes, Content, Data, NodeId, Tree, empty, split_path};
use super::xattr::{Outcome, Xattrs};
use crate::tar::{Entry, Kind, Segment, TarError, TarInput, TarReader};

/// Files up to this size are kept behind their inode instead of in blocks of their own.
pub const MAX_TAIL: u64 = 2048;
/// A file gets a chunk map when its holes save at least this much.
const MIN_HOLES: u64 = 64 * 1024;
/// Most entries of a chunk map; larger files get larger chunks.
const MAX_CHUNKS: u64 = 1 << 20;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names with this prefix are aufs's own records.
const AUFS: &[u8] = b".wh..wh.";

/// Takes entries in one by one.
pub struct Layer<'a> {
    pub tree: Tree,
    pub output: Output<'a>,
    tails: BufWriter<&'a File>,
    tails_size: u64,
    limits: Limits,
    data_bytes: u64,
    /// Zeros stored that the archive does not have.
    padding: u64,
    /// Attributes that were left out because they have no form in the image.
    pub dropped_attributes: u64,
    /// Whether names say what is hidden in the layers below.
    pub has_whiteouts: bool,
    /// Whether some file has a chunk map.
    pub has_chunks: bool,
}

/// Whether so many bytes may stand behind an inode: all of it must lie in one block.
pub fn fits_inline(xattr_size: usize, tail: u64) -> bool {
    tail <= MAX_TAIL && INODE_SIZE + xattr_size + tail as usize <= BLOCK
}

/// Lets entries' errors be named by the caller while those of the archive and output pass.
enum Failure {
    Entry(EntryError),
    Build(BuildError),
}

impl From<EntryError> for Failure {
    fn from(error: EntryError) -> Self {
        Self::Entry(error)
    }
}

impl From<TarError> for Failure {
    fn from(error: TarError) -> Self {
        Self::Build(error.into())
    }
}

impl From<OutputError> for Failure {
    fn from(error: OutputError) -> Self {
        Self::Build(BuildError::Output(error.0))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Build(BuildError::Output(error))
    }
}

impl<'a> Layer<'a> {
    /// A layer whose blocks go to `image`, and the data of small files, for now, to `tails`.
    pub fn new(image: &'a File, tails: &'a File, limits: Limits) -> Self {
        Self {
            tree: Tree::new(limits),
            output: Output::new(image),
            tails: BufWriter::with_capacity(128 * 1024, tails),
            tails_size: 0,
            limits,
            data_bytes: 0,
            padding: 0,
            dropped_attributes: 0,
            has_whiteouts: true,
            has_chunks: false,
        }
    }

    /// Flushes the small files' data.
    pub fn finish_tails(&mut self) -> io::Result<()> {
        self.tails.flush()
    }

    /// Takes one entry in, with its data from `reader`.
    pub fn apply<I: TarInput>(&mut self, entry: Entry, reader: &mut TarReader<I>) -> Result<(), BuildError> {
        let path = entry.path.clone();
        self.apply_entry(entry, reader).map_err(|failure| match failure {
            Failure::Entry(source) => BuildError::Entry { path, source },
            Failure::Build(error) => error,
        })
    }

    fn apply_entry<I: TarInput>(&mut self, entry: Entry, reader: &mut TarReader<I>) -> Result<(), Failure> {
        let Entry { path, kind, .. } = &entry;
        let names = split_path(path)?;
        let Some((&name, parents)) = names.split_last() else {
            if *kind != Kind::Directory {
                return Err(EntryError::RootNotADirectory.into());
            }
            let attributes = self.attributes(&entry)?;
            return Ok(self.tree.update_directory(NodeId::ROOT, attributes)?);
        };
        let is_mark = |start: &[u8], name: &[u8]| self.has_whiteouts && name.starts_with(start);
        if names.iter().any(|name| is_mark(AUFS, name) && *name != OPAQUE) {
            return Ok(());
        }
        if is_mark(WHITEOUT, name) && name != WHITEOUT {
            return Ok(self.mark(parents, name)?);
        }
        let parent = self.tree.make_directories(parents)?;
        let attributes = self.attributes(&entry)?;
        if let Kind::HardLink(target) = kind {
            let found = self.hard_link(parent, name, target)?;
            self.tree.update_linked(found, attributes)?;
            return self.move_grown_tail(found);
        }
        if *kind == Kind::Directory {
            return Ok(self.directory(parent, name, attributes)?);
        }
        let content = self.content(&entry, attributes.xattrs.size(), reader)?;
        self.tree.insert(parent, name, attributes, content)?;
        Ok(())
    }

    fn attributes(&mut self, entry: &Entry) -> Result<Attributes, EntryError> {
        let mut xattrs = Xattrs::default();
        self.dropped_attributes += u64::from(entry.unknown_attributes);
        for (name, value) in &entry.xattrs {
            match xattrs.set(name, value).map_err(EntryError::Xattr)? {
                Outcome::Kept => {}
                Outcome::Dropped => self.dropped_attributes += 1,
            }
        }
        let &Entry { mode, uid, gid, mtime, .. } = entry;
        Ok(Attributes { permissions: (mode & 0o7777) as u16, uid, gid, mtime, xattrs })
    }

    fn directory(&mut self, parent: NodeId, name: &[u8], attributes: Attributes) -> Result<(), EntryError> {
        match self.tree.child(parent, name) {
            Some(id) if matches!(self.tree.node(id).content, Content::Directory(_)) => {
                self.tree.update_directory(id, attributes)
            }
            _ => self.tree.insert(parent, name, attributes, empty(parent)).map(|_| ()),
        }
    }

    /// Hides what a mark of this name says. A mark is no file: what this layer hides already stays hidden with all below it.
    fn mark(&mut self, parents: &[&[u8]], name: &[u8]) -> Result<(), EntryError> {
        let Some(parent) = self.tree.directory_to_hide_in(parents)? else { return Ok(()) };
        if name == OPAQUE {
            self.tree.set_opaque(parent);
            return Ok(());
        }
        self.whiteout(parent, name.strip_prefix(WHITEOUT).unwrap_or(name))
    }

    /// Hides `name` in the layers below. What this layer itself has of that name stays, on a clean ground.
    fn whiteout(&mut self, parent: NodeId, name: &[u8]) -> Result<(), EntryError> {
        if matches!(name, b"." | b"..") {
            return Err(EntryError::BadWhiteout);
        }
        match self.tree.child(parent, name) {
            Some(id) => self.tree.set_opaque(id),
            None => {
                self.tree.insert(parent, name, Attributes::default(), Content::Whiteout)?;
            }
        }
        Ok(())
    }

    /// Gives a file another name.
    fn hard_link(&mut self, parent: NodeId, name: &[u8], target: &[u8]) -> Result<NodeId, EntryError> {
        let missing = || EntryError::MissingLink { target: target.to_vec() };
        let is_directory = || EntryError::LinkToDirectory { target: target.to_vec() };
        let names = split_path(target)?;
        let (&last, parents) = names.split_last().ok_or_else(is_directory)?;
        let found = match self.tree.find_directory(parents) {
            Ok(directory) => self.tree.child(directory, last).ok_or_else(missing)?,
            Err(EntryError::MissingTarget) => return Err(missing()),
            Err(other) => return Err(other),
        };
        match self.tree.node(found).content {
            Content::Directory(_) => return Err(is_directory()),
            Content::Whiteout => return Err(missing()),
            _ if self.tree.child(parent, name) == Some(found) => {}
            _ => self.tree.link(parent, name, found)?,
        }
        Ok(found)
    }

    /// Gives a small file blocks of its own if its attributes have grown so that it no longer fits behind its inode.
    fn move_grown_tail(&mut self, id: NodeId) -> Result<(), Failure> {
        let node = self.tree.node(id);
        let Content::Regular(Data::Tail { offset, size }) = node.content else { return Ok(()) };
        if fits_inline(node.attributes.xattrs.size(), u64::from(size)) {
            return Ok(());
        }
        self.tails.flush()?;
        let mut tail = vec![0; usize::from(size)];
        self.tails.get_ref().read_exact_at(&mut tail, offset)?;
        let first = block_number(self.output.end_block()?)?;
        self.output.write(&tail)?;
        self.output.end_block()?;
        self.tree.move_data(id, Data::Blocks { first, size: u64::from(size) });
        Ok(())
    }

    fn content<I: TarInput>(
        &mut self,
        entry: &Entry,
        xattr_size: usize,
        reader: &mut TarReader<I>,
    ) -> Result<Content, Failure> {
        let device = |file_type, major, minor| {
            let number = encode_device(major, minor).ok_or(EntryError::Device { major, minor })?;
            Ok::<_, EntryError>(Content::Device(file_type, number))
        };
        Ok(match &entry.kind {
            Kind::File { size, segments } => {
                if *size > MAX_FILE {
                    return Err(EntryError::FileTooLarge.into());
                }
                Content::Regular(match segments {
                    None if fits_inline(xattr_size, *size) => self.tail(*size, reader)?,
                    None => self.blocks(*size, &[Segment { offset: 0, length: *size }], reader)?,
                    Some(segments) => self.sparse(*size, segments, reader)?,
                })
            }
            Kind::Symlink(target) => {
                if target.is_empty() || target.len() > MAX_SYMLINK || target.contains(&0) {
                    return Err(EntryError::BadSymlink.into());
                }
                self.tree.hold(target.len())?;
                Content::Symlink(target.as_slice().into())
            }
            Kind::CharDevice(major, minor) => device(FileType::CharDevice, *major, *minor)?,
            Kind::BlockDevice(major, minor) => device(FileType::BlockDevice, *major, *minor)?,
            Kind::Fifo => Content::Fifo,
            // The caller has taken these.
            Kind::Directory | Kind::HardLink(_) => return Err(EntryError::EmptyName.into()),
        })
    }

    /// Counts bytes to be stored against [`Limits::data_bytes`].
    fn count_data(&mut self, bytes: u64) -> Result<(), EntryError> {
        self.data_bytes = self.data_bytes.saturating_add(bytes);
        if self.data_bytes > self.limits.data_bytes {
            return Err(EntryError::TooMuchData { limit: self.limits.data_bytes });
        }
        Ok(())
    }

    /// Counts zeros to be stored that the archive, read up to `offset`, does not have. A hole is a few digits there, so the guard
    /// against what unpacks without end sees nothing of them; allowed no more than the archive has, they at most double it.
    fn count_padding(&mut self, zeros: u64, offset: u64) -> Result<(), EntryError> {
        self.padding = self.padding.saturating_add(zeros);
        let limit = self.limits.padding_bytes.max(offset);
        if self.padding > limit { Err(EntryError::TooSparse { limit }) } else { Ok(()) }
    }

    /// A small file: its data waits in the file of tails until inodes are written.
    fn tail<I: TarInput>(&mut self, size: u64, reader: &mut TarReader<I>) -> Result<Data, Failure> {
        self.count_data(size)?;
        let mut buffer = [0; MAX_TAIL as usize];
        let buffer = &mut buffer[..size as usize];
        let mut filled = 0;
        while filled < buffer.len() {
            filled += reader.read_data(&mut buffer[filled..])?;
        }
        self.tails.write_all(buffer)?;
        let offset = self.tails_size;
        self.tails_size += size;
        Ok(Data::Tail { offset, size: size as u16 })
    }

    /// A file in whole blocks, zeros written where it has holes.
    fn blocks<I: TarInput>(
        &mut self,
        size: u64,
        segments: &[Segment],
        reader: &mut TarReader<I>,
    ) -> Result<Data, Failure> {
        self.count_data(size)?;
        let first = block_number(self.output.end_block()?)?;
        let mut at = 0;
        for segment in segments {
            self.output.zeros(segment.offset - at)?;
            self.output.fill(segment.length, |buffer| Ok::<_, Failure>(reader.read_data(buffer)?))?;
            at = segment.offset + segment.length;
        }
        self.output.zeros(size - at)?;
        self.output.end_block()?;
        Ok(Data::Blocks { first, size })
    }

    /// A file with holes: by chunks when that saves something, else in whole blocks.
    fn sparse<I: TarInput>(
        &mut self,
        size: u64,
        segments: &[Segment],
        reader: &mut TarReader<I>,
    ) -> Result<Data, Failure> {
        let bits = (0..).find(|bits| size >> (BLOCK_BITS + bits) < MAX_CHUNKS).unwrap_or(0);
        let chunk = (BLOCK as u64) << bits;
        let touched = touched_bytes(segments, chunk);
        let data = segments.iter().map(|segment| segment.length).sum::<u64>();
        let is_whole = size.saturating_sub(touched) < MIN_HOLES;
        let stored = if is_whole { size } else { touched };
        self.count_padding(stored.saturating_sub(data), reader.offset())?;
        if is_whole {
            return self.blocks(size, segments, reader);
        }
        self.count_data(touched)?;
        self.has_chunks = true;
        let chunks = size.div_ceil(chunk) as usize;
        self.tree.hold(4 * chunks)?;
        let mut map = vec![NO_BLOCK; chunks].into_boxed_slice();
        let mut begin = self.output.end_block()? * BLOCK as u64;
        let mut open: Option<u64> = None;
        for segment in segments {
            let (mut at, end) = (segment.offset, segment.offset + segment.length);
            while at < end {
                let number = at / chunk;
                if open != Some(number) {
                    begin = self.end_chunk(open, begin, chunk, size)?;
                    map[number as usize] = block_number(begin / BLOCK as u64)?;
                    open = Some(number);
                }
                let within = begin + (at - number * chunk);
                self.output.zeros(within - self.output.position())?;
                let piece = end.min((number + 1) * chunk) - at;
                self.output.fill(piece, |buffer| Ok::<_, Failure>(reader.read_data(buffer)?))?;
                at += piece;
            }
        }
        self.end_chunk(open, begin, chunk, size)?;
        Ok(Data::Chunks { size, bits, map })
    }

    /// Fills the open chunk up, the file's last one only to the end of its block. Returns where the next begins.
    fn end_chunk(&mut self, open: Option<u64>, begin: u64, chunk: u64, size: u64) -> io::Result<u64> {
        let Some(number) = open else { return Ok(begin) };
        let length = chunk.min((size - number * chunk).next_multiple_of(BLOCK as u64));
        self.output.zeros(begin + length - self.output.position())?;
        Ok(begin + length)
    }
}

/// Bytes of the chunks that hold data.
fn touched_bytes(segments: &[Segment], chunk: u64) -> u64 {
    let (mut count, mut next) = (0u64, 0);
    for segment in segments.iter().filter(|segment| segment.length > 0) {
        let first = (segment.offset / chunk).max(next);
        let end = (segment.offset + segment.length - 1) / chunk + 1;
        count += end.saturating_sub(first);
        next = next.max(end);
    }
    count.saturating_mul(chunk)
}

/// A block's number, when the format can hold it.
pub fn block_number(block: u64) -> Result<u32, BuildError> {
    u32::try_from(block).ok().filter(|&block| block != NO_BLOCK).ok_or(BuildError::TooLarge)
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        Self::Build(error)
    }
}
