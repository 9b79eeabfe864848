//! `podvm image verify`.

use anyhow::Result;
use podvm_image::Store;
use serde::Serialize;

use crate::output::{OutputArgs, print};

/// Options of `podvm image verify`.
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// Remove layers that are damaged, so that fetching or importing their images again makes them whole, and names that
    /// cannot be read
    #[arg(long)]
    pub repair: bool,
    /// Form of the output.
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Serialize)]
struct Verified {
    images: usize,
    problems: Vec<String>,
}

/// Reads all of the store; fails when something is wrong.
pub fn run(args: &VerifyArgs, store: &Store) -> Result<u8> {
    let problems: Vec<String> = store.verify(args.repair)?.iter().map(ToString::to_string).collect();
    let images = store.list()?.images.len();
    let verified = Verified { images, problems };
    print(args.output, &verified, |verified| {
        if verified.problems.is_empty() {
            return format!("{} images, and nothing wrong with them\n", verified.images);
        }
        verified.problems.iter().map(|problem| format!("{problem}\n")).collect()
    })?;
    Ok(if verified.problems.is_empty() { 0 } else { podvm_pod::exit::PODVM_ERROR })
}
