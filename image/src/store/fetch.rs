//! Images from registries into the store.
//!
//! A layer goes from the connection through its checks straight into its EROFS image. What a crash leaves are the layers
//! that were whole, and the packed bytes that had arrived of large ones; the next fetch asks for neither again.

use super::Store;
use super::error::{StoreError, at};
use super::import::{Imported, MAX_WORKERS, Work};
use super::origins::{Origin as ImageOrigin, Source};
use super::records::NameRecord;
use super::scratch::sweep;
use crate::digest::Digest;
use crate::erofs::Limits;
use crate::progress::Progress;
use crate::reference::Reference;
use crate::registry::{Registries, RegistryError};
use crate::trust::{Identity, SignatureForm, now};

/// How an image is to be fetched.
#[derive(Debug, Clone, Default)]
pub struct FetchOptions {
    /// What a layer may be at most.
    pub limits: Limits,
}

/// Where an image has come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// It is not stored.
    NotStored,
    /// It was imported, or named by its ID, so that no registry can be asked whether it is the latest.
    Elsewhere,
    /// From a registry, by this name.
    Fetched(Reference),
}

impl Store {
    /// Fetches what a name stands for at its registry, unless it is stored. A name without a registry is looked for at
    /// the places that `registries` searches.
    ///
    /// All bytes are checked against their digests. On an error nothing of the image can be found.
    pub fn fetch(
        &self,
        name: &Reference,
        registries: &Registries,
        options: &FetchOptions,
        progress: &dyn Progress,
    ) -> Result<Imported, StoreError> {
        let mut tried = Vec::new();
        let names = registries.full_names(name);
        for full in &names {
            match self.fetch_one(full, registries, options, progress) {
                Err(error) if names.len() > 1 && is_absence(&error) => tried.push(error.to_string()),
                result => return result,
            }
        }
        Err(RegistryError::NoneHas { wanted: name.to_string(), tried }.into())
    }

    /// Where a stored image has come from.
    pub fn origin(&self, wanted: &str) -> Result<Origin, StoreError> {
        match self.find_name(wanted)? {
            Some((name, _)) => match self.name_record(&name)? {
                Some(NameRecord { digest: Some(_), .. }) => Ok(Origin::Fetched(name)),
                _ => Ok(Origin::Elsewhere),
            },
            None => match self.find_id(wanted) {
                Ok(_) => Ok(Origin::Elsewhere),
                Err(StoreError::NotFound { .. }) => Ok(Origin::NotStored),
                Err(error) => Err(error),
            },
        }
    }

    fn fetch_one(
        &self,
        name: &Reference,
        registries: &Registries,
        options: &FetchOptions,
        progress: &dyn Progress,
    ) -> Result<Imported, StoreError> {
        let stored = name.stored();
        let policy = self.policy()?;
        let source = Source::Registry { name: stored.clone() };
        let wanted = policy.as_ref().map(|policy| policy.wanted_signatures(&Identity::of_registry(name)));
        let wanted = wanted.unwrap_or_default();
        // What is rejected whoever has signed it is not asked for.
        if let Some(policy) = policy.as_ref().filter(|_| wanted.is_empty()) {
            ImageOrigin::unsigned(source.clone()).check(policy, &name.to_string())?;
        }
        let remote = registries.remote(name)?;
        let check = |digests: Vec<Digest>| {
            let mut origin = ImageOrigin { digests, ..ImageOrigin::unsigned(source.clone()) };
            if let Some(policy) = policy.as_ref().filter(|_| !wanted.is_empty()) {
                for digest in &origin.digests {
                    origin.signatures.extend(remote.signatures(digest, &wanted)?);
                }
                origin.check(policy, &name.to_string())?;
                origin.accepted = wanted.contains(&SignatureForm::Simple).then(now);
            }
            Ok::<_, StoreError>(origin)
        };
        // What is stored under the name may be what the registry has: then its digest is all that is asked for.
        if let Some(record) = self.name_record(&stored)?
            && record.digest.is_some()
            && let Some(imported) = self.if_complete(&stored, &record.id)?
            && remote.digest()? == record.digest
        {
            if !wanted.is_empty() {
                let manifest = self.image_record(&record.id)?.and_then(|image| image.manifest_digest);
                self.keep_origin(&record.id, &check(different(manifest, record.digest))?)?;
            }
            self.note_use(&record.id);
            return Ok(imported);
        }
        let tmp = self.tmp();
        sweep(&tmp).map_err(at(&tmp))?;
        let _importing = self.importing()?;
        let (found, digest) = remote.open()?;
        let origin = check(different(found.manifest_digest, Some(digest)))?;
        let work = Work { limits: &options.limits, most_workers: MAX_WORKERS, progress };
        self.store_found(&found, vec![stored], Some(digest), &origin, &work)
    }

    /// A stored image, if all of its layers are.
    fn if_complete(&self, name: &Reference, id: &Digest) -> Result<Option<Imported>, StoreError> {
        let Some(record) = self.image_record(id)? else { return Ok(None) };
        let mut unique = record.layers.clone();
        unique.sort();
        unique.dedup();
        for layer in &unique {
            if self.stored_layer(layer)?.is_none() {
                return Ok(None);
            }
        }
        let (layers, present) = (unique.len(), unique.len());
        Ok(Some(Imported { id: *id, names: vec![name.clone()], size: record.size, layers, present, appc: None }))
    }
}

/// An image's manifest and what led to it, which may be the same.
fn different(manifest: Option<Digest>, top: Option<Digest>) -> Vec<Digest> {
    manifest.into_iter().chain(top.filter(|top| manifest != Some(*top))).collect()
}

/// Whether the name may be had elsewhere.
fn is_absence(error: &StoreError) -> bool {
    use crate::oci::OciError;
    match error {
        StoreError::Registry(error) => error.is_absence(),
        StoreError::Oci(OciError::Registry(error)) => error.is_absence(),
        _ => false,
    }
}
