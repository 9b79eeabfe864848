//! `podvm completion`: scripts that complete podvm's commands and options.

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::{Shell, generate};

use crate::cli::Cli;
use crate::output::print_text;

/// Options of `podvm completion`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  podvm completion bash > /etc/bash_completion.d/podvm")]
pub struct CompletionArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Prints the script.
pub fn run(args: &CompletionArgs) -> Result<u8> {
    let mut script = Vec::new();
    generate(args.shell, &mut Cli::command(), "podvm", &mut script);
    print_text(&String::from_utf8_lossy(&script))?;
    Ok(0)
}
