//! Images of appc into the store.
//!
//! The root of an archive is one layer. An image is its dependencies' layers, in their order, and its own; if it has a whitelist,
//! each is made anew with those of its files that are listed, which is what the specification's rendering comes to. The layers of
//! archives are named by the digest of the archive's ID, and those made anew by that of their plain tar.
//!
//! What the image is in terms of OCI is written as its configuration, whose digest is its name in the store; users know it by the
//! ID of its archive.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::Path;
use std::thread;

use serde_json::{Value, json};

use super::Store;
use super::error::{StoreError, at};
use super::import::Imported;
use super::lookup::Step;
use super::records::{AppcRecord, ImageRecord};
use super::scratch::{Scratch, sweep};
use crate::appc::archive::{Archive, Survey, in_root};
use crate::appc::manifest::{App, Dependency, EventName};
use crate::appc::name::{ARCH, OS};
use crate::appc::whitelist::Whitelist;
use crate::appc::{ArchiveError, ImageId, ImageManifest};
use crate::digest::{Digest, HashingReader};
use crate::erofs::{BuildError, Built, Limits, Part, build_selected, write_part};
use crate::oci::{MAX_LAYERS, Platform, host_architecture};
use crate::progress::{Event, Progress};
use crate::reference::Reference;
use crate::tar::TarWriter;

/// Where an image of appc has come from, and what its maker is known by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Provenance {
    /// Who has signed it.
    pub signer: Option<String>,
    /// Its URL.
    pub url: Option<String>,
    /// What the server tells one state of the URL from another by.
    pub validator: Option<String>,
}

/// How an archive is to be imported.
pub(super) struct AppcWork<'a> {
    /// What a layer may be at most.
    pub limits: &'a Limits,
    /// Who watches.
    pub progress: &'a dyn Progress,
    /// Finds an image that another is placed upon; gives its name in the store.
    pub dependency: &'a dyn Fn(&Dependency) -> Result<Digest, StoreError>,
}

/// A layer and what made it.
type Stacked = (Digest, Step);

impl Store {
    /// Stores an archive that has been looked at and is wanted, with what it is placed upon.
    pub(super) fn import_appc(
        &self,
        archive: &Archive,
        survey: &Survey,
        provenance: Provenance,
        name: Option<&Reference>,
        work: &AppcWork<'_>,
    ) -> Result<Imported, StoreError> {
        check_platform(&survey.manifest)?;
        let names: Vec<Reference> = name.map(Reference::without_digest).into_iter().collect();
        if let Some(imported) = self.appc_if_complete(&survey.id, &provenance, &names)? {
            return Ok(imported);
        }
        // Before anything is locked: they may be imports, too.
        let mut below = Vec::new();
        for dependency in &survey.manifest.dependencies {
            let id = (work.dependency)(dependency)?;
            below.extend(self.stacked(&id)?);
        }
        let tmp = self.tmp();
        sweep(&tmp).map_err(at(&tmp))?;
        let _importing = self.importing()?;
        if let Some((missing, _)) = below.iter().find(|(layer, _)| !self.blob_path(layer).exists()) {
            let (image, path) = (survey.manifest.full_name().to_string(), self.blob_path(missing));
            return Err(StoreError::MissingLayer { image, path });
        }
        let (own, present) = self.store_root(archive, survey, work)?;
        let made = Step { created_by: format!("appc {}", survey.manifest.full_name()), ..Step::default() };
        below.push((own, made));
        let mut layers = uppermost(below);
        if !survey.manifest.path_whitelist.is_empty() {
            let whitelist = Whitelist::new(&survey.manifest.path_whitelist);
            for (layer, _) in &mut layers {
                *layer = self.store_listed(layer, &whitelist, work.limits)?;
            }
        }
        if layers.len() > MAX_LAYERS {
            let (file, layers) = (survey.manifest.full_name().to_string(), layers.len());
            return Err(crate::oci::OciError::TooManyLayers { file, layers }.into());
        }
        self.record_appc(survey, provenance, &layers, &names, usize::from(present))
    }

