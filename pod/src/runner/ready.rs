//! How a pod that was started in the background tells the process that started it that its apps run, or why not.
//!
//! A pipe: the pod writes one letter, and after the letter of failure a message. A pipe that ends without a letter means
//! that the pod's process was killed.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::console::write_fully;

const READY: u8 = b'R';
const FAILED: u8 = b'F';
/// Longest message of failure; one write of it to a pipe is whole.
const MAX_MESSAGE_BYTES: usize = 4_000;

/// The pod's end of the pipe.
#[derive(Debug, Clone)]
pub struct ReadySender(Arc<OwnedFd>);

/// The starter's end of the pipe.
#[derive(Debug)]
pub struct ReadyReceiver(OwnedFd);

/// A new pipe; each process must drop the end that is not its own.
///
/// # Errors
/// Those of pipe2(2).
pub fn ready_pipe() -> io::Result<(ReadySender, ReadyReceiver)> {
    let (receiver, sender) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    Ok((ReadySender(Arc::new(sender)), ReadyReceiver(receiver)))
}

impl ReadySender {
    /// Says that all apps were started. That nobody listens any more is no trouble.
    pub fn ready(&self) {
        let _ = write_fully(self.0.as_fd(), &[READY]);
    }

    /// Says why the apps were not started.
    pub fn failed(&self, message: &str) {
        let mut bytes = vec![FAILED];
        bytes.extend(message.bytes().take(MAX_MESSAGE_BYTES));
        let _ = write_fully(self.0.as_fd(), &bytes);
    }
}

impl ReadyReceiver {
    /// Waits for the pod's word.
    ///
    /// # Errors
    /// The message of failure.
    pub fn wait(self) -> Result<(), String> {
        let silent = || "the pod's process ended without a word".to_owned();
        let mut pipe = File::from(self.0);
        let mut letter = [0];
        pipe.read_exact(&mut letter).map_err(|_| silent())?;
        if letter[0] == READY {
            return Ok(());
        }
        let mut message = Vec::new();
        pipe.take(MAX_MESSAGE_BYTES as u64).read_to_end(&mut message).map_err(|error| error.to_string())?;
        Err(String::from_utf8_lossy(&message).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_starter_hears_the_first_word() {
        let (sender, receiver) = ready_pipe().unwrap();
        sender.ready();
        sender.failed("later");
        assert_eq!(receiver.wait(), Ok(()));

        let (sender, receiver) = ready_pipe().unwrap();
        sender.failed("no such program");
        drop(sender);
        assert_eq!(receiver.wait(), Err("no such program".into()));

        let (sender, receiver) = ready_pipe().unwrap();
        drop(sender);
        assert!(receiver.wait().unwrap_err().contains("without a word"));
    }
}
