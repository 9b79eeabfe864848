//! Signatures as cosign makes them with a key of one's own (cosign's SIGNATURE_SPEC.md): over a document that names an image, by
//! ECDSA, RSA or Ed25519.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::document::{DocumentError, Expected};
use super::evidence::SignatureForm;
use super::rekor::Logged;

/// Begins a public key.
const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const END: &str = "-----END PUBLIC KEY-----";

/// A document and the signature over it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SigstoreSignature {
    /// The document, which is JSON.
    pub document: String,
    /// In base64.
    pub signature: String,
    /// Its entry in a Rekor log, which is JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<String>,
}

/// Whose signatures count.
#[derive(Debug, Clone)]
pub struct Signers {
    /// Their keys.
    pub keys: Vec<SigstoreKey>,
    /// Keys of Rekor logs, of which one must have the signature; none: it need not be in one.
    pub logs: Option<Vec<SigstoreKey>>,
}

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigstoreKey {
    /// What kind of key: the content of an `AlgorithmIdentifier` in DER.
    algorithm: Vec<u8>,
    key: Vec<u8>,
}

/// No public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SigstoreKeyError {
    /// Not what it should be.
    #[error("it is no public key in PEM form (`-----BEGIN PUBLIC KEY-----`), such as cosign.pub")]
    Broken,
    /// Of a kind that is not known.
    #[error("its kind of key is not supported; use ECDSA (P-256, P-384), RSA (2048 bits and more) or Ed25519")]
    Kind,
}

/// Why a signature does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SigstoreError {
    /// Another key's, or nobody's.
    #[error("a signature is by another key, or its document was changed")]
    Key,
    /// It is in no log.
    #[error("a signature has no entry in a Rekor log with it; sign anew, as cosign does without --tlog-upload=false")]
    NotLogged,
    /// Its entry in a log is another's, or nobody's.
    #[error("a signature's entry in a Rekor log does not count: {0}")]
    Log(String),
    /// Signed, but for something else.
    #[error(transparent)]
    Document(#[from] DocumentError),
}

impl SigstoreKey {
    /// Reads a key, as `cosign generate-key-pair` and `openssl pkey -pubout` write it.
    ///
    /// # Errors
    /// [`SigstoreKeyError`].
    pub fn parse(pem: &[u8]) -> Result<Self, SigstoreKeyError> {
        let text = std::str::from_utf8(pem).map_err(|_| SigstoreKeyError::Broken)?;
        let (_, rest) = text.split_once(BEGIN).ok_or(SigstoreKeyError::Broken)?;
        let (body, _) = rest.split_once(END).ok_or(SigstoreKeyError::Broken)?;
        let base64: String = body.split_whitespace().collect();
        let der = STANDARD.decode(base64).map_err(|_| SigstoreKeyError::Broken)?;
        let (algorithm, key) = subject_public_key(&der).ok_or(SigstoreKeyError::Broken)?;
        let key = Self { algorithm: algorithm.to_vec(), key: key.to_vec() };
        let is_known = key.algorithms().next().is_some();
        if is_known { Ok(key) } else { Err(SigstoreKeyError::Kind) }
    }

    /// Whether this key has signed these bytes.
    pub fn verify(&self, bytes: &[u8], signature: &[u8]) -> bool {
        let mut algorithms = self.algorithms();
        algorithms.any(|algorithm| algorithm.verify_signature(&self.key, bytes, signature).is_ok())
    }

    fn algorithms(&self) -> impl Iterator<Item = &'static dyn rustls::pki_types::SignatureVerificationAlgorithm> {
        let all = rustls::crypto::ring::default_provider().signature_verification_algorithms.all;
        all.iter().copied().filter(|algorithm| algorithm.public_key_alg_id().as_ref() == self.algorithm)
    }
}

impl SigstoreSignature {
    /// Checks that one of these signers has signed what is expected.
    ///
    /// # Errors
    /// [`SigstoreError`].
    pub fn check(&self, signers: &Signers, expected: &Expected<'_>) -> Result<(), SigstoreError> {
        let signature = STANDARD.decode(self.signature.trim()).map_err(|_| SigstoreError::Key)?;
        let document = self.document.as_bytes();
        let key = signers.keys.iter().find(|key| key.verify(document, &signature)).ok_or(SigstoreError::Key)?;
        if let Some(logs) = &signers.logs {
            let bundle = self.bundle.as_ref().ok_or(SigstoreError::NotLogged)?;
            let logged = Logged { key, signature: &signature, document };
            logged.check(bundle, logs).map_err(SigstoreError::Log)?;
        }
        // Nothing is read in a document that nobody has signed.
        Ok(expected.check(document, SignatureForm::Sigstore)?)
    }
}

/// Algorithm and key of a `SubjectPublicKeyInfo` in DER (RFC 5280, section 4.1).
fn subject_public_key(der: &[u8]) -> Option<(&[u8], &[u8])> {
    const SEQUENCE: u8 = 0x30;
    const BIT_STRING: u8 = 0x03;
    let (info, rest) = element(der, SEQUENCE)?;
    let (algorithm, key) = element(info, SEQUENCE)?;
    let (bits, end) = element(key, BIT_STRING)?;
    // Whole bytes, that is: none of the last one's bits are unused.
    let (unused, bits) = bits.split_first()?;
    (rest.is_empty() && end.is_empty() && *unused == 0).then_some((algorithm, bits))
}

/// The content of the element that `der` begins with, which must be of this kind, and what follows it.
fn element(der: &[u8], kind: u8) -> Option<(&[u8], &[u8])> {
    let (first, rest) = der.split_first()?;
    let (length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(*length), rest),
        0x81 | 0x82 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length).filter(|_| *first == kind)
}
