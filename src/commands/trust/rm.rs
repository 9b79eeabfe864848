//! `podvm trust rm`.

use anyhow::Result;
use podvm_image::trust::Keyring;

use super::ScopeArgs;
use super::add::Fingerprint;

const EXAMPLES: &str = "\
Examples:
  podvm trust rm --prefix example.com/team 6C6C33B5CA738FBD0663884E3DD9A6CD330FB593
  podvm trust rm --root 6C6C33B5CA738FBD0663884E3DD9A6CD330FB593

A key that a package has brought stays where it is; an empty file among this host's own keys takes it out.";

/// Options of `podvm trust rm`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct RmArgs {
    /// Whose images it may sign no longer.
    #[command(flatten)]
    scope: ScopeArgs,
    /// Fingerprints of the keys, as `podvm trust list` shows them
    #[arg(value_name = "FINGERPRINT", required = true)]
    fingerprints: Vec<Fingerprint>,
}

/// Removes keys.
pub fn run(args: &RmArgs, keyring: &Keyring) -> Result<u8> {
    for fingerprint in &args.fingerprints {
        keyring.remove(&args.scope.scope(), fingerprint.as_str())?;
    }
    Ok(0)
}
