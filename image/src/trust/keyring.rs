//! The keys that may sign appc images, as files:
//!
//! | path | whose images the key may sign |
//! |---|---|
//! | `root.d/<fingerprint>` | everybody's |
//! | `prefix.d/<prefix>/<fingerprint>` | those whose name is the prefix, or begins with it and a slash |
//!
//! There are several such folders: the system's, which packages fill, this host's, and for an ordinary user that user's own. The
//! last is the one that is written to. An empty file in a later folder takes the key out that an earlier one has.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::certificate::{KeyDescription, KeyError, PublicKey, now};
use super::signature::{self, SignatureError, Signer};
use crate::store::scratch::{Scratch, sweep, sync_directory};

/// Largest file of keys.
pub const MAX_KEYS: u64 = 4 << 20;
/// Deepest folder of a prefix.
const MAX_DEPTH: usize = 32;

/// The beginning of images' names, whole parts of them: `example.com/team`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Prefix(String);

/// Whose images a key may sign.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Everybody's.
    Root,
    /// Those below a prefix.
    Prefix(Prefix),
}

/// A key in the keyring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedKey {
    /// What it may sign.
    pub scope: Scope,
    /// Its file.
    pub path: PathBuf,
    /// The key.
    pub key: KeyDescription,
}

/// Why keys cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// A file operation failed.
    #[error("trusted keys: {}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that holds no key.
    #[error("trusted key {}: {source}; remove the file, and add the key anew", path.display())]
    Key {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: KeyError,
    },
    /// A file under another key's name.
    #[error("trusted key {} is the key {actual}; remove the file, and add the right key", path.display())]
    OtherKey {
        /// Which file.
        path: PathBuf,
        /// The key that it holds.
        actual: String,
    },
    /// No name of images.
    #[error("{0:?} is no prefix of image names such as example.com or example.com/team")]
    Prefix(String),
    /// There is no folder to write to.
    #[error("there is no folder for trusted keys; set HOME")]
    NoFolder,
    /// There is no such key.
    #[error("no key {fingerprint} is trusted for {scope}; `podvm trust list` shows those that are")]
    NotFound {
        /// What was asked for.
        fingerprint: String,
        /// Where.
        scope: Scope,
    },
}

/// Why an image is not trusted.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// Nobody is trusted for it.
    #[error(
        "{name}: no key is trusted to sign it; trust one by `podvm trust add --prefix {name}`, or do without signatures by \
         --insecure-options=image"
    )]
    NoKey {
        /// The image.
        name: String,
    },
    /// Its signature is not good.
    #[error("{name}: its signature does not count: {source}{hint}")]
    Signature {
        /// The image.
        name: String,
        /// Why.
        source: SignatureError,
        /// What helps; begins with a semicolon, or empty.
        hint: String,
    },
    /// Who was trusted when it came is so no longer.
    #[error(
        "{name}: the key {fingerprint}, by which it is signed, is no longer trusted for it; fetch it again if it has another \
         signature by now, or trust the key by `podvm trust add --prefix {name}`"
    )]
    NoLonger {
        /// The image.
        name: String,
        /// The key.
        fingerprint: String,
    },
    /// The keys cannot be read.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
}

impl FromStr for Prefix {
    type Err = KeyringError;

    /// An AC identifier (App Container specification, types.md).
    fn from_str(text: &str) -> Result<Self, KeyringError> {
        let is_word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = text.as_bytes();
        let ends = bytes.first().is_some_and(is_word) && bytes.last().is_some_and(is_word);
        let inside = bytes.windows(2).all(|pair| {
            let known = |byte: &u8| is_word(byte) || b"-._~/".contains(byte);
            pair.iter().all(known) && pair.iter().any(is_word)
        });
        let is_short = text.split('/').count() <= MAX_DEPTH && text.split('/').all(|part| part.len() <= 200);
        match ends && inside && is_short {
            true => Ok(Self(text.to_owned())),
            false => Err(KeyringError::Prefix(text.to_owned())),
        }
    }
}

impl Prefix {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn covers(&self, name: &str) -> bool {
        name.strip_prefix(self.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("all images"),
            Self::Prefix(prefix) => f.write_str(prefix.as_str()),
        }
    }
}

impl Scope {
    fn folder(&self) -> PathBuf {
        match self {
            Self::Root => PathBuf::from("root.d"),
            Self::Prefix(prefix) => Path::new("prefix.d").join(prefix.as_str()),
        }
    }

