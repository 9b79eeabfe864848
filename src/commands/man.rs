//! `podvm man`: the manual pages, made from the same texts as the help.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::cli::Cli;
use crate::output::print_text;

/// Options of `podvm man`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  podvm man /usr/local/share/man/man1 && man podvm-run")]
pub struct ManArgs {
    /// Directory to write the pages into; it is made if it is not there
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

/// Writes `podvm.1` and a page for each command, `podvm-run.1` and so on.
pub fn run(args: &ManArgs) -> Result<u8> {
    let directory = &args.directory;
    let write = || {
        std::fs::create_dir_all(directory)?;
        clap_mangen::generate_to(Cli::command(), directory)?;
        std::fs::read_dir(directory)
    };
    let pages = write().with_context(|| format!("man pages in {}", directory.display()))?;
    print_text(&format!("{} pages in {}\n", pages.count(), directory.display()))?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_with_its_options() {
        let folder = tempfile::tempdir().unwrap();
        run(&ManArgs { directory: folder.path().join("man1") }).unwrap();
        for command in Cli::command().get_subcommands() {
            let page = folder.path().join(format!("man1/podvm-{}.1", command.get_name()));
            assert!(page.exists(), "{}", page.display());
        }
        let page = std::fs::read_to_string(folder.path().join("man1/podvm-run.1")).unwrap();
        for part in ["seccomp", "Limits and privileges", "Examples:"] {
            assert!(page.to_lowercase().contains(&part.to_lowercase()), "{part}");
        }
    }
}
