//! Signatures over OCI images as `podman push --sign-by` and `skopeo copy --sign-by` make them with a GPG key ("simple signing",
//! containers-signature(5)): OpenPGP messages whose content is the document that is signed.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::certificate::PublicKey;
use super::document::{DocumentError, Expected};
use super::evidence::SignatureForm;
use super::message::SignedMessage;
use super::signature::{SignatureError, check_signatures};

/// A signed message, as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimpleSignature(pub Vec<u8>);

/// Why a signature does not count.
#[derive(Debug, thiserror::Error)]
pub enum SimpleError {
    /// Not what it should be.
    #[error("a signature is no OpenPGP signed message ({0}); sign anew, as `podman push --sign-by` does")]
    Broken(String),
    /// By another key, or by one that does not count.
    #[error("a signature does not count: {0}")]
    Signature(SignatureError),
    /// Signed, but for something else.
    #[error(transparent)]
    Document(#[from] DocumentError),
}

impl SimpleSignature {
    /// Checks that one of these keys has signed what is expected. The first of these moments, in seconds since 1970, at which the
    /// signature is good is enough.
    ///
    /// # Errors
    /// [`SimpleError`]; of the first moment.
    pub fn check(&self, keys: &[PublicKey], expected: &Expected<'_>, moments: &[u64]) -> Result<(), SimpleError> {
        let SignedMessage { content, signature } = SignedMessage::parse(&self.0).map_err(SimpleError::Broken)?;
        let signatures = [signature];
        let checks = moments.iter().map(|now| check_signatures(keys, &signatures, content.as_slice(), *now));
        let mut refused = None;
        for check in checks {
            match check {
                // Nothing is read in a document that nobody has signed.
                Ok(_) => return Ok(expected.check(&content, SignatureForm::Simple)?),
                Err(error) => drop(refused.get_or_insert(error)),
            }
        }
        Err(refused.map_or_else(|| SimpleError::Broken("it was never looked at".to_owned()), SimpleError::Signature))
    }
}

impl Serialize for SimpleSignature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(&self.0).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SimpleSignature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use base64::Engine;
        let text = String::deserialize(deserializer)?;
        let bytes = base64::engine::general_purpose::STANDARD.decode(text).map_err(serde::de::Error::custom)?;
        Ok(Self(bytes))
    }
}
