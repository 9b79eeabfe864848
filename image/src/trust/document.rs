//! What signatures over OCI images are over: a small document in JSON that names an image's digest, and what its signer calls the image
//! (containers-signature(5)). cosign's has the same members and another type (its SIGNATURE_SPEC.md).
//!
//! As podman reads it, strictly: a document with more in it than is known here may mean something else than it seems to.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::evidence::SignatureForm;
use super::identity::{Identity, SignedIdentity};
use crate::digest::Digest;

/// What a document must say.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// One of these digests.
    pub digests: &'a [Digest],
    /// What it must call the image.
    pub called: &'a SignedIdentity,
    /// What the image is called where it has come from.
    pub image: &'a Identity,
}

/// Why a signed document does not count for an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Signed, but not understood.
    #[error("the signed document is not one over an image ({0})")]
    Form(String),
    /// For another image.
    #[error("a signature is for another image, {0}")]
    OtherImage(String),
    /// The image has another name.
    #[error("a signature is for an image called {0}, which signedIdentity does not take")]
    OtherName(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    critical: Critical,
    /// What does not matter to whether it counts. cosign writes null for nothing.
    optional: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    #[serde(rename = "type")]
    kind: String,
    image: Image,
    identity: Named,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Image {
    docker_manifest_digest: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Named {
    docker_reference: String,
}

impl Expected<'_> {
    /// Checks a document whose signature, of this form, has been found good.
    ///
    /// # Errors
    /// [`DocumentError`].
    pub(crate) fn check(&self, document: &[u8], form: SignatureForm) -> Result<(), DocumentError> {
        let broken = |what: String| DocumentError::Form(what);
        let document: Document = serde_json::from_slice(document).map_err(|error| broken(error.to_string()))?;
        let Critical { kind, image, identity } = document.critical;
        let wanted = match form {
            SignatureForm::Simple => "atomic container signature",
            SignatureForm::Sigstore => "cosign container image signature",
        };
        if kind != wanted {
            return Err(broken(format!("{kind:?}")));
        }
        if form == SignatureForm::Simple && document.optional.is_none() {
            return Err(broken("`optional` is no object".to_owned()));
        }
        let digest = image.docker_manifest_digest;
        if !digest.parse::<Digest>().is_ok_and(|digest| self.digests.contains(&digest)) {
            return Err(DocumentError::OtherImage(digest));
        }
        let name = identity.docker_reference;
        if self.called.accepts(self.image, &name) { Ok(()) } else { Err(DocumentError::OtherName(name)) }
    }
}
