//! `podvm image fetch`, and fetching what `podvm run` names.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use podvm_image::erofs::Limits;
use podvm_image::registry::PullPolicy;
use podvm_image::registry::Url;
use podvm_image::trust::Keyring;
use podvm_image::{
    AppcFetch, AppcName, AppcOptions, AppcRecord, Digest, FetchOptions, Format, ImageSource, Imported, Origin,
    Reference, ResolvedImage, Store, StoreError,
};
use serde::Serialize;

use super::progress::Watch;
use super::registries::{PullPolicyArg, RegistryArgs};
use crate::config::Config;
use crate::output::{OutputArgs, print};
use crate::{chain, report};

const EXAMPLES: &str = "\
Examples:
  podvm image fetch etcd                                  from the registries that are searched, by default Docker Hub
  podvm image fetch quay.io/coreos/etcd:v3.5.0
  podvm image fetch docker://quay.io/coreos/etcd@sha256:…
  podvm image fetch --insecure-options=http localhost:5000/etcd
  podvm image fetch coreos.com/etcd,version=v2.2.0        an appc image, found by discovery and signed by a trusted key
  podvm image fetch appc:coreos.com/etcd                  the same without a label
  podvm image fetch https://example.com/etcd.aci

Logins are those of `podman login` and `docker login`. Mirrors, search and certificates: [registries] in the configuration.
Whose images are taken: policy.json, as podman's (containers-policy.json(5)).";

/// Options of `podvm image fetch`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct FetchArgs {
    /// Names of images: [docker://][HOST[:PORT]/]PATH[:TAG][@DIGEST]; of appc images NAME,LABEL=VALUE… or appc:NAME; or URLs of
    /// appc images
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,
    /// From where, and how; what is stored is updated unless another policy is given.
    #[command(flatten)]
    pub registry: RegistryArgs,
    /// Do not show how far it is
    #[arg(long, short)]
    pub quiet: bool,
    /// Form of the output.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What was done for one name.
#[derive(Debug, Serialize)]
struct Report {
    id: String,
    names: Vec<String>,
    size_bytes: u64,
    layers: usize,
    layers_already_stored: usize,
}

impl From<Imported> for Report {
    fn from(imported: Imported) -> Self {
        Self {
            id: shown_id(&imported.id, imported.appc.as_ref()),
            names: shown_names(&imported.names, imported.appc.as_ref()),
            size_bytes: imported.size,
            layers: imported.layers,
            layers_already_stored: imported.present,
        }
    }
}

/// What users know an image by: of one of appc, the ID of its archive.
pub fn shown_id(id: &Digest, appc: Option<&AppcRecord>) -> String {
    appc.map_or_else(|| id.to_string(), |appc| appc.id.to_string())
}

/// All names of an image: of one of appc, its own first.
pub fn shown_names(names: &[Reference], appc: Option<&AppcRecord>) -> Vec<String> {
    let own = appc.map(|appc| appc.manifest.full_name().to_string());
    own.into_iter().chain(names.iter().map(ToString::to_string)).collect()
}

/// Fetches images. One that cannot be had does not keep the others from it.
pub fn run(args: &FetchArgs, store: &Store, config: &Config) -> Result<u8> {
    let registry = RegistryArgs {
        pull_policy: args.registry.pull_policy.or(Some(PullPolicyArg::Update)),
        ..args.registry.clone()
    };
    let fetcher = Fetcher::new(store, &registry, config, args.quiet);
    let (mut reports, mut code) = (Vec::new(), 0);
    for name in &args.names {
        match fetcher.fetch(name) {
            Ok(imported) => reports.push(Report::from(imported)),
            Err(error) => {
                report(&chain(&error));
                code = podvm_pod::exit::PODVM_ERROR;
            }
        }
    }
    print(args.output, &reports, |reports| reports.iter().map(|report| format!("{}\n", report.id)).collect())?;
    Ok(code)
}

/// Fetches images by the policy that goes for a command.
pub struct Fetcher<'a> {
    store: &'a Store,
    registries: podvm_image::Registries,
    policy: PullPolicy,
    checks_images: bool,
    keys: Keyring,
    quiet: bool,
}

impl<'a> Fetcher<'a> {
    /// For a command's options.
    pub fn new(store: &'a Store, args: &RegistryArgs, config: &Config, quiet: bool) -> Self {
        Self {
            store,
            registries: args.insecure.registries(config),
            policy: args.policy(config),
            checks_images: args.insecure.checks_images(config),
            keys: Keyring::new(config.trust.keys.clone()),
            quiet,
        }
    }

    /// An image that is named, ready to run; fetched first where the policy says so.
    ///
    /// # Errors
    /// It is neither stored nor to be had.
    pub fn resolve(&self, wanted: &str) -> Result<ResolvedImage> {
        if self.policy == PullPolicy::Update && !matches!(self.store.origin(wanted)?, Origin::Elsewhere) {
            let imported = self.fetch(wanted)?;
            return Ok(self.store.resolve(&imported.id.to_string())?);
        }
        match self.store.resolve(wanted) {
            Err(StoreError::NotFound { .. })
                if self.policy != PullPolicy::Never && wanted.parse::<Reference>().is_ok() =>
            {
                let imported = self.fetch(wanted)?;
                Ok(self.store.resolve(&imported.id.to_string())?)
            }
            // From before the policy was as it is: its signatures may be at the registry.
            Err(StoreError::Refused(refused)) if self.policy != PullPolicy::Never => {
                let Origin::Fetched(name) = self.store.origin(wanted)? else {
                    return Err(StoreError::Refused(refused).into());
                };
                let imported = self.fetch_anew(&name).with_context(|| refused.to_string())?;
                Ok(self.store.resolve(&imported.id.to_string())?)
            }
            result => Ok(result?),
        }
    }

