//! A pod runner with a hardware wall: runs OCI images in micro-VMs of its own.
//!
//! `podvm run` resolves images, writes down the pod and then becomes it; all other commands look at pod directories and talk
//! to running pods' supervisors. There is no daemon.

#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

mod cli;
mod commands;
mod config;
mod duration;
mod output;
mod stage1;

use std::ffi::OsString;
use std::process::ExitCode;

use podvm_pod::exit::PODVM_ERROR;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let code = match cli::parse(&arguments) {
        Ok(cli::Parsed::Command(cli)) => commands::run_command(*cli).unwrap_or_else(|error| {
            report(&format!("{error:#}"));
            PODVM_ERROR
        }),
        Ok(cli::Parsed::Text(text)) => {
            output::print_text(&text);
            0
        }
        Err(message) => {
            report(&message);
            PODVM_ERROR
        }
    };
    ExitCode::from(code)
}

/// Prints an error in the one form that all of podvm's have.
fn report(message: &str) {
    eprintln!("podvm: {message}");
}
