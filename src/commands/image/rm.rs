//! `podvm image rm`.

use podvm_image::Store;
use podvm_pod::PodsRoot;

use super::uses;
use crate::output::print_text;
use crate::{chain, report};

/// Options of `podvm image rm`.
#[derive(Debug, clap::Args)]
pub struct RmArgs {
    /// Images: names, or beginnings of IDs. Of an image with several names, only the one given is removed
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
}

/// Removes images; one that cannot be removed does not keep the others from it.
pub fn run(args: &RmArgs, store: &Store, pods: &PodsRoot) -> u8 {
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
