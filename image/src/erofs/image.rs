//! From the tree to the rest of the image: directories, inodes, superblock.
//!
//! The image is laid out as it is written: block 0 (last of all), file data, directories' blocks, inodes.
//! Inodes come in the archive's order, the root first, each followed by its attributes and, for
//! small files, links and directories, by its data.

use std::fs::File;
use std::io::{self, Read, Seek};

use super::dirents::{self, Dirent};
use super::error::BuildError;
use super::layer::{Layer, block_number, fits_inline};
use super::ondisk::{BLOCK, FEATURE_CHUNKED_FILE, FileType, INODE_SIZE, Inode, Layout, NO_BLOCK, SLOT, Superblock};
use super::tree::{Content, Data, Directory, Node, NodeId, Tree};
use super::xattr::Xattrs;
use crate::digest::Digest;

/// Where the first inode lies in the metadata area. Not at its start: some programs hide inode number 0.
const FIRST_INODE: u64 = 64;

/// Where a node's parts come to lie.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    /// Byte offset of the inode in the metadata area.
    inode: u64,
    /// First block of a directory or long link that does not stand behind its inode.
    block: Option<u32>,
    /// Size of a directory's data.
    directory_size: u64,
    /// Directories in a directory, for its link count.
    subdirectories: u32,
}

impl Place {
    fn nid(&self) -> u64 {
        self.inode / SLOT
    }
}

/// The image's size in bytes and digest.
pub struct Finished {
    pub size: u64,
    pub digest: Digest,
    pub inodes: u64,
}

/// Writes all that comes after the files' data. `tails` is what `layer` wrote small files to.
pub fn finish(mut layer: Layer<'_>, mut tails: &File) -> Result<Finished, BuildError> {
    layer.finish_tails().map_err(BuildError::Output)?;
    tails.rewind().map_err(BuildError::Output)?;
    let first_block = layer.output.end_block().map_err(BuildError::Output)?;
    let (places, meta_block) = plan(&layer.tree, first_block)?;
    write_blocks(&mut layer, &places).map_err(BuildError::Output)?;
    let tails = io::BufReader::with_capacity(128 * 1024, tails);
    let inodes = write_inodes(&mut layer, &places, meta_block, tails).map_err(BuildError::Output)?;
    let blocks = block_number(layer.output.end_block().map_err(BuildError::Output)?)?;
    let root_nid = (FIRST_INODE / SLOT) as u16;
    let incompatible_features = if layer.has_chunks { FEATURE_CHUNKED_FILE } else { 0 };
    let first = |content: Digest| {
        let uuid = uuid_of(&content);
        let superblock = Superblock { root_nid, inodes, blocks, meta_block, uuid, incompatible_features };
        superblock.encode_block()
    };
    let digest = layer.output.finish(first).map_err(BuildError::Output)?;
    Ok(Finished { size: u64::from(blocks) * BLOCK as u64, digest, inodes })
}

/// A UUID of version 8 (RFC 9562) from the content's digest, so that equal content makes equal images.
fn uuid_of(content: &Digest) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&content.bytes()[..16]);
    uuid[6] = (uuid[6] & 0x0f) | 0x80;
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
    uuid
}

/// The attributes a node is written with: its own, and overlayfs's mark.
fn xattrs_of(node: &Node) -> Xattrs {
    let mut xattrs = node.attributes.xattrs.clone();
    if let Content::Directory(Directory { opaque: true, .. }) = node.content {
        xattrs.set_opaque();
    }
    xattrs
}

/// Bytes that stand behind a node's inode and attributes, and whether they must share its block.
fn behind_inode(node: &Node, xattr_size: usize, directory_size: u64) -> (u64, bool) {
    match &node.content {
        Content::Regular(Data::Tail { size, .. }) => (u64::from(*size), true),
        Content::Regular(Data::Chunks { map, .. }) => (4 * map.len() as u64, false),
        Content::Symlink(target) if fits_inline(xattr_size, target.len() as u64) => (target.len() as u64, true),
        Content::Directory(_) if fits_inline(xattr_size, directory_size) => (directory_size, true),
        _ => (0, false),
    }
}

/// Decides where all directories' blocks and inodes lie. Returns the metadata area's first block too.
fn plan(tree: &Tree, first_block: u64) -> Result<(Vec<Place>, u32), BuildError> {
    let mut places = vec![Place::default(); tree.capacity()];
    let (mut next_block, mut next_inode) = (first_block, FIRST_INODE);
    for (id, node) in tree.live() {
        let place = &mut places[id.index()];
        let xattr_size = xattrs_of(node).size();
        let mut block_bytes = match &node.content {
            Content::Symlink(target) => target.len() as u64,
            Content::Directory(directory) => {
                let names = names_with_dots(directory);
                let is_directory = |id: &NodeId| matches!(tree.node(*id).content, Content::Directory(_));
                place.subdirectories = directory.children.values().filter(|id| is_directory(id)).count() as u32;
                place.directory_size = dirents::size(&names);
                place.directory_size
            }
            _ => 0,
        };
        let (behind, in_block) = behind_inode(node, xattr_size, place.directory_size);
        if in_block {
            block_bytes = 0;
        }
        if block_bytes > 0 {
            place.block = Some(block_number(next_block)?);
            next_block += block_bytes.div_ceil(BLOCK as u64);
        }
        let whole = INODE_SIZE as u64 + xattr_size as u64 + behind;
        let unbroken = if in_block { whole } else { INODE_SIZE as u64 };
        place.inode = next_inode.next_multiple_of(SLOT);
        if place.inode % BLOCK as u64 + unbroken > BLOCK as u64 {
            place.inode = place.inode.next_multiple_of(BLOCK as u64);
        }
        next_inode = place.inode + whole;
    }
    block_number(next_block + next_inode.div_ceil(BLOCK as u64))?;
    Ok((places, block_number(next_block)?))
}

