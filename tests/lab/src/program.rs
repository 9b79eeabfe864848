//! Running the host's programs, with one clear error when one fails or is missing.

use std::io;
use std::process::{Command, Output, Stdio};

use crate::LabError;

/// Most characters of a failed program's output that its error repeats.
const OUTPUT_SHOWN: usize = 4000;

/// Runs `command` to its end and returns its standard output.
pub fn output(command: &mut Command) -> Result<Vec<u8>, LabError> {
    let done = command.stdin(Stdio::null()).output().map_err(|error| not_started(command, error))?;
    check(command, done)
}

/// As [`output`], for programs that print text.
pub fn text(command: &mut Command) -> Result<String, LabError> {
    Ok(String::from_utf8_lossy(&output(command)?).into_owned())
}

fn not_started(command: &Command, error: io::Error) -> LabError {
    let program = command.get_program().to_string_lossy().into_owned();
    match error.kind() {
        io::ErrorKind::NotFound => LabError::ProgramMissing { program },
        _ => LabError::Io { what: format!("run {program}"), source: error },
    }
}

fn check(command: &Command, done: Output) -> Result<Vec<u8>, LabError> {
    if done.status.success() {
        return Ok(done.stdout);
    }
    let said = [done.stdout, done.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let skipped = said.char_indices().rev().nth(OUTPUT_SHOWN).map_or(0, |(at, _)| at);
    Err(LabError::ProgramFailed {
        command: line(command),
        status: done.status.to_string(),
        output: said[skipped..].trim_end().to_owned(),
    })
}

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named() {
        let error = output(&mut Command::new("no-such-program-here")).unwrap_err();
        assert!(error.to_string().contains("no-such-program-here is not installed"));
    }

    #[test]
    fn a_failure_repeats_what_the_program_said() {
        let error = output(Command::new("sh").args(["-c", "echo the reason >&2; exit 3"])).unwrap_err();
        assert!(error.to_string().contains("the reason"));
    }
}
