//! App Container image archives (App Container specification, aci.md, "Image Archives"): a `manifest` and a `rootfs/`, in a tar that
//! may be compressed.
//!
//! An archive is read several times: first as a whole, to know its ID and what it says of itself, so that it can be decided whether
//! it is wanted; for its signature, if it has one; then for its files. That it is the same archive each time is seen by the digest
//! of its packed bytes, and by its ID.

use std::fs::File;
use std::io::{self, BufReader, Read};

use super::id::{Identifying, ImageId};
use super::manifest::{ImageManifest, MAX_MANIFEST, ManifestError};
use crate::decode::decode;
use crate::digest::{Digest, HashingReader};
use crate::erofs::Bounded;
use crate::oci::Slice;
use crate::tar::{Entry, Kind, Streamed, TarError, TarReader, show};

const MANIFEST: &[u8] = b"manifest";
const ROOT: &[u8] = b"rootfs";
/// Size of the buffer in front of the archive.
const BUFFER: usize = 256 * 1024;
/// How many entries are looked at to tell whether it is one.
const SNIFFED: usize = 8;

/// Why an archive is no appc image.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// No tar, or a broken one.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The manifest is not one.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// There is no manifest.
    #[error("there is no manifest in it: an appc image has the file `manifest` and the directory `rootfs`")]
    NoManifest,
    /// There is no root.
    #[error("there is no rootfs in it: an appc image has the file `manifest` and the directory `rootfs`")]
    NoRoot,
    /// Two manifests, or one that is no plain file.
    #[error("its manifest is there twice, is no plain file, or is larger than {} MiB", MAX_MANIFEST >> 20)]
    OddManifest,
    /// Something beside the two.
    #[error("{} is in it: an appc image has the file `manifest` and the directory `rootfs`, and nothing else", show(.0))]
    Stray(Vec<u8>),
    /// A hard link out of the root.
    #[error("{} is a hard link to {}, which is not in rootfs", show(path), show(target))]
    LinkOut {
        /// The link.
        path: Vec<u8>,
        /// Where it leads.
        target: Vec<u8>,
    },
    /// The archive is another than it was.
    #[error("it has changed while it was read; try again when nobody writes to it")]
    Changed,
}

/// An archive as it is at hand, perhaps compressed.
#[derive(Debug, Clone)]
pub struct Archive {
    packed: Slice,
}

/// What an archive says of itself.
#[derive(Debug, Clone)]
pub struct Survey {
    /// Its ID.
    pub id: ImageId,
    /// Its manifest.
    pub manifest: ImageManifest,
    /// The manifest, byte for byte.
    pub manifest_bytes: Vec<u8>,
    /// The digest of the archive as it is, packed.
    pub packed: Digest,
}

/// What an entry is.
enum Part {
    Manifest,
    /// A file of the root, by its name there.
    Root(Entry),
    /// The directory that is the archive.
    Top,
}

impl Archive {
    /// An archive in a file.
    pub(crate) fn new(packed: File) -> io::Result<Self> {
        Ok(Self { packed: Slice::whole(packed)? })
    }

    /// Whether this looks like one, by its first entries.
    pub fn is_likely(&self) -> bool {
        let Ok(plain) = self.plain() else { return false };
        let mut reader = TarReader::new(Streamed::new(plain));
        for _ in 0..SNIFFED {
            match reader.next_entry().map(|entry| entry.map(part)) {
                Ok(Some(Ok(Part::Manifest | Part::Root(_)))) => return true,
                Ok(Some(Ok(Part::Top))) => {}
                _ => return false,
            }
        }
        false
    }

    /// How many bytes that are.
    pub fn size(&self) -> u64 {
        self.packed.remaining()
    }

