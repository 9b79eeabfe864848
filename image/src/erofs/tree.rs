//! The file tree of one layer in memory: all but file data.
//!
//! Names are walked only in here, never on the host, so nothing an archive says can lead out: `..` is
//! refused in names, and symbolic links in the middle of a path are followed within the tree, as a process whose
//! root it is would follow them.

use std::collections::BTreeMap;

use super::error::EntryError;
use super::limits::{Limits, MAX_NAME, MAX_PATH};
use super::ondisk::FileType;
use super::xattr::{CAPABILITIES, Xattrs};
use crate::tar::Timestamp;

/// Most names walked for one path, those of symbolic links included.
const MAX_STEPS: usize = 4096;
/// Most names walked for all paths of a layer together: thirty times what the largest images in use need.
const MAX_WALKED: u64 = 1 << 27;
/// Most symbolic links followed for one path, as in Linux.
const MAX_LINKS: usize = 40;
/// About what a name takes in memory beside its bytes: its place in the directory's map, and what the allocator adds.
const NAME_COST: usize = 64;

/// Number of a node, in order of creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeId(u32);

impl NodeId {
    pub const ROOT: Self = Self(0);

    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What all kinds of files have.
#[derive(Debug, Clone, Default)]
pub struct Attributes {
    pub permissions: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    pub xattrs: Xattrs,
}

/// Where a regular file's data was put.
#[derive(Debug, Clone)]
pub enum Data {
    /// Small: in the file of tails, at this offset.
    Tail { offset: u64, size: u16 },
    /// In whole blocks from this one on.
    Blocks { first: u32, size: u64 },
    /// In chunks, some of them holes: their power of two in blocks and their addresses.
    Chunks { size: u64, bits: u32, map: Box<[u32]> },
}

/// What a node is.
#[derive(Debug)]
pub enum Content {
    Directory(Directory),
    Regular(Data),
    Symlink(Box<[u8]>),
    /// A device and its number in encoded form.
    Device(FileType, u32),
    Fifo,
    /// Hides what has this name in the layers below.
    Whiteout,
    /// No longer in the tree.
    Removed,
}

/// A directory's own part.
#[derive(Debug)]
pub struct Directory {
    pub children: BTreeMap<Box<[u8]>, NodeId>,
    pub parent: NodeId,
    /// Bytes of its path from the root, whatever links led to it.
    pub path_length: usize,
    /// Hides the directory of this name in the layers below.
    pub opaque: bool,
}

/// A file of any kind.
#[derive(Debug)]
pub struct Node {
    pub attributes: Attributes,
    pub content: Content,
    /// Names it has; directories count one.
    pub links: u32,
}

/// What a walk does where its way is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Walk {
    /// It ends.
    Find,
    /// It makes what is missing, also in place of what is hidden.
    Make,
    /// It makes what is missing, but what is hidden stays so.
    Hide,
}

/// The tree.
pub struct Tree {
    nodes: Vec<Node>,
    limits: Limits,
    /// Bytes held, as [`Limits::metadata_bytes`] counts them.
    held: u64,
    implied: u64,
    /// Names ever given, that of the root included.
    names: u32,
    /// Names walked so far.
    walked: u64,
}

