//! `podvm cat-manifest`: what a pod was made from.

use anyhow::Result;

use crate::config::Config;
use crate::output::print_text;

const EXAMPLES: &str = "\
Examples:
  podvm cat-manifest 8d3f > pod.json            what the pod was made from, as JSON
  podvm run --pod-manifest pod.json             another pod like it";

/// Options of `podvm cat-manifest`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct CatManifestArgs {
    /// The pod: its UUID, or enough of its beginning
    #[arg(value_name = "POD")]
    pub pod: String,
}

/// Prints a pod's manifest.
pub fn run(args: &CatManifestArgs, config: &Config) -> Result<u8> {
    let manifest = config.pods().find(&args.pod)?.manifest()?;
    print_text(&(serde_json::to_string_pretty(&manifest)? + "\n"))?;
    Ok(0)
}
