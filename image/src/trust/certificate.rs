//! OpenPGP keys (RFC 9580, section 10.1): what a key says of itself by its own signatures, and which of its parts may sign.
//!
//! Nothing of a key counts that its primary key has not signed. Such signatures by a key over itself may be by SHA-1, since keys
//! as old as appc have no others; those over images may not.

use std::io::BufRead;
use std::time::{SystemTime, UNIX_EPOCH};

use pgp::composed::{PublicOrSecret, SignedPublicKey, SignedPublicSubKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{Signature, SubpacketData};
use pgp::ser::Serialize;
use pgp::types::{KeyDetails, Tag, VerifyingKey};

/// Most keys in one file.
const MAX_KEYS: usize = 1000;
/// Begins a key in its armored form; a file may have several.
const ARMOR: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----";

/// Why a file is no file of keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// None in it.
    #[error("it holds no OpenPGP key; write one with `gpg --export --armor KEY`")]
    None,
    /// Not what it should be.
    #[error("it is no file of OpenPGP keys ({0}); write one with `gpg --export --armor KEY`")]
    Broken(String),
    /// Somebody's secret.
    #[error("it holds a secret key; give the public one, by `gpg --export --armor KEY`")]
    Secret,
    /// Too many.
    #[error("it holds more than {MAX_KEYS} keys")]
    TooMany,
}

/// A moment, in seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A primary key with its users and subkeys.
#[derive(Debug, Clone)]
pub struct PublicKey {
    key: SignedPublicKey,
}

/// What a key says of itself, for review.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyDescription {
    /// In upper-case hexadecimal digits.
    pub fingerprint: String,
    /// Such as `RSA`.
    pub algorithm: String,
    /// In seconds since 1970.
    pub created: u64,
    /// In seconds since 1970.
    pub expires: Option<u64>,
    /// Whether its owner has taken it back.
    pub is_revoked: bool,
    /// Those that the key itself vouches for, the most recent first.
    pub user_ids: Vec<String>,
    /// Keys that the primary key vouches for.
    pub subkeys: Vec<SubkeyDescription>,
}

/// What is known of a subkey.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubkeyDescription {
    /// In upper-case hexadecimal digits.
    pub fingerprint: String,
    /// Such as `EdDSA`.
    pub algorithm: String,
    /// In seconds since 1970.
    pub created: u64,
    /// In seconds since 1970.
    pub expires: Option<u64>,
    /// Whether it may sign.
    pub can_sign: bool,
    /// Whether its owner has taken it back.
    pub is_revoked: bool,
}

/// Why a key may not sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unfit {
    Revoked,
    /// Since when, in seconds since 1970.
    Expired(u64),
    /// Anything else.
    Other(&'static str),
}

impl PublicKey {
    /// Reads the keys of a file, armored or binary.
    ///
    /// # Errors
    /// [`KeyError`], when there is none, or something else.
    pub fn read_all(file: &[u8]) -> Result<Vec<Self>, KeyError> {
        let is_binary = file.first().is_some_and(|first| first & 0x80 != 0);
        if is_binary {
            return Self::read_block(file);
        }
        let text = std::str::from_utf8(file).map_err(|error| KeyError::Broken(error.to_string()))?;
        if text.contains("PRIVATE KEY BLOCK-----") {
            return Err(KeyError::Secret);
        }
        let mut keys = Vec::new();
        for (at, _) in text.match_indices(ARMOR) {
            let end = text[at + 1..].find(ARMOR).map_or(text.len(), |next| at + 1 + next);
            keys.extend(Self::read_block(&text.as_bytes()[at..end])?);
            if keys.len() > MAX_KEYS {
                return Err(KeyError::TooMany);
            }
        }
        if keys.is_empty() { Err(KeyError::None) } else { Ok(keys) }
    }

    fn read_block(block: impl BufRead) -> Result<Vec<Self>, KeyError> {
        let broken = |error: pgp::errors::Error| KeyError::Broken(one_line(&error.to_string()));
        let (all, _) = PublicOrSecret::from_reader_many_buf(block).map_err(broken)?;
        let mut keys = Vec::new();
        for key in all {
            match key.map_err(broken)? {
                PublicOrSecret::Public(key) => keys.push(Self { key }),
                PublicOrSecret::Secret(_) => return Err(KeyError::Secret),
            }
            if keys.len() > MAX_KEYS {
                return Err(KeyError::TooMany);
            }
        }
        if keys.is_empty() { Err(KeyError::None) } else { Ok(keys) }
    }

