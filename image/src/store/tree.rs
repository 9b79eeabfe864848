//! Layers unpacked into directories, for hosts that cannot mount them: made when first needed, and kept as long as the layer.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use super::Store;
use super::error::{StoreError, at};
use super::scratch::{Scratch, discard, new_name};
use crate::digest::Digest;
use crate::erofs;

impl Store {
    /// The directory with a layer's files. Two processes that need it at once each unpack it, and share the first that is
    /// whole.
    ///
    /// # Errors
    /// [`StoreError::Unpack`], or those of files.
    pub fn unpacked(&self, layer: &Digest) -> Result<PathBuf, StoreError> {
        let (place, blob, tmp) = (self.tree_path(layer), self.blob_path(layer), self.tmp());
        if place.is_dir() {
            return Ok(place);
        }
        let scratch = Scratch::directory(&tmp).map_err(at(&tmp))?;
        let tree = scratch.path().join("tree");
        fs::create_dir(&tree).map_err(at(&tree))?;
        let image = File::open(&blob).map_err(at(&blob))?;
        erofs::unpack(&image, &tree).map_err(|source| StoreError::Unpack { layer: *layer, source })?;
        fs::create_dir_all(self.trees()).map_err(at(self.trees()))?;
        // A crash of the host may lose what is not on disk yet, but must not leave a part of it under its name.
        rustix::fs::syncfs(File::open(&tree).map_err(at(&tree))?).map_err(|errno| at(&tree)(errno.into()))?;
        match fs::rename(&tree, &place) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty || place.is_dir() => Ok(place),
            other => other.map_err(at(&place)).map(|()| place),
        }
    }

    /// Takes a layer's directory out of use, so that the next who needs one makes it anew. Its files stay as long as pods may
    /// run from them.
    pub(super) fn set_tree_aside(&self, layer: &Digest) -> Result<(), StoreError> {
        let place = self.tree_path(layer);
        match fs::rename(&place, place.with_added_extension(new_name())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(place)(error)),
            _ => Ok(()),
        }
    }

    /// Removes the directories of layers that are not needed, and those set aside of layers that no pod uses. Returns how many.
    pub(super) fn remove_trees(
        &self,
        is_needed: impl Fn(&Digest) -> bool,
        is_used: impl Fn(&Digest) -> bool,
    ) -> Result<usize, StoreError> {
        let (trees, tmp) = (self.trees(), self.tmp());
        if !trees.is_dir() {
            return Ok(0);
        }
        let mut removed = 0;
        for name in super::records::names_in(&trees)? {
            let stays = match name.split_once('.') {
                None => Digest::from_hex(&name).is_ok_and(|layer| is_needed(&layer)),
                Some((hex, _)) => Digest::from_hex(hex).is_ok_and(|layer| is_used(&layer)),
            };
            if !stays {
                discard(&tmp, &trees.join(&name)).map_err(at(&trees))?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}