    /// Fetches the image of a name, or finds it stored.
    fn fetch(&self, wanted: &str) -> Result<Imported> {
        let (name, is_explicit) = match ImageSource::parse(wanted)? {
            ImageSource::Registry(name) => (name, true),
            ImageSource::Named(text) => (text.parse::<Reference>()?, false),
            ImageSource::Appc(name) => return self.appc(&name),
            ImageSource::Url(url) => return self.url(&url),
            ImageSource::Path { path, .. } => {
                anyhow::bail!("{} is a path; `podvm image import` takes those", path.display())
            }
        };
        if let (false, Origin::Elsewhere) = (is_explicit, self.store.origin(wanted)?)
            && let Some(appc) = self.store.find(wanted)?.appc
        {
            return self.appc(&appc.manifest.full_name());
        }
        // A short name goes on meaning what it meant when it was fetched.
        let origin = if is_explicit { Origin::NotStored } else { self.store.origin(wanted)? };
        let name = match origin {
            Origin::Fetched(known) => known,
            _ => name,
        };
        let stored = || self.store.find(&name.stored().to_string());
        match self.policy {
            PullPolicy::Never => Ok(as_imported(stored()?)),
            PullPolicy::New if let Ok(image) = stored() => Ok(as_imported(image)),
            _ => self.fetch_anew(&name).with_context(|| match is_appc_like(wanted) {
                true => format!("image {wanted} cannot be fetched (as an appc image it would be appc:{wanted})"),
                false => cannot(&wanted),
            }),
        }
    }

    /// An image of appc, by its name.
    pub fn appc(&self, name: &AppcName) -> Result<Imported> {
        let stored = self.store.stored_appc(name)?.filter(|imported| self.counts(imported));
        let online = self.policy != PullPolicy::Never;
        match stored {
            Some(imported) if self.policy != PullPolicy::Update => Ok(imported),
            _ if online => self.with_appc(|appc| appc.name(name)).with_context(|| cannot(name)),
            _ => Ok(as_imported(self.store.find(&name.to_string())?)),
        }
    }

    /// An image of appc, by its URL.
    pub fn url(&self, url: &Url) -> Result<Imported> {
        let stored = self.store.stored_from(url)?.filter(|imported| self.counts(imported));
        match stored {
            Some(imported) if self.policy != PullPolicy::Update => Ok(imported),
            _ if self.policy != PullPolicy::Never => self.with_appc(|appc| appc.url(url)).with_context(|| cannot(url)),
            _ => anyhow::bail!("no image of {url} is stored, and nothing may be fetched (--pull-policy=never)"),
        }
    }

    /// Whether the file at a path is an image of appc.
    pub fn is_aci(&self, path: &Path, format: Format) -> bool {
        format == Format::Aci || format == Format::Any && Store::is_appc(path)
    }

    /// Imports an image of appc from a file.
    pub fn aci(&self, path: &Path, name: Option<&Reference>, signature: Option<&Path>) -> Result<Imported> {
        let imported = self.with_appc(|appc| appc.file(path, name, signature))?;
        self.remark_unsigned(&imported, &path.display().to_string());
        Ok(imported)
    }

    /// As [`Fetcher::aci`], of a stream whose bytes are in a file.
    pub fn aci_stream(&self, file: File, what: &str, name: Option<&Reference>) -> Result<Imported> {
        let imported = self.with_appc(|appc| appc.stream(file, what, name))?;
        self.remark_unsigned(&imported, what);
        Ok(imported)
    }

    fn remark_unsigned(&self, imported: &Imported, what: &str) {
        let is_signed = imported.appc.as_ref().is_some_and(|appc| appc.signer.is_some());
        if !self.quiet && self.checks_images && !is_signed {
            report(&format!("{what} has no signature beside it, and is taken as it is"));
        }
    }

    /// What was once taken from a server without a signature must have one when they are checked, by one who is still trusted.
    fn counts(&self, imported: &Imported) -> bool {
        !self.checks_images || imported.appc.as_ref().is_some_and(|appc| appc.counts(&self.keys))
    }

    fn with_appc<T>(&self, work: impl FnOnce(&AppcFetch<'_>) -> Result<T, StoreError>) -> Result<T> {
        let options = AppcOptions {
            registries: &self.registries,
            keys: self.checks_images.then_some(&self.keys),
            online: self.policy != PullPolicy::Never,
            limits: Limits::default(),
        };
        let watch = Watch::new(self.quiet);
        Ok(work(&AppcFetch::new(self.store, options, &watch))?)
    }

    /// Asks the registry, whatever the policy.
    fn fetch_anew(&self, name: &Reference) -> Result<Imported> {
        if !self.checks_images && !self.quiet {
            report(&format!("{name}: whose image this is is not checked (insecure-options)"));
        }
        let watch = Watch::new(self.quiet);
        Ok(self.store.fetch(name, &self.registries, &FetchOptions::default(), &watch)?)
    }
}

/// Whether a name may be meant as one of appc: with a host in it, but no tag.
fn is_appc_like(name: &str) -> bool {
    let is_host = |host: &str| host.contains('.') && !host.contains(':');
    name.split_once('/').is_some_and(|(host, path)| is_host(host) && !path.contains([':', '@']))
}

fn cannot(name: &dyn std::fmt::Display) -> String {
    format!("image {name} cannot be fetched")
}

fn as_imported(image: podvm_image::Image) -> Imported {
    let layers = image.layers.len();
    Imported { id: image.id, names: image.names, size: image.size, layers, present: layers, appc: image.appc }
}
