//! Where images of appc come from: files, URLs, and names, by discovery. Each is checked before anything of it is stored: that it
//! is the one that was asked for, and that somebody has signed it who is trusted for its name.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::Path;

use super::Store;
use super::appc::{AppcWork, Provenance};
use super::download::{Downloaded, Here, Wanted};
use super::error::{MAX_DEPENDENCIES, StoreError, at};
use super::import::Imported;
use super::scratch::Scratch;
use crate::appc::archive::Archive;
use crate::appc::discovery::discover;
use crate::appc::manifest::Dependency;
use crate::appc::{AppcName, ImageId, ImageManifest};
use crate::digest::Digest;
use crate::erofs::Limits;
use crate::oci::open_without_waiting;
use crate::progress::{Progress, Silent};
use crate::reference::Reference;
use crate::registry::{Registries, RegistryError, Url};
use crate::tar;
use crate::trust::{Keyring, MAX_SIGNATURE};

/// What stands behind an image's name in its signature's.
const SIGNATURE: &str = "asc";

/// How images of appc are fetched and imported.
#[derive(Debug, Clone, Copy)]
pub struct AppcOptions<'a> {
    /// How hosts are spoken to.
    pub registries: &'a Registries,
    /// Whose signatures count; none when signatures are done without.
    pub keys: Option<&'a Keyring>,
    /// Whether hosts may be asked at all.
    pub online: bool,
    /// What a layer may be at most.
    pub limits: Limits,
}

/// Fetches and imports images of appc, each with those that it is placed upon.
pub struct AppcFetch<'a> {
    store: &'a Store,
    options: AppcOptions<'a>,
    progress: &'a dyn Progress,
    /// Images whose dependencies are being looked for, each a dependency of the one before.
    under_way: RefCell<Vec<String>>,
}

/// What an image must be.
#[derive(Debug, Clone, Default)]
struct Demand {
    name: Option<AppcName>,
    id: Option<ImageId>,
}

impl<'a> AppcFetch<'a> {
    /// For a store.
    pub fn new(store: &'a Store, options: AppcOptions<'a>, progress: &'a dyn Progress) -> Self {
        Self { store, options, progress, under_way: RefCell::default() }
    }

    /// Imports the archive in a file. The signature beside it, `FILE.asc`, is checked if there is one, or the one that is named.
    ///
    /// # Errors
    /// [`StoreError`]; nothing of the image can be found then.
    pub fn file(
        &self,
        path: &Path,
        name: Option<&Reference>,
        signature: Option<&Path>,
    ) -> Result<Imported, StoreError> {
        let archive = open_without_waiting(path).and_then(Archive::new).map_err(at(path))?;
        let beside = path.with_added_extension(SIGNATURE);
        let read = |path: &Path| -> Result<Vec<u8>, StoreError> {
            let mut bytes = Vec::new();
            let file = open_without_waiting(path).map_err(at(path))?;
            file.take(MAX_SIGNATURE + 1).read_to_end(&mut bytes).map_err(at(path))?;
            Ok(bytes)
        };
        let signature = match signature {
            _ if self.options.keys.is_none() => None,
            Some(path) => Some(read(path)?),
            None if beside.exists() => Some(read(&beside)?),
            None => None,
        };
        let file = path.display().to_string();
        self.take(&archive, &file, &Demand::default(), signature.as_deref(), Provenance::default(), name, self.progress)
    }

    /// Imports the archive that arrives as a stream. `file` is what messages call it.
    ///
    /// # Errors
    /// As [`AppcFetch::file`].
    pub fn stream(&self, packed: File, file: &str, name: Option<&Reference>) -> Result<Imported, StoreError> {
        let archive = Archive::new(packed).map_err(at(file))?;
        self.take(&archive, file, &Demand::default(), None, Provenance::default(), name, self.progress)
    }

