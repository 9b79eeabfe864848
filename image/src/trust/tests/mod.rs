//! Keys, signatures and policies.

mod openpgp;
mod policy;
mod sigstore;
mod simple;
