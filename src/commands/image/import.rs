//! `podvm image import`.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use anyhow::Result;
use podvm_image::{Event, ImageSource, ImportOptions, Progress, Reference, Silent, Store};
use podvm_pod::manifest::ByteSize;
use serde::Serialize;

use crate::output::{Format, OutputArgs, print};

/// Shortest time between two lines of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

const EXAMPLES: &str = "\
Examples:
  podvm image import ./etcd                        an OCI layout, a directory
  podvm image import ./images.tar:redis:7          one image of several in an archive
  podvm image import docker-archive:x.tar --name localhost/x";

/// Options of `podvm image import`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct ImportArgs {
    /// Directory or archive, with an optional :NAME that chooses one of several images; oci:, oci-archive: or
    /// docker-archive: before it says which form it is to be read in
    #[arg(value_name = "PATH")]
    pub path: String,
    /// Name to store the image under, instead of those it brings
    #[arg(long, value_name = "NAME")]
    pub name: Option<Reference>,
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
    let (format, path) = match ImageSource::parse_path(&args.path) {
        ImageSource::Path { format, path } => (format, path),
        ImageSource::Stored(path) => (podvm_image::Format::Any, PathBuf::from(path)),
    };
    let options = ImportOptions { format, name: args.name.clone(), ..ImportOptions::default() };
    let imported = if io::stderr().is_terminal() && args.output.output == Format::Table {
        let bar = Bar::default();
        let imported = store.import(&path, &options, &bar);
        bar.clear();
        imported?
    } else {
        store.import(&path, &options, &Silent)?
    };
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

/// One line on the terminal that says how far the import is.
#[derive(Default)]
struct Bar(Mutex<Reached>);

#[derive(Default)]
struct Reached {
    total: u64,
    read: u64,
    shown: Option<Instant>,
}

impl Progress for Bar {
    fn event(&self, event: Event) {
        let mut reached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Begin { bytes, .. } => reached.total = bytes,
            Event::Present { bytes, .. } | Event::Read { bytes, .. } => reached.read += bytes,
            Event::Stored { .. } => return,
        }
        if reached.shown.is_none_or(|shown| shown.elapsed() >= PROGRESS_INTERVAL) {
            reached.shown = Some(Instant::now());
            let _ = write!(io::stderr(), "\r\x1b[K{} of {}", ByteSize(reached.read), ByteSize(reached.total));
        }
    }
}

impl Bar {
    fn clear(&self) {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
}