    fn covers(&self, name: &str) -> bool {
        match self {
            Self::Root => true,
            Self::Prefix(prefix) => prefix.covers(name),
        }
    }
}

/// The files of keys.
type Files = BTreeMap<(Scope, String), PathBuf>;

/// All keys that are trusted.
#[derive(Debug, Clone)]
pub struct Keyring {
    folders: Vec<PathBuf>,
}

impl Keyring {
    /// The keyring of these folders, which need not be there; the last is the one that is written to.
    pub fn new(folders: Vec<PathBuf>) -> Self {
        Self { folders }
    }

    /// Checks that a key that is trusted for an image of this name has signed what `content` gives. All of it is read.
    ///
    /// # Errors
    /// [`TrustError`]; then nothing of what was read may be used.
    pub fn check(&self, name: &str, signature: &[u8], content: impl Read) -> Result<Signer, TrustError> {
        self.check_at(name, signature, content, now())
    }

    pub(super) fn check_at(
        &self,
        name: &str,
        signature: &[u8],
        content: impl Read,
        now: u64,
    ) -> Result<Signer, TrustError> {
        let files = self.files()?;
        let fitting = files.iter().filter(|((scope, _), _)| scope.covers(name));
        let keys = fitting.map(|((_, name), path)| read_key(name, path)).collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() {
            return Err(TrustError::NoKey { name: name.to_owned() });
        }
        signature::check(&keys, signature, content, now).map_err(|source| {
            let hint = match &source {
                SignatureError::Unknown(makers) => self.hint(name, makers, &files),
                _ => String::new(),
            };
            TrustError::Signature { name: name.to_owned(), source, hint }
        })
    }

    /// Checks that a key that has signed an image of this name is still trusted for it, and not revoked. That it has expired since the
    /// signature was checked does not matter.
    ///
    /// # Errors
    /// [`TrustError`].
    pub fn check_signer(&self, name: &str, fingerprint: &str) -> Result<(), TrustError> {
        let no_longer = || TrustError::NoLonger { name: name.to_owned(), fingerprint: fingerprint.to_owned() };
        let wanted = fingerprint.to_ascii_lowercase();
        let mut found = false;
        for ((_, file), path) in self.files()?.iter().filter(|((scope, file), _)| scope.covers(name) && *file == wanted)
        {
            found = true;
            // A copy that was added with its revocation tells for all.
            if read_key(file, path)?.describe().is_revoked {
                return Err(no_longer());
            }
        }
        if found { Ok(()) } else { Err(no_longer()) }
    }

    /// What helps when a signature is by keys that are not trusted for an image.
    fn hint(&self, name: &str, makers: &[String], files: &Files) -> String {
        let elsewhere = files.iter().find(|((_, fingerprint), _)| {
            makers.iter().any(|maker| maker.to_ascii_lowercase().ends_with(fingerprint.as_str()))
        });
        match elsewhere {
            Some(((scope, _), _)) => {
                format!("; it is trusted for {scope} only: `podvm trust add --prefix {name}` trusts it for this one")
            }
            None => format!("; if its maker is the right one, trust it by `podvm trust add --prefix {name}`"),
        }
    }

    /// All keys, by what they may sign.
    ///
    /// # Errors
    /// [`KeyringError`].
    pub fn list(&self) -> Result<Vec<TrustedKey>, KeyringError> {
        let files = self.files()?.into_iter();
        let trusted = files.map(|((scope, name), path)| {
            let key = read_key(&name, &path)?.describe();
            Ok(TrustedKey { scope, path, key })
        });
        trusted.collect()
    }

    /// Trusts a key. Returns its file.
    ///
    /// # Errors
    /// [`KeyringError`]; then nothing has changed.
    pub fn add(&self, scope: &Scope, key: &PublicKey) -> Result<PathBuf, KeyringError> {
        let name = key.fingerprint().to_ascii_lowercase();
        let bytes = key.to_bytes().map_err(|source| KeyringError::Key { path: name.clone().into(), source })?;
        self.write(scope, &name, &bytes)
    }

