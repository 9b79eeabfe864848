//! `cargo xtask test`: everything that must hold, in one command.
//!
//! Checks and unit tests run on the host; what needs KVM, cgroup v2 or systemd runs in the lab (on the host itself
//! where its KVM runs guests), many in one boot. The last line is the count.

mod checks;
mod executables;
mod host;
mod in_lab;
mod libtest;
mod tally;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::step::{seconds, step};
use crate::{build, images, setup};
use tally::Tally;

/// How many times as long a test in its long form may take.
const NIGHTLY_FACTOR: u32 = 10;

/// Which tests to run.
#[derive(clap::Args)]
pub struct Arguments {
    /// Run only one kind of tests
    #[arg(long, value_enum)]
    only: Option<Kind>,
    /// Use target/podvm as it is, instead of building it first
    #[arg(long)]
    no_build: bool,
    /// Build podvm without optimization
    #[command(flatten)]
    build: build::Arguments,
    /// Show what tests print also when they pass
    #[arg(long)]
    nocapture: bool,
    /// Seconds that one test in the lab may take
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    test_time_limit: u64,
    /// Run the long forms of tests that have one: hundreds of kills instead of dozens
    #[arg(long)]
    nightly: bool,
    /// The lab machine's memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    memory: u32,
    /// Run only tests whose name contains this
    filter: Option<String>,
}

/// The kinds of tests.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// Formatting, lints, unit tests: all that runs on the host
    Host,
    /// What boots guests, in the lab
    E2e,
}

/// Runs the tests. Fails if one of them does, after all have run.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let mut tally = Tally::default();
    setup::run()?;
    if arguments.only != Some(Kind::E2e) {
        if arguments.filter.is_none() {
            checks::run(&mut tally);
        }
        host::run(arguments.filter.as_deref(), &mut tally);
    }
    if arguments.only != Some(Kind::Host) {
        run_in_lab(arguments, &mut tally);
    }
    println!("\nall tests: {}", seconds(start.elapsed()));
    tally.print();
    Ok(if tally.failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A build that fails is a failed test, so that the count still comes last.
fn run_in_lab(arguments: &Arguments, tally: &mut Tally) {
    let prepare = || -> anyhow::Result<()> {
        if !arguments.no_build {
            build::run(arguments.build)?;
            build::run(build::Arguments { faults: true, ..arguments.build })?;
        }
        step("make the tests' images", images::make_all)
    };
    if let Err(error) = prepare() {
        tally.fail("build", &format!("{error:#}"));
        return;
    }
    let options = in_lab::Options {
        filter: arguments.filter.clone(),
        test_limit: Duration::from_secs(arguments.test_time_limit) * if arguments.nightly { NIGHTLY_FACTOR } else { 1 },
        is_nightly: arguments.nightly,
        memory_mib: arguments.memory,
        show_output: arguments.nocapture,
    };
    in_lab::run(&options, tally);
}
