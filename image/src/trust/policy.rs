//! `policy.json`, by which hosts say whose images they take (containers-policy.json(5)): reading it, and which of its requirements go
//! for an image. As podman reads it, strictly: what is not understood makes the whole file one that cannot be used.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::identity::{Identity, SignedIdentity};

/// Largest policy that is read.
const MAX_POLICY: u64 = 4 << 20;
/// The one kind of keys of `signedBy` that podman takes, too.
const GPG_KEYS: &str = "GPGKeys";

/// Where a policy is looked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyFile {
    /// The first that is there counts.
    pub paths: Vec<PathBuf>,
    /// Whether one must be there; else everything is taken when there is none.
    pub is_required: bool,
}

/// Why there is no usable policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The file cannot be read.
    #[error("signature policy {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file says something that is not understood.
    #[error("signature policy {}: {what}; see containers-policy.json(5)", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What.
        what: String,
    },
}

/// A policy.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Its file, for messages.
    pub path: PathBuf,
    default: Vec<Requirement>,
    transports: BTreeMap<String, BTreeMap<String, Vec<Requirement>>>,
}

/// What is wanted of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requirement {
    /// Nothing.
    AcceptAnything,
    /// That it is another.
    Reject,
    /// A signature by one of these keys, in cosign's form.
    Sigstore {
        /// Where keys are.
        keys: KeySources,
        /// Where the keys of Rekor logs are, if it must be in one.
        logs: Option<KeySources>,
        /// What the signature must call the image.
        identity: SignedIdentity,
    },
    /// A signature by one of these GPG keys.
    SignedBy {
        /// Where keys are.
        keys: KeySources,
        /// What the signature must call the image.
        identity: SignedIdentity,
    },
}

/// Where public keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySources {
    /// In files.
    Files(Vec<PathBuf>),
    /// In the policy itself.
    Data(Vec<Vec<u8>>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    default: Vec<Written>,
    #[serde(default)]
    transports: Unique<Unique<Vec<Written>>>,
}

/// A requirement as it is written. Fields that podman knows and that are not built here are read to be refused by their names.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
enum Written {
    InsecureAcceptAnything {},
    Reject {},
    SignedBy {
        key_type: String,
        key_path: Option<PathBuf>,
        key_paths: Option<Vec<PathBuf>>,
        key_data: Option<String>,
        signed_identity: Option<SignedIdentity>,
    },
    SignedBaseLayer(serde::de::IgnoredAny),
    SigstoreSigned {
        key_path: Option<PathBuf>,
        key_paths: Option<Vec<PathBuf>>,
        key_data: Option<String>,
        key_datas: Option<Vec<String>>,
        fulcio: Option<serde::de::IgnoredAny>,
        pki: Option<serde::de::IgnoredAny>,
        rekor_public_key_path: Option<PathBuf>,
        rekor_public_key_paths: Option<Vec<PathBuf>>,
        rekor_public_key_data: Option<String>,
        rekor_public_key_datas: Option<Vec<String>>,
        signed_identity: Option<SignedIdentity>,
    },
}

/// A map in which every key stands once.
struct Unique<T>(BTreeMap<String, T>);

impl<T> Default for Unique<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = Unique<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique<T>, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, T>()? {
                    if entries.contains_key(&key) {
                        return Err(A::Error::custom(format!("{key:?} stands twice")));
                    }
                    entries.insert(key, value);
                }
                Ok(Unique(entries))
            }
        }
        deserializer.deserialize_map(Entries(std::marker::PhantomData))
    }
}

impl PolicyFile {
    /// Reads the policy; none when there is no file, and none must be there.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn load(&self) -> Result<Option<Policy>, PolicyError> {
        for path in &self.paths {
            let read_error = |source| PolicyError::Read { path: path.clone(), source };
            match fs::metadata(path) {
                Ok(metadata) if metadata.len() > MAX_POLICY => {
                    return Err(read_error(io::Error::other("it is too large")));
                }
                Ok(_) => return Policy::parse(path, &fs::read(path).map_err(read_error)?).map(Some),
                Err(error) if error.kind() == io::ErrorKind::NotFound && !self.is_required => {}
                Err(error) => return Err(read_error(error)),
            }
        }
        Ok(None)
    }
}

impl Policy {
    /// Reads a policy. `path` is what messages call it.
    ///
    /// # Errors
    /// [`PolicyError::Broken`].
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self, PolicyError> {
        let broken = |what: String| PolicyError::Broken { path: path.to_owned(), what };
        let file: File = serde_json::from_slice(text).map_err(|error| broken(error.to_string()))?;
        let all = |place: &str, written: Vec<Written>| {
            if written.is_empty() {
                return Err(broken(format!("{place} has no requirement")));
            }
            let requirements = written.into_iter().map(Requirement::try_from);
            requirements.collect::<Result<_, String>>().map_err(|what| broken(format!("{place}: {what}")))
        };
        let mut transports = BTreeMap::new();
        for (transport, scopes) in file.transports.0 {
            let mut entries = BTreeMap::new();
            for (scope, written) in scopes.0 {
                let place = format!("transports.{transport}.{scope:?}");
                if transport == "docker" {
                    check_scope(&scope).map_err(|what| broken(format!("{place}: {what}")))?;
                }
                entries.insert(scope, all(&place, written)?);
            }
            transports.insert(transport, entries);
        }
        Ok(Self { path: path.to_owned(), default: all("default", file.default)?, transports })
    }

