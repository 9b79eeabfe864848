//! `podvm image import`.

use std::io;

use anyhow::{Result, bail};
use podvm_image::source::STDIN;
use podvm_image::{ImageSource, ImportOptions, Reference, Store};
use serde::Serialize;

use super::progress::Watch;
use super::registries::InsecureArgs;
use crate::output::{OutputArgs, print};

const EXAMPLES: &str = "\
Examples:
  podvm image import ./etcd                        an OCI layout, a directory
  podvm image import ./images.tar:redis:7          one image of several in an archive
  podvm image import docker-archive:x.tar --name localhost/x
  docker save redis | podvm image import -";

/// Options of `podvm image import`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct ImportArgs {
    /// Directory or archive, - for an archive from standard input; with an optional :NAME that chooses one of several images; oci:, oci-archive: or
    /// docker-archive: before it says which form it is to be read in
    #[arg(value_name = "PATH")]
    pub path: String,
    /// Name to store the image under, instead of those it brings
    #[arg(long, value_name = "NAME")]
    pub name: Option<Reference>,
    /// Checks to leave out.
    #[command(flatten)]
    pub insecure: InsecureArgs,
    /// Do not show how far it is
    #[arg(long, short)]
    pub quiet: bool,
    /// Form of the output.
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Serialize)]
struct Report {
    id: String,
    names: Vec<String>,
    size_bytes: u64,
    layers: usize,
    layers_already_stored: usize,
}

/// Imports an image.
pub fn run(args: &ImportArgs, store: &Store) -> Result<u8> {
    let ImageSource::Path { format, path } = ImageSource::parse_path(&args.path) else {
        bail!("{} is not the path of an image", args.path)
    };
    let options = ImportOptions { format, name: args.name.clone(), ..ImportOptions::default() };
    let watch = Watch::new(args.quiet);
    let imported = match path.as_os_str() == STDIN {
        true => store.import_stream(&mut io::stdin().lock(), "standard input", &options, &watch),
        false => store.import(&path, &options, &watch),
    };
    drop(watch);
    let imported = imported?;
    let report = Report {
        id: imported.id.to_string(),
        names: imported.names.iter().map(ToString::to_string).collect(),
        size_bytes: imported.size,
        layers: imported.layers,
        layers_already_stored: imported.present,
    };
    print(args.output, &report, |report| {
        let names: String = report.names.iter().map(|name| format!("{name}\n")).collect();
        format!("{names}{}\n", report.id)
    })?;
    Ok(0)
}
