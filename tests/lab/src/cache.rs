//! What is dear to make and depends on nothing but its recipe, kept outside the tree:
//! `${XDG_CACHE_HOME:-~/.cache}/podvm/lab/<name>-<hash>`.
//!
//! An entry is there whole or not at all: it is built beside its place and renamed. Two processes that want the
//! same entry build it once.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::LabError;

/// The lab's cache directory.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The user's cache, which is made if it is not there.
    pub fn open() -> Result<Self, LabError> {
        let base = match (std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
            (Some(cache), _) if !cache.is_empty() => PathBuf::from(cache),
            (_, Some(home)) => Path::new(&home).join(".cache"),
            _ => PathBuf::from("/root/.cache"),
        };
        Self::at(base.join("podvm/lab"))
    }

    fn at(root: PathBuf) -> Result<Self, LabError> {
        fs::create_dir_all(&root).map_err(LabError::io(format!("make {}", root.display())))?;
        Ok(Self { root })
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The entry `name` made by `recipe` (all that its content depends on), built by `build` in an empty directory
    /// if it is not there.
    pub fn entry(
        &self,
        name: &str,
        recipe: &[&str],
        build: impl FnOnce(&Path) -> Result<(), LabError>,
    ) -> Result<PathBuf, LabError> {
        let mut hash = Sha256::new();
        for part in recipe {
            hash.update(part.len().to_le_bytes());
            hash.update(part);
        }
        let name = format!("{name}-{}", &hex::encode(hash.finalize())[..16]);
        let place = self.root.join(&name);
        if place.exists() {
            return Ok(place);
        }
        let lock_path = self.root.join(format!("{name}.lock"));
        let lock = File::create(&lock_path).map_err(LabError::io(format!("make {}", lock_path.display())))?;
        lock.lock().map_err(LabError::io(format!("lock {}", lock_path.display())))?;
        if place.exists() {
            return Ok(place);
        }
        let partial = self.root.join(format!("{name}.partial"));
        if partial.exists() {
            fs::remove_dir_all(&partial).map_err(LabError::io(format!("remove {}", partial.display())))?;
        }
        fs::create_dir(&partial).map_err(LabError::io(format!("make {}", partial.display())))?;
        build(&partial)?;
        fs::rename(&partial, &place).map_err(LabError::io(format!("rename {}", partial.display())))?;
        Ok(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_built_once_and_a_failed_one_again() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path().to_owned()).unwrap();
        let failing = cache.entry("thing", &["a"], |place| {
            fs::write(place.join("half"), "").unwrap();
            Err(LabError::NoKernelPackage { looked_for: String::new() })
        });
        assert!(failing.is_err());
        let place = cache.entry("thing", &["a"], |place| {
            fs::write(place.join("whole"), "").unwrap();
            Ok(())
        });
        let place = place.unwrap();
        assert!(place.join("whole").exists() && !place.join("half").exists());
        assert_eq!(cache.entry("thing", &["a"], |_| panic!("built twice")).unwrap(), place);
    }

    #[test]
    fn another_recipe_is_another_entry() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path().to_owned()).unwrap();
        let one = cache.entry("thing", &["ab", "c"], |_| Ok(())).unwrap();
        assert_ne!(one, cache.entry("thing", &["a", "bc"], |_| Ok(())).unwrap());
    }
}
