//! Unit and integration tests that need nothing but a Linux host.

use std::time::{Duration, Instant};

use anyhow::Context;
use podvm_lab::agent::workspace;
use podvm_lab::{Ended, Lab, LabCommand, Session};

use super::checks::ALL_FEATURES;
use super::executables::{self, Executable};
use super::libtest;
use super::tally::Tally;
use crate::step::{seconds, step};

/// How long one crate's tests may take. A test that hangs must not hang everything.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// Builds and runs them, with those in the documentation.
pub fn run(filter: Option<&str>, tally: &mut Tally) {
    let built = step("build the tests", || executables::build(None));
    let executables = match built {
        Ok(executables) => executables,
        Err(error) => return tally.fail("build the tests", &format!("{error:#}")),
    };
    for executable in executables.iter().filter(|executable| !executable.in_lab) {
        run_one(executable, filter, tally);
    }
    run_documentation(filter, tally);
}

fn session() -> anyhow::Result<Session> {
    Lab::Direct.session().context("no commands can be run")
}

fn run_one(executable: &Executable, filter: Option<&str>, tally: &mut Tally) {
    let mut argv = vec![executable.path.display().to_string(), "--show-output".into()];
    argv.extend(filter.map(str::to_owned));
    let command = LabCommand::new(argv)
        .directory(&executable.directory)
        .env("CARGO_MANIFEST_DIR", executable.directory.display().to_string());
    harness(&executable.name, command, tally);
}

fn run_documentation(filter: Option<&str>, tally: &mut Tally) {
    let mut argv: Vec<&str> = vec!["cargo", "test", "--workspace", "--doc"];
    argv.extend(ALL_FEATURES);
    argv.extend(filter);
    let mut command = LabCommand::new(argv).directory(workspace());
    for name in ["CARGO_TARGET_DIR", "XDG_CACHE_HOME", "HOME"] {
        if let Ok(value) = std::env::var(name) {
            command = command.env(name, value);
        }
    }
    harness("documentation", command, tally);
}

/// Runs a command that prints as the harness does; shows what it says only if something is wrong.
fn harness(name: &str, command: LabCommand, tally: &mut Tally) {
    let start = Instant::now();
    let (mut out, mut all) = (Vec::new(), Vec::new());
    let ended = session().and_then(|mut session| {
        let ended = session.run(command.time_limit(LIMIT), &mut |stream, bytes| {
            all.extend_from_slice(bytes);
            if stream == podvm_lab::Stream::Stdout {
                out.extend_from_slice(bytes);
            }
        });
        Ok(ended?)
    });
    let text = String::from_utf8_lossy(&out);
    let failures = tally.failures();
    libtest::enter(&text, &format!("{name}: "), tally);
    let time = seconds(start.elapsed());
    match ended {
        Ok(Ended::Code(0)) => println!("{name}: ok ({time})"),
        Ok(ended) => {
            println!("{name}: FAILED ({time})\n{}", String::from_utf8_lossy(&all));
            if tally.failures() == failures {
                tally.fail(name, &format!("its tests did not come to their end: {ended:?}"));
            }
        }
        Err(error) => {
            println!("{name}: FAILED ({time})\n{}", String::from_utf8_lossy(&all));
            tally.fail(name, &format!("{error:#}"));
        }
    }
}
