//! OCI layouts: `index.json` leads, perhaps through further indexes, to the manifest for this machine.

use super::error::OciError;
use super::files::Slice;
use super::manifest::{Documents, Search, for_this_machine, read_image};
use super::spec::{Descriptor, MAX_MANIFEST, Manifest};
use super::{Found, Packed, Source, here};
use crate::digest::Digest;
use crate::reference::Reference;

/// The image's tag or name, by whoever wrote the layout.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The image's full name, by containerd and `docker save`.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// A manifest that could be meant.
struct Candidate {
    /// The entry of `index.json` that leads to it.
    top: Descriptor,
    manifest: Descriptor,
}

/// Finds the wanted image of the layout.
pub fn open(source: &Source<'_>) -> Result<Found, OciError> {
    let index = source.files.read("index.json", MAX_MANIFEST)?;
    let index: Manifest = source.parse("index.json", &index)?;
    let entries = index.manifests.unwrap_or_default();
    let path = || source.path.to_owned();
    if entries.is_empty() {
        return Err(OciError::Empty { path: path() });
    }
    let named: Vec<&Descriptor> = match source.filter {
        Some(wanted) => entries.iter().filter(|entry| is_named(entry, wanted)).collect(),
        None => entries.iter().collect(),
    };
    if let (Some(wanted), []) = (source.filter, named.as_slice()) {
        let have = entries.iter().map(label).collect();
        return Err(OciError::NoSuchImage { path: path(), wanted: wanted.to_owned(), have });
    }
    let mut search = Search::default();
    let mut candidates: Vec<Candidate> = Vec::new();
    for top in named {
        if let Some(manifest) = for_this_machine(source, top, 0, &mut search)? {
            candidates.push(Candidate { top: top.clone(), manifest });
        }
    }
    let Some(first) = candidates.first() else {
        return Err(OciError::NoPlatform { path: path(), wanted: here(), have: search.have });
    };
    if candidates.iter().any(|other| other.manifest.digest != first.manifest.digest) {
        let have = candidates.iter().map(|candidate| label(&candidate.top)).collect();
        return Err(OciError::Ambiguous { path: path(), have });
    }
    read_found(source, &candidates)
}

/// Where the layout keeps a descriptor's content.
fn open_blob(source: &Source<'_>, descriptor: &Descriptor) -> Result<(String, Digest, Slice), OciError> {
    let digest = source.digest("index.json", &descriptor.digest)?;
    let name = format!("blobs/sha256/{}", digest.hex());
    let slice = source.files.get(&name)?;
    if slice.remaining() != descriptor.size {
        let (file, actual) = (source.files.describe(&name), slice.remaining());
        return Err(OciError::SizeMismatch { file, expected: descriptor.size, actual });
    }
    Ok((name, digest, slice))
}

impl Documents for Source<'_> {
    fn document(&self, descriptor: &Descriptor, most: u64, _: bool) -> Result<(String, Vec<u8>), OciError> {
        let (name, expected, _) = open_blob(self, descriptor)?;
        let bytes = self.files.read(&name, most)?;
        let actual = Digest::of(&bytes);
        let file = self.files.describe(&name);
        if actual != expected {
            return Err(OciError::DigestMismatch { file, expected, actual });
        }
        Ok((file, bytes))
    }

    fn layer(&self, descriptor: &Descriptor) -> Result<(String, Digest, Packed), OciError> {
        let (name, digest, slice) = open_blob(self, descriptor)?;
        Ok((self.files.describe(&name), digest, Packed::Slice(slice)))
    }
}

fn read_found(source: &Source<'_>, candidates: &[Candidate]) -> Result<Found, OciError> {
    let chosen = &candidates[0].manifest;
    let (name, manifest) = source.document(chosen, MAX_MANIFEST, true)?;
    let digest = source.digest(&name, &chosen.digest)?;
    let mut found = read_image(source, &name, Some(digest), manifest)?;
    found.names = candidates.iter().filter_map(|candidate| name_of(source, &candidate.top)).collect();
    found.names.sort();
    found.names.dedup();
    Ok(found)
}

/// What an entry is called in messages.
fn label(entry: &Descriptor) -> String {
    let names = [CONTAINERD_NAME, REF_NAME].iter().find_map(|key| entry.annotations.get(*key));
    names.unwrap_or(&entry.digest).clone()
}

/// Whether an entry is meant by a tag, a name or a digest.
fn is_named(entry: &Descriptor, wanted: &str) -> bool {
    let same = |text: &String| {
        text == wanted || matches!((text.parse::<Reference>(), wanted.parse::<Reference>()), (Ok(a), Ok(b)) if a == b)
    };
    let annotations = [CONTAINERD_NAME, REF_NAME];
    entry.digest == wanted || annotations.iter().any(|key| entry.annotations.get(*key).is_some_and(same))
}

/// The name to store an image under: its full name, or one from the path and its tag.
fn name_of(source: &Source<'_>, entry: &Descriptor) -> Option<Reference> {
    let parse = |text: &String| text.parse::<Reference>().ok();
    if let Some(name) = entry.annotations.get(CONTAINERD_NAME).and_then(parse) {
        return Some(name);
    }
    match entry.annotations.get(REF_NAME) {
        // A plain word is a tag; what has a slash or a colon is a name.
        Some(text) if text.contains(['/', ':']) => parse(text),
        Some(tag) => source.name_from_path(Some(tag)),
        None => source.name_from_path(None),
    }
}
