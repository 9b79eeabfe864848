//! `podvm image rm`.

use anyhow::Result;
use podvm_image::Store;
use podvm_pod::PodsRoot;
use serde::Serialize;

use super::fetch::shown_id;
use super::uses;
use crate::output::{OutputArgs, print};
use crate::{chain, report};

/// Options of `podvm image rm`.
#[derive(Debug, clap::Args)]
pub struct RmArgs {
    /// Images: names, or beginnings of IDs. Of an image with several names, only the one given is removed
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
    /// Form of the output.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What was done for one image.
#[derive(Debug, Serialize)]
struct Removed {
    id: String,
    /// Names that are gone.
    names: Vec<String>,
    /// Whether the image is gone with them.
    image_removed: bool,
    freed_bytes: u64,
}

/// Removes images; one that cannot be removed does not keep the others from it.
pub fn run(args: &RmArgs, store: &Store, pods: &PodsRoot) -> Result<u8> {
    let (mut all, mut code) = (Vec::new(), 0);
    for image in &args.images {
        let known = store.find(image).ok();
        match store.remove(image, &|| uses(pods)) {
            Ok(removed) => all.push(Removed {
                id: shown_id(&removed.id, known.and_then(|known| known.appc).as_ref()),
                names: removed.names.iter().map(ToString::to_string).collect(),
                image_removed: removed.image,
                freed_bytes: removed.collected.bytes,
            }),
            Err(error) => {
                report(&chain(&error.into()));
                code = podvm_pod::exit::PODVM_ERROR;
            }
        }
    }
    print(args.output, &all, |all| {
        let lines = all.iter().map(|removed| {
            let names: String = removed.names.iter().map(|name| format!("{name}\n")).collect();
            if removed.image_removed { format!("{names}{}\n", removed.id) } else { names }
        });
        lines.collect()
    })?;
    Ok(code)
}
