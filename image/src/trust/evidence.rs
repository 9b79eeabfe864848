//! What speaks for an image, held against a policy.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::identity::{Identity, SignedIdentity};
use super::policy::{KeySources, Policy, Requirement};
use super::sigstore::{SigstoreError, SigstoreKey, SigstoreKeyError, SigstoreSignature};
use crate::digest::Digest;

/// What speaks for an image.
#[derive(Debug, Clone)]
pub struct Evidence {
    /// What it is called.
    pub identity: Identity,
    /// What signatures over it may name: its manifest, and the index that led there.
    pub digests: Vec<Digest>,
    /// Signatures that have come with it.
    pub signatures: Vec<SigstoreSignature>,
}

/// Why a policy does not take an image.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// None of these images is taken.
    #[error("images from there are rejected")]
    Rejected,
    /// Nobody has signed.
    #[error("a signature is required, and there is none")]
    Unsigned,
    /// Somebody else has signed, or something else.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Signatures(Vec<SigstoreError>),
    /// A key cannot be read.
    #[error("key {}: {source}", path.display())]
    KeyFile {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that holds no key.
    #[error("key {name}: {source}")]
    Key {
        /// Its file, or `keyData`.
        name: String,
        /// Why.
        source: SigstoreKeyError,
    },
}

/// An image is not taken.
#[derive(Debug, thiserror::Error)]
#[error(
    "image {name} is not trusted: {source} ({}, {scope}); --insecure-options=image does without signatures", policy.display()
)]
pub struct Refused {
    /// The image.
    pub name: String,
    /// The policy.
    pub policy: PathBuf,
    /// Which part of it.
    pub scope: String,
    /// Why.
    pub source: Refusal,
}

impl Policy {
    /// Whether signatures are looked at for an image of this identity.
    pub fn wants_signatures(&self, image: &Identity) -> bool {
        let (_, requirements) = self.requirements(image);
        // Where all are rejected anyway, nothing needs to be fetched.
        !requirements.contains(&Requirement::Reject)
            && requirements.iter().any(|one| matches!(one, Requirement::Sigstore { .. }))
    }

    /// Checks that all that the policy requires of an image is there. `name` is what messages call it.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn check(&self, name: &str, evidence: &Evidence) -> Result<(), Refused> {
        let (scope, requirements) = self.requirements(&evidence.identity);
        for requirement in requirements {
            requirement.check(evidence).map_err(|source| Refused {
                name: name.to_owned(),
                policy: self.path.clone(),
                scope: scope.clone(),
                source,
            })?;
        }
        Ok(())
    }
}

impl Requirement {
    fn check(&self, evidence: &Evidence) -> Result<(), Refusal> {
        match self {
            Self::AcceptAnything => Ok(()),
            Self::Reject => Err(Refusal::Rejected),
            Self::Sigstore { keys, identity } => check_signatures(keys, identity, evidence),
        }
    }
}

/// One good signature is enough.
fn check_signatures(keys: &KeySources, wanted: &SignedIdentity, evidence: &Evidence) -> Result<(), Refusal> {
    let keys = read_keys(keys)?;
    if evidence.signatures.is_empty() {
        return Err(Refusal::Unsigned);
    }
    let mut refused = Vec::new();
    for signature in &evidence.signatures {
        match signature.check(&keys, &evidence.digests, wanted, &evidence.identity) {
            Ok(()) => return Ok(()),
            Err(error) if refused.contains(&error) => {}
            Err(error) => refused.push(error),
        }
    }
    Err(Refusal::Signatures(refused))
}

fn read_keys(sources: &KeySources) -> Result<Vec<SigstoreKey>, Refusal> {
    let parse = |name: String, pem: &[u8]| SigstoreKey::parse(pem).map_err(|source| Refusal::Key { name, source });
    match sources {
        KeySources::Files(paths) => paths
            .iter()
            .map(|path| {
                let pem = fs::read(path).map_err(|source| Refusal::KeyFile { path: path.clone(), source })?;
                parse(path.display().to_string(), &pem)
            })
            .collect(),
        KeySources::Data(datas) => datas.iter().map(|pem| parse("keyData".to_owned(), pem)).collect(),
    }
}
