//! `podvm list`: all pods, oldest first.

use anyhow::Result;
use podvm_pod::Uuid;
use podvm_pod::directory::DirectoryError;
use serde::Serialize;

use super::summary::{PodSummary, port_text};
use crate::config::Config;
use crate::output::{OutputArgs, joined, print, print_text, table};

/// Options of `podvm list`.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Show whole UUIDs
    #[arg(long, short)]
    pub full: bool,
    /// Show only UUIDs, whole, one a line
    #[arg(long, short, conflicts_with = "output")]
    pub quiet: bool,
    /// Form of the output.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// A pod in the list: what is known of it, or why nothing is.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Listed {
    Pod(Box<PodSummary>),
    Damaged { uuid: Uuid, error: String },
}

/// Lists pods. One that is damaged is listed as that, and does not hide the others.
pub fn run(args: &ListArgs, config: &Config) -> Result<u8> {
    let mut pods = Vec::new();
    for dir in config.pods().list()? {
        match PodSummary::of(&dir) {
            Ok(summary) => pods.push(Listed::Pod(Box::new(summary))),
            // Removed since its name was read.
            Err(DirectoryError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound && !dir.path().exists() => {}
            Err(error) => pods.push(Listed::Damaged { uuid: dir.uuid(), error: error.to_string() }),
        }
    }
    if args.quiet {
        pods.iter().try_for_each(|pod| print_text(&format!("{}\n", pod.uuid())))?;
    } else {
        print(args.output, &pods, |pods| as_table(pods, args.full))?;
    }
    Ok(0)
}

impl Listed {
    fn uuid(&self) -> Uuid {
        match self {
            Self::Pod(pod) => pod.uuid,
            Self::Damaged { uuid, .. } => *uuid,
        }
    }
}

fn as_table(pods: &[Listed], full: bool) -> String {
    let columns = ["uuid", "apps", "images", "state", "created", "addresses", "ports", "stage1"];
    table(columns, pods.iter().map(|pod| row(pod, full)))
}

fn row(pod: &Listed, full: bool) -> [String; 8] {
    let pod = match pod {
        Listed::Pod(pod) => pod,
        Listed::Damaged { uuid, .. } => {
            let dash = || "-".to_owned();
            return [uuid.to_string(), dash(), dash(), "damaged".into(), dash(), dash(), dash(), dash()];
        }
    };
    [
        if full { pod.uuid.to_string() } else { pod.short_uuid() },
        joined(pod.apps.iter().map(|app| app.name.to_string())),
        joined(pod.apps.iter().map(|app| app.image.clone())),
        pod.state_text(),
        pod.created.clone(),
        joined(pod.addresses.iter().map(ToString::to_string)),
        joined(pod.ports.iter().map(port_text)),
        pod.stage1.map_or_else(|| "-".into(), |stage1| stage1.to_string()),
    ]
}
