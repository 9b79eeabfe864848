//! Errors that say which step did not work: the system's own messages never name what they are about.

use std::fmt::Display;
use std::io;

/// A step that did not work.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {error}")]
pub struct StepError {
    /// What was tried, and on what.
    pub what: String,
    /// What the system said, or a sentence of our own.
    pub error: io::Error,
}

impl StepError {
    /// A step that cannot be taken for a reason the system knows nothing of.
    pub fn because(what: impl Into<String>, reason: impl Display) -> Self {
        Self { what: what.into(), error: io::Error::other(reason.to_string()) }
    }

    /// The system's error number, when it was the system that refused.
    pub fn errno(&self) -> Option<i32> {
        self.error.raw_os_error()
    }
}

/// Names the step that an error belongs to.
pub trait Step<T> {
    /// Turns an error into a [`StepError`] that says what was tried.
    ///
    /// # Errors
    /// The named error.
    fn step<W: Into<String>>(self, what: impl FnOnce() -> W) -> Result<T, StepError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step<W: Into<String>>(self, what: impl FnOnce() -> W) -> Result<T, StepError> {
        self.map_err(|error| StepError { what: what().into(), error: error.into() })
    }
}

/// Writes one line about something that went wrong but can be lived with, to the console or the standard error.
pub fn note(text: impl Display) {
    use std::io::Write;
    // There is nowhere left to tell when this fails.
    let _ = io::stderr().write_all(format!("podvm supervisor: {text}\n").as_bytes());
}