    /// In upper-case hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.key.primary_key)
    }

    /// The key in its binary form.
    ///
    /// # Errors
    /// It cannot be written, which what has been read always can.
    pub fn to_bytes(&self) -> Result<Vec<u8>, KeyError> {
        self.key.to_bytes().map_err(|error| KeyError::Broken(one_line(&error.to_string())))
    }

    /// What it says of itself.
    pub fn describe(&self) -> KeyDescription {
        let own = self.own_signatures();
        let latest = own.iter().max_by_key(|signature| created(signature));
        KeyDescription {
            fingerprint: self.fingerprint(),
            algorithm: algorithm(&self.key.primary_key),
            created: self.created(),
            expires: latest.and_then(|signature| expiry(self.created(), signature)),
            is_revoked: self.is_revoked(),
            user_ids: self.user_ids(),
            subkeys: self.key.public_subkeys.iter().filter_map(|subkey| self.describe_subkey(subkey)).collect(),
        }
    }

    fn describe_subkey(&self, subkey: &SignedPublicSubKey) -> Option<SubkeyDescription> {
        let binding = self.binding(subkey)?;
        let born = u64::from(subkey.key.created_at().as_secs());
        Some(SubkeyDescription {
            fingerprint: fingerprint(&subkey.key),
            algorithm: algorithm(&subkey.key),
            created: born,
            expires: expiry(born, binding),
            can_sign: self.may_sign(subkey, binding),
            is_revoked: self.is_subkey_revoked(subkey),
        })
    }

    fn created(&self) -> u64 {
        u64::from(self.key.primary_key.created_at().as_secs())
    }

    /// The users that the key itself vouches for, the one it has last spoken of first.
    fn user_ids(&self) -> Vec<String> {
        let mut users = Vec::new();
        for user in &self.key.details.users {
            let own = user.signatures.iter().filter(|signature| {
                acceptable(signature)
                    && signature.verify_certification(&self.key.primary_key, Tag::UserId, &user.id).is_ok()
            });
            // The last word counts: a certification, or that it is taken back.
            let Some(last) = own.max_by_key(|signature| created(signature)) else { continue };
            if last.typ() != Some(pgp::packet::SignatureType::CertRevocation) {
                let id = String::from_utf8_lossy(user.id.id()).chars().filter(|c| !c.is_control()).collect();
                users.push((std::cmp::Reverse((last.is_primary(), created(last))), id));
            }
        }
        users.sort();
        users.into_iter().map(|(_, id)| id).collect()
    }

    /// All by which the primary key says what it is for and how long.
    fn own_signatures(&self) -> Vec<&Signature> {
        let primary = &self.key.primary_key;
        let direct = self.key.details.direct_signatures.iter();
        let direct = direct.filter(|signature| acceptable(signature) && signature.verify_key(primary).is_ok());
        let users = self.key.details.users.iter().flat_map(|user| {
            user.signatures.iter().filter(|signature| {
                acceptable(signature)
                    && signature.typ() != Some(pgp::packet::SignatureType::CertRevocation)
                    && signature.verify_certification(primary, Tag::UserId, &user.id).is_ok()
            })
        });
        direct.chain(users).collect()
    }

    fn is_revoked(&self) -> bool {
        let mut revocations = self.key.details.revocation_signatures.iter();
        revocations.any(|signature| signature.verify_key(&self.key.primary_key).is_ok())
    }

    fn is_subkey_revoked(&self, subkey: &SignedPublicSubKey) -> bool {
        use pgp::packet::SignatureType::SubkeyRevocation;
        let mut revocations = subkey.signatures.iter().filter(|signature| signature.typ() == Some(SubkeyRevocation));
        revocations.any(|signature| signature.verify_subkey_binding(&self.key.primary_key, &subkey.key).is_ok())
    }

    /// The primary key's last word on a subkey.
    fn binding<'a>(&self, subkey: &'a SignedPublicSubKey) -> Option<&'a Signature> {
        use pgp::packet::SignatureType::SubkeyBinding;
        let bindings = subkey.signatures.iter().filter(|signature| {
            acceptable(signature)
                && signature.typ() == Some(SubkeyBinding)
                && signature.verify_subkey_binding(&self.key.primary_key, &subkey.key).is_ok()
        });
        bindings.max_by_key(|signature| created(signature))
    }

    /// Whether a subkey is for signing, and has said itself that it belongs to this key: else another's subkey could be claimed.
    fn may_sign(&self, subkey: &SignedPublicSubKey, binding: &Signature) -> bool {
        let back = binding.embedded_signature().filter(|_| binding.key_flags().sign());
        back.is_some_and(|back| {
            acceptable(back) && back.verify_primary_key_binding(&subkey.key, &self.key.primary_key).is_ok()
        })
    }

    /// The part of this key that a signature names as its maker.
    pub(super) fn maker(&self, signature: &Signature) -> Option<Part<'_>> {
        if is_by(signature, &self.key.primary_key) {
            return Some(Part::Primary(self));
        }
        let subkey = self.key.public_subkeys.iter().find(|subkey| is_by(signature, &subkey.key))?;
        Some(Part::Subkey(self, subkey))
    }

    /// Whether the key as a whole can be relied on.
    fn check(&self, now: u64) -> Result<&Signature, Unfit> {
        if self.is_revoked() {
            return Err(Unfit::Revoked);
        }
        let own = self.own_signatures();
        let latest = own.into_iter().filter(|signature| created(signature) <= now).max_by_key(|own| created(own));
        let latest = latest.ok_or(Unfit::Other("has no valid signature over itself"))?;
        match expiry(self.created(), latest) {
            Some(expires) if expires <= now => Err(Unfit::Expired(expires)),
            _ => Ok(latest),
        }
    }
}

