//! `podvm image gc` and `podvm image prune`. Neither removes what a pod uses.

use anyhow::Result;
use podvm_image::{Image, Listing, Store, StoreError};
use podvm_pod::PodsRoot;
use podvm_pod::manifest::ByteSize;
use podvm_pod::timestamp::Timestamp;
use serde::Serialize;

use super::uses;
use crate::duration::Wait;
use crate::output::{OutputArgs, print};

/// Options of `podvm image gc`.
#[derive(Debug, clap::Args)]
pub struct GcArgs {
    /// Also remove images that came or were last used longer ago than this, such as 24h or 30m, and that no pod uses
    #[arg(long, value_name = "TIME")]
    pub grace_period: Option<Wait>,
    /// Form of the output.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Options of `podvm image prune`.
#[derive(Debug, clap::Args)]
pub struct PruneArgs {
    /// Remove all images that no pod uses, also those with names
    #[arg(long, short)]
    pub all: bool,
    /// Form of the output.
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Default, Serialize)]
struct Collected {
    /// Ids of images.
    images: Vec<String>,
    /// Number of layers.
    layers: usize,
    freed_bytes: u64,
    /// Files of imports and fetches that were cut short.
    unfinished_imports: usize,
}

/// Removes what no image needs, and images of a certain age.
pub fn run(args: &GcArgs, store: &Store, pods: &PodsRoot) -> Result<u8> {
    let now = Timestamp::now().seconds();
    let is_old = |image: &Image| {
        args.grace_period.as_ref().is_some_and(|grace| now.saturating_sub(image.used) >= grace.0.as_secs())
    };
    let due = store.list()?.images.into_iter().filter(is_old);
    collect(store, pods, args.output, due)
}

/// Removes images that have no name, or all. Those of appc always have their own.
pub fn prune(args: &PruneArgs, store: &Store, pods: &PodsRoot) -> Result<u8> {
    let Listing { images, damaged } = store.list()?;
    // An image whose name cannot be read is not one without a name.
    if let Some(error) = damaged.into_iter().next().filter(|_| !args.all) {
        return Err(error.into());
    }
    let due = images.into_iter().filter(|image| args.all || image.names.is_empty() && image.appc.is_none());
    collect(store, pods, args.output, due)
}

fn collect(store: &Store, pods: &PodsRoot, output: OutputArgs, due: impl Iterator<Item = Image>) -> Result<u8> {
    let mut collected = Collected::default();
    for image in due {
        // An ID takes all names with it.
        match store.remove(&image.id.to_string(), &|| uses(pods)) {
            Ok(removed) => {
                collected.images.push(removed.id.to_string());
                collected.layers += removed.collected.layers;
                collected.freed_bytes += removed.collected.bytes;
            }
            // In use, or gone meanwhile.
            Err(StoreError::InUse { .. } | StoreError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let rest = store.gc(&|| uses(pods))?;
    collected.layers += rest.layers;
    collected.freed_bytes += rest.bytes;
    collected.unfinished_imports = rest.leftovers;
    print(output, &collected, |collected| {
        let mut text: String = collected.images.iter().map(|id| format!("{id}\n")).collect();
        if collected.layers > 0 {
            text.push_str(&format!("{} layers, {}\n", collected.layers, ByteSize(collected.freed_bytes)));
        }
        if collected.unfinished_imports > 0 {
            text.push_str(&format!("{} unfinished imports\n", collected.unfinished_imports));
        }
        text
    })?;
    Ok(0)
}
