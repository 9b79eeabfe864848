//! Signatures of an image beside it in its repository, where cosign puts them: under the tag `sha256-<digest>.sig` is an artifact, each of
//! whose layers is a signed document (cosign's SIGNATURE_SPEC.md).

use super::error::RegistryError;
use super::{Remote, Repository};
use crate::digest::Digest;
use crate::oci::{Descriptor, MAX_MANIFEST, OciError};
use crate::trust::SigstoreSignature;

/// Most signatures of one image that are looked at.
const MAX_SIGNATURES: usize = 64;
/// Largest signed document.
const MAX_DOCUMENT: u64 = 1 << 20;
/// What the layers are.
const DOCUMENT_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Where a layer's signature is.
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

#[derive(serde::Deserialize)]
struct Artifact {
    #[serde(default)]
    layers: Vec<Descriptor>,
}

impl Remote {
    /// What has been signed of a manifest or index; nothing of it is verified but its digests.
    pub fn signatures(&self, digest: &Digest) -> Result<Vec<SigstoreSignature>, OciError> {
        let repository: &Repository = &self.repository;
        let file = format!("signatures of {}", self.name);
        let artifact = match repository.manifest(&file, &format!("sha256-{}.sig", digest.hex()), MAX_MANIFEST) {
            Ok(artifact) => artifact,
            Err(RegistryError::NotFound { .. }) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let json = |source| OciError::Json { file: file.clone(), source };
        let artifact: Artifact = serde_json::from_slice(&artifact.bytes).map_err(json)?;
        let documents = artifact.layers.iter().filter(|layer| layer.media_type == DOCUMENT_TYPE).take(MAX_SIGNATURES);
        let mut signatures = Vec::new();
        for layer in documents {
            let Some(signature) = layer.annotations.get(SIGNATURE) else { continue };
            let expected: Digest =
                layer.digest.parse().map_err(|source| OciError::Digest { file: file.clone(), source })?;
            let document = repository.small_blob(&file, &expected, MAX_DOCUMENT)?;
            if document.digest != expected {
                return Err(OciError::DigestMismatch { file, expected, actual: document.digest });
            }
            let Ok(document) = String::from_utf8(document.bytes) else { continue };
            signatures.push(SigstoreSignature { document, signature: signature.clone() });
        }
        Ok(signatures)
    }
}
