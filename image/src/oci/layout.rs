//! OCI layouts: `index.json` leads, perhaps through further indexes, to the manifest for this machine.

use super::error::OciError;
use super::files::Slice;
use super::spec::{ConfigFile, Descriptor, MAX_CONFIG, MAX_MANIFEST, Manifest};
use super::{Found, Parts, Source, here};
use crate::digest::Digest;
use crate::reference::Reference;

/// Most indexes on the way from `index.json` to a manifest.
const MAX_DEPTH: usize = 4;
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
    let mut have = Vec::new();
    let mut candidates: Vec<Candidate> = Vec::new();
    for top in named {
        if let Some(manifest) = for_this_machine(source, top, 0, &mut have)? {
            candidates.push(Candidate { top: top.clone(), manifest });
        }
    }
    let Some(first) = candidates.first() else {
        return Err(OciError::NoPlatform { path: path(), wanted: here(), have });
    };
    if candidates.iter().any(|other| other.manifest.digest != first.manifest.digest) {
        let have = candidates.iter().map(|candidate| label(&candidate.top)).collect();
        return Err(OciError::Ambiguous { path: path(), have });
    }
    read_image(source, &candidates)
}

/// The manifest that an entry stands for on this machine, if it has one.
fn for_this_machine(
    source: &Source<'_>,
    entry: &Descriptor,
    depth: usize,
    have: &mut Vec<String>,
) -> Result<Option<Descriptor>, OciError> {
    if let Some(platform) = entry.platform.as_ref().filter(|platform| !platform.runs_here()) {
        have.push(platform.to_string());
        return Ok(None);
    }
    if !is_index(entry) {
        return Ok(Some(entry.clone()));
    }
    if depth == MAX_DEPTH {
        return Err(OciError::TooDeep { file: entry.digest.clone() });
    }
    let (name, bytes) = read_blob(source, entry, MAX_MANIFEST)?;
    let index: Manifest = source.parse(&name, &bytes)?;
    let mut best: Option<(u8, Descriptor)> = None;
    for inner in index.manifests.unwrap_or_default() {
        let rank = inner.platform.as_ref().map_or(0, |platform| platform.rank());
        if best.as_ref().is_some_and(|(least, _)| *least <= rank) {
            continue;
        }
        if let Some(found) = for_this_machine(source, &inner, depth + 1, have)? {
            best = Some((rank, found));
        }
    }
    Ok(best.map(|(_, found)| found))
}

fn is_index(descriptor: &Descriptor) -> bool {
    matches!(
        descriptor.media_type.as_str(),
        "application/vnd.oci.image.index.v1+json" | "application/vnd.docker.distribution.manifest.list.v2+json"
    )
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

/// A document, checked against size and digest.
fn read_blob(source: &Source<'_>, descriptor: &Descriptor, most: u64) -> Result<(String, Vec<u8>), OciError> {
    let (name, expected, _) = open_blob(source, descriptor)?;
    let bytes = source.files.read(&name, most)?;
    let actual = Digest::of(&bytes);
    if actual != expected {
        return Err(OciError::DigestMismatch { file: source.files.describe(&name), expected, actual });
    }
    Ok((name, bytes))
}

fn read_image(source: &Source<'_>, candidates: &[Candidate]) -> Result<Found, OciError> {
    let chosen = &candidates[0].manifest;
    let (name, manifest) = read_blob(source, chosen, MAX_MANIFEST)?;
    let parsed: Manifest = source.parse(&name, &manifest)?;
    let config = parsed.config.ok_or_else(|| OciError::NotAManifest { file: source.files.describe(&name) })?;
    let (config_name, config_bytes) = read_blob(source, &config, MAX_CONFIG)?;
    let config_file: ConfigFile = source.parse(&config_name, &config_bytes)?;
    let layers = parsed
        .layers
        .iter()
        .map(|layer| {
            let (name, digest, slice) = open_blob(source, layer)?;
            check_type(source, layer, &name)?;
            Ok((name, Some(digest), slice))
        })
        .collect::<Result<_, OciError>>()?;
    let mut names: Vec<Reference> = candidates.iter().filter_map(|candidate| name_of(source, &candidate.top)).collect();
    names.sort();
    names.dedup();
    let parts = Parts {
        id: source.digest(&name, &config.digest)?,
        manifest_digest: Some(source.digest(&name, &chosen.digest)?),
        manifest,
        config: config_bytes,
        config_file,
        layers,
        names,
    };
    source.image(&name, parts)
}

/// Layers must be tars; encrypted ones and other artifacts are refused.
fn check_type(source: &Source<'_>, layer: &Descriptor, name: &str) -> Result<(), OciError> {
    let media_type = layer.media_type.as_str();
    let is_tar = media_type.contains("tar") && !media_type.contains("encrypted");
    if is_tar || media_type.is_empty() {
        return Ok(());
    }
    let (file, media_type) = (source.files.describe(name), media_type.to_owned());
    Err(OciError::LayerType { file, media_type })
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