    /// The image, if it is stored with all of its layers. What is new of where it comes from is noted.
    fn appc_if_complete(
        &self,
        id: &ImageId,
        provenance: &Provenance,
        names: &[Reference],
    ) -> Result<Option<Imported>, StoreError> {
        for mut record in self.all_records()?.records {
            let stored = record.id;
            let Some(appc) = record.appc.as_mut().filter(|appc| appc.id == *id) else { continue };
            let known = (appc.signer.clone(), appc.url.clone(), appc.validator.clone());
            let Provenance { signer, url, validator } = provenance.clone();
            appc.signer = signer.or(appc.signer.take());
            if url.is_some() {
                (appc.url, appc.validator) = (url, validator);
            }
            let is_new = known != (appc.signer.clone(), appc.url.clone(), appc.validator.clone());
            let appc = appc.clone();
            let layers: Vec<&Digest> = record.layers.iter().collect();
            if !layers.iter().all(|layer| self.blob_path(layer).exists()) {
                continue;
            }
            if is_new {
                self.write(&self.image_directory(&stored).join("image.json"), &record)?;
            }
            for name in names {
                self.set_name(name, stored, None)?;
            }
            let (layers, present) = (record.layers.len(), record.layers.len());
            let (size, names) = (record.size, names.to_vec());
            return Ok(Some(Imported { id: stored, names, size, layers, present, appc: Some(appc) }));
        }
        Ok(None)
    }

    /// An image's layers, lowest first, and what made each.
    fn stacked(&self, id: &Digest) -> Result<Vec<Stacked>, StoreError> {
        let steps = self.history(&id.to_string())?;
        let of_layer = |step: Step| step.layer.map(|(layer, _)| (layer, Step { layer: None, ..step.clone() }));
        Ok(steps.into_iter().filter_map(of_layer).collect())
    }

    /// Stores the root of an archive. Returns its layer, and whether it was there.
    fn store_root(
        &self,
        archive: &Archive,
        survey: &Survey,
        work: &AppcWork<'_>,
    ) -> Result<(Digest, bool), StoreError> {
        let AppcWork { limits, progress, .. } = *work;
        let layer = root_layer(&survey.id);
        let bytes = archive.size();
        let file = survey.manifest.full_name().to_string();
        progress.event(Event::Begin { layers: 1, bytes });
        let mut present = true;
        self.make_layer(&layer, |image, tails| {
            present = false;
            progress.event(Event::Start { layer: 0, diff_id: layer, bytes });
            let count = |bytes| progress.event(Event::Read { layer: 0, bytes });
            let built = archive
                .read_again(survey.id, count, |plain| build_selected(plain, image, tails, limits, in_root))
                .map_err(|source| StoreError::Archive { file: file.clone(), source })?;
            built.map_err(|source| StoreError::Layer { file: file.clone(), source })
        })?;
        progress.event(match present {
            true => Event::Present { layer: 0, bytes },
            false => Event::Stored { layer: 0, diff_id: layer },
        });
        Ok((layer, present))
    }

    /// Stores those files of a layer that are listed, as another layer.
    fn store_listed(&self, layer: &Digest, whitelist: &Whitelist, limits: &Limits) -> Result<Digest, StoreError> {
        let (tmp, path) = (self.tmp(), self.blob_path(layer));
        let image = Scratch::file(&tmp).map_err(at(&tmp))?;
        let tails = Scratch::file(&tmp).and_then(Scratch::anonymous).map_err(at(&tmp))?;
        let whole = File::open(&path).map_err(at(&path))?;
        let (reader, writer) = io::pipe().map_err(at(&path))?;
        let (built, written) = thread::scope(|scope| {
            let write = move || -> io::Result<()> {
                let mut tar = TarWriter::new(BufWriter::with_capacity(1 << 20, writer));
                let part = Part { prefix: b"", keep: &|path, is_directory| whitelist.keeps(path, is_directory) };
                write_part(&whole, &mut tar, &part)?;
                io::Write::flush(&mut tar.finish()?)
            };
            let writer = scope.spawn(write);
            let mut plain = HashingReader::new(reader);
            let built = build_selected(&mut plain, image.handle(), &tails, limits, Some);
            let digest = plain.finish().0;
            (built.map(|built| (built, digest)), writer.join())
        });
        let failed = |source: BuildError| StoreError::Layer { file: format!("layer {layer}"), source };
        let (built, digest) = built.map_err(failed)?;
        written.unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map_err(at(&path))?;
        self.keep_made(&digest, image, &built)?;
        Ok(digest)
    }

