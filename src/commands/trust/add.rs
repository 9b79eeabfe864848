//! `podvm trust add`: keys from files, URLs, or where their owner says they are, each reviewed before it counts.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use podvm_image::Registries;
use podvm_image::appc::discovery::discover_keys;
use podvm_image::registry::Url;
use podvm_image::trust::{KeyDescription, Keyring, MAX_KEYS, PublicKey, Scope, date};

use super::{ScopeArgs, grouped};
use crate::commands::image::registries::InsecureArgs;
use crate::config::Config;
use crate::output::print_text;
use crate::report;

const EXAMPLES: &str = "\
Examples:
  podvm trust add --prefix example.com/team                 the keys that example.com names for these images (by discovery)
  podvm trust add --prefix example.com/team key.asc
  podvm trust add --prefix example.com https://example.com/pubkeys.gpg
  podvm trust add --root --fingerprint '6C6C 33B5 CA73 8FBD 0663 884E 3DD9 A6CD 330F B593' keys.gpg

A fingerprint is to be compared with one that comes from its owner by another way. Without a terminal to ask on, --fingerprint
says which keys are meant.";

/// Options of `podvm trust add`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct AddArgs {
    /// Whose images it may sign.
    #[command(flatten)]
    scope: ScopeArgs,
    /// Files or URLs of OpenPGP keys, `-` for standard input; without any, those that the prefix's own host names
    #[arg(value_name = "FILE|URL")]
    sources: Vec<String>,
    /// Trust the key of this fingerprint without asking, and no other; may be given several times
    #[arg(long = "fingerprint", value_name = "HEX")]
    fingerprints: Vec<Fingerprint>,
    /// Trust all keys that are found, without asking: whoever can change the file or the host's answer is trusted
    #[arg(long, conflicts_with = "fingerprints")]
    skip_fingerprint_review: bool,
    /// Checks to leave out.
    #[command(flatten)]
    insecure: InsecureArgs,
}

/// A whole fingerprint, its digits without spaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint(String);

/// No fingerprint.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no fingerprint of an OpenPGP key: write all of its 40 (or 64) hexadecimal digits")]
pub struct NotAFingerprint(String);

impl FromStr for Fingerprint {
    type Err = NotAFingerprint;

    fn from_str(text: &str) -> Result<Self, NotAFingerprint> {
        let digits: String = text.chars().filter(|c| !c.is_whitespace() && *c != ':').collect();
        let digits = digits.strip_prefix("0x").unwrap_or(&digits).to_ascii_uppercase();
        match matches!(digits.len(), 40 | 64) && digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            true => Ok(Self(digits)),
            false => Err(NotAFingerprint(text.to_owned())),
        }
    }
}