/// The primary key or a subkey, as the maker of a signature.
pub(super) enum Part<'a> {
    Primary(&'a PublicKey),
    Subkey(&'a PublicKey, &'a SignedPublicSubKey),
}

impl Part<'_> {
    /// Whether it may sign, now.
    pub fn check(&self, now: u64) -> Result<(), Unfit> {
        match self {
            Self::Primary(key) => {
                let latest = key.check(now)?;
                // Without flags it is for all that its algorithm can do.
                match has_flags(latest) && !latest.key_flags().sign() {
                    true => Err(Unfit::Other("is not for signing")),
                    false => Ok(()),
                }
            }
            Self::Subkey(key, subkey) => {
                key.check(now)?;
                let binding = key.binding(subkey).ok_or(Unfit::Other("does not belong to its primary key"))?;
                let born = u64::from(subkey.key.created_at().as_secs());
                let until = [expiry(born, binding), signature_expiry(binding)].into_iter().flatten().min();
                if key.is_subkey_revoked(subkey) {
                    return Err(Unfit::Revoked);
                }
                if let Some(expired) = until.filter(|until| *until <= now) {
                    return Err(Unfit::Expired(expired));
                }
                match key.may_sign(subkey, binding) {
                    true => Ok(()),
                    false => Err(Unfit::Other("is not for signing")),
                }
            }
        }
    }

    /// The key that it is a part of.
    pub fn key(&self) -> &PublicKey {
        match self {
            Self::Primary(key) | Self::Subkey(key, _) => key,
        }
    }

    /// Whether it has made `signature`, whose content has this digest.
    pub fn has_signed(&self, signature: &Signature, digest: &[u8]) -> bool {
        let Some((config, bytes)) = signature.config().zip(signature.signature()) else { return false };
        let version = match self {
            Self::Primary(key) => key.key.primary_key.version(),
            Self::Subkey(_, subkey) => subkey.key.version(),
        };
        let both_new =
            (version == pgp::types::KeyVersion::V6) == (config.version() == pgp::packet::SignatureVersion::V6);
        let verified = match self {
            Self::Primary(key) => key.key.primary_key.verify(config.hash_alg, digest, bytes),
            Self::Subkey(_, subkey) => subkey.key.verify(config.hash_alg, digest, bytes),
        };
        both_new && verified.is_ok()
    }
}

/// In upper-case hexadecimal digits.
pub(super) fn fingerprint(key: &impl KeyDetails) -> String {
    format!("{:X}", key.fingerprint())
}

/// What kind of key it is.
fn algorithm(key: &impl KeyDetails) -> String {
    format!("{:?}", key.algorithm()).trim_end_matches("Legacy").to_owned()
}

/// Whether a signature names this key as its maker. One that names none is nobody's.
fn is_by(signature: &Signature, key: &impl KeyDetails) -> bool {
    let by_fingerprint = signature.issuer_fingerprint().iter().any(|issuer| **issuer == key.fingerprint());
    by_fingerprint || signature.issuer_key_id().iter().any(|issuer| **issuer == key.legacy_key_id())
}

/// Whether a key's signature over itself is by a digest that still means something.
fn acceptable(signature: &Signature) -> bool {
    !matches!(signature.hash_alg(), None | Some(HashAlgorithm::Md5 | HashAlgorithm::Ripemd160))
}

pub(super) fn created(signature: &Signature) -> u64 {
    signature.created().map_or(0, |created| u64::from(created.as_secs()))
}

/// When a key ends that began at `born`, as its signature says.
fn expiry(born: u64, signature: &Signature) -> Option<u64> {
    let lasts = signature.key_expiration_time()?.as_secs();
    (lasts > 0).then(|| born.saturating_add(u64::from(lasts)))
}

/// When a signature ends.
pub(super) fn signature_expiry(signature: &Signature) -> Option<u64> {
    let lasts = signature.signature_expiration_time()?.as_secs();
    (lasts > 0).then(|| created(signature).saturating_add(u64::from(lasts)))
}

fn has_flags(signature: &Signature) -> bool {
    let mut subpackets = signature.config().into_iter().flat_map(|config| config.hashed_subpackets());
    subpackets.any(|subpacket| matches!(subpacket.data, SubpacketData::KeyFlags(_)))
}

/// A library's message, fit for one line.
pub(super) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}
