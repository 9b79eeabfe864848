//! The image for this machine behind a name at a registry.

use std::sync::Arc;

use super::blob::RemoteBlob;
use super::repository::Repository;
use super::settings::Insecure;
use super::url::Url;
use crate::digest::Digest;
use crate::oci::{Descriptor, Documents, Found, MAX_MANIFEST, OciError, Packed, read_image, select};
use crate::reference::{DEFAULT_TAG, Reference};

/// Most URLs of one layer that are asked.
const MAX_URLS: usize = 4;

/// Reads manifests and the configuration, all checked against their digests.
pub fn open(repository: &Arc<Repository>, name: &Reference) -> Result<(Found, Digest), OciError> {
    let wanted = match name.digest() {
        Some(digest) => digest.to_string(),
        None => name.tag().unwrap_or(DEFAULT_TAG).to_owned(),
    };
    let shown = name.to_string();
    let top = repository.manifest(&shown, &wanted, MAX_MANIFEST)?;
    if let Some(expected) = name.digest().filter(|expected| **expected != top.digest) {
        return Err(OciError::DigestMismatch { file: shown, expected: *expected, actual: top.digest });
    }
    let digest = top.digest;
    let documents = AtRegistry { repository, name: &shown };
    let (manifest_digest, manifest) = select(&documents, &shown, digest, top.bytes)?;
    let mut found = read_image(&documents, &shown, Some(manifest_digest), manifest)?;
    found.names = vec![name.clone()];
    Ok((found, digest))
}

struct AtRegistry<'a> {
    repository: &'a Arc<Repository>,
    name: &'a str,
}

impl AtRegistry<'_> {
    fn digest(&self, descriptor: &Descriptor) -> Result<Digest, OciError> {
        let file = || format!("manifest of {}", self.name);
        descriptor.digest.parse().map_err(|source| OciError::Digest { file: file(), source })
    }

    /// Where a layer may be asked for besides. Its digest is checked wherever it comes from; without TLS, others would see what is
    /// asked for.
    fn urls(&self, descriptor: &Descriptor) -> Vec<Url> {
        let http = self.repository.http();
        let is_allowed = |url: &Url| url.is_https() || http.is_insecure(url.authority(), Insecure::Http);
        descriptor.urls.iter().take(MAX_URLS).filter_map(|url| Url::parse(url)).filter(is_allowed).collect()
    }
}

impl Documents for AtRegistry<'_> {
    fn document(&self, descriptor: &Descriptor, most: u64, is_manifest: bool) -> Result<(String, Vec<u8>), OciError> {
        let expected = self.digest(descriptor)?;
        let file = format!("{} {expected} of {}", if is_manifest { "manifest" } else { "configuration" }, self.name);
        let document = match is_manifest {
            true => self.repository.manifest(&file, &expected.to_string(), most)?,
            false => self.repository.small_blob(&file, &expected, most)?,
        };
        if document.digest != expected {
            return Err(OciError::DigestMismatch { file, expected, actual: document.digest });
        }
        if document.bytes.len() as u64 != descriptor.size {
            let actual = document.bytes.len() as u64;
            return Err(OciError::SizeMismatch { file, expected: descriptor.size, actual });
        }
        Ok((file, document.bytes))
    }

    fn layer(&self, descriptor: &Descriptor) -> Result<(String, Digest, Packed), OciError> {
        let digest = self.digest(descriptor)?;
        let file = format!("layer {digest} of {}", self.name);
        let (repository, urls) = (Arc::clone(self.repository), self.urls(descriptor));
        let remote = RemoteBlob { repository, digest, size: descriptor.size, urls, kept: None };
        Ok((file, digest, Packed::Remote(remote)))
    }
}
