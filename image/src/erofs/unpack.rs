//! Writes layers into a directory: for hosts that cannot mount them, and for users who want the files.
//!
//! The directory's own path is the caller's affair. Below it, every name is made in a directory that is opened anew from the
//! top, symbolic links forbidden (openat2(2)), so that neither what an image holds nor who else can write there leads out.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::merge::{Merged, Node};
use super::volume::{Inode, ReadError, Volume};

/// Most bytes copied at once.
const PIECE: usize = 1 << 20;
/// Nobody but this process sees a file before it has its own mode.
const MODE_WHILE_MADE: Mode = Mode::RWXU;

/// Why files were not unpacked. What was unpacked so far is left.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// A layer cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A file could not be made as it should be.
    #[error("{path:?}: {what}: {source}")]
    Io {
        /// Its path in the image.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// An owner that this user has no ID for.
    #[error(
        "{path:?} belongs to user {uid} and group {gid}, which are not among this user's IDs; give the user more in /etc/subuid and /etc/subgid"
    )]
    Owner {
        /// Its path in the image.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
    },
}

type Result<T> = std::result::Result<T, UnpackError>;

/// What to do about files whose owner this process cannot set, or whose attributes the file system does not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// Fail: a pod would not work.
    Whole,
    /// Make them as well as it goes, and count them.
    AsFarAsPossible,
}

/// What an image has and the copy has not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Losses {
    /// Files that belong to whoever unpacked them; set-user-ID and set-group-ID are off.
    pub owners: Loss,
    /// Device nodes that are not there.
    pub devices: Loss,
    /// Extended attributes that are not set, ACLs and file capabilities among them.
    pub attributes: Loss,
}

/// So many of a kind, the first of them by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loss {
    /// How many.
    pub count: u64,
    /// The path of the first, in the image.
    pub first: Option<PathBuf>,
}

impl Loss {
    fn add(&mut self, path: impl FnOnce() -> PathBuf) {
        self.count += 1;
        self.first.get_or_insert_with(path);
    }
}

/// Unpacks one layer with overlayfs's marks into `directory`, which must be empty; it becomes the layer's root directory.
///
/// Devices are left out where the process may make none, but for whiteouts, which everybody may make.
///
/// # Errors
/// [`UnpackError`].
pub fn unpack(image: &File, directory: &Path) -> Result<()> {
    let tree = Merged::single(Volume::open(image)?);
    let at = File::open(directory).map_err(|source| io_error(PathBuf::from("/"), "open", source))?;
    let Some(root) = tree.root()? else { return Ok(()) };
    unpack_directory(&tree, root, at.as_fd(), Strictness::Whole).map(drop)
}

/// Makes the empty directory that is open as `place` what the directory `from` of a tree is, with all below it.
///
/// # Errors
/// [`UnpackError`].
pub fn unpack_directory(
    tree: &Merged<'_>,
    from: Node,
    place: BorrowedFd<'_>,
    strictness: Strictness,
) -> Result<Losses> {
    let mut unpacker = Unpacker::new(tree, place, strictness)?;
    unpacker.directories.push(Directory { parent: 0, name: Vec::new(), id: from.id });
    unpacker.seen.insert(from.id);
    let mut pending = vec![(0, from)];
    while let Some((number, node)) = pending.pop() {
        unpacker.fill(number, &node, &mut pending)?;
    }
    // Those inside come first: one that is closed to its owner could not be gone through.
    for number in (0..unpacker.directories.len()).rev() {
        unpacker.dress_directory(number)?;
    }
    Ok(unpacker.losses)
}

/// Makes a file that is no directory, as `name` in the directory that is open as `place`.
///
/// # Errors
/// [`UnpackError`]; one is that the name is there.
pub fn unpack_file(
    tree: &Merged<'_>,
    file: &Node,
    place: BorrowedFd<'_>,
    name: &OsStr,
    strictness: Strictness,
) -> Result<Losses> {
    let mut unpacker = Unpacker::new(tree, place, strictness)?;
    unpacker.directories.push(Directory { parent: 0, name: Vec::new(), id: file.id });
    let directory = unpacker.open_directory(0)?;
    unpacker.make_file(0, &directory, name.as_bytes(), file)?;
    Ok(unpacker.losses)
}

fn io_error(path: PathBuf, what: &'static str, source: io::Error) -> UnpackError {
    UnpackError::Io { path, what, source }
}

/// A directory that has been made.
struct Directory {
    /// Number of the one it is in; the first is in none.
    parent: usize,
    name: Vec<u8>,
    id: (usize, u64),
}

struct Unpacker<'a> {
    tree: &'a Merged<'a>,
    root: OwnedFd,
    strictness: Strictness,
    directories: Vec<Directory>,
    /// Each directory has one place.
    seen: HashSet<(usize, u64)>,
    /// The first name of each file with several, and the directory it is in.
    links: HashMap<(usize, u64), (usize, Vec<u8>)>,
    losses: Losses,
}

