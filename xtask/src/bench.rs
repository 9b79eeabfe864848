//! `cargo xtask bench`: what booting a guest costs, podvm's monitor beside QEMU's, in the lab's counting mode.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::ensure;
use podvm_lab::agent::target_directory;
use podvm_lab::{Lab, LabCommand, LabConfig};

use crate::build::{self, cargo, run_visibly};
use crate::lab::write_through;
use crate::setup;
use crate::step::step;

/// Counting instructions takes one emulated CPU at full length.
const TIME_LIMIT: Duration = Duration::from_secs(20 * 60);

/// How to measure.
#[derive(Clone, clap::Args)]
pub struct Arguments {
    /// Boots of each monitor; the fastest counts
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Fail when a figure is over its limit
    #[arg(long)]
    check: bool,
}

/// Builds what is measured and runs `boot-bench` in the lab; its exit code is ours.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    setup::run()?;
    let kernel = step("build the guest kernel", build::kernel)?;
    step("build the monitor", || {
        run_visibly(cargo().args(["build", "--release", "--package", "podvm-vmm", "--example", "boot"]))?;
        run_visibly(cargo().args(["build", "--release", "--package", "podvm-benches"]))
    })?;
    let release = target_directory().join("release");
    let mut command = vec![release.join("boot-bench").display().to_string()];
    command.extend(["--boot".into(), release.join("examples/boot").display().to_string()]);
    command.extend(["--kernel".into(), kernel.join("vmlinux").display().to_string()]);
    command.extend(["--runs".into(), arguments.runs.to_string()]);
    if arguments.check {
        command.push("--check".into());
    }
    let code = step("boot guests", || {
        let config = LabConfig { icount: true, ..LabConfig::default() };
        // Always emulated: only there does the clock count instructions.
        let mut session = Lab::Emulated(config).session()?;
        let ended = session.run(LabCommand::new(command).time_limit(TIME_LIMIT), &mut write_through)?;
        Ok(ended.exit_code())
    })?;
    ensure!(code == 0 || arguments.check, "boot-bench failed ({code})");
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}