    fn plain(&self) -> io::Result<Box<dyn Read + '_>> {
        decode(BufReader::with_capacity(BUFFER, self.packed.clone()))
    }

    /// Reads all of it, at most `most` bytes unpacked.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn survey(&self, most: u64) -> Result<Survey, ArchiveError> {
        let mut packed = HashingReader::new(self.packed.clone());
        let plain = decode(BufReader::with_capacity(BUFFER, &mut packed))?;
        let mut plain = Identifying::new(Bounded::new(plain, most));
        let mut reader = TarReader::new(Streamed::new(&mut plain));
        let (mut manifest_bytes, mut has_root) = (None, false);
        while let Some(entry) = reader.next_entry()? {
            let size = match entry.kind {
                Kind::File { size, segments: None } => Some(size),
                _ => None,
            };
            match part(entry)? {
                Part::Top => {}
                Part::Root(_) => has_root = true,
                Part::Manifest => {
                    let size = size.filter(|size| *size <= MAX_MANIFEST && manifest_bytes.is_none());
                    let mut bytes = vec![0; size.ok_or(ArchiveError::OddManifest)? as usize];
                    let mut filled = 0;
                    while filled < bytes.len() {
                        filled += reader.read_data(&mut bytes[filled..])?;
                    }
                    manifest_bytes = Some(bytes);
                }
            }
        }
        io::copy(&mut reader.into_input().into_inner(), &mut io::sink())?;
        let manifest_bytes = manifest_bytes.ok_or(ArchiveError::NoManifest)?;
        let manifest = ImageManifest::parse(&manifest_bytes)?;
        // An image may be nothing but its dependencies.
        if !has_root && manifest.dependencies.is_empty() {
            return Err(ArchiveError::NoRoot);
        }
        let id = plain.finish();
        io::copy(&mut packed, &mut io::sink())?;
        Ok(Survey { id, manifest, manifest_bytes, packed: packed.finish().0 })
    }

    /// Gives `take` the archive as it is, packed, and checks that it was the one that was surveyed: who can write to the file might
    /// show one archive to the survey and another to whoever checks its signature.
    pub(crate) fn packed_again<T>(
        &self,
        survey: &Survey,
        take: impl FnOnce(&mut dyn Read) -> T,
    ) -> Result<T, ArchiveError> {
        let mut packed = HashingReader::new(self.packed.clone());
        let taken = take(&mut packed);
        io::copy(&mut packed, &mut io::sink())?;
        if packed.finish().0 == survey.packed { Ok(taken) } else { Err(ArchiveError::Changed) }
    }

    /// Gives `take` the plain archive, and checks that it was the one of this ID. `count` hears of packed bytes that are read.
    pub(crate) fn read_again<T>(
        &self,
        id: ImageId,
        count: impl Fn(u64),
        take: impl FnOnce(&mut dyn Read) -> T,
    ) -> Result<T, ArchiveError> {
        let packed = Counting { inner: self.packed.clone(), count };
        let mut plain = Identifying::new(decode(BufReader::with_capacity(BUFFER, packed))?);
        let taken = take(&mut plain);
        io::copy(&mut plain, &mut io::sink())?;
        if plain.finish() == id { Ok(taken) } else { Err(ArchiveError::Changed) }
    }
}

/// Calls `count` with the number of bytes of every read.
struct Counting<F> {
    inner: Slice,
    count: F,
}

impl<F: Fn(u64)> Read for Counting<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        (self.count)(n as u64);
        Ok(n)
    }
}

/// An entry of the root as the root has it; nothing for all others.
pub fn in_root(entry: Entry) -> Option<Entry> {
    match part(entry) {
        Ok(Part::Root(entry)) => Some(entry),
        _ => None,
    }
}

fn part(entry: Entry) -> Result<Part, ArchiveError> {
    match inside(&entry.path) {
        None if is_top(&entry.path) && entry.kind == Kind::Directory => Ok(Part::Top),
        None if parts(&entry.path).eq([MANIFEST]) => match entry.kind {
            Kind::File { segments: None, .. } => Ok(Part::Manifest),
            _ => Err(ArchiveError::OddManifest),
        },
        None => Err(ArchiveError::Stray(entry.path)),
        Some(path) if is_top(&path) && entry.kind != Kind::Directory => Err(ArchiveError::NoRoot),
        Some(path) => match &entry.kind {
            Kind::HardLink(target) => match inside(target) {
                Some(inner) => Ok(Part::Root(Entry { path, kind: Kind::HardLink(inner), ..entry })),
                None => Err(ArchiveError::LinkOut { target: target.clone(), path: entry.path }),
            },
            _ => Ok(Part::Root(Entry { path, ..entry })),
        },
    }
}

fn parts(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/').filter(|part| !matches!(*part, b"" | b"."))
}

fn is_top(path: &[u8]) -> bool {
    parts(path).next().is_none()
}

