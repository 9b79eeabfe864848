//! Images' files out of the store into directories, as pods see them: all layers as one tree.
//!
//! A directory that is there and empty is filled. Else the files are made beside the place they are wanted at, and moved there
//! when all of them are.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, RenameFlags, StatxAttributes, StatxFlags};

use super::Store;
use super::error::{StoreError, at};
use super::lookup::ResolvedImage;
use crate::erofs::{FindError, Losses, Merged, Strictness, Volume, unpack_directory, unpack_file};

/// What of an image is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Its root filesystem.
    Root,
    /// One file or directory of it. Links on the way are followed inside the root.
    Path(PathBuf),
    /// Its manifest and configuration as they came, and its root filesystem: `manifest.json`, `config.json`, `rootfs/`.
    All,
}

/// How an image's files are to be written.
#[derive(Debug, Clone)]
pub struct RenderOptions {
    /// What of it.
    pub what: What,
    /// Whether what is there now is replaced.
    pub overwrite: bool,
}

impl Store {
    /// Writes an image's files to `place`, with owners, modes, times, extended attributes, links and devices. Tells what
    /// could not be kept.
    ///
    /// `place` must not be there or be an empty directory, unless it is to be overwritten; a single file that is wanted goes
    /// into a directory that is there. On an error, nothing is left and what was there is there still.
    ///
    /// # Errors
    /// [`StoreError::PlaceTaken`], [`StoreError::PlaceMounted`], [`StoreError::Find`], [`StoreError::Render`], and those of files.
    pub fn render(&self, wanted: &str, place: &Path, options: &RenderOptions) -> Result<Losses, StoreError> {
        // Of a link, what it leads to is meant; and a place may be called `.`.
        let place = &fs::canonicalize(place).unwrap_or_else(|_| place.to_owned());
        let image = self.hold(wanted)?;
        let files = image
            .layers
            .iter()
            .rev()
            .map(|layer| File::open(&layer.path).map_err(at(&layer.path)))
            .collect::<Result<Vec<_>, _>>()?;
        let unreadable = |source| StoreError::Render { image: wanted.to_owned(), source };
        let volumes = files.iter().map(Volume::open).collect::<Result<Vec<_>, _>>();
        let tree = Merged::new(volumes.map_err(|error| unreadable(error.into()))?);
        let failed = |source: FindError| StoreError::Find { image: wanted.to_owned(), source };
        let from = match &options.what {
            What::Path(path) => tree.find(path).map_err(failed)?,
            What::Root | What::All => {
                let root = tree.root().map_err(|error| unreadable(error.into()))?;
                root.ok_or_else(|| failed(FindError::Missing("/".into())))?
            }
        };
        if !from.inode.is_directory() {
            let What::Path(path) = &options.what else { return Err(failed(FindError::Missing("/".into()))) };
            let place = match place.is_dir() {
                true => place.join(path.file_name().unwrap_or_default()),
                false => place.to_owned(),
            };
            return put(&place, options.overwrite, &|folder, name| {
                let folder_file = File::open(folder).map_err(at(folder))?;
                unpack_file(&tree, &from, folder_file.as_fd(), name, Strictness::AsFarAsPossible).map_err(unreadable)
            });
        }
        put_directory(place, options.overwrite, &|directory| {
            let root = match options.what {
                What::All => self.write_documents(&image, directory)?,
                _ => directory.to_owned(),
            };
            let opened = File::open(&root).map_err(at(&root))?;
            unpack_directory(&tree, from.clone(), opened.as_fd(), Strictness::AsFarAsPossible).map_err(unreadable)
        })
    }

    /// Copies what describes an image. Returns the directory for its files.
    fn write_documents(&self, image: &ResolvedImage, directory: &Path) -> Result<PathBuf, StoreError> {
        let documents =
            [("manifest.json", self.manifest_path(&image.id)), ("config.json", self.config_path(&image.id))];
        for (name, path) in documents {
            let content = fs::read(&path).map_err(at(&path))?;
            fs::write(directory.join(name), content).map_err(at(directory.join(name)))?;
        }
        let root = directory.join("rootfs");
        fs::create_dir(&root).map_err(at(&root))?;
        Ok(root)
    }
}