/// A directory's names in the order they are written.
fn names_with_dots(directory: &Directory) -> Vec<&[u8]> {
    let mut names: Vec<&[u8]> = vec![b".", b".."];
    names.extend(directory.children.keys().map(|name| &name[..]));
    names.sort_unstable();
    names
}

/// The bytes of a directory.
fn encode_directory(tree: &Tree, places: &[Place], id: NodeId, directory: &Directory) -> Vec<u8> {
    let entry = |name, id: NodeId| Dirent { name, nid: places[id.index()].nid(), file_type: file_type(tree.node(id)) };
    let mut entries = vec![entry(&b"."[..], id), entry(&b".."[..], directory.parent)];
    entries.extend(directory.children.iter().map(|(name, &id)| entry(name, id)));
    entries.sort_unstable_by_key(|entry| entry.name);
    dirents::encode(&entries)
}

fn file_type(node: &Node) -> FileType {
    match &node.content {
        Content::Directory(_) => FileType::Directory,
        Content::Regular(_) => FileType::Regular,
        Content::Symlink(_) => FileType::Symlink,
        Content::Device(file_type, _) => *file_type,
        Content::Fifo => FileType::Fifo,
        // Removed nodes are never written.
        Content::Whiteout | Content::Removed => FileType::CharDevice,
    }
}

/// Writes directories and links that have blocks of their own.
fn write_blocks(layer: &mut Layer<'_>, places: &[Place]) -> io::Result<()> {
    let Layer { tree, output, .. } = layer;
    for (id, node) in tree.live().filter(|(id, _)| places[id.index()].block.is_some()) {
        match &node.content {
            Content::Directory(directory) => {
                output.write(&encode_directory(tree, places, id, directory))?;
            }
            Content::Symlink(target) => output.write(target)?,
            _ => {}
        }
        output.end_block()?;
    }
    Ok(())
}

/// Writes the metadata area. Returns the number of inodes.
fn write_inodes(
    layer: &mut Layer<'_>,
    places: &[Place],
    meta_block: u32,
    mut tails: io::BufReader<&File>,
) -> io::Result<u64> {
    let start = u64::from(meta_block) * BLOCK as u64;
    let Layer { tree, output, .. } = layer;
    let (mut count, mut tails_at) = (0u32, 0);
    for (id, node) in tree.live() {
        let place = &places[id.index()];
        count += 1;
        output.zeros(start + place.inode - output.position())?;
        let xattrs = xattrs_of(node);
        let inode = inode_of(node, place, xattrs.size(), count);
        output.write(&inode.encode()?)?;
        output.write(&xattrs.encode())?;
        match &node.content {
            Content::Directory(directory) if place.block.is_none() => {
                output.write(&encode_directory(tree, places, id, directory))?;
            }
            Content::Symlink(target) if place.block.is_none() => output.write(target)?,
            Content::Regular(Data::Chunks { map, .. }) => {
                for block in map {
                    output.write(&block.to_le_bytes())?;
                }
            }
            Content::Regular(Data::Tail { offset, size }) => {
                // Tails come in the order of nodes; those of files replaced later are passed over.
                tails.seek_relative((offset - tails_at).cast_signed())?;
                let mut tail = vec![0; usize::from(*size)];
                tails.read_exact(&mut tail)?;
                tails_at = offset + u64::from(*size);
                output.write(&tail)?;
            }
            _ => {}
        }
    }
    Ok(u64::from(count))
}

/// The inode of a node.
fn inode_of(node: &Node, place: &Place, xattr_size: usize, number: u32) -> Inode {
    let attributes = &node.attributes;
    let from_block = |size: u64| match place.block {
        Some(block) => (Layout::Plain, size, block),
        None => (Layout::Inline, size, NO_BLOCK),
    };
    let (layout, size, union) = match &node.content {
        Content::Directory(_) => from_block(place.directory_size),
        Content::Symlink(target) => from_block(target.len() as u64),
        Content::Regular(Data::Tail { size: 0, .. }) => (Layout::Plain, 0, NO_BLOCK),
        Content::Regular(Data::Tail { size, .. }) => (Layout::Inline, u64::from(*size), NO_BLOCK),
        Content::Regular(Data::Blocks { first, size }) => (Layout::Plain, *size, *first),
        Content::Regular(Data::Chunks { size, bits, .. }) => (Layout::Chunks(*bits), *size, *bits),
        Content::Device(_, device) => (Layout::Plain, 0, *device),
        Content::Fifo | Content::Whiteout | Content::Removed => (Layout::Plain, 0, 0),
    };
    let links = match &node.content {
        Content::Directory(_) => 2 + place.subdirectories,
        _ => node.links,
    };
    Inode {
        layout,
        file_type: file_type(node),
        permissions: attributes.permissions,
        xattr_size,
        size,
        union,
        number,
        uid: attributes.uid,
        gid: attributes.gid,
        mtime: attributes.mtime,
        links,
    }
}
