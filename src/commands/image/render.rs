//! `podvm image render` and `podvm image extract`: an image's files in a directory.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use podvm_image::erofs::{Loss, Losses};
use podvm_image::{RenderOptions, Store, What};
use serde::Serialize;

use crate::output::{OutputArgs, print};
use crate::report;

const RENDER_EXAMPLES: &str = "\
Examples:
  podvm image render etcd ./root                   what a pod of the image starts with, all layers in one
  podvm image render --overwrite etcd ./root       the same in place of what is there

Owners, modes, times, extended attributes, hard links and devices are kept as far as the user may set them; what is not is told.";

const EXTRACT_EXAMPLES: &str = "\
Examples:
  podvm image extract etcd ./etcd                  manifest.json, config.json and the files below rootfs/
  podvm image extract --rootfs-only etcd ./root    the files alone, as `podvm image render` gives them
  podvm image extract etcd /etc/services ./here    one file or directory of it";

/// Options of `podvm image render`.
#[derive(Debug, clap::Args)]
#[command(after_help = RENDER_EXAMPLES)]
pub struct RenderArgs {
    /// Image: a name, or the beginning of an ID
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// Directory that becomes the image's root: one to make, or an empty one
    #[arg(value_name = "DIRECTORY")]
    pub place: PathBuf,
    /// What rkt needs to leave the manifest out; here it is not in anyhow.
    #[arg(long, hide = true)]
    pub rootfs_only: bool,
    /// Replace what is there
    #[arg(long)]
    pub overwrite: bool,
    /// Form of the output.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Options of `podvm image extract`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXTRACT_EXAMPLES, allow_missing_positional = true)]
pub struct ExtractArgs {
    /// Image: a name, or the beginning of an ID
    #[arg(value_name = "IMAGE", required = true)]
    pub image: String,
    /// File or directory of the image that alone is wanted
    #[arg(value_name = "PATH")]
    pub path: Option<PathBuf>,
    /// Directory to make, or an empty one; for a single file also the file to make, or any directory
    #[arg(value_name = "DESTINATION", required = true)]
    pub place: PathBuf,
    /// Leave manifest and configuration out
    #[arg(long)]
    pub rootfs_only: bool,
    /// Replace what is there
    #[arg(long)]
    pub overwrite: bool,
    /// Form of the output.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What could not be kept, in numbers of files.
#[derive(Debug, Serialize)]
struct Report {
    files_without_owner: u64,
    devices_left_out: u64,
    attributes_left_out: u64,
}

/// Writes an image's root.
pub fn render(args: &RenderArgs, store: &Store) -> Result<u8> {
    refuse_own_state(&args.place, store)?;
    let options = RenderOptions { what: What::Root, overwrite: args.overwrite };
    tell(&store.render(&args.image, &args.place, &options)?, args.output)
}

/// Writes an image, or a part of it.
pub fn extract(args: &ExtractArgs, store: &Store) -> Result<u8> {
    let what = match &args.path {
        Some(path) => What::Path(path.clone()),
        None if args.rootfs_only => What::Root,
        None => What::All,
    };
    refuse_own_state(&args.place, store)?;
    let options = RenderOptions { what, overwrite: args.overwrite };
    tell(&store.render(&args.image, &args.place, &options)?, args.output)
}

/// What is overwritten must not be the pods and images themselves.
fn refuse_own_state(place: &Path, store: &Store) -> Result<()> {
    let state = store.root().parent().unwrap_or(store.root()).canonicalize()?;
    match place.canonicalize() {
        Ok(place) if state.starts_with(&place) || place.starts_with(&state) => {
            bail!("{} is where podvm has its pods and images, or holds that; choose another place", place.display())
        }
        // One that is not there yet replaces nothing.
        _ => Ok(()),
    }
}

fn tell(losses: &Losses, output: OutputArgs) -> Result<u8> {
    for remark in remarks(losses) {
        report(&remark);
    }
    let report = Report {
        files_without_owner: losses.owners.count,
        devices_left_out: losses.devices.count,
        attributes_left_out: losses.attributes.count,
    };
    print(output, &report, |_| String::new())?;
    Ok(0)
}

/// What the copy has not, a line for each kind.
fn remarks(losses: &Losses) -> Vec<String> {
    let line = |loss: &Loss, what: &str, cure: &str| {
        let first = loss.first.as_ref()?;
        let one = if loss.count == 1 { "it is" } else { "the first is" };
        Some(format!("{} {what}; {one} {}; {cure}", loss.count, first.display()))
    };
    [
        line(
            &losses.owners,
            "files do not have their owners",
            "root, or IDs in /etc/subuid and /etc/subgid, keep them",
        ),
        line(&losses.devices, "device nodes are left out", "root can make them"),
        line(&losses.attributes, "extended attributes are left out", "root keeps them, on a file system that has them"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remark_counts_and_names_the_first() {
        let devices = Loss { count: 2, first: Some("/dev/null".into()) };
        let remarks = remarks(&Losses { devices, ..Losses::default() });
        assert_eq!(remarks, ["2 device nodes are left out; the first is /dev/null; root can make them"]);
    }
}
