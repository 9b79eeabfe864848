//! `podvm image export`.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use podvm_image::source::STDIN as STREAM;
use podvm_image::{Exported, LayerPacking, Store};
use podvm_pod::draft::Output;
use serde::Serialize;

use crate::output::{OutputArgs, print};

const EXAMPLES: &str = "\
Examples:
  podvm image export etcd ./etcd                   an OCI layout, a directory
  podvm image export etcd etcd.tar                 an archive of one
  podvm image export etcd - | ssh host podvm image import -

Layers are written anew: the files are the same, digests and the image's ID are not.";

/// Options of `podvm image export`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct ExportArgs {
    /// Image: a name, or the beginning of an ID
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// Directory to make; an archive if it ends with .tar; an appc image if it ends with .aci, of what came as one; - for an archive on standard output
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// How layers are packed
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    pub compress: Compress,
    /// Form of the output.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `--compress`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Compress {
    /// By gzip, which is understood everywhere.
    #[default]
    Gzip,
    /// By zstd, which is smaller and faster.
    Zstd,
    /// Not at all.
    None,
}

#[derive(Debug, Serialize)]
struct Report {
    id: String,
    manifest_digest: String,
}

/// Writes an image.
pub fn run(args: &ExportArgs, store: &Store) -> Result<u8> {
    let packing = match args.compress {
        Compress::Gzip => LayerPacking::Gzip,
        Compress::Zstd => LayerPacking::Zstd,
        Compress::None => LayerPacking::None,
    };
    if args.path.as_os_str() == STREAM {
        let mut output = io::stdout().lock();
        if output.is_terminal() {
            bail!("an archive is not for a terminal; name a file, or lead standard output elsewhere");
        }
        store.export_archive(&args.image, &mut output, packing)?;
        return Ok(0);
    }
    if args.path.extension().is_some_and(|extension| extension == "aci") {
        write(&args.path, |output| Ok(store.export_aci(&args.image, output)?))?;
        return Ok(0);
    }
    let exported = match args.path.extension().is_some_and(|extension| extension == "tar") {
        true => export_file(store, &args.image, &args.path, packing)?,
        false => store.export_directory(&args.image, &args.path, packing)?,
    };
    let report = Report { id: exported.id.to_string(), manifest_digest: exported.manifest_digest.to_string() };
    print(args.output, &report, |report| format!("{}\n", report.id))?;
    Ok(0)
}

/// Writes an archive.
fn export_file(store: &Store, image: &str, path: &Path, packing: LayerPacking) -> Result<Exported> {
    write(path, |output| Ok(store.export_archive(image, output, packing)?))
}

/// Writes what a user has named for output.
fn write<T>(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<T>) -> Result<T> {
    let write = || -> Result<T> {
        let output = Output::open(path, 0o666)?;
        let mut buffer = BufWriter::with_capacity(1 << 20, output.file());
        let filled = fill(&mut buffer)?;
        buffer.flush()?;
        drop(buffer);
        output.keep()?;
        Ok(filled)
    };
    write().with_context(|| path.display().to_string())
}
