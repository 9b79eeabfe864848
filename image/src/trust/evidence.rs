//! What speaks for an image, held against a policy.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::certificate::{KeyError, PublicKey, now};
use super::document::Expected;
use super::identity::Identity;
use super::keyring::MAX_KEYS;
use super::policy::{KeySources, Policy, Requirement};
use super::sigstore::{Signers, SigstoreKey, SigstoreKeyError, SigstoreSignature};
use super::simple::SimpleSignature;
use crate::digest::Digest;

/// The forms of signatures over images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureForm {
    /// As cosign makes them.
    Sigstore,
    /// By GPG keys.
    Simple,
}

/// Signatures over an image; nothing of them is verified.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signatures {
    /// As cosign makes them.
    #[serde(rename = "signatures")]
    pub sigstore: Vec<SigstoreSignature>,
    /// By GPG keys.
    #[serde(rename = "simple_signatures", default, skip_serializing_if = "Vec::is_empty")]
    pub simple: Vec<SimpleSignature>,
}

impl Signatures {
    /// Adds others.
    pub fn extend(&mut self, others: Self) {
        self.sigstore.extend(others.sigstore);
        self.simple.extend(others.simple);
    }
}

/// What speaks for an image.
#[derive(Debug, Clone)]
pub struct Evidence {
    /// What it is called.
    pub identity: Identity,
    /// What signatures over it may name: its manifest, and the index that led there.
    pub digests: Vec<Digest>,
    /// Signatures that have come with it.
    pub signatures: Signatures,
    /// When those by GPG keys were found good, in seconds since 1970: that a key has expired since does not matter.
    pub accepted: Option<u64>,
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
    /// Nobody has signed by a GPG key.
    #[error(
        "a signature by a GPG key is required, and there is none where containers-registries.d(5) says that they are"
    )]
    UnsignedSimple,
    /// Nobody can have signed.
    #[error("a signature is required, and images of the transport {0} have none; fetch it from a registry")]
    Unsignable(&'static str),
    /// Somebody else has signed, or something else.
    #[error("{}", .0.join("; "))]
    Signatures(Vec<String>),
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
    /// A file that holds no GPG key.
    #[error("key {name}: {source}")]
    GpgKey {
        /// Its file, or `keyData`.
        name: String,
        /// Why.
        source: KeyError,
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
    /// Which signatures are looked at for an image of this identity.
    pub fn wanted_signatures(&self, image: &Identity) -> Vec<SignatureForm> {
        let (_, requirements) = self.requirements(image);
        // Where all are rejected anyway, nothing needs to be fetched.
        if requirements.contains(&Requirement::Reject) {
            return Vec::new();
        }
        let mut forms = Vec::new();
        for form in requirements.iter().filter_map(Requirement::form) {
            if !forms.contains(&form) {
                forms.push(form);
            }
        }
        forms
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
    /// The form of signatures that it asks for.
    fn form(&self) -> Option<SignatureForm> {
        match self {
            Self::AcceptAnything | Self::Reject => None,
            Self::Sigstore { .. } => Some(SignatureForm::Sigstore),
            Self::SignedBy { .. } => Some(SignatureForm::Simple),
        }
    }

    fn check(&self, evidence: &Evidence) -> Result<(), Refusal> {
        let Evidence { identity: image, digests, signatures, accepted } = evidence;
        match self {
            Self::AcceptAnything => Ok(()),
            Self::Reject => Err(Refusal::Rejected),
            Self::Sigstore { keys, logs, identity: called } => {
                let read = |sources| {
                    read_keys(sources, |name, pem| {
                        let key = SigstoreKey::parse(pem).map_err(|source| Refusal::Key { name, source })?;
                        Ok(vec![key])
                    })
                };
                let signers = Signers { keys: read(keys)?, logs: logs.as_ref().map(read).transpose()? };
                let expected = Expected { digests, called, image };
                let checks = signatures.sigstore.iter().map(|signature| signature.check(&signers, &expected));
                one_is_enough(checks, image, Refusal::Unsigned)
            }
            Self::SignedBy { keys, identity: called } => {
                let keys: Vec<PublicKey> = read_keys(keys, |name, file| {
                    PublicKey::read_all(file).map_err(|source| Refusal::GpgKey { name, source })
                })?;
                let expected = Expected { digests, called, image };
                let moments: Vec<u64> = [now()].into_iter().chain(*accepted).collect();
                let checks = signatures.simple.iter().map(|signature| signature.check(&keys, &expected, &moments));
                one_is_enough(checks, image, Refusal::UnsignedSimple)
            }
        }
    }
}

/// One good signature is enough.
fn one_is_enough<E: ToString>(
    checks: impl Iterator<Item = Result<(), E>>,
    image: &Identity,
    unsigned: Refusal,
) -> Result<(), Refusal> {
    let mut refused = Vec::new();
    for check in checks {
        let Err(error) = check else { return Ok(()) };
        let error = error.to_string();
        if !refused.contains(&error) {
            refused.push(error);
        }
    }
    match refused.is_empty() {
        true if image.is_at_path() => Err(Refusal::Unsignable(image.transport())),
        true => Err(unsigned),
        false => Err(Refusal::Signatures(refused)),
    }
}

/// All keys of a requirement, by what makes keys of a file. That is given what messages call the file, too.
fn read_keys<K>(
    sources: &KeySources,
    parse: impl Fn(String, &[u8]) -> Result<Vec<K>, Refusal>,
) -> Result<Vec<K>, Refusal> {
    let mut keys = Vec::new();
    match sources {
        KeySources::Files(paths) => {
            for path in paths {
                let file = read_key(path).map_err(|source| Refusal::KeyFile { path: path.clone(), source })?;
                keys.extend(parse(path.display().to_string(), &file)?);
            }
        }
        KeySources::Data(datas) => {
            for file in datas {
                keys.extend(parse("keyData".to_owned(), file)?);
            }
        }
    }
    Ok(keys)
}

fn read_key(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_KEYS + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 <= MAX_KEYS { Ok(bytes) } else { Err(io::Error::other("it is too large")) }
}
