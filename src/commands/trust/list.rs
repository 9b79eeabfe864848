//! `podvm trust list`.

use std::path::PathBuf;

use anyhow::Result;
use podvm_image::trust::{Keyring, Scope, TrustedKey, date};
use podvm_pod::timestamp::Timestamp;
use serde::Serialize;

use crate::output::{OutputArgs, joined, print, table};

/// Options of `podvm trust list`.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Form of the output.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// A key in the list.
#[derive(Debug, Serialize)]
struct Listed {
    /// None: it may sign all images.
    prefix: Option<String>,
    fingerprint: String,
    user_ids: Vec<String>,
    algorithm: String,
    created: String,
    expires: Option<String>,
    #[serde(skip)]
    last_day: Option<String>,
    revoked: bool,
    subkeys: Vec<String>,
    path: PathBuf,
}

impl From<TrustedKey> for Listed {
    fn from(trusted: TrustedKey) -> Self {
        let TrustedKey { scope, path, key } = trusted;
        Self {
            prefix: match scope {
                Scope::Root => None,
                Scope::Prefix(prefix) => Some(prefix.as_str().to_owned()),
            },
            fingerprint: key.fingerprint,
            user_ids: key.user_ids,
            algorithm: key.algorithm,
            created: Timestamp::from_seconds(key.created).to_string(),
            expires: key.expires.map(|expires| Timestamp::from_seconds(expires).to_string()),
            last_day: key.expires.map(date),
            revoked: key.is_revoked,
            subkeys: key.subkeys.into_iter().map(|subkey| subkey.fingerprint).collect(),
            path,
        }
    }
}

/// Lists keys by what they may sign.
pub fn run(args: &ListArgs, keyring: &Keyring) -> Result<u8> {
    let keys: Vec<Listed> = keyring.list()?.into_iter().map(Listed::from).collect();
    print(args.output, &keys, |keys| {
        let rows = keys.iter().map(|key| {
            let ends = if key.revoked { Some("revoked".to_owned()) } else { key.last_day.clone() };
            let prefix = key.prefix.clone().unwrap_or_else(|| "(all images)".to_owned());
            [prefix, key.fingerprint.clone(), ends.unwrap_or_else(|| "-".to_owned()), joined(key.user_ids.clone())]
        });
        table(["prefix", "fingerprint", "expires", "user"], rows)
    })?;
    Ok(0)
}