    /// Trusts a key no longer. Returns the file that was removed, or the empty one that was made to hide another folder's.
    ///
    /// # Errors
    /// [`KeyringError`]; then nothing has changed.
    pub fn remove(&self, scope: &Scope, fingerprint: &str) -> Result<PathBuf, KeyringError> {
        let wanted = fingerprint.to_ascii_lowercase();
        let found = self.files()?.into_iter().find(|((known, name), _)| known == scope && *name == wanted);
        let Some(((_, name), path)) = found else {
            let fingerprint = fingerprint.to_owned();
            return Err(KeyringError::NotFound { fingerprint, scope: scope.clone() });
        };
        let own = self.folders.last().ok_or(KeyringError::NoFolder)?;
        let is_hidden_elsewhere = self.folders[..self.folders.len() - 1]
            .iter()
            .all(|folder| !folder.join(scope.folder()).join(&name).exists());
        if path.starts_with(own) && is_hidden_elsewhere {
            fs::remove_file(&path).map_err(at(&path))?;
            let folder = path.parent().unwrap_or(own);
            sync_directory(folder).map_err(at(folder))?;
            return Ok(path);
        }
        self.write(scope, &name, b"")
    }

    /// Writes a file of the last folder, wholly or not at all.
    fn write(&self, scope: &Scope, name: &str, bytes: &[u8]) -> Result<PathBuf, KeyringError> {
        let own = self.folders.last().ok_or(KeyringError::NoFolder)?;
        let folder = own.join(scope.folder());
        let tmp = own.join("tmp");
        for folder in [&folder, &tmp] {
            // Keys are public: everybody may check an image.
            let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(folder);
            made.map_err(at(folder))?;
        }
        sweep(&tmp).map_err(at(&tmp))?;
        let place = folder.join(name);
        let written = || -> io::Result<()> {
            let scratch = Scratch::file(&tmp)?;
            scratch.handle().write_all(bytes)?;
            scratch.handle().set_permissions(fs::Permissions::from_mode(0o644))?;
            scratch.handle().sync_all()?;
            scratch.keep(&place)?;
            folder.ancestors().take_while(|folder| folder.starts_with(own)).try_for_each(sync_directory)
        };
        written().map_err(at(&place))?;
        Ok(place)
    }

    /// The files of all keys that count.
    fn files(&self) -> Result<Files, KeyringError> {
        let mut files = Files::new();
        for folder in &self.folders {
            collect(&folder.join("root.d"), &Scope::Root, &mut files)?;
            collect_prefixes(&folder.join("prefix.d"), "", 0, &mut files)?;
        }
        Ok(files)
    }
}

/// Notes the keys of a folder. Returns the names of the folders in it.
fn collect(folder: &Path, scope: &Scope, files: &mut Files) -> Result<Vec<String>, KeyringError> {
    let mut folders = Vec::new();
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(folders),
        Err(error) => return Err(at(folder)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(at(folder))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = entry.path();
        let metadata = fs::metadata(&path).map_err(at(&path))?;
        if metadata.is_dir() {
            folders.push(name);
        } else if is_fingerprint(&name) {
            let key = (scope.clone(), name);
            match metadata.len() {
                0 => drop(files.remove(&key)),
                _ => drop(files.insert(key, path)),
            }
        }
    }
    Ok(folders)
}

/// Notes the keys of a folder for the prefix `prefix`, and of those below it.
fn collect_prefixes(folder: &Path, prefix: &str, depth: usize, files: &mut Files) -> Result<(), KeyringError> {
    let folders = match prefix.parse() {
        Ok(prefix) => collect(folder, &Scope::Prefix(prefix), files)?,
        // The folder of all prefixes holds no keys itself.
        Err(_) => collect(folder, &Scope::Root, &mut Files::new())?,
    };
    for name in folders.iter().filter(|_| depth < MAX_DEPTH) {
        let below = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
        collect_prefixes(&folder.join(name), &below, depth + 1, files)?;
    }
    Ok(())
}

fn read_key(name: &str, path: &Path) -> Result<PublicKey, KeyringError> {
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(MAX_KEYS).read_to_end(&mut bytes));
    read.map_err(at(path))?;
    let wrong = |source| KeyringError::Key { path: path.to_owned(), source };
    let keys = PublicKey::read_all(&bytes).map_err(wrong)?;
    let key = keys.into_iter().next().ok_or(KeyError::None).map_err(wrong)?;
    let actual = key.fingerprint();
    match actual.eq_ignore_ascii_case(name) {
        true => Ok(key),
        false => Err(KeyringError::OtherKey { path: path.to_owned(), actual }),
    }
}

/// Whether a file's name is a fingerprint, of version 4 or 6, as it is written here.
fn is_fingerprint(name: &str) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    matches!(name.len(), 40 | 64) && name.bytes().all(is_digit)
}

fn at(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> KeyringError {
    let path = path.into();
    move |source| KeyringError::Io { path, source }
}
