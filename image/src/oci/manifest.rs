//! From an index to the manifest for this machine, and from a manifest to an image. The same wherever the documents are.

use std::path::PathBuf;

use super::error::OciError;
use super::spec::{ConfigFile, Descriptor, MAX_CONFIG, MAX_MANIFEST, Manifest};
use super::{Found, Packed, Parts, here, join};
use crate::digest::Digest;
use crate::registry::RegistryError;

/// Most indexes on the way to a manifest, and most that are looked into for one image: one that is in itself many times over
/// would lead on without end.
const MAX_DEPTH: usize = 4;
const MAX_INDEXES: usize = 64;
/// What indexes say that they are.
const INDEX_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
/// What manifests say that they are.
const MANIFEST_TYPES: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];

/// Where documents and layers are found by their descriptors.
pub trait Documents {
    /// A document of at most so many bytes, checked against size and digest, and what messages call it.
    fn document(&self, descriptor: &Descriptor, most: u64, is_manifest: bool) -> Result<(String, Vec<u8>), OciError>;

    /// A layer, not read yet: what messages call it, its digest, and where its bytes come from.
    fn layer(&self, descriptor: &Descriptor) -> Result<(String, Digest, Packed), OciError>;
}

pub fn parse<T: serde::de::DeserializeOwned>(file: &str, bytes: &[u8]) -> Result<T, OciError> {
    serde_json::from_slice(bytes).map_err(|source| OciError::Json { file: file.to_owned(), source })
}

/// What has been seen on the way.
#[derive(Debug, Default)]
pub struct Search {
    /// Platforms of other machines.
    pub have: Vec<String>,
    indexes: usize,
}

/// The manifest that an entry stands for on this machine, if it has one.
pub fn for_this_machine(
    documents: &dyn Documents,
    entry: &Descriptor,
    depth: usize,
    search: &mut Search,
) -> Result<Option<Descriptor>, OciError> {
    if let Some(platform) = entry.platform.as_ref().filter(|platform| !platform.runs_here()) {
        search.have.push(platform.to_string());
        return Ok(None);
    }
    if !is_index(entry) {
        return Ok(Some(entry.clone()));
    }
    search.indexes += 1;
    if depth == MAX_DEPTH || search.indexes > MAX_INDEXES {
        return Err(OciError::TooDeep { file: entry.digest.clone() });
    }
    let (name, bytes) = documents.document(entry, MAX_MANIFEST, true)?;
    let index = manifest(&name, &bytes)?;
    if index.manifests.is_none() {
        return Err(OciError::Contradiction { file: name });
    }
    best_of(documents, index, depth, search)
}

/// The best of an index's entries for this machine.
fn best_of(
    documents: &dyn Documents,
    index: Manifest,
    depth: usize,
    search: &mut Search,
) -> Result<Option<Descriptor>, OciError> {
    let mut best: Option<(u8, Descriptor)> = None;
    for inner in index.manifests.unwrap_or_default() {
        // What says nothing of where it runs may be anything, and is only taken if nothing else is there.
        let rank = inner.platform.as_ref().map_or(u8::MAX, |platform| platform.rank());
        if best.as_ref().is_some_and(|(least, _)| *least <= rank) {
            continue;
        }
        if let Some(found) = for_this_machine(documents, &inner, depth + 1, search)? {
            best = Some((rank, found));
        }
    }
    Ok(best.map(|(_, found)| found))
}

fn is_index(descriptor: &Descriptor) -> bool {
    INDEX_TYPES.contains(&descriptor.media_type.as_str())
}

/// Reads an index or a manifest. One that could be taken for either is refused, lest what one program has checked is not what another
/// one runs (OCI image specification 1.1, CVE-2021-41190).
fn manifest(place: &str, bytes: &[u8]) -> Result<Manifest, OciError> {
    let parsed: Manifest = parse(place, bytes)?;
    let is_index = parsed.manifests.is_some();
    let said = parsed.media_type.as_str();
    let is_contradicted = match is_index {
        true => parsed.config.is_some() || parsed.layers.is_some() || MANIFEST_TYPES.contains(&said),
        false => INDEX_TYPES.contains(&said),
    };
    if is_contradicted { Err(OciError::Contradiction { file: place.to_owned() }) } else { Ok(parsed) }
}

