//! `podvm image`: the images that pods are made from.

mod import;

use std::io;
use std::path::Path;

use anyhow::Result;
use podvm_image::{Digest, Image, Store, Uses};
use podvm_pod::PodsRoot;
use podvm_pod::directory::PodState;
use podvm_pod::manifest::ByteSize;
use podvm_pod::timestamp::Timestamp;
use serde::Serialize;

use crate::config::Config;
use crate::output::{OutputArgs, joined, print, print_text, table};
use crate::{chain, report};

/// `podvm image …`.
#[derive(Debug, clap::Subcommand)]
pub enum ImageCommand {
    /// Import an image from an OCI layout, an archive of one, or an archive of `docker save`
    Import(import::ImportArgs),
    /// List images
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Remove images
    Rm(RmArgs),
}

/// Options of `podvm image list`.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Form of the output.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Options of `podvm image rm`.
#[derive(Debug, clap::Args)]
pub struct RmArgs {
    /// Images: names, or beginnings of IDs. Of an image with several names, only the one given is removed
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
}

/// Does what is asked for; returns the exit code.
pub fn run(command: &ImageCommand, config: &Config) -> Result<u8> {
    let store = Store::open(config.images())?;
    match command {
        ImageCommand::Import(args) => import::run(args, &store),
        ImageCommand::List(args) => list(args, &store),
        ImageCommand::Rm(args) => Ok(remove(args, &store, &config.pods())),
    }
}

/// An image in the list.
#[derive(Debug, Serialize)]
struct Listed {
    id: String,
    names: Vec<String>,
    architecture: String,
    created: Option<String>,
    imported: String,
    size_bytes: u64,
    layers: usize,
}

impl From<Image> for Listed {
    fn from(image: Image) -> Self {
        Self {
            id: image.id.to_string(),
            names: image.names.iter().map(ToString::to_string).collect(),
            architecture: image.architecture,
            created: image.created,
            imported: Timestamp::from_seconds(image.imported).to_string(),
            size_bytes: image.size,
            layers: image.layers.len(),
        }
    }
}

fn list(args: &ListArgs, store: &Store) -> Result<u8> {
    let images: Vec<Listed> = store.list()?.into_iter().map(Listed::from).collect();
    print(args.output, &images, |images| {
        let rows = images.iter().map(|image| {
            let id = image.id.trim_start_matches("sha256:").chars().take(12).collect();
            let size = ByteSize(image.size_bytes).to_string();
            [joined(image.names.iter().cloned()), id, size, image.layers.to_string(), image.imported.clone()]
        });
        table(["name", "id", "size", "layers", "imported"], rows)
    })?;
    Ok(0)
}

fn remove(args: &RmArgs, store: &Store, pods: &PodsRoot) -> u8 {
    let mut code = 0;
    for image in &args.images {
        match store.remove(image, &|| uses(pods)) {
            Ok(removed) => {
                removed.names.iter().for_each(|name| print_text(&format!("{name}\n")));
                if removed.image {
                    print_text(&format!("{}\n", removed.id));
                }
            }
            Err(error) => {
                report(&chain(&error.into()));
                code = podvm_pod::exit::PODVM_ERROR;
            }
        }
    }
    code
}

/// What pods that run, or are yet to, need of the store. What has ended needs nothing.
pub fn uses(pods: &PodsRoot) -> io::Result<Uses> {
    let mut uses = Uses::default();
    for dir in pods.list().map_err(io::Error::other)? {
        let is_needed = match dir.state() {
            Ok((state, _)) => !matches!(state, PodState::Exited | PodState::Aborted),
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
