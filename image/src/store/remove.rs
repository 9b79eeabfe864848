//! Removing images, and the layers that no image needs any more.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use super::Store;
use super::error::{StoreError, at};
use super::records::names_in;
use super::scratch::{discard, sweep};
use crate::digest::Digest;
use crate::reference::Reference;

/// What pods use: the caller's answer to what may not be removed.
#[derive(Debug, Clone, Default)]
pub struct Uses {
    /// Images, each with a pod that runs from it.
    pub images: Vec<(Digest, String)>,
    /// Layers to keep even if no image names them any more.
    pub layers: BTreeSet<Digest>,
}

/// What a removal did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// The image.
    pub id: Digest,
    /// The names that are gone.
    pub names: Vec<Reference>,
    /// Whether the image itself is gone; not so when it has other names.
    pub image: bool,
    /// What its going set free.
    pub collected: Collected,
}

/// What a collection did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// Layers removed.
    pub layers: usize,
    /// Bytes they took.
    pub bytes: u64,
    /// Leftovers of crashes removed.
    pub leftovers: usize,
    /// An import was going on, so that no layer was removed: do it again later.
    pub busy: bool,
}

impl Store {
    /// Removes a name, or an image with all its names when `wanted` is its id or its last name.
    ///
    /// `uses` is asked while nobody can start a pod; an image that a pod uses is refused.
    pub fn remove(&self, wanted: &str, uses: &dyn Fn() -> io::Result<Uses>) -> Result<Removed, StoreError> {
        let alone = self.nobody_starts()?;
        let named = self.find_name(wanted)?;
        let id = match &named {
            Some((_, id)) => *id,
            None => self.find_id(wanted)?,
        };
        let mut names = self.names_of(&id)?;
        if let Some((name, _)) = named.filter(|_| names.len() > 1) {
            self.remove_name(&name)?;
            let collected = Collected::default();
            return Ok(Removed { id, names: vec![name], image: false, collected });
        }
        let uses = uses().map_err(StoreError::Uses)?;
        let pods: Vec<String> =
            uses.images.iter().filter(|(used, _)| *used == id).map(|(_, pod)| pod.clone()).collect();
        if !pods.is_empty() {
            return Err(StoreError::InUse { image: wanted.to_owned(), pods });
        }
        for name in &names {
            self.remove_name(name)?;
        }
        self.remove_image(&id)?;
        let collected = match self.collect(&uses) {
            // Another image's record, which keeps all layers until it is mended.
            Err(StoreError::Damaged { .. } | StoreError::TooNew { .. }) => Collected::default(),
            collected => collected?,
        };
        drop(alone);
        names.sort();
        Ok(Removed { id, names, image: true, collected })
    }

    /// Removes layers that no image needs, names that lead nowhere, and what crashes have left.
    pub fn gc(&self, uses: &dyn Fn() -> io::Result<Uses>) -> Result<Collected, StoreError> {
        let _alone = self.nobody_starts()?;
        let uses = uses().map_err(StoreError::Uses)?;
        let mut collected = self.collect(&uses)?;
        if !collected.busy {
            collected.leftovers += self.remove_partial()?;
        }
        collected.leftovers += sweep(&self.tmp()).map_err(at(self.tmp()))?;
        Ok(collected)
    }

    /// Removes what has arrived of layers that nobody fetches now.
    fn remove_partial(&self) -> Result<usize, StoreError> {
        let Some(_alone) = self.nobody_imports()? else { return Ok(0) };
        let names = names_in(&self.partial())?;
        for name in &names {
            let path = self.partial().join(name);
            fs::remove_file(&path).map_err(at(path))?;
        }
        Ok(names.len())
    }

    /// Takes an image out of sight by one rename, then removes it.
    pub(super) fn remove_image(&self, id: &Digest) -> Result<(), StoreError> {
        let place = self.image_directory(id);
        discard(&self.tmp(), &place).map_err(at(place))
    }

    fn collect(&self, uses: &Uses) -> Result<Collected, StoreError> {
        let mut collected = Collected::default();
        let Some(_alone) = self.nobody_imports()? else {
            collected.busy = true;
            return Ok(collected);
        };
        let mut needed = uses.layers.clone();
        let images: BTreeSet<Digest> = self.all_images()?.into_iter().collect();
        for id in &images {
            // A record that cannot be read stops the collection: it may need any layer.
            needed.extend(self.image_record(id)?.into_iter().flat_map(|record| record.layers));
        }
        for (name, id) in self.all_names()?.records {
            if !images.contains(&id) {
                self.remove_name(&name)?;
            }
        }
        for file in names_in(&self.blobs())? {
            let Some((hex, extension)) = file.split_once('.') else { continue };
            let Ok(diff_id) = Digest::from_hex(hex) else { continue };
            if needed.contains(&diff_id) {
                continue;
            }
            // A layer is never without its record: it goes first.
            let path = self.blob_path(&diff_id);
            if let Some(bytes) = remove_file(&path)? {
                collected.layers += 1;
                collected.bytes += bytes;
            }
            if extension != "erofs" {
                let record = self.blobs().join(&file);
                remove_file(&record)?;
            }
        }
        self.remove_trees(|layer| needed.contains(layer), |layer| uses.layers.contains(layer))?;
        Ok(collected)
    }
}

/// Removes a file that may be gone already. Returns its size.
fn remove_file(path: &Path) -> Result<Option<u64>, StoreError> {
    let removed = fs::metadata(path).and_then(|metadata| fs::remove_file(path).map(|()| metadata.len()));
    match removed {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(path)(error)),
    }
}
