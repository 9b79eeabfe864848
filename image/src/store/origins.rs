//! Where images have come from, and the signatures that have come with them: `images/<id>/origins.json`.
//!
//! An image is held against the host's policy when it comes, before anything of it is stored, and again each time a pod is to be
//! made of it, by the signatures that are kept here: so a policy or a key that has changed since goes for what is stored, too.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Store;
use super::error::{StoreError, at};
use super::lookup::ResolvedImage;
use super::records::{NameRecord, VERSION, read};
use super::scratch::Lock;
use crate::digest::Digest;
use crate::reference::Reference;
use crate::trust::identity::{DOCKER_ARCHIVE, OCI, OCI_ARCHIVE};
use crate::trust::{Evidence, Identity, Keyring, Policy, PolicyFile, Signatures};

/// Most origins of one image that are remembered.
const MAX_ORIGINS: usize = 100;

/// Where an image has come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "kebab-case")]
pub(crate) enum Source {
    /// A registry, by this name.
    Registry { name: Reference },
    /// A layout or an archive.
    Path {
        /// As the policy calls its form.
        transport: Transport,
        /// None: it came as a stream.
        path: Option<PathBuf>,
        /// Which image of several.
        chosen: Option<String>,
    },
}

/// The forms of images at paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Transport {
    Oci,
    OciArchive,
    DockerArchive,
}

/// An origin of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Origin {
    #[serde(flatten)]
    pub source: Source,
    /// What the name stood for there, and the manifest that it led to.
    pub digests: Vec<Digest>,
    /// Those that were there, of the forms that the policy asked for.
    #[serde(flatten)]
    pub signatures: Signatures,
    /// When those by GPG keys were found good, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct OriginsRecord {
    version: u32,
    origins: Vec<Origin>,
}

impl Origin {
    pub fn unsigned(source: Source) -> Self {
        Self { source, digests: Vec::new(), signatures: Signatures::default(), accepted: None }
    }

    pub fn identity(&self) -> Identity {
        match &self.source {
            Source::Registry { name } => Identity::of_registry(name),
            Source::Path { transport, path, chosen } => {
                let transport = match transport {
                    Transport::Oci => OCI,
                    Transport::OciArchive => OCI_ARCHIVE,
                    Transport::DockerArchive => DOCKER_ARCHIVE,
                };
                match path {
                    Some(path) => Identity::of_path(transport, path, chosen.as_deref()),
                    None => Identity::of_stream(transport),
                }
            }
        }
    }

    /// Holds it against a policy. `name` is what messages call the image.
    pub fn check(&self, policy: &Policy, name: &str) -> Result<(), StoreError> {
        let Self { digests, signatures, accepted, .. } = self.clone();
        let evidence = Evidence { identity: self.identity(), digests, signatures, accepted };
        policy.check(name, &evidence).map_err(|refused| StoreError::Refused(Box::new(refused)))
    }
}

impl Store {
    /// The store, whose images are held against a policy, when they come and when pods are to be made of them, and those of appc against
    /// these keys when pods are to be made of them.
    pub fn trusting(self, policy: PolicyFile, keys: Keyring) -> Self {
        Self { policy: Some(policy), keys, ..self }
    }

    /// The policy, if images are held against one.
    pub(super) fn policy(&self) -> Result<Option<Policy>, StoreError> {
        Ok(self.policy.as_ref().map(PolicyFile::load).transpose()?.flatten())
    }

    /// Refuses an image that the policy does not take.
    pub(super) fn check_origin(&self, origin: &Origin, name: &str) -> Result<(), StoreError> {
        match self.policy()? {
            Some(policy) => origin.check(&policy, name),
            None => Ok(()),
        }
    }

