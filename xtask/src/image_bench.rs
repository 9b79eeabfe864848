//! `cargo xtask image-bench`: what fetching images costs, beside podman, skopeo and umoci, from a registry on this host's loopback.

use std::process::ExitCode;

use anyhow::Context;
use podvm_lab::agent::target_directory;

use crate::build::{cargo, run_visibly};
use crate::setup;
use crate::step::step;

/// How to measure.
#[derive(Clone, clap::Args)]
pub struct Arguments {
    /// Fetches by each program; the median counts
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Fail when a figure is over its limit
    #[arg(long)]
    check: bool,
}

/// Builds what is measured and runs `image-bench`; its exit code is ours.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    setup::run()?;
    step("build podvm", || {
        run_visibly(cargo().args(["build", "--release", "--package", "podvm", "--package", "podvm-benches"]))
    })?;
    let release = target_directory().join("release");
    let mut command = std::process::Command::new(release.join("image-bench"));
    command.arg("--podvm").arg(release.join("podvm")).args(["--runs", &arguments.runs.to_string()]);
    if arguments.check {
        command.arg("--check");
    }
    let status = command.status().context("image-bench cannot be run")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