    /// Records an image whose layers are stored.
    fn record_appc(
        &self,
        survey: &Survey,
        provenance: Provenance,
        layers: &[Stacked],
        names: &[Reference],
        present: usize,
    ) -> Result<Imported, StoreError> {
        let mut size = 0;
        for (layer, _) in layers {
            size += self.stored_layer(layer)?.unwrap_or(0);
        }
        let manifest = &survey.manifest;
        let config = configuration(survey, layers);
        let config_bytes = config.to_string().into_bytes();
        let id = Digest::of(&config_bytes);
        let path = self.image_directory(&id).join("config.json");
        let damaged = |source| StoreError::Damaged { path: path.clone(), source };
        // Long lists are not read each time that images are listed; the manifest has them.
        let without_list = ImageManifest { path_whitelist: Vec::new(), ..manifest.clone() };
        let Provenance { signer, url, validator } = provenance;
        let appc = AppcRecord { id: survey.id, manifest: without_list, signer, url, validator };
        let record = ImageRecord {
            appc: Some(appc.clone()),
            config: serde_json::from_value(config["config"].clone()).map_err(damaged)?,
            ..ImageRecord::new(
                id,
                &Platform {
                    os: config["os"].as_str().unwrap_or_default().to_owned(),
                    architecture: config["architecture"].as_str().unwrap_or_default().to_owned(),
                    ..Platform::default()
                },
                manifest.annotation("created").map(str::to_owned),
                size,
                layers.iter().map(|(layer, _)| *layer).collect(),
            )
        };
        self.publish(&record, [&config_bytes, &survey.manifest_bytes], names, None, None)?;
        Ok(Imported { id, names: names.to_vec(), size, layers: layers.len(), present, appc: Some(appc) })
    }

    /// Makes a layer unless it is stored; of several who want it, the first makes it and the others wait.
    fn make_layer(
        &self,
        layer: &Digest,
        make: impl FnOnce(&File, &File) -> Result<Built, StoreError>,
    ) -> Result<(), StoreError> {
        let _lock = self.layer_lock(layer)?;
        if self.stored_layer(layer)?.is_some() {
            return Ok(());
        }
        let tmp = self.tmp();
        let image = Scratch::file(&tmp).map_err(at(&tmp))?;
        let tails = Scratch::file(&tmp).and_then(Scratch::anonymous).map_err(at(&tmp))?;
        let built = make(image.handle(), &tails)?;
        self.keep_layer(layer, image, &built)
    }

    /// Stores a layer that is made, unless it is stored.
    fn keep_made(&self, layer: &Digest, image: Scratch, built: &Built) -> Result<(), StoreError> {
        let _lock = self.layer_lock(layer)?;
        if self.stored_layer(layer)?.is_some() { Ok(()) } else { self.keep_layer(layer, image, built) }
    }

    /// Writes an image of appc as an archive. Its root is written anew, so its ID is another.
    ///
    /// # Errors
    /// [`StoreError::NotAppc`] and [`StoreError::Rendered`] for images that have no archive of their own.
    pub fn export_aci(&self, wanted: &str, output: &mut dyn io::Write) -> Result<(), StoreError> {
        let image = self.hold(wanted)?;
        let appc = image.appc.as_ref().ok_or_else(|| StoreError::NotAppc(wanted.to_owned()))?;
        let [layer] = image.layers.as_slice() else { return Err(StoreError::Rendered(wanted.to_owned())) };
        if layer.diff_id != root_layer(&appc.id) {
            return Err(StoreError::Rendered(wanted.to_owned()));
        }
        let path = self.manifest_path(&image.id);
        let manifest = fs::read(&path).map_err(at(path))?;
        let file = File::open(&layer.path).map_err(at(&layer.path))?;
        let mut tar = TarWriter::new(output);
        let write = || -> io::Result<()> {
            let entry = super::export::plain_file("manifest", manifest.len() as u64);
            tar.entry(&entry, &manifest[..])?;
            write_part(&file, &mut tar, &Part { prefix: b"rootfs/", keep: &|_, _| true })?;
            io::Write::flush(&mut tar.finish()?)
        };
        write().map_err(at("the archive"))
    }
}

