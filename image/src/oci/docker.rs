//! Archives of `docker save`: `manifest.json` names a configuration and plain layers for each image.

use super::error::OciError;
use super::spec::{DockerImage, MAX_CONFIG, MAX_MANIFEST};
use super::{Found, Packed, Parts, Source, join};
use crate::digest::Digest;
use crate::reference::Reference;

/// Finds the wanted image of the archive.
pub fn open(source: &Source<'_>) -> Result<Found, OciError> {
    let manifest = source.files.read("manifest.json", MAX_MANIFEST)?;
    let images: Vec<DockerImage> = source.parse("manifest.json", &manifest)?;
    let image = choose(source, &images)?;
    let config = source.files.read(&image.config, MAX_CONFIG)?;
    let id = Digest::of(&config);
    check_name(source, &image.config, id)?;
    let config_file = source.parse(&image.config, &config)?;
    let layers = image
        .layers
        .iter()
        .map(|layer| Ok((source.files.describe(layer), None, Packed::Slice(source.files.get(layer)?))))
        .collect::<Result<_, OciError>>()?;
    let mut names: Vec<Reference> = image.repo_tags.iter().filter_map(|name| name.parse().ok()).collect();
    if names.is_empty() {
        names.extend(source.name_from_path(None));
    }
    let parts = Parts { id, manifest_digest: None, manifest, config, config_file, layers, names };
    join(&source.files.describe("manifest.json"), parts)
}

/// The configuration's file is named by its digest: `HEX.json`, or `blobs/sha256/HEX` in newer archives.
fn check_name(source: &Source<'_>, name: &str, actual: Digest) -> Result<(), OciError> {
    let base = name.rsplit('/').next().unwrap_or(name);
    match Digest::from_hex(base.trim_end_matches(".json")) {
        Ok(expected) if expected != actual => {
            let file = source.files.describe(name);
            Err(OciError::DigestMismatch { file, expected, actual })
        }
        _ => Ok(()),
    }
}

fn choose<'a>(source: &Source<'_>, images: &'a [DockerImage]) -> Result<&'a DockerImage, OciError> {
    let have = || images.iter().map(name_of).collect::<Vec<_>>();
    let path = source.path.to_owned();
    match (source.filter, images) {
        (_, []) => Err(OciError::Empty { path }),
        (None, [only]) => Ok(only),
        (None, _) => Err(OciError::Ambiguous { path, have: have() }),
        (Some(wanted), images) => images
            .iter()
            .find(|image| is_named(image, wanted))
            .ok_or_else(|| OciError::NoSuchImage { path, wanted: wanted.to_owned(), have: have() }),
    }
}

fn name_of(image: &DockerImage) -> String {
    image.repo_tags.first().unwrap_or(&image.config).clone()
}

/// Whether an image is meant by a name, a tag alone, or its configuration's file.
fn is_named(image: &DockerImage, wanted: &str) -> bool {
    let name = wanted.parse::<Reference>().ok();
    image.config == wanted
        || image.repo_tags.iter().any(|tag| {
            let reference = tag.parse::<Reference>().ok();
            tag == wanted
                || (reference.is_some() && reference == name)
                || reference.is_some_and(|reference| reference.tag() == Some(wanted))
        })
}
