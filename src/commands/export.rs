//! `podvm export`: an app's root filesystem as a tar archive.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use podvm_pod::archive::{ArchiveError, Archived};
use podvm_pod::client::get_files;
use podvm_pod::draft::Output;
use podvm_pod::manifest::AppName;

use super::cp::write_to_stdout;
use super::target::RunningPod;
use crate::config::Config;

const EXAMPLES: &str = "\
Examples:
  podvm export 8d3f --output root.tar              the only app's root, with what the app has written
  podvm export 8d3f --app db | gzip > db.tar.gz    one of several apps', compressed
Volumes, /proc, /sys and /dev are not in it: their places are empty directories.";

/// Options of `podvm export`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct ExportArgs {
    /// The pod: its UUID, or enough of its beginning
    #[arg(value_name = "POD")]
    pub pod: String,
    /// The app; needed when the pod has several
    #[arg(long, value_name = "APP")]
    pub app: Option<AppName>,
    /// Write to this file; - for standard output, the default
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Exports an app's root. A file is there whole or not at all.
pub fn run(args: &ExportArgs, config: &Config) -> Result<u8> {
    let pod = RunningPod::find(config, &args.pod)?;
    let app = pod.app(args.app.as_ref())?;
    match args.output.as_ref().filter(|path| path.as_os_str() != "-") {
        None => get_files(&pod.client(), app, Archived::Root, write_to_stdout)?,
        Some(path) => write_to_file(&pod, app, path).with_context(|| format!("--output {}", path.display()))?,
    }
    Ok(0)
}

fn write_to_file(pod: &RunningPod, app: AppName, path: &Path) -> Result<()> {
    path.file_name().context("it names no file")?;
    let output = Output::open(path, 0o666)?;
    get_files(&pod.client(), app, Archived::Root, |mut stream| {
        let copied = io::copy(&mut stream, &mut output.file()).and_then(|_| output.sync());
        copied.map_err(ArchiveError::Stream)
    })?;
    Ok(output.keep()?)
}
