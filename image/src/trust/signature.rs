//! OpenPGP signatures over bytes, checked while these stream by; and detached ones (RFC 9580, section 10.4), which are files of their own.

use std::io::{self, Read};

use pgp::composed::{Deserializable, DetachedSignature};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{Signature, SignatureType, SignatureVersion, SignatureVersionSpecific};
use sha2::digest::DynDigest;

use super::certificate::{Part, PublicKey, Unfit, created, one_line, signature_expiry};

/// Largest file of signatures.
pub const MAX_SIGNATURE: u64 = 1 << 20;
/// Most signatures in one file.
const MAX_SIGNATURES: usize = 16;
/// How much later than now a signature may be made: clocks differ.
const CLOCK_SKEW: u64 = 5 * 60;
/// How much content is read at once.
const PIECE: usize = 64 * 1024;

/// Who has signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    /// The primary key's, in upper-case hexadecimal digits.
    pub fingerprint: String,
    /// As the key says of itself.
    pub user_id: Option<String>,
}

/// Why a signature does not count.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// Not what it should be.
    #[error("it is no detached OpenPGP signature ({0}); make one with `gpg --detach-sign --armor FILE`")]
    Broken(String),
    /// Too many.
    #[error("it holds more than {MAX_SIGNATURES} signatures")]
    TooMany,
    /// Of another form.
    #[error("it is {0}, which does not count; sign anew with GnuPG's usual settings")]
    Form(String),
    /// Of a digest that can be forged.
    #[error("it is by the digest {0}, which can be forged; sign anew with SHA-256 or better")]
    Weak(String),
    /// By keys that are not known.
    #[error("it is by {}, which is not among the trusted keys", .0.join(", "))]
    Unknown(Vec<String>),
    /// Its maker has taken back the key.
    #[error("it is by {0}, which its owner has revoked")]
    KeyRevoked(String),
    /// Its maker's key has expired.
    #[error("it is by {key}, which has expired on {}; get the key anew if its owner has prolonged it", super::date(*.since))]
    KeyExpired {
        /// The key.
        key: String,
        /// In seconds since 1970.
        since: u64,
    },
    /// By a key that may not sign.
    #[error("it is by {key}, which {why}")]
    KeyUnfit {
        /// The key.
        key: String,
        /// Why.
        why: &'static str,
    },
    /// No longer good.
    #[error("it has expired on {}; it must be signed anew", super::date(*.0))]
    Expired(u64),
    /// Not yet good.
    #[error("it is from the future ({}); check this host's clock", super::date(*.0))]
    Future(u64),
    /// The key has not signed this.
    #[error("it is not one of {key} over these bytes: they are not what was signed")]
    Mismatch {
        /// The key.
        key: String,
    },
    /// The content cannot be read.
    #[error("the signed bytes cannot be read: {0}")]
    Read(#[source] io::Error),
}

/// A signature that may count, and who has made it.
struct Candidate<'a> {
    signature: &'a Signature,
    maker: Part<'a>,
    hasher: Box<dyn DynDigest + Send>,
}

/// Checks that one of these keys has signed what `content` gives. All of it is read.
///
/// # Errors
/// [`SignatureError`]: no signature is good; the message tells of the first that comes closest.
pub fn check(keys: &[PublicKey], file: &[u8], content: impl Read, now: u64) -> Result<Signer, SignatureError> {
    check_signatures(keys, &parse(file)?, content, now)
}

/// As [`check`], of signatures that have been read already.
pub(super) fn check_signatures(
    keys: &[PublicKey],
    signatures: &[Signature],
    content: impl Read,
    now: u64,
) -> Result<Signer, SignatureError> {
    let mut refused = None;
    let mut candidates = Vec::new();
    for signature in signatures {
        match candidate(keys, signature, now) {
            Ok(Some(candidate)) => candidates.push(candidate),
            Ok(None) => {}
            Err(error) => {
                refused.get_or_insert(error);
            }
        }
    }
    if candidates.is_empty() {
        return Err(refused.unwrap_or_else(|| SignatureError::Unknown(makers(signatures))));
    }
    hash(&mut candidates, content)?;
    let mut mismatch = None;
    for candidate in candidates {
        let key = candidate.maker.key().describe();
        match verify(candidate) {
            true => return Ok(Signer { fingerprint: key.fingerprint, user_id: key.user_ids.into_iter().next() }),
            false => mismatch.get_or_insert(SignatureError::Mismatch { key: key.fingerprint }),
        };
    }
    Err(mismatch.or(refused).unwrap_or_else(|| SignatureError::Unknown(makers(signatures))))
}