    /// Fetches the archive at a URL. Its signature is at the same URL with `.asc` behind its path.
    ///
    /// # Errors
    /// As [`AppcFetch::file`].
    pub fn url(&self, url: &Url) -> Result<Imported, StoreError> {
        let text = url.to_string();
        let (path, query) = text.split_at(text.find('?').unwrap_or(text.len()));
        let signature = Url::parse(&format!("{path}.{SIGNATURE}{query}")).unwrap_or_else(|| url.clone());
        self.fetch(url, &signature, &Demand::default(), u64::MAX, self.store.fetched_from(url)?)
    }

    /// Fetches the image of this name, by discovery.
    ///
    /// # Errors
    /// As [`AppcFetch::file`].
    pub fn name(&self, name: &AppcName) -> Result<Imported, StoreError> {
        self.discovered(name, &Demand { name: Some(name.clone()), id: None }, u64::MAX)
    }

    fn discovered(&self, name: &AppcName, demand: &Demand, most: u64) -> Result<Imported, StoreError> {
        let looked_for = name.for_this_host();
        let found = discover(self.options.registries, &looked_for.name, &looked_for.labels)?;
        let mut last = None;
        for endpoint in &found.images {
            let known = self.store.fetched_from(&endpoint.image)?;
            match self.fetch(&endpoint.image, &endpoint.signature, demand, most, known) {
                // Another place may still have it.
                Err(error) if is_absence(&error) => last = Some(error),
                result => return result,
            }
        }
        let nowhere = || RegistryError::NoneHas { wanted: name.to_string(), tried: Vec::new() }.into();
        Err(last.unwrap_or_else(nowhere))
    }

    fn fetch(
        &self,
        url: &Url,
        signature: &Url,
        demand: &Demand,
        most: u64,
        known: Option<(Digest, Option<String>)>,
    ) -> Result<Imported, StoreError> {
        let what = url.to_string();
        // First, since there is no use in the image without it.
        let signature = match self.options.keys {
            None => None,
            Some(_) => {
                let file = self.options.registries.file("the signature", signature, MAX_SIGNATURE);
                let why = |error: RegistryError| StoreError::Unsigned { what: what.clone(), why: error.to_string() };
                Some(file.map_err(|error| if error.is_absence() { why(error) } else { error.into() })?)
            }
        };
        let lock = self.store.download_lock(url)?;
        let known = match known {
            Some(known) => Some(known),
            // Somebody else may have fetched it while the lock was waited for.
            None => self.store.fetched_from(url)?,
        };
        let complete = known.as_ref().map(|(id, _)| self.store.if_stored(id)).transpose()?.flatten();
        let complete = complete.filter(|imported| self.counts(imported));
        let validator = known.as_ref().and_then(|(_, validator)| validator.as_deref());
        let most = most.min(self.options.limits.stream_bytes);
        let wanted = Wanted { url, what: &what, most, known: validator.filter(|_| complete.is_some()) };
        let importing = self.store.importing()?;
        let downloaded = self.store.download(self.options.registries, &wanted, self.progress);
        drop(importing);
        let Here { file, validator } = match (downloaded?, complete) {
            (Downloaded::Unchanged, Some(imported)) => return demand.check_stored(imported, &what),
            (Downloaded::Unchanged, None) => return Err(RegistryError::Connect { url: what, what: ODD.into() }.into()),
            (Downloaded::Here(here), _) => here,
        };
        // What it is placed upon may have to be fetched, too.
        drop(lock);
        let archive = Archive::new(file).map_err(at(&what))?;
        let provenance = Provenance { signer: None, url: Some(what.clone()), validator };
        let taken = self.take(&archive, &what, demand, signature.as_deref(), provenance, None, &Silent);
        self.store.forget_download(url)?;
        taken
    }

