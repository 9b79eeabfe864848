//! Entries of a Rekor log, which tell that a signature has been made known to everybody. cosign puts one beside each signature ("bundle"):
//! what the log says of the signature (of the kind `hashedrekord`), and the log's own signature over that.
//!
//! As podman does, only the log's signature is checked. Whether the entry is in the log's tree, and when it came there, is not asked.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::sigstore::SigstoreKey;

/// Largest number that is written in one way only (RFC 8785, section 3.2.2.3).
const MAX_NUMBER: u64 = 1 << 53;

/// What an entry must be of.
#[derive(Debug, Clone, Copy)]
pub struct Logged<'a> {
    pub key: &'a SigstoreKey,
    pub signature: &'a [u8],
    pub document: &'a [u8],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Bundle {
    /// The log's signature, in base64.
    signed_entry_timestamp: String,
    payload: Payload,
}

/// What the log has signed: these members in this order, which is that of their names.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Payload {
    /// The entry, in base64.
    body: String,
    #[serde(rename = "integratedTime")]
    integrated_time: u64,
    #[serde(rename = "logID")]
    log_id: String,
    #[serde(rename = "logIndex")]
    log_index: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    api_version: String,
    kind: String,
    spec: HashedRecord,
}

#[derive(Deserialize)]
struct HashedRecord {
    data: Data,
    signature: Signed,
}

#[derive(Deserialize)]
struct Data {
    hash: Hash,
}

#[derive(Deserialize)]
struct Hash {
    algorithm: String,
    /// In hexadecimal digits.
    value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Signed {
    /// In base64.
    content: String,
    public_key: Key,
}

#[derive(Deserialize)]
struct Key {
    /// In PEM, and that in base64.
    content: String,
}

impl Logged<'_> {
    /// Checks that one of these logs has an entry of this. An error tells why `bundle` does not say so.
    pub fn check(&self, bundle: &str, logs: &[SigstoreKey]) -> Result<(), String> {
        let Bundle { signed_entry_timestamp, payload } =
            serde_json::from_str(bundle).map_err(|error| error.to_string())?;
        let signature = decoded("its signature", &signed_entry_timestamp)?;
        if payload.integrated_time.max(payload.log_index) > MAX_NUMBER {
            return Err("it has too large a number".to_owned());
        }
        // The form in which it was signed (RFC 8785): without spaces, members by their names.
        let canonical = serde_json::to_vec(&payload).map_err(|error| error.to_string())?;
        if !logs.iter().any(|log| log.verify(&canonical, &signature)) {
            return Err("it is signed by another log, or was changed".to_owned());
        }
        let body = decoded("its body", &payload.body)?;
        let entry: Entry = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        self.compare(&entry)
    }

    fn compare(&self, entry: &Entry) -> Result<(), String> {
        let Entry { api_version, kind, spec: HashedRecord { data, signature } } = entry;
        if (kind.as_str(), api_version.as_str()) != ("hashedrekord", "0.0.1") {
            return Err(format!("it is of the kind {kind} {api_version}, not hashedrekord 0.0.1"));
        }
        let key = SigstoreKey::parse(&decoded("its key", &signature.public_key.content)?);
        if key.map_err(|error| format!("its key: {error}"))? != *self.key {
            return Err("it is of another key".to_owned());
        }
        if decoded("its signature", &signature.content)? != self.signature {
            return Err("it is of another signature".to_owned());
        }
        let Hash { algorithm, value } = &data.hash;
        if algorithm != "sha256" || *value != hex::encode(Sha256::digest(self.document)) {
            return Err("it is of another document".to_owned());
        }
        Ok(())
    }
}

fn decoded(what: &str, base64: &str) -> Result<Vec<u8>, String> {
    STANDARD.decode(base64).map_err(|error| format!("{what} is not in base64: {error}"))
}