fn parse(file: &[u8]) -> Result<Vec<Signature>, SignatureError> {
    let broken = |error: pgp::errors::Error| SignatureError::Broken(one_line(&error.to_string()));
    let (all, _) = DetachedSignature::from_reader_many(file).map_err(broken)?;
    let mut signatures = Vec::new();
    for signature in all {
        signatures.push(signature.map_err(broken)?.signature);
        if signatures.len() > MAX_SIGNATURES {
            return Err(SignatureError::TooMany);
        }
    }
    match signatures.is_empty() {
        true => Err(SignatureError::Broken("it is empty".to_owned())),
        false => Ok(signatures),
    }
}

/// A signature by one of the keys, when there is no reason against it already.
fn candidate<'a>(
    keys: &'a [PublicKey],
    signature: &'a Signature,
    now: u64,
) -> Result<Option<Candidate<'a>>, SignatureError> {
    let Some(maker) = keys.iter().find_map(|key| key.maker(signature)) else { return Ok(None) };
    let key = maker.key().fingerprint();
    let config = signature.config();
    let config = config.ok_or_else(|| SignatureError::Form("a signature of an unknown version".to_owned()))?;
    if config.typ() != SignatureType::Binary {
        let typ = if config.typ() == SignatureType::Text { "a signature over a text" } else { "another signature" };
        return Err(SignatureError::Form(typ.to_owned()));
    }
    if !matches!(config.version(), SignatureVersion::V4 | SignatureVersion::V6) {
        return Err(SignatureError::Form("a signature of an old version".to_owned()));
    }
    if !is_strong(config.hash_alg) {
        return Err(SignatureError::Weak(config.hash_alg.to_string()));
    }
    let made = created(signature);
    if signature.created().is_none() {
        return Err(SignatureError::Form("a signature without a time".to_owned()));
    }
    if made > now + CLOCK_SKEW {
        return Err(SignatureError::Future(made));
    }
    if let Some(end) = signature_expiry(signature).filter(|end| *end <= now) {
        return Err(SignatureError::Expired(end));
    }
    maker.check(now).map_err(|unfit| match unfit {
        Unfit::Revoked => SignatureError::KeyRevoked(key.clone()),
        Unfit::Expired(since) => SignatureError::KeyExpired { key: key.clone(), since },
        Unfit::Other(why) => SignatureError::KeyUnfit { key: key.clone(), why },
    })?;
    let hasher = config.hash_alg.new_hasher();
    let mut hasher = hasher.map_err(|_| SignatureError::Weak(config.hash_alg.to_string()))?;
    if let SignatureVersionSpecific::V6 { salt } = &config.version_specific {
        if config.hash_alg.salt_len() != Some(salt.len()) {
            return Err(SignatureError::Broken("its salt has the wrong length".to_owned()));
        }
        hasher.update(salt);
    }
    Ok(Some(Candidate { signature, maker, hasher }))
}

fn is_strong(digest: HashAlgorithm) -> bool {
    use HashAlgorithm::{Sha3_256, Sha3_512, Sha256, Sha384, Sha512};
    matches!(digest, Sha256 | Sha384 | Sha512 | Sha3_256 | Sha3_512)
}

fn hash(candidates: &mut [Candidate<'_>], mut content: impl Read) -> Result<(), SignatureError> {
    let mut piece = vec![0; PIECE];
    loop {
        match content.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(n) => candidates.iter_mut().for_each(|candidate| candidate.hasher.update(&piece[..n])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(SignatureError::Read(error)),
        }
    }
}

/// Whether the content that has been hashed is what was signed.
fn verify(candidate: Candidate<'_>) -> bool {
    let Candidate { signature, maker, mut hasher } = candidate;
    let Some(config) = signature.config() else { return false };
    // Fails for what the library cannot judge, such as critical parts that it does not know.
    let trailer = config.hash_signature_data(&mut hasher).and_then(|length| config.trailer(length));
    let Ok(trailer) = trailer else { return false };
    hasher.update(&trailer);
    let digest = hasher.finalize();
    let begins_right = signature.signed_hash_value().is_some_and(|start| digest.starts_with(&start));
    begins_right && maker.has_signed(signature, &digest)
}

/// How messages name those who have made signatures.
fn makers(signatures: &[Signature]) -> Vec<String> {
    let mut makers: Vec<String> = signatures
        .iter()
        .map(|signature| match (signature.issuer_fingerprint().first(), signature.issuer_key_id().first()) {
            (Some(fingerprint), _) => format!("key {fingerprint:X}"),
            (None, Some(id)) => format!("key {}", hex::encode_upper(id.as_ref())),
            (None, None) => "a key that it does not name".to_owned(),
        })
        .collect();
    makers.sort();
    makers.dedup();
    makers
}