impl Fingerprint {
    /// Its digits, in upper case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Adds keys; none, when one that is asked for is not found or has been revoked, or the answer to one is no.
pub fn run(args: &AddArgs, keyring: &Keyring, config: &Config) -> Result<u8> {
    let scope = args.scope.scope();
    let found = find(args, &scope, config)?;
    let keys = wanted(args, found)?;
    let can_ask = io::stdin().is_terminal() && io::stderr().is_terminal();
    let is_asked = args.fingerprints.is_empty() && !args.skip_fingerprint_review;
    if is_asked && (!can_ask || args.sources.iter().any(|source| source == "-")) {
        keys.iter().for_each(|(source, key)| eprint!("{}", review(&key.describe(), source, &scope)));
        bail!(
            "nobody can be asked whether this is the right key, for there is no terminal; say so by --fingerprint, or do without \
             by --skip-fingerprint-review"
        );
    }
    for (source, key) in &keys {
        let description = key.describe();
        if description.is_revoked {
            bail!("the key {} is not trusted: its owner has revoked it", description.fingerprint);
        }
        eprint!("{}", review(&description, source, &scope));
        if is_asked && !ask(&scope)? {
            bail!("the key {} is not trusted", description.fingerprint);
        }
        if let Some(since) = description.expires.filter(|since| is_past(*since)) {
            report(&format!(
                "the key {} has expired on {}; nothing it has signed will count",
                description.fingerprint,
                date(since)
            ));
        }
    }
    for (_, key) in &keys {
        let path = keyring.add(&scope, key)?;
        print_text(&format!("{}\n", path.display()))?;
    }
    Ok(0)
}

/// All keys that the command line leads to, and where each comes from.
fn find(args: &AddArgs, scope: &Scope, config: &Config) -> Result<Vec<(String, PublicKey)>> {
    let registries = args.insecure.registries(config);
    let sources = match (args.sources.is_empty(), scope) {
        (false, _) => args.sources.clone(),
        (true, Scope::Prefix(prefix)) => {
            let found = discover_keys(&registries, prefix.as_str())?;
            found.iter().map(ToString::to_string).collect()
        }
        (true, Scope::Root) => {
            bail!("no FILE or URL of a key is named; only the keys of a --prefix can be found without")
        }
    };
    let mut keys = Vec::new();
    for source in sources {
        let bytes = read(&source, &registries).with_context(|| format!("keys {source}"))?;
        let read = PublicKey::read_all(&bytes).with_context(|| format!("keys {source}"))?;
        keys.extend(read.into_iter().map(|key| (source.clone(), key)));
    }
    Ok(keys)
}

fn read(source: &str, registries: &Registries) -> Result<Vec<u8>> {
    if source.contains("://") {
        let url = Url::parse(source).context("this is no URL of HTTP")?;
        return Ok(registries.file("file of keys", &url, MAX_KEYS)?);
    }
    let file: Box<dyn Read> = if source == "-" { Box::new(io::stdin()) } else { Box::new(File::open(source)?) };
    let mut bytes = Vec::new();
    file.take(MAX_KEYS + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_KEYS {
        bail!("it is larger than {MAX_KEYS} bytes, the most that is accepted");
    }
    Ok(bytes)
}

/// The keys that are asked for by their fingerprints; without any, all.
fn wanted(args: &AddArgs, found: Vec<(String, PublicKey)>) -> Result<Vec<(String, PublicKey)>> {
    let mut keys: Vec<(String, PublicKey)> = Vec::new();
    for (source, key) in found {
        let fingerprint = key.fingerprint();
        let is_meant = args.fingerprints.is_empty() || args.fingerprints.iter().any(|one| one.as_str() == fingerprint);
        if is_meant && keys.iter().all(|(_, known)| known.fingerprint() != fingerprint) {
            keys.push((source, key));
        } else if !is_meant {
            report(&format!(
                "the key {fingerprint} of {source} is passed over: it is not one that --fingerprint names"
            ));
        }
    }
    for one in &args.fingerprints {
        if keys.iter().all(|(_, key)| key.fingerprint() != one.as_str()) {
            bail!("no key has the fingerprint {}; nothing is trusted", one.as_str());
        }
    }
    Ok(keys)
}

/// What is to be looked at before a key is trusted.
fn review(key: &KeyDescription, source: &str, scope: &Scope) -> String {
    let ends = |expires: Option<u64>| expires.map(|expires| format!(", expires {}", date(expires))).unwrap_or_default();
    let mut text = format!("Key {}\n", grouped(&key.fingerprint));
    let mut line = |word: &str, what: String| text.push_str(&format!("  {word:<9} {what}\n"));
    line("from", source.to_owned());
    line("made", format!("{}, {}{}", date(key.created), key.algorithm, ends(key.expires)));
    key.user_ids.iter().for_each(|user| line("user", user.clone()));
    for subkey in &key.subkeys {
        let use_ = match (subkey.is_revoked, subkey.can_sign) {
            (true, _) => "revoked",
            (_, true) => "may sign",
            (_, false) => "not for signing",
        };
        line("subkey", format!("{}, {use_}{}", grouped(&subkey.fingerprint), ends(subkey.expires)));
    }
    line("to sign", scope.to_string());
    text
}

fn is_past(moment: u64) -> bool {
    moment <= podvm_pod::timestamp::Timestamp::now().seconds()
}

fn ask(scope: &Scope) -> Result<bool> {
    eprint!("Trust this key to sign {scope}? [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_whole_however_they_are_written() {
        let digits = "6C6C33B5CA738FBD0663884E3DD9A6CD330FB593";
        for text in [digits, &digits.to_lowercase(), &grouped(digits), &format!("0x{digits}")] {
            assert_eq!(text.parse::<Fingerprint>().unwrap().as_str(), digits);
        }
        for text in ["", "330FB593", &digits[1..], &format!("{}X", &digits[1..])] {
            let error = text.parse::<Fingerprint>().unwrap_err().to_string();
            assert!(error.contains("40"), "{error}");
        }
    }
}