impl Tree {
    pub fn new(limits: Limits) -> Self {
        let root = Node { attributes: implied_attributes(), content: empty(NodeId::ROOT), links: 1 };
        Self { nodes: vec![root], limits, held: 0, implied: 0, names: 1, walked: 0 }
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// All nodes that are in the tree, the root first, then by creation.
    pub fn live(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        let ids = (0u32..).map(NodeId);
        ids.zip(&self.nodes).filter(|(_, node)| !matches!(node.content, Content::Removed))
    }

    /// Nodes ever made, the size of tables indexed by node.
    pub fn capacity(&self) -> usize {
        self.nodes.len()
    }

    /// Directories that had no entry of their own, only entries below them.
    pub fn implied(&self) -> u64 {
        self.implied
    }

    /// Counts bytes against [`Limits::metadata_bytes`].
    pub fn hold(&mut self, bytes: usize) -> Result<(), EntryError> {
        self.held += bytes as u64;
        if self.held > self.limits.metadata_bytes {
            return Err(EntryError::TooMuchMetadata { limit: self.limits.metadata_bytes });
        }
        Ok(())
    }

    fn directory(&self, id: NodeId) -> Option<&Directory> {
        match &self.node(id).content {
            Content::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    /// Counts a name against [`Limits::entries`], and its bytes.
    fn count_name(&mut self, name: &[u8]) -> Result<(), EntryError> {
        if self.names >= self.limits.entries {
            return Err(EntryError::TooManyEntries { limit: self.limits.entries });
        }
        self.names += 1;
        self.hold(name.len() + NAME_COST)
    }

    /// What `name` in `parent` is.
    pub fn child(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        self.directory(parent)?.children.get(name).copied()
    }

    /// Walks to a directory, making what is missing.
    pub fn make_directories(&mut self, path: &[&[u8]]) -> Result<NodeId, EntryError> {
        self.walk(path, Walk::Make)
    }

    /// Walks to a directory in which something is to be hidden, making what is missing. `None` where a file is in the way, or what
    /// is hidden itself: below that is nothing more to hide.
    pub fn directory_to_hide_in(&mut self, path: &[&[u8]]) -> Result<Option<NodeId>, EntryError> {
        match self.walk(path, Walk::Hide) {
            Err(EntryError::NotADirectory { .. }) => Ok(None),
            found => found.map(Some),
        }
    }

    /// Walks to a directory that must be there.
    pub fn find_directory(&mut self, path: &[&[u8]]) -> Result<NodeId, EntryError> {
        self.walk(path, Walk::Find)
    }

    fn walk(&mut self, path: &[&[u8]], walk: Walk) -> Result<NodeId, EntryError> {
        let mut pending: Vec<Box<[u8]>> = path.iter().rev().map(|&name| name.into()).collect();
        let (mut at, mut links, mut steps) = (NodeId::ROOT, 0, 0);
        while let Some(name) = pending.pop() {
            steps += 1;
            if steps > MAX_STEPS {
                return Err(EntryError::TooManyLinks);
            }
            self.walked += 1;
            if self.walked > MAX_WALKED {
                return Err(EntryError::TooMuchWalking);
            }
            if *name == *b".." {
                at = self.directory(at).map_or(NodeId::ROOT, |directory| directory.parent);
                continue;
            }
            let child = match self.child(at, &name) {
                Some(child) => child,
                None if walk == Walk::Find => return Err(EntryError::MissingTarget),
                None => self.make_implied(at, &name)?,
            };
            match &self.node(child).content {
                Content::Directory(_) => at = child,
                Content::Symlink(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(EntryError::TooManyLinks);
                    }
                    if target.starts_with(b"/") {
                        at = NodeId::ROOT;
                    }
                    let names = target.split(|&b| b == b'/').rev();
                    pending.extend(names.filter(|n| !matches!(*n, b"" | b".")).map(Box::from));
                }
                Content::Whiteout if walk == Walk::Make => {
                    // What is hidden below and then made anew starts empty.
                    at = self.make_implied(at, &name)?;
                }
                _ => return Err(EntryError::NotADirectory { name: name.into() }),
            }
        }
        Ok(at)
    }

    fn make_implied(&mut self, parent: NodeId, name: &[u8]) -> Result<NodeId, EntryError> {
        check_name(name)?;
        self.implied += 1;
        self.insert(parent, name, implied_attributes(), empty(parent))
    }

    /// Puts a new node into a directory, in place of what had the name.
    pub fn insert(
        &mut self,
        parent: NodeId,
        name: &[u8],
        attributes: Attributes,
        content: Content,
    ) -> Result<NodeId, EntryError> {
        self.hold(attributes.xattrs.size())?;
        let path_length = self.path_length(parent, name)?;
        let over_whiteout =
            self.child(parent, name).is_some_and(|old| matches!(self.node(old).content, Content::Whiteout));
        let mut node = Node { attributes, content, links: 0 };
        if let Content::Directory(directory) = &mut node.content {
            directory.path_length = path_length;
            directory.opaque |= over_whiteout;
        }
        // Each node comes with a name of its own, so there are no more of them than of names.
        let id = NodeId(self.nodes.len() as u32);
        self.nodes.push(node);
        self.link(parent, name, id)?;
        Ok(id)
    }

    /// Length of the path of `name` in `parent`: by way of links it could become longer than any path may be.
    fn path_length(&self, parent: NodeId, name: &[u8]) -> Result<usize, EntryError> {
        let above = self.directory(parent).map_or(0, |directory| directory.path_length);
        let length = if above == 0 { name.len() } else { above + 1 + name.len() };
        if length > MAX_PATH { Err(EntryError::PathTooLong) } else { Ok(length) }
    }

    /// Gives a node a name, in place of what had it.
    pub fn link(&mut self, parent: NodeId, name: &[u8], id: NodeId) -> Result<(), EntryError> {
        self.path_length(parent, name)?;
        self.count_name(name)?;
        self.nodes[id.index()].links += 1;
        let old = match &mut self.nodes[parent.index()].content {
            Content::Directory(directory) => directory.children.insert(name.into(), id),
            _ => return Err(EntryError::NotADirectory { name: name.into() }),
        };
        if let Some(old) = old {
            self.unlink(old);
        }
        Ok(())
    }

    /// Takes one name from a node, and with the last one the node and all below it.
    fn unlink(&mut self, id: NodeId) {
        let mut pending = vec![id];
        while let Some(id) = pending.pop() {
            let node = &mut self.nodes[id.index()];
            node.links -= 1;
            if node.links > 0 {
                continue;
            }
            node.attributes.xattrs = Xattrs::default();
            if let Content::Directory(directory) = std::mem::replace(&mut node.content, Content::Removed) {
                pending.extend(directory.children.into_values());
            }
        }
    }

    /// Gives an existing directory new attributes.
    pub fn update_directory(&mut self, id: NodeId, attributes: Attributes) -> Result<(), EntryError> {
        self.hold(attributes.xattrs.size())?;
        self.nodes[id.index()].attributes = attributes;
        Ok(())
    }

    /// Gives a file what the entry of another name of it says, as setting it by that name would. Links have no mode on Linux, and
    /// podman leaves their time as it is.
    pub fn update_linked(&mut self, id: NodeId, attributes: Attributes) -> Result<(), EntryError> {
        self.hold(attributes.xattrs.size())?;
        let Node { attributes: old, content, .. } = &mut self.nodes[id.index()];
        if (old.uid, old.gid) != (attributes.uid, attributes.gid) {
            // With a new owner, Linux takes a file's capabilities away.
            old.xattrs.remove(CAPABILITIES);
        }
        (old.uid, old.gid) = (attributes.uid, attributes.gid);
        if !matches!(content, Content::Symlink(_)) {
            (old.permissions, old.mtime) = (attributes.permissions, attributes.mtime);
        }
        old.xattrs.merge(attributes.xattrs).map_err(EntryError::Xattr)
    }

    /// Says where a file's data is now.
    pub fn move_data(&mut self, id: NodeId, data: Data) {
        self.nodes[id.index()].content = Content::Regular(data);
    }

    /// Makes a directory hide those of its name in the layers below.
    pub fn set_opaque(&mut self, id: NodeId) {
        if let Content::Directory(directory) = &mut self.nodes[id.index()].content {
            directory.opaque = true;
        }
    }
}

/// A directory without children.
pub fn empty(parent: NodeId) -> Content {
    Content::Directory(Directory { children: BTreeMap::new(), parent, path_length: 0, opaque: false })
}

/// What a directory gets that has no entry of its own.
fn implied_attributes() -> Attributes {
    Attributes { permissions: 0o755, ..Attributes::default() }
}

fn check_name(name: &[u8]) -> Result<(), EntryError> {
    if name.len() > MAX_NAME {
        return Err(EntryError::NameTooLong);
    }
    if name.contains(&0) {
        return Err(EntryError::NulInName);
    }
    Ok(())
}

/// The components of an entry's path: a leading slash and `.` are passed over, `..` is refused.
pub fn split_path(path: &[u8]) -> Result<Vec<&[u8]>, EntryError> {
    if path.is_empty() {
        return Err(EntryError::EmptyName);
    }
    if path.len() > MAX_PATH {
        return Err(EntryError::PathTooLong);
    }
    let names = path.split(|&b| b == b'/').filter(|name| !matches!(*name, b"" | b"."));
    names
        .map(|name| match name {
            b".." => Err(EntryError::ParentInPath),
            name => check_name(name).map(|()| name),
        })
        .collect()
}
