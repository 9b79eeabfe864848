//! `podvm image`: the images that pods are made from.

mod export;
pub mod fetch;
mod gc;
mod history;
mod import;
mod inspect;
mod list;
mod manifest;
pub mod progress;
pub mod registries;
mod render;
mod rm;
mod verify;

use std::io;
use std::path::Path;

use anyhow::Result;
use podvm_image::trust::Keyring;
use podvm_image::{Digest, Store, StoreError, Uses};
use podvm_pod::PodsRoot;
use podvm_pod::directory::{DirectoryError, PodState};

use crate::config::Config;
use registries::InsecureArgs;

/// `podvm image …`.
#[derive(Debug, clap::Subcommand)]
pub enum ImageCommand {
    /// Fetch images from registries, and appc images by discovery or URL
    #[command(visible_alias = "pull")]
    Fetch(fetch::FetchArgs),
    /// Import an image from an OCI layout, an archive of one, or an archive of `docker save`, or an appc image
    Import(import::ImportArgs),
    /// List images
    #[command(visible_alias = "ls")]
    List(list::ListArgs),
    /// Show all that is known of images
    Inspect(inspect::InspectArgs),
    /// Show how an image was built
    History(history::HistoryArgs),
    /// Print an image's manifest as it came
    CatManifest(manifest::CatManifestArgs),
    /// Write an image as an OCI layout or an archive of one
    Export(export::ExportArgs),
    /// Write an image's root filesystem to a directory
    Render(render::RenderArgs),
    /// Write an image's files to a directory with its manifest, or some of the files
    Extract(render::ExtractArgs),
    /// Check that all images are what they were when they came
    Verify(verify::VerifyArgs),
    /// Remove images
    Rm(rm::RmArgs),
    /// Remove what no image needs, and images that have been there for long
    Gc(gc::GcArgs),
    /// Remove images that have lost their names to others
    Prune(gc::PruneArgs),
}

/// Does what is asked for; returns the exit code.
pub fn run(command: &ImageCommand, config: &Config) -> Result<u8> {
    let store = open_store(config)?;
    match command {
        ImageCommand::Fetch(args) => fetch::run(args, &checked(store, &args.registry.insecure, config), config),
        ImageCommand::Import(args) => import::run(args, &checked(store, &args.registry.insecure, config), config),
        ImageCommand::List(args) => list::run(args, &store),
        ImageCommand::Inspect(args) => inspect::run(args, &store),
        ImageCommand::History(args) => history::run(args, &store),
        ImageCommand::CatManifest(args) => manifest::run(args, &store),
        ImageCommand::Export(args) => export::run(args, &store),
        ImageCommand::Render(args) => render::render(args, &store),
        ImageCommand::Extract(args) => render::extract(args, &store),
        ImageCommand::Verify(args) => verify::run(args, &store),
        ImageCommand::Rm(args) => rm::run(args, &store, &config.pods()),
        ImageCommand::Gc(args) => gc::run(args, &store, &config.pods()),
        ImageCommand::Prune(args) => gc::prune(args, &store, &config.pods()),
    }
}

/// The store, with the configuration's rules for short names.
pub fn open_store(config: &Config) -> Result<Store, StoreError> {
    Ok(Store::open(config.images())?.searching(config.registries.search.clone()))
}

/// The store for commands that bring images or run them: those are held against the host's policy, unless that check is left out.
pub fn checked(store: Store, insecure: &InsecureArgs, config: &Config) -> Store {
    if !insecure.checks_images(config) {
        return store;
    }
    store.trusting(config.trust.policy.clone(), Keyring::new(config.trust.keys.clone()))
}

/// What pods that run, or are yet to, need of the store. What has ended needs nothing.
pub fn uses(pods: &PodsRoot) -> io::Result<Uses> {
    let mut uses = Uses::default();
    for dir in pods.list().map_err(io::Error::other)? {
        let is_needed = match dir.state() {
            Ok((state, _)) => !matches!(state, PodState::Exited | PodState::Aborted),
            Err(DirectoryError::NoDirectory { .. }) => false,
            Err(_) => dir.is_alive().map_err(io::Error::other)?,
        };
        if !is_needed {
            continue;
        }
        let manifest = match dir.manifest() {
            Ok(manifest) => manifest,
            // Removed since it was listed.
            Err(_) if !dir.path().exists() => continue,
            Err(error) => return Err(io::Error::other(error)),
        };
        for image in manifest.apps.iter().map(|app| &app.image) {
            let id = image.id.parse().map_err(io::Error::other)?;
            uses.images.push((id, manifest.uuid.to_string()));
            uses.layers.extend(image.layers.iter().filter_map(|path| layer_digest(path)));
        }
    }
    Ok(uses)
}

/// A layer's file is named after its digest.
fn layer_digest(path: &Path) -> Option<Digest> {
    Digest::from_hex(path.file_stem()?.to_str()?).ok()
}
