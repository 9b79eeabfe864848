//! Tests that boot guests: built on the host, run in the lab one by one, in one boot.
//!
//! Every test is a call of its executable, so that each has its own output and time limit and none can take another
//! one down. A test that brings the machine down costs a new boot and nothing else.

use std::process::Command;
use std::time::{Duration, Instant};

use podvm_lab::{Ended, Lab, LabCommand, LabConfig, RunError, Session};

use super::executables::{self, Executable};
use super::libtest;
use super::tally::Tally;
use crate::lab::write_through;
use crate::step::{seconds, step};

/// How to run them.
pub struct Options {
    /// Only tests whose name contains this.
    pub filter: Option<String>,
    /// How long one may take.
    pub test_limit: Duration,
    /// The machine's memory.
    pub memory_mib: u32,
    /// Pass on what tests print, as they print it.
    pub show_output: bool,
}

/// One test.
struct Test<'a> {
    executable: &'a Executable,
    name: String,
}

/// How one test ended.
enum Outcome {
    Passed,
    Skipped(String),
    Failed(String),
}

/// Builds and runs all of them.
pub fn run(options: &Options, tally: &mut Tally) {
    let built = step("build the lab's tests", executables::build_for_lab);
    let executables = match built {
        Ok(executables) => executables,
        Err(error) => return tally.fail("build the lab's tests", &format!("{error:#}")),
    };
    let mut tests = Vec::new();
    for executable in &executables {
        match list(executable, options.filter.as_deref(), tally) {
            Ok(names) => tests.extend(names.into_iter().map(|name| Test { executable, name })),
            Err(error) => tally.fail(&executable.name, &format!("its tests cannot be listed: {error}")),
        }
    }
    if tests.is_empty() {
        return;
    }
    let config = LabConfig { memory_mib: options.memory_mib, ..LabConfig::default() };
    run_all(&Lab::select(config), &tests, options, tally);
}

fn run_all(lab: &Lab, tests: &[Test<'_>], options: &Options, tally: &mut Tally) {
    let mut session = None;
    for test in tests {
        let start = Instant::now();
        let label = format!("{}: {}", test.executable.name, test.name);
        if session.is_none() {
            match boot(lab) {
                Ok(booted) => session = Some(booted),
                Err(error) => {
                    println!("{label} ... FAILED\n{error:#}");
                    tally.fail(&label, &format!("{error:#}"));
                    continue;
                }
            }
        }
        let Some(running) = &mut session else { continue };
        let (mut outcome, alive) = run_one(running, test, options);
        if !alive {
            session = boot(lab).ok();
            // The emulator is known to hang now and then; a test that takes the machine down does so again.
            if let Some(running) = &mut session {
                println!("{label} ... the lab's machine died; once more");
                let (second, alive) = run_one(running, test, options);
                outcome = second;
                session = session.filter(|_| alive);
            }
        }
        let time = seconds(start.elapsed());
        match outcome {
            Outcome::Passed => {
                println!("{label} ... ok ({time})");
                tally.pass();
            }
            Outcome::Skipped(reason) => {
                println!("{label} ... skipped: {reason}");
                tally.skip(&label, &reason);
            }
            Outcome::Failed(reason) => {
                println!("{label} ... FAILED ({time}): {reason}");
                tally.fail(&label, &reason);
            }
        }
    }
}

fn boot(lab: &Lab) -> anyhow::Result<Session> {
    let name = match lab {
        Lab::Direct => "this host's KVM runs guests: no lab is needed",
        Lab::Emulated(_) => "boot the lab",
    };
    step(name, || Ok(lab.session()?))
}

/// Runs one test; tells also whether the session can go on.
fn run_one(session: &mut Session, test: &Test<'_>, options: &Options) -> (Outcome, bool) {
    let path = test.executable.path.display().to_string();
    let command = LabCommand::new([path.as_str(), "--exact", &test.name, "--nocapture", "--test-threads=1"])
        .directory(&test.executable.directory)
        .env("CARGO_MANIFEST_DIR", test.executable.directory.display().to_string())
        .time_limit(options.test_limit);
    let mut all = Vec::new();
    let ended = session.run(command, &mut |stream, bytes| {
        all.extend_from_slice(bytes);
        if options.show_output {
            write_through(stream, bytes);
        }
    });
    let text = String::from_utf8_lossy(&all);
    let outcome = match &ended {
        Ok(Ended::Code(0)) => match libtest::skip_reason(&text) {
            Some(reason) => Outcome::Skipped(reason.to_owned()),
            None if text.contains("test result: ok. 1 passed") => Outcome::Passed,
            None => Outcome::Failed("its executable did not run it".into()),
        },
        Ok(ended) => {
            Outcome::Failed(libtest::failure_reason(&text).map_or_else(|| format!("{ended:?}"), str::to_owned))
        }
        Err(error) => Outcome::Failed(error.to_string()),
    };
    if matches!(outcome, Outcome::Failed(_)) && !options.show_output {
        println!("---- what {} printed ----\n{}\n----", test.name, text.trim_end());
        if let Err(error) = &ended {
            println!("{error}\n----");
        }
    }
    (outcome, !matches!(ended, Err(RunError::MachineDied { .. })))
}

/// The names of an executable's tests that are to run. What is ignored goes into the tally, with its reason.
fn list(executable: &Executable, filter: Option<&str>, tally: &mut Tally) -> std::io::Result<Vec<String>> {
    let ask = |arguments: &[&str]| -> std::io::Result<String> {
        let output = Command::new(&executable.path).args(arguments).current_dir(&executable.directory).output()?;
        if !output.status.success() {
            return Err(std::io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let wanted = |name: &&str| filter.is_none_or(|filter| name.contains(filter));
    let all = ask(&["--list", "--format", "terse"])?;
    let ignored_list = ask(&["--list", "--format", "terse", "--ignored"])?;
    let ignored: Vec<&str> = libtest::listed(&ignored_list).filter(wanted).collect();
    if !ignored.is_empty() {
        // Asked to run just these, the harness runs none of them and tells why.
        let reasons = ask(&[&["--exact"], ignored.as_slice()].concat())?;
        libtest::enter(&reasons, &format!("{}: ", executable.name), tally);
    }
    let names = libtest::listed(&all).filter(wanted).filter(|name| !ignored.contains(name));
    Ok(names.map(str::to_owned).collect())
}