/// A path of the archive as one of the root, if it is in there. `..` is left to whoever walks the path.
fn inside(path: &[u8]) -> Option<Vec<u8>> {
    let mut parts = parts(path);
    (parts.next() == Some(ROOT)).then(|| [b"./".to_vec(), parts.collect::<Vec<_>>().join(&b'/')].concat())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use super::*;
    use crate::tar::builder::{Member, archive};
    use proptest::prelude::*;

    /// An archive with this manifest and these files in its root.
    pub fn aci(manifest: &serde_json::Value, files: &[Member]) -> Vec<u8> {
        let mut members = vec![Member::file("manifest", manifest.to_string()), Member::directory("rootfs")];
        members.extend(files.iter().cloned().map(|mut member| {
            member.name = [b"rootfs/", &member.name[..]].concat();
            if member.kind == b'1' {
                member.link = [b"rootfs/", &member.link[..]].concat();
            }
            member
        }));
        archive(&members)
    }

    /// A manifest of this name, with what else is given.
    pub fn manifest(name: &str, more: serde_json::Value) -> serde_json::Value {
        let mut manifest = serde_json::json!({"acKind": "ImageManifest", "acVersion": "0.8.11", "name": name});
        if let serde_json::Value::Object(more) = more {
            manifest.as_object_mut().unwrap().extend(more);
        }
        manifest
    }

    fn file(bytes: &[u8]) -> Archive {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Archive::new(file).unwrap()
    }

    fn survey(bytes: &[u8]) -> Result<Survey, ArchiveError> {
        file(bytes).survey(1 << 20)
    }

    #[test]
    fn an_archive_is_known_by_its_plain_bytes_however_it_is_packed() {
        let plain = aci(&manifest("example.com/a", serde_json::json!({})), &[Member::file("f", "x")]);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).unwrap();
        for packed in [plain.clone(), gzip.finish().unwrap()] {
            assert!(file(&packed).is_likely());
            let survey = survey(&packed).unwrap();
            assert_eq!(survey.id, ImageId::of(&plain));
            assert_eq!(survey.manifest.name, "example.com/a");
        }
    }

    #[test]
    fn what_does_not_belong_into_an_image_is_named() {
        let good = Member::file("manifest", manifest("a", serde_json::json!({})).to_string());
        let root = Member::directory("./rootfs/");
        for (members, part) in [
            (vec![root.clone()], "no manifest"),
            (vec![good.clone()], "no rootfs"),
            (vec![good.clone(), root.clone(), good.clone()], "twice"),
            (vec![Member::directory("manifest")], "no plain file"),
            (vec![good.clone(), root.clone(), Member::file("other", "x")], "other is in it"),
            (vec![good.clone(), root.clone(), Member::file("../x", "x")], "../x is in it"),
            (vec![good.clone(), Member::symlink("rootfs", "/")], "no rootfs"),
            (vec![good.clone(), root.clone(), Member::hard_link("rootfs/x", "manifest")], "which is not in rootfs"),
            (vec![Member::file("manifest", "{"), root], "manifest: "),
        ] {
            let message = survey(&archive(&members)).unwrap_err().to_string();
            assert!(message.contains(part), "{part}: {message}");
        }
        assert!(!file(&archive(&[Member::file("oci-layout", "{}")])).is_likely());
        assert!(!file(b"").is_likely());
    }

    #[test]
    fn what_unpacks_without_end_is_given_up() {
        let plain = aci(&manifest("a", serde_json::json!({})), &[Member::file("f", vec![0; 3 << 20])]);
        let packed = zstd::encode_all(&plain[..], 1).unwrap();
        assert!(survey(&packed).unwrap_err().to_string().contains("unpacks to more"));
    }

    #[test]
    fn an_archive_that_changed_is_not_the_one_that_was_checked() {
        let archive = file(&aci(&manifest("a", serde_json::json!({})), &[]));
        let other = ImageId::of(b"");
        assert!(matches!(archive.read_again(other, |_| {}, |_| ()), Err(ArchiveError::Changed)));
    }

    #[test]
    fn the_archive_that_is_signed_is_the_one_that_was_surveyed() {
        let bytes = |text: &str| aci(&manifest("a", serde_json::json!({})), &[Member::file("f", text)]);
        for level in [None, Some(0)] {
            let packed = |plain: Vec<u8>| match level {
                None => plain,
                Some(level) => {
                    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level));
                    gzip.write_all(&plain).unwrap();
                    gzip.finish().unwrap()
                }
            };
            let (evil, good) = (packed(bytes("evil")), packed(bytes("good")));
            let mut on_disk = tempfile::tempfile().unwrap();
            on_disk.write_all(&evil).unwrap();
            let archive = Archive::new(on_disk.try_clone().unwrap()).unwrap();
            let survey = archive.survey(1 << 20).unwrap();
            assert!(archive.packed_again(&survey, |_| ()).is_ok());
            std::os::unix::fs::FileExt::write_all_at(&on_disk, &good, 0).unwrap();
            let mut signed = Vec::new();
            let checked = archive.packed_again(&survey, |packed| packed.read_to_end(&mut signed).map(drop));
            assert!(signed == good && matches!(checked, Err(ArchiveError::Changed)));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_without_panic(bytes: Vec<u8>, at in 0..2000usize, value: u8) {
            let _ = survey(&bytes);
            let mut near = aci(&manifest("a", serde_json::json!({})), &[Member::hard_link("x", "f")]);
            let at = at % near.len();
            near[at] = value;
            let _ = survey(&near);
        }
    }
}
