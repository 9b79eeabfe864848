//! Several layers as one tree, by the rules of overlayfs: what pods see, read without mounting anything.
//!
//! Of a name, the uppermost layer that has it decides. Directories of one name are one directory with the attributes of the
//! uppermost, down to the first that hides those below it. Whiteouts hide and are not seen themselves.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

use super::volume::{Attributes, Inode, ReadError, Volume};

/// Most symbolic links followed for one path, as in Linux.
const MAX_LINKS: usize = 40;

/// A file in the tree.
#[derive(Debug, Clone)]
pub struct Node {
    /// The layer that it comes from, and its number there: the same for all names of one file.
    pub id: (usize, u64),
    pub inode: Inode,
    /// Directories of other layers, upper ones first, whose files are also in this one.
    below: Vec<(usize, u64)>,
    /// Whether lower layers are hidden from here on.
    is_closed: bool,
}

/// The tree.
pub struct Merged<'a> {
    /// Uppermost first.
    layers: Vec<Volume<'a>>,
    /// Whether overlayfs's marks are obeyed, or are files like others: so that one layer is seen as it is.
    obeys_marks: bool,
}

/// Why a path leads to no file.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// There is none.
    #[error("{}: no such file in the image", .0.display())]
    Missing(PathBuf),
    /// Symbolic links in a circle.
    #[error("{}: too many levels of symbolic links", .0.display())]
    TooManyLinks(PathBuf),
    /// A layer cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl<'a> Merged<'a> {
    /// What a pod sees of these layers, of which the uppermost is the first.
    pub fn new(layers: Vec<Volume<'a>>) -> Self {
        Self { layers, obeys_marks: true }
    }

    /// One layer with its marks, as it is stacked by overlayfs.
    pub fn single(layer: Volume<'a>) -> Self {
        Self { layers: vec![layer], obeys_marks: false }
    }

    /// The layer that a file comes from.
    pub fn layer(&self, node: &Node) -> &Volume<'a> {
        &self.layers[node.id.0]
    }

    /// What a file has of extended attributes.
    pub fn attributes(&self, node: &Node) -> Result<Attributes, ReadError> {
        let mut attributes = self.layer(node).attributes(&node.inode)?;
        if !self.obeys_marks {
            let marks = std::mem::take(&mut attributes.marks);
            attributes.own.extend(marks);
        }
        Ok(attributes)
    }

    /// The root directory; none if there are no layers.
    pub fn root(&self) -> Result<Option<Node>, ReadError> {
        let mut root = None;
        for (layer, volume) in self.layers.iter().enumerate() {
            self.add(&mut root, (layer, volume.root()))?;
        }
        match root {
            Some(root) if !root.inode.is_directory() => Err(ReadError::Damaged("its root is no directory")),
            root => Ok(root),
        }
    }

    /// The file of a number, without what is below it in other layers.
    pub fn by_id(&self, id: (usize, u64)) -> Result<Node, ReadError> {
        let volume = &self.layers[id.0];
        let inode = volume.inode(id.1)?;
        let is_closed = !inode.is_directory() || (self.obeys_marks && !volume.attributes(&inode)?.marks.is_empty());
        Ok(Node { id, inode, below: Vec::new(), is_closed })
    }

    /// Puts a file under those of its name in upper layers.
    fn add(&self, upper: &mut Option<Node>, id: (usize, u64)) -> Result<(), ReadError> {
        match upper {
            None => *upper = Some(self.by_id(id)?),
            Some(upper) if upper.is_closed => {}
            Some(upper) => {
                let lower = self.by_id(id)?;
                upper.is_closed = lower.is_closed;
                if lower.inode.is_directory() {
                    upper.below.push(id);
                }
            }
        }
        Ok(())
    }

    /// What is in a directory, sorted by name.
    pub fn children(&self, directory: &Node) -> Result<Vec<(Vec<u8>, Node)>, ReadError> {
        let mut names: BTreeMap<Vec<u8>, Option<Node>> = BTreeMap::new();
        for &(layer, nid) in std::iter::once(&directory.id).chain(&directory.below) {
            let volume = &self.layers[layer];
            for (name, nid) in volume.entries(&volume.inode(nid)?)? {
                match names.entry(name) {
                    Entry::Vacant(entry) => self.add(entry.insert(None), (layer, nid))?,
                    // A directory that is in two layers, or something that is hidden.
                    Entry::Occupied(mut entry) => self.add(entry.get_mut(), (layer, nid))?,
                }
            }
        }
        let is_seen = |node: &Node| !self.obeys_marks || !node.inode.is_whiteout();
        Ok(names.into_iter().filter_map(|(name, node)| Some((name, node.filter(is_seen)?))).collect())
    }

    /// The file of a path. Symbolic links on the way are followed within the tree, one at its end is not.
    pub fn find(&self, path: &Path) -> Result<Node, FindError> {
        use std::os::unix::ffi::OsStrExt;
        let missing = || FindError::Missing(path.to_owned());
        let names = |path: &[u8]| path.split(|&byte| byte == b'/').rev().map(<[u8]>::to_vec).collect::<Vec<_>>();
        let mut pending = names(path.as_os_str().as_bytes());
        let mut way = vec![self.root()?.ok_or_else(missing)?];
        let mut links = 0;
        while let Some(name) = pending.pop() {
            let Some(at) = way.last() else { return Err(missing()) };
            match name.as_slice() {
                b"" | b"." => continue,
                b".." if way.len() > 1 => drop(way.pop()),
                b".." => {}
                _ if !at.inode.is_directory() => return Err(missing()),
                name => {
                    let child = self.children(at)?.into_iter().find(|(other, _)| other == name);
                    let (_, child) = child.ok_or_else(missing)?;
                    if child.inode.kind() != rustix::fs::FileType::Symlink || pending.is_empty() {
                        way.push(child);
                        continue;
                    }
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(FindError::TooManyLinks(path.to_owned()));
                    }
                    let target = self.layer(&child).target(&child.inode)?;
                    if target.starts_with(b"/") {
                        way.truncate(1);
                    }
                    pending.extend(names(&target));
                }
            }
        }
        way.pop().ok_or_else(missing)
    }
}
