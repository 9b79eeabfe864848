//! A layer's archive: entries in the order they are added, with no dates, so that equal content gives equal bytes.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, EntryType, Header};

/// A finished layer.
pub struct Layer {
    /// Its OCI media type.
    pub media_type: &'static str,
    /// The digest of the plain archive.
    pub diff_id: String,
    /// The archive, perhaps compressed.
    pub bytes: Vec<u8>,
}

/// A layer under construction.
pub struct Contents {
    archive: Builder<Vec<u8>>,
    /// Directories that are in it, parents included.
    directories: BTreeSet<String>,
}

impl Default for Contents {
    fn default() -> Self {
        Self { archive: Builder::new(Vec::new()), directories: BTreeSet::new() }
    }
}

impl Contents {
    /// Adds a directory that belongs to user and group `owner`, and its parents as root's.
    pub fn directory(&mut self, path: &str, permissions: u32, owner: u32) -> io::Result<()> {
        self.parents(path)?;
        if self.directories.insert(path.to_owned()) {
            self.add(path, EntryType::Directory, permissions, owner, &[])?;
        }
        Ok(())
    }

    /// Adds one of root's files.
    pub fn file(&mut self, path: &str, permissions: u32, content: &[u8]) -> io::Result<()> {
        self.parents(path)?;
        self.add(path, EntryType::Regular, permissions, 0, content)
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, to: impl AsRef<Path>) -> io::Result<()> {
        self.parents(path)?;
        let mut header = header(EntryType::Symlink, 0o777, 0, 0);
        self.archive.append_link(&mut header, path, to)
    }

    /// Adds all that is below `root`, as root's. Paths under the directories that are links in the base layer
    /// (`bin`, `sbin`, `lib`, `lib64`) are moved to where those lead.
    pub fn tree(&mut self, root: &Path) -> io::Result<()> {
        let mut open = vec![String::new()];
        while let Some(directory) = open.pop() {
            let mut entries = fs::read_dir(root.join(&directory))?.collect::<io::Result<Vec<_>>>()?;
            entries.sort_by_key(fs::DirEntry::file_name);
            for entry in entries {
                let name = entry.file_name().to_string_lossy().into_owned();
                let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
                self.tree_entry(&entry.path(), &path, &mut open)?;
            }
        }
        Ok(())
    }

    fn tree_entry(&mut self, from: &Path, path: &str, open: &mut Vec<String>) -> io::Result<()> {
        let metadata = fs::symlink_metadata(from)?;
        let permissions = metadata.permissions().mode() & 0o7777;
        let place = merged(path);
        if metadata.is_dir() {
            open.push(path.to_owned());
            self.directory(&place, permissions, 0)
        } else if metadata.is_symlink() {
            self.link(&place, fs::read_link(from)?)
        } else {
            self.file(&place, permissions, &fs::read(from)?)
        }
    }

    /// Ends the layer, uncompressed.
    pub fn plain(self) -> io::Result<Layer> {
        let bytes = self.archive.into_inner()?;
        Ok(Layer { media_type: "application/vnd.oci.image.layer.v1.tar", diff_id: super::digest(&bytes), bytes })
    }

    /// Ends the layer, compressed.
    pub fn gzip(self) -> io::Result<Layer> {
        let plain = self.plain()?;
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&plain.bytes)?;
        let bytes = encoder.finish()?;
        Ok(Layer { media_type: "application/vnd.oci.image.layer.v1.tar+gzip", bytes, ..plain })
    }

    fn parents(&mut self, path: &str) -> io::Result<()> {
        let ends: Vec<usize> = path.match_indices('/').map(|(at, _)| at).collect();
        for end in ends {
            let parent = &path[..end];
            if self.directories.insert(parent.to_owned()) {
                self.add(parent, EntryType::Directory, 0o755, 0, &[])?;
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &str, kind: EntryType, permissions: u32, owner: u32, content: &[u8]) -> io::Result<()> {
        let mut header = header(kind, permissions, owner, content.len() as u64);
        self.archive.append_data(&mut header, path, content)
    }
}

fn header(kind: EntryType, permissions: u32, owner: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(permissions);
    header.set_uid(owner.into());
    header.set_gid(owner.into());
    header.set_mtime(0);
    header.set_size(size);
    header
}

/// The path in a tree whose top-level program directories are links into `usr`.
fn merged(path: &str) -> String {
    let top = path.split('/').next().unwrap_or(path);
    if ["bin", "sbin", "lib", "lib64"].contains(&top) { format!("usr/{path}") } else { path.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(layer: &Layer) -> Vec<(String, u32, u64)> {
        let mut archive = tar::Archive::new(layer.bytes.as_slice());
        let entries = archive.entries().unwrap().map(Result::unwrap);
        entries
            .map(|entry| {
                let header = entry.header();
                let path = entry.path().unwrap().display().to_string();
                (path, header.mode().unwrap(), header.uid().unwrap())
            })
            .collect()
    }

    #[test]
    fn parents_come_before_what_is_in_them_and_once() {
        let mut contents = Contents::default();
        contents.directory("var/lib/db", 0o700, 7).unwrap();
        contents.file("var/lib/note", 0o644, b"x").unwrap();
        let expected = [("var", 0o755, 0), ("var/lib", 0o755, 0), ("var/lib/db", 0o700, 7), ("var/lib/note", 0o644, 0)];
        assert_eq!(entries(&contents.plain().unwrap()), expected.map(|(path, mode, uid)| (path.to_owned(), mode, uid)));
    }

    #[test]
    fn what_packages_put_under_bin_comes_under_usr_bin() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("bin")).unwrap();
        fs::write(root.path().join("bin/tool"), "").unwrap();
        let mut contents = Contents::default();
        contents.tree(root.path()).unwrap();
        let names: Vec<String> = entries(&contents.plain().unwrap()).into_iter().map(|(name, ..)| name).collect();
        assert_eq!(names, ["usr", "usr/bin", "usr/bin/tool"]);
    }
}
