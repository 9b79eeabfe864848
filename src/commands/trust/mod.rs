//! `podvm trust`: the keys that may sign appc images.

mod add;
mod list;
mod rm;

use std::path::PathBuf;

use anyhow::Result;
use podvm_image::trust::{Keyring, Prefix, Scope};

use crate::config::Config;

/// `podvm trust …`.
#[derive(Debug, clap::Subcommand)]
pub enum TrustCommand {
    /// Trust keys to sign images, after a look at their fingerprints
    Add(add::AddArgs),
    /// List the keys that are trusted
    #[command(visible_alias = "ls")]
    List(list::ListArgs),
    /// Trust a key no longer
    Rm(rm::RmArgs),
}

/// Whose images a key may sign.
#[derive(Debug, Clone, clap::Args)]
#[group(required = true, multiple = false)]
pub struct ScopeArgs {
    /// Images of this name, and of all names below it: example.com/team
    #[arg(long, value_name = "NAME")]
    prefix: Option<Prefix>,
    /// All images
    // Stands in the place of the global `--root DIR`, which means nothing here, so that it must have that option's type.
    #[arg(id = "root", long = "root", num_args = 0, default_missing_value = "/", help_heading = "Options")]
    all: Option<PathBuf>,
}

impl ScopeArgs {
    fn scope(&self) -> Scope {
        // A global `--root DIR` before the command is seen as the other option, too.
        self.prefix.clone().map_or(Scope::Root, Scope::Prefix)
    }
}

/// Does what is asked for; returns the exit code.
pub fn run(command: &TrustCommand, config: &Config) -> Result<u8> {
    let keyring = Keyring::new(config.trust.keys.clone());
    match command {
        TrustCommand::Add(args) => add::run(args, &keyring, config),
        TrustCommand::List(args) => list::run(args, &keyring),
        TrustCommand::Rm(args) => rm::run(args, &keyring),
    }
}

/// A fingerprint as people compare it: in groups of four.
fn grouped(fingerprint: &str) -> String {
    let digits: Vec<char> = fingerprint.chars().collect();
    digits.chunks(4).map(String::from_iter).collect::<Vec<_>>().join(" ")
}