/// The layer of an archive's root.
fn root_layer(id: &ImageId) -> Digest {
    Digest::of(format!("appc rootfs of {id}").as_bytes())
}

/// Each layer once, where it is uppermost: what it has there is not changed by what it has further below, since these layers only
/// ever add and replace. An overlay must not have one twice.
fn uppermost(layers: Vec<Stacked>) -> Vec<Stacked> {
    let mut kept: Vec<Stacked> = Vec::new();
    for (layer, step) in layers.into_iter().rev() {
        if !kept.iter().any(|(other, _)| *other == layer) {
            kept.push((layer, step));
        }
    }
    kept.reverse();
    kept
}

/// An image for another system is refused. What says nothing runs anywhere.
fn check_platform(manifest: &ImageManifest) -> Result<(), StoreError> {
    let label = |name| manifest.label(name).unwrap_or_default().to_owned();
    let architecture = match label(ARCH).as_str() {
        "x86_64" => "amd64".to_owned(),
        "aarch64" => "arm64".to_owned(),
        other => other.to_owned(),
    };
    let platform = Platform { os: label(OS), architecture, variant: String::new() };
    if platform.runs_here() {
        return Ok(());
    }
    let wanted = format!("linux/{}", host_architecture());
    let path = Path::new(&manifest.full_name().to_string()).to_owned();
    Err(crate::oci::OciError::NoPlatform { path, wanted, have: vec![platform.to_string()] }.into())
}

/// The image as OCI has it (image-spec, config.md), as far as that goes.
fn configuration(survey: &Survey, layers: &[Stacked]) -> Value {
    let manifest = &survey.manifest;
    let history = layers.iter().map(|(_, step)| json!({"created_by": step.created_by, "comment": step.comment}));
    json!({
        "os": manifest.label(OS).unwrap_or("linux"),
        "architecture": manifest.label(ARCH).unwrap_or(host_architecture()),
        "created": manifest.annotation("created"),
        "config": manifest.app.as_ref().map_or(json!({}), |app| app_configuration(app, manifest)),
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|(layer, _)| layer.to_string()).collect::<Vec<_>>()},
        "history": history.collect::<Vec<_>>(),
        "appcImageID": survey.id,
    })
}

fn app_configuration(app: &App, manifest: &ImageManifest) -> Value {
    let keys = |names: Vec<String>| Value::Object(names.into_iter().map(|name| (name, json!({}))).collect());
    let mut labels: serde_json::Map<String, Value> =
        manifest.annotations.iter().map(|pair| (pair.name.clone(), json!(pair.value))).collect();
    for port in app.ports.iter().filter(|port| matches!(port.protocol.as_str(), "tcp" | "udp")) {
        labels.insert(format!("io.podvm.port.{}", port.name), json!(format!("{}/{}", port.port, port.protocol)));
    }
    for mount in &app.mount_points {
        labels.insert(format!("io.podvm.volume.{}", mount.name), json!(mount.path));
    }
    for (event, label) in [(EventName::PreStart, "pre-start"), (EventName::PostStop, "post-stop")] {
        if let Some(exec) = app.handler(event) {
            labels.insert(format!("io.podvm.event.{label}"), json!(json!(exec).to_string()));
        }
    }
    json!({
        "Entrypoint": app.exec,
        "User": format!("{}:{}", app.user, app.group),
        "WorkingDir": app.working_directory.as_deref().unwrap_or_default(),
        "Env": app.environment.iter().map(|pair| format!("{}={}", pair.name, pair.value)).collect::<Vec<_>>(),
        "ExposedPorts": keys(app.ports.iter().map(|port| format!("{}/{}", port.port, port.protocol)).collect()),
        "Volumes": keys(app.mount_points.iter().map(|mount| mount.path.clone()).collect()),
        "Labels": labels,
    })
}

impl From<(String, ArchiveError)> for StoreError {
    fn from((file, source): (String, ArchiveError)) -> Self {
        Self::Archive { file, source }
    }
}