impl<'a> Unpacker<'a> {
    fn new(tree: &'a Merged<'a>, place: BorrowedFd<'_>, strictness: Strictness) -> Result<Self> {
        let root = place.try_clone_to_owned().map_err(|source| io_error(PathBuf::from("/"), "open", source))?;
        Ok(Self {
            tree,
            root,
            strictness,
            directories: Vec::new(),
            seen: HashSet::new(),
            links: HashMap::new(),
            losses: Losses::default(),
        })
    }

    /// A directory's path below the root; empty for the root itself.
    fn path(&self, mut number: usize) -> PathBuf {
        let mut names = Vec::new();
        while number != 0 {
            names.push(OsStr::from_bytes(&self.directories[number].name));
            number = self.directories[number].parent;
        }
        names.into_iter().rev().collect()
    }

    /// A file's path in messages.
    fn shown(&self, directory: usize, name: &[u8]) -> PathBuf {
        let path = Path::new("/").join(self.path(directory));
        // To join nothing would end it with a slash.
        if name.is_empty() { path } else { path.join(OsStr::from_bytes(name)) }
    }

    fn failed(&self, directory: usize, name: &[u8], what: &'static str) -> impl Fn(Errno) -> UnpackError {
        let path = self.shown(directory, name);
        move |errno| io_error(path.clone(), what, errno.into())
    }

    fn open_directory(&self, number: usize) -> Result<OwnedFd> {
        let path = match self.path(number) {
            path if path.as_os_str().is_empty() => PathBuf::from("."),
            path => path,
        };
        let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat2(&self.root, &path, flags, Mode::empty(), inside).map_err(self.failed(
            number,
            b"",
            "open the directory",
        ))
    }

    /// Makes what is in a directory; its directories are filled later.
    fn fill(&mut self, number: usize, node: &Node, pending: &mut Vec<(usize, Node)>) -> Result<()> {
        let directory = self.open_directory(number)?;
        for (name, child) in self.tree.children(node)? {
            if !child.inode.is_directory() {
                self.make_file(number, &directory, &name, &child)?;
                continue;
            }
            if !self.seen.insert(child.id) {
                return Err(ReadError::Damaged("a directory is in two places").into());
            }
            rustix::fs::mkdirat(&directory, name.as_slice(), MODE_WHILE_MADE).map_err(self.failed(
                number,
                &name,
                "make the directory",
            ))?;
            self.directories.push(Directory { parent: number, name, id: child.id });
            pending.push((self.directories.len() - 1, child));
        }
        Ok(())
    }

