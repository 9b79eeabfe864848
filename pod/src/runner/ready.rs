//! How a pod that was started in the background tells the process that started it that its apps run, or why not.
//!
//! A pipe: the pod writes one letter, and after the letter of failure its exit code as one byte and a message. A pipe that
//! ends without a letter means that the pod's process was killed.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::console::write_fully;
use crate::exit::PODVM_ERROR;

const READY: u8 = b'R';
const FAILED: u8 = b'F';
/// Longest message of failure; one write of it to a pipe is whole.
const MAX_MESSAGE_BYTES: usize = 4_000;

/// Why the apps of a pod were not started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StartFailure {
    /// The exit code that the pod's process ends with.
    pub code: u8,
    /// Why, as a sentence.
    pub message: String,
}

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
    pub fn failed(&self, failure: &StartFailure) {
        let mut bytes = vec![FAILED, failure.code];
        bytes.extend(failure.message.bytes().take(MAX_MESSAGE_BYTES));
        let _ = write_fully(self.0.as_fd(), &bytes);
    }
}

impl ReadyReceiver {
    /// Waits for the pod's word.
    ///
    /// # Errors
    /// [`StartFailure`].
    pub fn wait(self) -> Result<(), StartFailure> {
        let mut pipe = File::from(self.0);
        let mut word = Vec::new();
        let read = (&mut pipe).take(1).read_to_end(&mut word).and_then(|_| match word.first() {
            Some(&FAILED) => pipe.take(1 + MAX_MESSAGE_BYTES as u64).read_to_end(&mut word),
            _ => Ok(0),
        });
        match (read, word.as_slice()) {
            (Ok(_), [READY]) => Ok(()),
            (Ok(_), [FAILED, code, message @ ..]) => {
                Err(StartFailure { code: *code, message: String::from_utf8_lossy(message).into_owned() })
            }
            _ => Err(StartFailure { code: PODVM_ERROR, message: "the pod's process ended without a word".into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_starter_hears_the_first_word() {
        let failure = StartFailure { code: 127, message: "no such program".into() };
        let (sender, receiver) = ready_pipe().unwrap();
        sender.ready();
        sender.failed(&failure);
        assert_eq!(receiver.wait(), Ok(()));

        let (sender, receiver) = ready_pipe().unwrap();
        sender.failed(&failure);
        drop(sender);
        assert_eq!(receiver.wait(), Err(failure));

        let (sender, receiver) = ready_pipe().unwrap();
        drop(sender);
        assert!(receiver.wait().unwrap_err().message.contains("without a word"));
    }
}
