//! `--detach`: the pod runs in a child of this process, which returns when the apps have been started.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result};
use nix::unistd::{ForkResult, fork, setsid};
use podvm_pod::Uuid;
use podvm_pod::exit::PODVM_ERROR;
use podvm_pod::runner::{ReadySender, StartFailure, ready_pipe};

use super::Outcome;
use crate::output::print_text;
use crate::{chain, report};

/// Runs `pod` in a child of this process that has left its terminal and session, and returns when its apps run. The process
/// must have one thread.
pub fn start(uuid: Uuid, pod: impl FnOnce(ReadySender) -> Result<Outcome>) -> Result<u8> {
    let (sender, receiver) = ready_pipe()?;
    // SAFETY: the process has one thread, so the child may do all that this process could.
    match unsafe { fork() }.context("the pod's process cannot be made")? {
        ForkResult::Parent { .. } => {
            drop(sender);
            // What it holds is the child's to hold.
            drop(pod);
            match receiver.wait() {
                Ok(()) => {
                    print_text(&format!("{uuid}\n"))?;
                    Ok(0)
                }
                Err(failure) => {
                    report(&failure.message);
                    Ok(failure.code)
                }
            }
        }
        ForkResult::Child => {
            drop(receiver);
            let left = leave_terminal().context("the pod's process cannot leave the terminal");
            let failure = match left.and_then(|()| pod(sender.clone())) {
                Ok(outcome) => StartFailure { code: outcome.code, message: outcome.message(uuid) },
                Err(error) => StartFailure { code: PODVM_ERROR, message: chain(&error) },
            };
            // Heard only when the apps had not been started.
            sender.failed(&failure);
            std::process::exit(failure.code.into());
        }
    }
}

fn leave_terminal() -> io::Result<()> {
    setsid()?;
    std::env::set_current_dir(Path::new("/"))?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(null.as_fd())?;
    nix::unistd::dup2_stdout(null.as_fd())?;
    nix::unistd::dup2_stderr(null.as_fd())?;
    Ok(())
}