    /// Takes an archive in, if it is the one that was asked for and its signature, if there is one, counts.
    #[expect(clippy::too_many_arguments, reason = "each is another thing that is known of the archive")]
    fn take(
        &self,
        archive: &Archive,
        file: &str,
        demand: &Demand,
        signature: Option<&[u8]>,
        mut provenance: Provenance,
        name: Option<&Reference>,
        progress: &dyn Progress,
    ) -> Result<Imported, StoreError> {
        let survey = archive.survey(self.options.limits.stream_bytes);
        let survey = survey.map_err(|source| StoreError::Archive { file: file.to_owned(), source })?;
        demand.check(survey.id, &survey.manifest, file)?;
        if let (Some(keys), Some(signature)) = (self.options.keys, signature) {
            let name = &survey.manifest.name;
            let signer = archive.packed_again(&survey, |packed| keys.check(name, signature, packed));
            let signer = signer.map_err(|source| StoreError::Archive { file: file.to_owned(), source })??;
            let user = signer.user_id.map(|user| format!(" {user}")).unwrap_or_default();
            provenance.signer = Some(format!("{}{user}", signer.fingerprint));
        }
        let own = survey.manifest.full_name().to_string();
        self.go_deeper(&own)?;
        let dependency = |dependency: &Dependency| self.dependency(&own, dependency);
        let work = AppcWork { limits: &self.options.limits, progress, dependency: &dependency };
        let imported = self.store.import_appc(archive, &survey, provenance, name, &work);
        self.under_way.borrow_mut().pop();
        imported
    }

    /// What was once taken without a signature must have one when they are checked, by one who is still trusted.
    fn counts(&self, imported: &Imported) -> bool {
        let Some(keys) = self.options.keys else { return true };
        imported.appc.as_ref().is_some_and(|appc| appc.counts(keys))
    }

    fn go_deeper(&self, name: &str) -> Result<(), StoreError> {
        let mut under_way = self.under_way.borrow_mut();
        if let Some(at) = under_way.iter().position(|known| known == name) {
            let mut circle = under_way[at..].to_vec();
            circle.push(name.to_owned());
            return Err(StoreError::Circle(circle));
        }
        if under_way.len() >= MAX_DEPENDENCIES {
            return Err(StoreError::TooDeep(under_way[0].clone()));
        }
        under_way.push(name.to_owned());
        Ok(())
    }

    /// The stored image that another is placed upon, fetched if it is not there.
    fn dependency(&self, image: &str, dependency: &Dependency) -> Result<Digest, StoreError> {
        let wanted = dependency.wanted();
        let shown =
            || dependency.image_id.map_or_else(|| wanted.to_string(), |id| format!("{wanted} ({})", id.short()));
        let failed = |source: StoreError| match source {
            // The message tells the whole way already.
            source @ (StoreError::Circle(_) | StoreError::TooDeep(_)) => source,
            source => StoreError::Dependency { image: image.to_owned(), dependency: shown(), source: Box::new(source) },
        };
        let stored = match &dependency.image_id {
            Some(id) => self.store.find_id(&id.to_string()).ok(),
            None => self.store.find_appc(&wanted)?,
        };
        let stored = stored.map(|id| self.store.if_stored(&id)).transpose()?.flatten();
        if let Some(imported) = stored.filter(|imported| self.counts(imported)) {
            return Ok(imported.id);
        }
        if !self.options.online {
            let hint = "it is not stored, and nothing may be fetched; import it first".to_owned();
            return Err(failed(StoreError::NotFound { wanted: shown(), hint }));
        }
        let demand = Demand { name: Some(wanted.clone()), id: dependency.image_id };
        let most = dependency.size.unwrap_or(u64::MAX);
        self.discovered(&wanted, &demand, most).map(|imported| imported.id).map_err(failed)
    }
}

/// What a server says that claims that nothing has changed since a state that it was not told.
const ODD: &str = "it says that the file has not changed, but was not asked that";

impl Demand {
    fn check(&self, id: ImageId, manifest: &ImageManifest, file: &str) -> Result<(), StoreError> {
        let other = |actual: String, wanted: String| StoreError::OtherImage { file: file.to_owned(), actual, wanted };
        if let Some(name) = self.name.as_ref().filter(|name| !name.means(&manifest.name, &manifest.labels())) {
            return Err(other(manifest.full_name().to_string(), name.to_string()));
        }
        match self.id {
            Some(wanted) if wanted != id => Err(other(id.to_string(), wanted.to_string())),
            _ => Ok(()),
        }
    }

