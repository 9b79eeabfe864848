//! The project's own commands, called as `cargo xtask COMMAND`.

mod lab;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's own commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a command in the KVM lab: a machine whose /dev/kvm runs guests.
    Lab(lab::Arguments),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Lab(arguments) => lab::run(arguments),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
