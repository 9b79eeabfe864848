//! Whose images are trusted.
//!
//! | module | subject |
//! |---|---|
//! | [`keyring`] | keys that may sign appc images of a name, as files |
//! | [`certificate`], [`signature`] | OpenPGP keys, and signatures by them |
//! | [`policy`], [`identity`] | `policy.json`: which requirements go for which images, and what images are called |
//! | [`document`] | what signatures over OCI images are over |
//! | [`sigstore`], `rekor` | such signatures as cosign makes them, and a log's word that it has them |
//! | [`simple`], `message` | such signatures by GPG keys |
//! | [`evidence`] | what speaks for an image, held against the policy |
//!
//! A signature is only as good as the key behind it: keys come into the keyring by `podvm trust add` alone, after review of
//! their fingerprints. Nothing that a server says makes a key trusted.

pub mod certificate;
pub mod document;
pub mod evidence;
pub mod identity;
pub mod keyring;
pub(crate) mod message;
pub mod policy;
mod rekor;
pub mod signature;
pub mod sigstore;
pub mod simple;
#[cfg(test)]
pub(crate) mod tests;

pub use certificate::{KeyDescription, KeyError, PublicKey, SubkeyDescription, now};
pub use document::{DocumentError, Expected};
pub use evidence::{Evidence, Refusal, Refused, SignatureForm, Signatures};
pub use identity::{Identity, SignedIdentity};
pub use keyring::{Keyring, KeyringError, MAX_KEYS, Prefix, Scope, TrustError, TrustedKey};
pub use policy::{Policy, PolicyError, PolicyFile};
pub use signature::{MAX_SIGNATURE, SignatureError, Signer};
pub use sigstore::{Signers, SigstoreKey, SigstoreSignature};
pub use simple::SimpleSignature;

/// A day as `2016-02-29`, in UTC.
pub fn date(seconds: u64) -> String {
    // Days are counted from the first of March of year 0, so that leap days end years.
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}
