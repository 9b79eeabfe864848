//! `podvm image fetch`, and fetching what `podvm run` names.

use anyhow::{Context, Result};
use podvm_image::registry::PullPolicy;
use podvm_image::{FetchOptions, ImageSource, Imported, Origin, Reference, ResolvedImage, Store, StoreError};
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

Logins are those of `podman login` and `docker login`. Mirrors, search and certificates: [registries] in the configuration.";

/// Options of `podvm image fetch`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct FetchArgs {
    /// Names of images: [docker://][HOST[:PORT]/]PATH[:TAG][@DIGEST]
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
            id: imported.id.to_string(),
            names: imported.names.iter().map(ToString::to_string).collect(),
            size_bytes: imported.size,
            layers: imported.layers,
            layers_already_stored: imported.present,
        }
    }
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
            ImageSource::Path { path, .. } => {
                anyhow::bail!("{} is a path; `podvm image import` takes those", path.display())
            }
        };
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
            _ => self.fetch_anew(&name).with_context(|| format!("image {wanted} cannot be fetched")),
        }
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

fn as_imported(image: podvm_image::Image) -> Imported {
    let layers = image.layers.len();
    Imported { id: image.id, names: image.names, size: image.size, layers, present: layers, appc: image.appc }
}