    /// The same of an image that was taken in before.
    fn check_stored(&self, imported: Imported, file: &str) -> Result<Imported, StoreError> {
        if let Some(appc) = &imported.appc {
            self.check(appc.id, &appc.manifest, file)?;
        }
        Ok(imported)
    }
}

fn is_absence(error: &StoreError) -> bool {
    match error {
        StoreError::Registry(error) => error.is_absence(),
        StoreError::Unsigned { .. } => true,
        _ => false,
    }
}

impl Store {
    /// The image that was fetched from a URL, and in which state that was.
    fn fetched_from(&self, url: &Url) -> Result<Option<(Digest, Option<String>)>, StoreError> {
        let url = url.to_string();
        let mut best = None;
        for record in self.all_records()?.records {
            let (id, imported) = (record.id, record.imported);
            if let Some(appc) = record.appc.filter(|appc| appc.url.as_ref() == Some(&url)) {
                best = best.max(Some((imported, id, appc.validator)));
            }
        }
        Ok(best.map(|(_, id, validator)| (id, validator)))
    }

    /// The stored image that was fetched from a URL, if it is whole.
    ///
    /// # Errors
    /// Records that cannot be read.
    pub fn stored_from(&self, url: &Url) -> Result<Option<Imported>, StoreError> {
        let found = self.fetched_from(url)?;
        found.map(|(id, _)| self.if_stored(&id)).transpose().map(Option::flatten)
    }

    /// The stored image of appc of this name, if it is whole.
    ///
    /// # Errors
    /// Records that cannot be read.
    pub fn stored_appc(&self, name: &AppcName) -> Result<Option<Imported>, StoreError> {
        let found = self.find_appc(name)?;
        found.map(|id| self.if_stored(&id)).transpose().map(Option::flatten)
    }

    /// An image with all its layers.
    fn if_stored(&self, id: &Digest) -> Result<Option<Imported>, StoreError> {
        let Some(record) = self.image_record(id)? else { return Ok(None) };
        for layer in &record.layers {
            if self.stored_layer(layer)?.is_none() {
                return Ok(None);
            }
        }
        let (names, layers) = (self.names_of(id)?, record.layers.len());
        Ok(Some(Imported { id: *id, names, size: record.size, layers, present: layers, appc: record.appc }))
    }

    /// An archive's bytes in a file without a name.
    ///
    /// # Errors
    /// The stream does not begin as an archive does, ends badly, or the disk is full.
    pub fn spool(&self, stream: &mut dyn Read) -> Result<File, StoreError> {
        let tmp = self.tmp();
        let mut start = Vec::with_capacity(tar::BLOCK);
        stream.take(tar::BLOCK as u64).read_to_end(&mut start).map_err(at("the stream"))?;
        if !tar::begins_archive(&start) {
            return Err(StoreError::NoArchive);
        }
        let stream = &mut start.as_slice().chain(stream);
        let mut file = Scratch::file(&tmp).and_then(Scratch::anonymous).map_err(at(&tmp))?;
        io::copy(stream, &mut file).and_then(|_| file.rewind()).map_err(at(&tmp))?;
        Ok(file)
    }

    /// Whether this file looks like an image of appc.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn is_appc_file(file: &File) -> Result<bool, StoreError> {
        let archive = file.try_clone().and_then(Archive::new).map_err(at("the image"))?;
        Ok(archive.is_likely())
    }

    /// Whether the file at `path` looks like an image of appc.
    pub fn is_appc(path: &Path) -> bool {
        let is_file = fs::metadata(path).is_ok_and(|metadata| metadata.is_file());
        is_file && open_without_waiting(path).and_then(Archive::new).is_ok_and(|archive| archive.is_likely())
    }
}
