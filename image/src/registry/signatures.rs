//! Signatures over an image, where those put them who make them:
//!
//! - cosign beside the image in its repository. Under the tag `sha256-<digest>.sig` is an artifact, each of whose layers is a signed
//!   document (its SIGNATURE_SPEC.md).
//! - podman and skopeo, those by GPG keys, elsewhere: in a folder or at a web server that the host's configuration names (see
//!   `lookaside`), as `<path of the repository>@sha256=<digest>/signature-1`, `signature-2` and so on.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::error::RegistryError;
use super::http::{Http, Request};
use super::lookaside::Storage;
use super::url::Url;
use super::{Remote, Repository};
use crate::digest::Digest;
use crate::oci::{Descriptor, MAX_MANIFEST, OciError};
use crate::trust::message::MAX_MESSAGE;
use crate::trust::{Identity, SignatureForm, Signatures, SigstoreSignature, SimpleSignature};

/// Most signatures of one image that are looked at.
const MAX_SIGNATURES: usize = 64;
/// Largest signed document.
const MAX_DOCUMENT: u64 = 1 << 20;
/// What the layers are.
const DOCUMENT_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Where a layer's signature is.
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// Where its entry in a Rekor log is.
const BUNDLE: &str = "dev.sigstore.cosign/bundle";

#[derive(serde::Deserialize)]
struct Artifact {
    #[serde(default)]
    layers: Vec<Descriptor>,
}

impl Remote {
    /// Signatures of these forms over a manifest or index. Nothing of them is verified but their digests, where they have some.
    pub fn signatures(&self, digest: &Digest, forms: &[SignatureForm]) -> Result<Signatures, OciError> {
        let mut signatures = Signatures::default();
        if forms.contains(&SignatureForm::Sigstore) {
            signatures.sigstore = self.sigstore_signatures(digest)?;
        }
        if forms.contains(&SignatureForm::Simple) {
            signatures.simple = self.simple_signatures(digest)?;
        }
        Ok(signatures)
    }

    fn simple_signatures(&self, digest: &Digest) -> Result<Vec<SimpleSignature>, RegistryError> {
        let identity = Identity::of_registry(&self.name);
        let storage = self.lookaside.storage(&identity)?;
        let (Some(storage), Some(path)) = (storage, identity.repository_path()) else { return Ok(Vec::new()) };
        let mut signatures = Vec::new();
        for number in 1..=MAX_SIGNATURES {
            let place = format!("{path}@sha256={}/signature-{number}", digest.hex());
            let signature = match &storage {
                Storage::Folder(folder) => in_folder(&folder.join(place))?,
                Storage::Web(base) => on_the_web(self.repository.http(), &base.below(&place))?,
            };
            let Some(bytes) = signature else { break };
            signatures.push(SimpleSignature(bytes));
        }
        Ok(signatures)
    }

    fn sigstore_signatures(&self, digest: &Digest) -> Result<Vec<SigstoreSignature>, OciError> {
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
            let bundle = layer.annotations.get(BUNDLE).cloned();
            signatures.push(SigstoreSignature { document, signature: signature.clone(), bundle });
        }
        Ok(signatures)
    }
}

/// A signature, if there is such a file.
fn in_folder(path: &Path) -> Result<Option<Vec<u8>>, RegistryError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_MESSAGE + 1).read_to_end(&mut bytes));
    match read {
        Ok(_) if bytes.len() as u64 > MAX_MESSAGE => {
            let (what, host) = (format!("signature {}", path.display()), "this host".to_owned());
            Err(RegistryError::TooLarge { what, host, most: MAX_MESSAGE })
        }
        Ok(_) => Ok(Some(bytes)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(source) => Err(RegistryError::SignatureFile { path: path.to_owned(), source }),
    }
}

/// A signature, if there is such a page. It may come without TLS: what is not signed as it should be does not count, whoever
/// sends it.
fn on_the_web(http: &Http, url: &Url) -> Result<Option<Vec<u8>>, RegistryError> {
    let response = http.send(&Request::get(url.clone()), None)?;
    let host = response.url.authority().to_owned();
    match response.status {
        200 => {
            let what = format!("signature {url}");
            let too_large = RegistryError::TooLarge { what, host, most: MAX_MESSAGE };
            response.read(MAX_MESSAGE)?.map(Some).ok_or(too_large)
        }
        404 => Ok(None),
        status => Err(RegistryError::SignatureStatus { url: url.to_string(), status }),
    }
}
