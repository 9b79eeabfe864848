//! `cargo xtask start-bench`: what starting a pod behind namespaces takes, beside crun and runc.

use std::process::ExitCode;

use anyhow::Context;
use podvm_lab::agent::target_directory;

use crate::build::{self, cargo, prefix, run_visibly};
use crate::step::step;
use crate::{images, setup};

/// How to measure.
#[derive(Clone, clap::Args)]
pub struct Arguments {
    /// Starts by each program; the median counts
    #[arg(long, default_value_t = 31)]
    runs: usize,
    /// Fail when a figure is over its limit
    #[arg(long)]
    check: bool,
}

/// Builds what is measured and runs `start-bench`; its exit code is ours.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    setup::run()?;
    build::run(build::Arguments::default())?;
    let image = images::make("busybox")?;
    step("build start-bench", || run_visibly(cargo().args(["build", "--release", "--package", "podvm-benches"])))?;
    let mut command = std::process::Command::new(target_directory().join("release/start-bench"));
    command.arg("--podvm").arg(prefix().join("bin/podvm")).arg("--image").arg(image);
    command.args(["--runs", &arguments.runs.to_string()]);
    if arguments.check {
        command.arg("--check");
    }
    let status = command.status().context("start-bench cannot be run")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
