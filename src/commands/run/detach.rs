//! `--detach`: the pod runs in a child of this process, which returns when the apps have been started.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::unistd::{ForkResult, fork, setsid};
use podvm_pod::Uuid;
use podvm_pod::exit::PODVM_ERROR;
use podvm_pod::runner::{ReadySender, ready_pipe};

use crate::output::print_text;

/// Runs `pod` in a child of this process that has left its terminal and session, and returns when its apps run. The process
/// must have one thread.
pub fn start(uuid: Uuid, pod: impl FnOnce(ReadySender) -> Result<u8>) -> Result<u8> {
    let (sender, receiver) = ready_pipe()?;
    // SAFETY: the process has one thread, so the child may do all that this process could.
    match unsafe { fork() }.context("the pod's process cannot be made")? {
        ForkResult::Parent { .. } => {
            drop(sender);
            // What it holds is the child's to hold.
            drop(pod);
            match receiver.wait() {
                Ok(()) => print_text(&format!("{uuid}\n")),
                Err(message) => bail!(message),
            }
            Ok(0)
        }
        ForkResult::Child => {
            drop(receiver);
            let ended = leave_terminal()
                .context("the pod's process cannot leave the terminal")
                .and_then(|()| pod(sender.clone()));
            let code = match ended {
                Ok(code) => {
                    // Heard only when the apps had not been started.
                    sender.failed(&format!(
                        "pod {uuid} ended with {code} before its apps ran; `podvm status {uuid}` tells more"
                    ));
                    code
                }
                Err(error) => {
                    sender.failed(&format!("{error:#}"));
                    PODVM_ERROR
                }
            };
            std::process::exit(code.into());
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