/// The manifest for this machine, `top` being that or an index that leads to it. Gives its digest too.
pub fn select(
    documents: &dyn Documents,
    place: &str,
    digest: Digest,
    top: Vec<u8>,
) -> Result<(Digest, Vec<u8>), OciError> {
    let parsed = manifest(place, &top)?;
    if parsed.manifests.is_none() {
        return Ok((digest, top));
    }
    let mut search = Search::default();
    let chosen = best_of(documents, parsed, 0, &mut search)?;
    let have = search.have;
    let path = PathBuf::from(place);
    let chosen = chosen.ok_or_else(|| match have.is_empty() {
        true => OciError::Empty { path: path.clone() },
        false => OciError::NoPlatform { path: path.clone(), wanted: here(), have },
    })?;
    let (name, bytes) = documents.document(&chosen, MAX_MANIFEST, true)?;
    let digest = chosen.digest.parse().map_err(|source| OciError::Digest { file: name, source })?;
    Ok((digest, bytes))
}

/// The image that a manifest describes. `place` is what messages call it.
pub fn read_image(
    documents: &dyn Documents,
    place: &str,
    manifest_digest: Option<Digest>,
    bytes: Vec<u8>,
) -> Result<Found, OciError> {
    let parsed = manifest(place, &bytes)?;
    // Also from those who do not say so by its media type, and from layouts.
    if parsed.config.is_none() && parsed.fs_layers.is_some() {
        return Err(RegistryError::Schema1 { what: place.to_owned() }.into());
    }
    check_is_image(&parsed, place)?;
    let config = parsed.config.ok_or_else(|| OciError::NotAManifest { file: place.to_owned() })?;
    let layers = parsed
        .layers
        .iter()
        .flatten()
        .map(|layer| {
            let (name, digest, packed) = documents.layer(layer)?;
            check_type(layer, &name)?;
            Ok((name, Some(digest), packed))
        })
        .collect::<Result<_, OciError>>()?;
    let (config_name, config_bytes) = documents.document(&config, MAX_CONFIG, false)?;
    let config_file: ConfigFile = parse(&config_name, &config_bytes)?;
    let parts = Parts {
        id: config.digest.parse().map_err(|source| OciError::Digest { file: place.to_owned(), source })?,
        manifest_digest,
        manifest: bytes,
        config: config_bytes,
        config_file,
        layers,
        names: Vec::new(),
    };
    join(place, parts)
}

/// Types of the configurations that images have: OCI's, Docker's, what Docker wrote before it had one, and none at all.
const CONFIG_TYPES: [&str; 4] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
    "application/octet-stream",
    "",
];

/// Artifacts are manifests of the same form. What tells them is their configuration's type (image-spec, manifest.md, "Guidelines
/// for Artifact Usage"); an image that names an artifact type beside is an image.
fn check_is_image(manifest: &Manifest, place: &str) -> Result<(), OciError> {
    let config_type = manifest.config.as_ref().map(|config| config.media_type.as_str());
    let kind = match (manifest.artifact_type.as_str(), config_type) {
        (_, Some(config_type)) if CONFIG_TYPES.contains(&config_type) => return Ok(()),
        ("", None) => return Ok(()),
        ("", Some(config_type)) => config_type,
        (artifact_type, _) => artifact_type,
    };
    Err(OciError::Artifact { file: place.to_owned(), kind: kind.to_owned() })
}

/// Layers must be tars; encrypted ones and other artifacts are refused.
fn check_type(layer: &Descriptor, file: &str) -> Result<(), OciError> {
    let media_type = layer.media_type.as_str();
    let is_tar = media_type.contains("tar") && !media_type.contains("encrypted");
    if is_tar || media_type.is_empty() {
        return Ok(());
    }
    Err(OciError::LayerType { file: file.to_owned(), media_type: media_type.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_be_read_as_an_index_and_a_manifest_is_refused() {
        let said = |kind: &str| format!(r#""mediaType": "application/vnd.oci.image.{kind}.v1+json","#);
        let (index, image) = (r#""manifests": []"#, r#""layers": [{"mediaType": "x", "digest": "y", "size": 1}]"#);
        for text in [
            format!("{{{index}, {image}}}"),
            format!(r#"{{{index}, "layers": []}}"#),
            format!("{{{} {index}}}", said("manifest")),
            format!("{{{} {image}}}", said("index")),
        ] {
            let refused = manifest("m", text.as_bytes());
            assert!(matches!(refused, Err(OciError::Contradiction { .. })), "{text}: {refused:?}");
        }
        for text in [format!("{{{index}}}"), format!("{{{image}}}"), format!("{{{} {index}}}", said("index"))] {
            assert!(manifest("m", text.as_bytes()).is_ok(), "{text}");
        }
    }
}