    /// The requirements that go for an image: those of the narrowest scope that it is in. Gives the scope for messages, too.
    pub fn requirements(&self, image: &Identity) -> (String, &[Requirement]) {
        if let Some(scopes) = self.transports.get(image.transport()) {
            for scope in image.scopes().iter().map(String::as_str).chain([""]) {
                if let Some(requirements) = scopes.get(scope) {
                    return (format!("transports.{}.{scope:?}", image.transport()), requirements);
                }
            }
        }
        ("default".to_owned(), &self.default)
    }
}

/// Scopes that would never be those of an image are mistakes.
fn check_scope(scope: &str) -> Result<(), String> {
    let (host, rest) = scope.split_once('/').unwrap_or((scope, ""));
    match host.strip_prefix("*.") {
        Some(domain) if domain.contains('*') || domain.is_empty() || scope.contains('/') => {
            Err("only whole domains can be meant by a star, as in *.example.com".to_owned())
        }
        None if host.contains('*') || rest.contains('*') => {
            Err("only whole domains can be meant by a star, as in *.example.com".to_owned())
        }
        _ => Ok(()),
    }
}

impl TryFrom<Written> for Requirement {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::InsecureAcceptAnything {} => Ok(Self::AcceptAnything),
            Written::Reject {} => Ok(Self::Reject),
            Written::SignedBy { key_type, .. } if key_type != GPG_KEYS => {
                Err(format!("signedBy with keyType {key_type:?} is not built; use {GPG_KEYS:?}"))
            }
            Written::SignedBy { key_path, key_paths, key_data, signed_identity, .. } => {
                let keys = sources(key_path, key_paths, key_data, None)?;
                let keys = one("keyPath, keyPaths and keyData", keys)?;
                Ok(Self::SignedBy { keys, identity: or_usual(signed_identity)? })
            }
            Written::SignedBaseLayer(_) => Err("signedBaseLayer is not built; use sigstoreSigned".to_owned()),
            Written::SigstoreSigned { fulcio: Some(_), .. } | Written::SigstoreSigned { pki: Some(_), .. } => {
                Err("sigstoreSigned with fulcio or pki is not built; give a public key by keyPath".to_owned())
            }
            Written::SigstoreSigned {
                key_path,
                key_paths,
                key_data,
                key_datas,
                rekor_public_key_path,
                rekor_public_key_paths,
                rekor_public_key_data,
                rekor_public_key_datas,
                signed_identity,
                ..
            } => {
                let keys = sources(key_path, key_paths, key_data, key_datas)?;
                let logs = sources(
                    rekor_public_key_path,
                    rekor_public_key_paths,
                    rekor_public_key_data,
                    rekor_public_key_datas,
                )?;
                let keys = one("keyPath, keyPaths, keyData and keyDatas", keys)?;
                let logs = match logs.iter().any(Option::is_some) {
                    true => Some(one("rekorPublicKeyPath, …Paths, …Data and …Datas", logs)?),
                    false => None,
                };
                Ok(Self::Sigstore { keys, logs, identity: or_usual(signed_identity)? })
            }
        }
    }
}

/// What is said of what a signature must call an image, or what goes when nothing is.
fn or_usual(signed_identity: Option<SignedIdentity>) -> Result<SignedIdentity, String> {
    let identity = signed_identity.unwrap_or(SignedIdentity::MatchRepoDigestOrExact {});
    identity.check()?;
    Ok(identity)
}

/// The ways to say where keys are, of which one is taken.
type Given = [Option<KeySources>; 4];

fn sources(
    path: Option<PathBuf>,
    paths: Option<Vec<PathBuf>>,
    data: Option<String>,
    datas: Option<Vec<String>>,
) -> Result<Given, String> {
    Ok([
        path.map(|path| KeySources::Files(vec![path])),
        paths.map(KeySources::Files),
        data.map(|data| decoded(&[data])).transpose()?,
        datas.map(|datas| decoded(&datas)).transpose()?,
    ])
}

/// The one that is given; `fields` is what messages call the ways.
fn one(fields: &str, given: Given) -> Result<KeySources, String> {
    let mut given = given.into_iter().flatten();
    let first = given.next().filter(|_| given.next().is_none());
    let keys = first.ok_or_else(|| format!("exactly one of {fields} must be there"))?;
    let is_empty = match &keys {
        KeySources::Files(paths) => paths.is_empty() || paths.iter().any(|path| !path.is_absolute()),
        KeySources::Data(datas) => datas.is_empty(),
    };
    if is_empty { Err("keyPath and keyPaths are absolute paths, at least one".to_owned()) } else { Ok(keys) }
}

fn decoded(datas: &[String]) -> Result<KeySources, String> {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    let keys = datas.iter().map(|data| STANDARD.decode(data.trim()));
    keys.collect::<Result<_, _>>().map(KeySources::Data).map_err(|error| format!("keyData is not in base64: {error}"))
}
