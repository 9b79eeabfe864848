//! `podvm image cat-manifest`.

use anyhow::{Context, Result};
use podvm_image::Store;

use crate::output::print_text;

/// Options of `podvm image cat-manifest`.
#[derive(Debug, clap::Args)]
pub struct CatManifestArgs {
    /// Image: a name, or the beginning of an ID
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// Print the configuration instead, whose digest is the image's ID
    #[arg(long)]
    pub configuration: bool,
}

/// Prints a document of an image, byte for byte.
pub fn run(args: &CatManifestArgs, store: &Store) -> Result<u8> {
    let id = store.find(&args.image)?.id;
    let path = if args.configuration { store.config_path(&id) } else { store.manifest_path(&id) };
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    print_text(&text)?;
    Ok(0)
}
