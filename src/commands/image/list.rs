//! `podvm image list`.

use anyhow::Result;
use podvm_image::{Image, Listing, Store};
use podvm_pod::manifest::ByteSize;
use podvm_pod::timestamp::Timestamp;
use serde::Serialize;

use super::fetch::{shown_id, shown_names};
use crate::output::{OutputArgs, joined, print, table};
use crate::{chain, report};

/// Options of `podvm image list`.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Form of the output.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// An image in the list.
#[derive(Debug, Serialize)]
struct Listed {
    id: String,
    names: Vec<String>,
    architecture: String,
    created: Option<String>,
    imported: String,
    last_used: String,
    size_bytes: u64,
    layers: usize,
}

impl From<Image> for Listed {
    fn from(image: Image) -> Self {
        Self {
            id: shown_id(&image.id, image.appc.as_ref()),
            names: shown_names(&image.names, image.appc.as_ref()),
            architecture: image.architecture,
            created: image.created,
            imported: Timestamp::from_seconds(image.imported).to_string(),
            last_used: Timestamp::from_seconds(image.used).to_string(),
            size_bytes: image.size,
            layers: image.layers.len(),
        }
    }
}

/// Lists images, by name; those without one last. What is damaged is said, and does not hide the others.
pub fn run(args: &ListArgs, store: &Store) -> Result<u8> {
    let Listing { images, damaged } = store.list()?;
    let images: Vec<Listed> = images.into_iter().map(Listed::from).collect();
    print(args.output, &images, |images| {
        let rows = images.iter().map(|image| {
            let id = image.id.trim_start_matches("sha256:");
            // An ID of appc says which kind it is.
            let shown = if id.starts_with("sha512-") { 19 } else { 12 };
            let id = id.chars().take(shown).collect();
            let size = ByteSize(image.size_bytes).to_string();
            [joined(image.names.iter().cloned()), id, size, image.layers.to_string(), image.imported.clone()]
        });
        table(["name", "id", "size", "layers", "imported"], rows)
    })?;
    let code = if damaged.is_empty() { 0 } else { podvm_pod::exit::PODVM_ERROR };
    damaged.into_iter().for_each(|error| report(&chain(&error.into())));
    Ok(code)
}
