//! A pod runner with a hardware wall: runs OCI images in micro-VMs of its own.
//!
//! `podvm run` resolves images, writes down the pod and then becomes it; all other commands look at pod directories and talk
//! to running pods' supervisors. There is no daemon.

#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

mod cli;
mod commands;
mod config;
mod duration;
mod help;
mod input;
mod output;
mod rootless;
mod stage1;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use nix::sys::signal::{SigHandler, Signal};
use podvm_pod::exit::PODVM_ERROR;

use crate::output::OutputError;

fn main() -> ExitCode {
    take_limits_as_errors();
    allow_owner();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let code = match cli::parse(&arguments) {
        Ok(cli::Parsed::Command(cli)) => commands::run_command(*cli).unwrap_or_else(|error| failure(&error)),
        Ok(cli::Parsed::Text(text)) => output::print_text(&text).map_or_else(|error| failure(&error.into()), |()| 0),
        Err(message) => {
            report(&message);
            PODVM_ERROR
        }
    };
    ExitCode::from(code)
}

/// A file that may not grow further is an error where it is written, as a full disk is, and no reason to kill a pod
/// (setrlimit(2), `RLIMIT_FSIZE`). Apps get the default back.
fn take_limits_as_errors() {
    // SAFETY: the process has one thread, and ignoring a signal runs no code when it comes.
    let _ = unsafe { nix::sys::signal::signal(Signal::SIGXFSZ, SigHandler::SigIgn) };
}

/// Reports why a command failed; returns its exit code.
fn failure(error: &anyhow::Error) -> u8 {
    if let Some(OutputError::Unread) = error.downcast_ref() {
        return 0;
    }
    report(&chain(error));
    PODVM_ERROR
}

/// Takes from the umask what would keep this process from its own files and directories. What others may do stays the caller's to say.
fn allow_owner() {
    use nix::sys::stat::{Mode, umask};
    let given = umask(Mode::from_bits_truncate(0o077));
    umask(given & Mode::from_bits_truncate(0o077));
}

/// Prints an error in the one form that all of podvm's have.
fn report(message: &str) {
    // Where errors cannot be written there is nowhere left to say so.
    let _ = std::io::stderr().write_all(format!("podvm: {}\n", output::one_line(message)).as_bytes());
}

/// An error with those behind it, in one line. What a message tells already is not told again.
fn chain(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn a_cause_that_the_message_tells_is_not_told_again() {
        let result: Result<(), _> = Err(std::io::Error::other("broken pipe"));
        let error = result.context("the app (broken pipe)").context("pod 1").unwrap_err();
        assert_eq!(chain(&error), "pod 1: the app (broken pipe)");
    }
}
