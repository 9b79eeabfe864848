//! Keys, signatures and policies.

mod openpgp;
mod policy;
pub(crate) mod rekor;
mod sigstore;
mod simple;