    /// Makes a file of another kind with all that belongs to it.
    fn make_file(&mut self, number: usize, directory: &OwnedFd, name: &[u8], node: &Node) -> Result<()> {
        if let Some((first, first_name)) = self.links.get(&node.id) {
            let from = self.open_directory(*first)?;
            return rustix::fs::linkat(&from, first_name.as_slice(), directory, name, AtFlags::empty())
                .map_err(self.failed(number, name, "link"));
        }
        let inode = &node.inode;
        match inode.kind() {
            FileType::RegularFile => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(directory, name, flags, MODE_WHILE_MADE).map_err(self.failed(
                    number,
                    name,
                    "make the file",
                ))?;
                let file = File::from(file);
                self.copy(node, &file, |source| io_error(self.shown(number, name), "write", source))?;
                self.dress(number, name, &file.into(), node)?;
            }
            FileType::Symlink => {
                let target = self.tree.layer(node).target(inode)?;
                rustix::fs::symlinkat(target.as_slice(), directory, name).map_err(self.failed(
                    number,
                    name,
                    "make the link",
                ))?;
                self.dress_by_name(number, directory, name, node)?;
            }
            kind @ (FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo | FileType::Socket) => {
                let (major, minor) = inode.device();
                let device = rustix::fs::makedev(major, minor);
                match rustix::fs::mknodat(directory, name, kind, inode.permissions(), device) {
                    Err(Errno::PERM) => {
                        let path = self.shown(number, name);
                        self.losses.devices.add(|| path);
                        return Ok(());
                    }
                    other => other.map_err(self.failed(number, name, "make the device"))?,
                }
                self.dress_by_name(number, directory, name, node)?;
            }
            _ => return Err(ReadError::Damaged("a file is of no known kind").into()),
        }
        if inode.links > 1 {
            self.links.insert(node.id, (number, name.to_vec()));
        }
        Ok(())
    }

    fn dress_directory(&mut self, number: usize) -> Result<()> {
        let directory = self.open_directory(number)?;
        let id = self.directories[number].id;
        let node = self.tree.by_id(id)?;
        self.dress(number, b"", &directory, &node)
    }

    /// Gives what is open its owner, attributes, mode and time: the mode after the owner, whose change takes set-user-ID away,
    /// and the time last.
    fn dress(&mut self, number: usize, name: &[u8], file: &OwnedFd, node: &Node) -> Result<()> {
        let inode = &node.inode;
        let changed = rustix::fs::fchown(file, Some(uid(inode)), Some(gid(inode)));
        let is_own = self.owner_set(changed, number, name, inode)?;
        for (attribute, value) in self.tree.attributes(node)?.own {
            let set = rustix::fs::fsetxattr(file, attribute.as_slice(), &value, XattrFlags::empty());
            self.attribute_set(set, number, name, &attribute)?;
        }
        let mode = permissions(inode, is_own);
        rustix::fs::fchmod(file, mode).map_err(self.failed(number, name, "set the mode"))?;
        rustix::fs::futimens(file, &times(inode)).map_err(self.failed(number, name, "set the time"))
    }

    /// As [`Self::dress`] of what is not to be opened: links, devices, pipes.
    fn dress_by_name(&mut self, number: usize, directory: &OwnedFd, name: &[u8], node: &Node) -> Result<()> {
        let inode = &node.inode;
        let follow_none = AtFlags::SYMLINK_NOFOLLOW;
        let changed = rustix::fs::chownat(directory, name, Some(uid(inode)), Some(gid(inode)), follow_none);
        let is_own = self.owner_set(changed, number, name, inode)?;
        let through = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(OsStr::from_bytes(name));
        for (attribute, value) in self.tree.attributes(node)?.own {
            // Linux shows and takes those of users on files and directories alone (xattr(7)).
            if attribute.starts_with(b"user.") {
                continue;
            }
            let set = rustix::fs::lsetxattr(&through, attribute.as_slice(), &value, XattrFlags::empty());
            self.attribute_set(set, number, name, &attribute)?;
        }
        // The mode of a link means nothing, and that of a whiteout is what everybody may make it with.
        if inode.kind() != FileType::Symlink && !inode.is_whiteout() {
            rustix::fs::chmodat(directory, name, permissions(inode, is_own), AtFlags::empty()).map_err(self.failed(
                number,
                name,
                "set the mode",
            ))?;
        }
        rustix::fs::utimensat(directory, name, &times(inode), follow_none).map_err(self.failed(
            number,
            name,
            "set the time",
        ))
    }

    /// Whether a file has its own owner; fails or counts it if not.
    fn owner_set(
        &mut self,
        changed: rustix::io::Result<()>,
        number: usize,
        name: &[u8],
        inode: &Inode,
    ) -> Result<bool> {
        match (changed, self.strictness) {
            (Ok(()), _) => Ok(true),
            (Err(Errno::INVAL | Errno::PERM), Strictness::AsFarAsPossible) => {
                let path = self.shown(number, name);
                self.losses.owners.add(|| path);
                Ok(false)
            }
            (Err(Errno::INVAL), Strictness::Whole) => {
                Err(UnpackError::Owner { path: self.shown(number, name), uid: inode.uid, gid: inode.gid })
            }
            (Err(errno), _) => Err(self.failed(number, name, "set the owner")(errno)),
        }
    }

    fn attribute_set(
        &mut self,
        set: rustix::io::Result<()>,
        number: usize,
        name: &[u8],
        attribute: &[u8],
    ) -> Result<()> {
        match (set, self.strictness) {
            (Ok(()), _) => Ok(()),
            (Err(Errno::PERM | Errno::OPNOTSUPP | Errno::INVAL), Strictness::AsFarAsPossible) => {
                let path = self.shown(number, name);
                self.losses.attributes.add(|| path);
                Ok(())
            }
            // Those only the host's root may set mean nothing to a pod of anyone else.
            (Err(Errno::PERM), Strictness::Whole) if attribute.starts_with(b"trusted.") => Ok(()),
            (Err(errno), _) => Err(self.failed(number, name, "set an extended attribute")(errno)),
        }
    }

    /// Copies a file's data; holes stay holes.
    fn copy(&self, node: &Node, file: &File, failed: impl Fn(io::Error) -> UnpackError) -> Result<()> {
        let (volume, inode) = (self.tree.layer(node), &node.inode);
        file.set_len(inode.size).map_err(&failed)?;
        let mut buffer = vec![0; PIECE.min(usize::try_from(inode.size).unwrap_or(PIECE))];
        let mut at = 0;
        while at < inode.size {
            let (length, is_hole) = volume.extent(inode, at)?;
            if is_hole {
                at += length;
                continue;
            }
            let piece = &mut buffer[..length.min(PIECE as u64) as usize];
            volume.read_data(inode, at, piece)?;
            file.write_all_at(piece, at).map_err(&failed)?;
            at += piece.len() as u64;
        }
        Ok(())
    }
}

fn uid(inode: &Inode) -> rustix::fs::Uid {
    rustix::fs::Uid::from_raw(inode.uid)
}

fn gid(inode: &Inode) -> rustix::fs::Gid {
    rustix::fs::Gid::from_raw(inode.gid)
}

/// What set-user-ID gave away would be another user's rights.
fn permissions(inode: &Inode, is_own: bool) -> Mode {
    if is_own { inode.permissions() } else { inode.permissions() - (Mode::SUID | Mode::SGID) }
}

fn times(inode: &Inode) -> Timestamps {
    Timestamps { last_access: inode.mtime, last_modification: inode.mtime }
}