    /// Refuses a stored image that nobody vouches for: an image of appc that was fetched without a signature or whose signer is no longer
    /// trusted, or another that the policy does not take. What is asked for by its name must have come under it; of what is asked for by
    /// its ID, one origin is enough.
    pub(super) fn check_stored(&self, wanted: &str, image: &ResolvedImage) -> Result<(), StoreError> {
        if self.policy.is_none() {
            return Ok(());
        }
        if let Some(appc) = &image.appc {
            // Whose are trusted is for keys to say, not for the policy. What was imported from a file is its importer's own.
            return match (appc.signer_fingerprint(), &appc.url) {
                (Some(fingerprint), _) => {
                    let checked = self.keys.check_signer(&appc.manifest.name, fingerprint);
                    checked.map_err(|error| StoreError::Trust(Box::new(error)))
                }
                (None, Some(url)) => {
                    let why = "it was fetched when signatures were not checked; fetch it again".to_owned();
                    Err(StoreError::Unsigned { what: url.clone(), why })
                }
                (None, None) => Ok(()),
            };
        }
        let id = &image.id;
        let Some(policy) = self.policy()? else { return Ok(()) };
        let known = self.origins(id)?;
        let named = match self.find_name(wanted)? {
            Some((name, named)) if named == *id => Some(name),
            _ => None,
        };
        let origins = match named {
            Some(name) => vec![self.origin_of_name(&name, id, &known)?],
            None if known.is_empty() => {
                let names = self.names_of(id)?;
                names.iter().map(|name| self.origin_of_name(name, id, &known)).collect::<Result<_, _>>()?
            }
            None => known.into_iter().map(Some).collect(),
        };
        let mut refused = None;
        for origin in &origins {
            let result = match origin {
                Some(origin) => origin.check(&policy, wanted),
                None => unknown(&policy, wanted),
            };
            match result {
                Ok(()) => return Ok(()),
                Err(error) => drop(refused.get_or_insert(error)),
            }
        }
        refused.map_or_else(|| unknown(&policy, wanted), Err)
    }

    /// Where the image has come from that a name stands for; none when that is not known.
    fn origin_of_name(&self, name: &Reference, id: &Digest, known: &[Origin]) -> Result<Option<Origin>, StoreError> {
        let record = self.name_record(name)?;
        let Some(NameRecord { digest: Some(digest), .. }) = record else {
            let elsewhere = known.iter().rfind(|origin| !matches!(origin.source, Source::Registry { .. }));
            return Ok(elsewhere.cloned());
        };
        let source = Source::Registry { name: name.clone() };
        if let Some(origin) = known.iter().find(|origin| origin.source == source) {
            return Ok(Some(origin.clone()));
        }
        let manifest = self.image_record(id)?.and_then(|record| record.manifest_digest);
        Ok(Some(Origin { digests: manifest.into_iter().chain([digest]).collect(), ..Origin::unsigned(source) }))
    }

    fn origins_path(&self, id: &Digest) -> PathBuf {
        self.image_directory(id).join("origins.json")
    }

    pub(super) fn origins(&self, id: &Digest) -> Result<Vec<Origin>, StoreError> {
        let record: Option<OriginsRecord> = read(&self.origins_path(id))?;
        Ok(record.map(|record| record.origins).unwrap_or_default())
    }

    /// Remembers where an image has come from.
    pub(super) fn keep_origin(&self, id: &Digest, origin: &Origin) -> Result<(), StoreError> {
        // Others may have fetched the same image by another name meanwhile.
        let path = self.lock_path("origins");
        let _lock = Lock::exclusive(&path).map_err(at(path))?;
        let mut origins = self.origins(id)?;
        if origins.contains(origin) {
            return Ok(());
        }
        origins.retain(|known| known.source != origin.source);
        origins.push(origin.clone());
        let excess = origins.len().saturating_sub(MAX_ORIGINS);
        origins.drain(..excess);
        self.write(&self.origins_path(id), &OriginsRecord { version: VERSION, origins })
    }
}

fn unknown(policy: &Policy, wanted: &str) -> Result<(), StoreError> {
    let signatures = Signatures::default();
    let evidence = Evidence { identity: Identity::unknown(), digests: Vec::new(), signatures, accepted: None };
    policy.check(wanted, &evidence).map_err(|refused| StoreError::Refused(Box::new(refused)))
}
