//! `podvm image import`.

use std::io;
use std::path::PathBuf;

use anyhow::{Result, bail};
use podvm_image::source::STDIN;
use podvm_image::{Format, ImageSource, ImportOptions, Reference, Store};
use serde::Serialize;

use super::fetch::{Fetcher, shown_id, shown_names};
use super::progress::Watch;
use super::registries::RegistryArgs;
use crate::config::Config;
use crate::output::{OutputArgs, print};

/// What messages call standard input.
const STREAM: &str = "standard input";

const EXAMPLES: &str = "\
Examples:
  podvm image import ./etcd                        an OCI layout, a directory
  podvm image import ./images.tar:redis:7          one image of several in an archive
  podvm image import docker-archive:x.tar --name localhost/x
  docker save redis | podvm image import -
  podvm image import ./etcd.aci                    an appc image, with its signature ./etcd.aci.asc if there is one";

/// Options of `podvm image import`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct ImportArgs {
    /// Directory or archive, - for an archive from standard input; with an optional :NAME that chooses one of several images; oci:, oci-archive:,
    /// docker-archive: or aci: before it says which form it is to be read in
    #[arg(value_name = "PATH")]
    pub path: String,
    /// Name to store the image under, instead of those it brings
    #[arg(long, value_name = "NAME")]
    pub name: Option<Reference>,
    /// Detached signature of an appc image [default: PATH.asc, if that is there]
    #[arg(long, value_name = "FILE")]
    pub signature: Option<PathBuf>,
    /// How what an appc image is placed upon is fetched, and checks to leave out.
    #[command(flatten)]
    pub registry: RegistryArgs,
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
pub fn run(args: &ImportArgs, store: &Store, config: &Config) -> Result<u8> {
    let ImageSource::Path { format, path } = ImageSource::parse_path(&args.path) else {
        bail!("{} is not the path of an image", args.path)
    };
    let options = ImportOptions { format, name: args.name.clone(), ..ImportOptions::default() };
    let is_stream = path.as_os_str() == STDIN;
    let spooled = if is_stream { Some(store.spool(&mut io::stdin().lock())?) } else { None };
    let fetcher = Fetcher::new(store, &args.registry, config, args.quiet);
    let appc = match &spooled {
        Some(file) if format == Format::Aci || format == Format::Any && Store::is_appc_file(file)? => {
            Some(fetcher.aci_stream(file.try_clone()?, STREAM, args.name.as_ref())?)
        }
        Some(_) => None,
        None if fetcher.is_aci(&path, format) => {
            Some(fetcher.aci(&path, args.name.as_ref(), args.signature.as_deref())?)
        }
        None => None,
    };
    let imported = match appc {
        Some(imported) => imported,
        None if args.signature.is_some() => bail!("--signature goes with appc images, and {} is none", args.path),
        None => {
            let watch = Watch::new(args.quiet);
            match spooled {
                Some(mut file) => store.import_stream(&mut file, STREAM, &options, &watch),
                None => store.import(&path, &options, &watch),
            }?
        }
    };
    let report = Report {
        id: shown_id(&imported.id, imported.appc.as_ref()),
        names: shown_names(&imported.names, imported.appc.as_ref()),
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