/// Something to be made under a name in a directory.
type Make<'a> = dyn Fn(&Path, &OsStr) -> Result<Losses, StoreError> + 'a;

/// Makes a directory and has it filled.
fn put_directory(
    place: &Path,
    overwrite: bool,
    fill: &dyn Fn(&Path) -> Result<Losses, StoreError>,
) -> Result<Losses, StoreError> {
    let is_empty = fs::read_dir(place).is_ok_and(|mut entries| entries.next().is_none());
    if is_empty {
        return fill(place).inspect_err(|_| empty(place));
    }
    put(place, overwrite, &|folder, name| {
        let directory = folder.join(name);
        fs::DirBuilder::new().mode(0o755).create(&directory).map_err(at(&directory))?;
        fill(&directory)
    })
}

/// Makes something beside its place and moves it there when it is whole.
fn put(place: &Path, overwrite: bool, make: &Make<'_>) -> Result<Losses, StoreError> {
    let is_there = fs::symlink_metadata(place).is_ok();
    if is_there && !overwrite {
        return Err(StoreError::PlaceTaken { path: place.to_owned() });
    }
    if is_mount_point(place) {
        return Err(StoreError::PlaceMounted { path: place.to_owned() });
    }
    let Some(name) = place.file_name() else {
        return Err(at(place)(io::Error::other("names no file; write the directory's own name")));
    };
    let folder = folder_of(place);
    let new = hidden(name, "new");
    let new_path = folder.join(&new);
    let made = make(folder, &new).and_then(|losses| {
        let replaced = if is_there { replace(folder, &new, name) } else { claim(folder, &new, name) };
        replaced.map_err(at(place)).map(|()| losses)
    });
    if made.is_err() {
        remove(&new_path);
    }
    made
}

/// A name beside `name` for what is not to stay.
fn hidden(name: &OsStr, what: &str) -> OsString {
    let name = name.to_string_lossy();
    let short: String = name.chars().take(40).collect();
    format!(".{short}.podvm-{what}-{}", std::process::id()).into()
}

fn claim(folder: &Path, new: &OsStr, name: &OsStr) -> io::Result<()> {
    let folder = File::open(folder)?;
    match rustix::fs::renameat_with(&folder, new, &folder, name, RenameFlags::NOREPLACE) {
        // A file system that has no such renames.
        Err(rustix::io::Errno::INVAL) => Ok(rustix::fs::renameat(&folder, new, &folder, name)?),
        other => Ok(other?),
    }
}

/// Puts what is new where the old was, at one stroke where the file system can, and removes the old.
fn replace(folder: &Path, new: &OsStr, name: &OsStr) -> io::Result<()> {
    let opened = File::open(folder)?;
    match rustix::fs::renameat_with(&opened, new, &opened, name, RenameFlags::EXCHANGE) {
        Ok(()) => remove(&folder.join(new)),
        Err(rustix::io::Errno::INVAL) => {
            let old = hidden(name, "old");
            rustix::fs::renameat(&opened, name, &opened, &old)?;
            rustix::fs::renameat(&opened, new, &opened, name)?;
            remove(&folder.join(old));
        }
        Err(errno) => return Err(errno.into()),
    }
    Ok(())
}

fn folder_of(place: &Path) -> &Path {
    place.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn is_mount_point(place: &Path) -> bool {
    rustix::fs::statx(rustix::fs::CWD, place, AtFlags::empty(), StatxFlags::empty())
        .is_ok_and(|status| status.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Removes what failed or was replaced; what cannot be removed is seen under a name that tells whose it is.
fn remove(path: &Path) {
    let is_directory = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let _ = if is_directory { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}

fn empty(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        remove(&entry.path());
    }
}
