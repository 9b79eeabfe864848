//! `cargo xtask memory-bench`: what pods of one image share, and what starting them takes, by how their layers come into VMs.

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::ensure;
use podvm_lab::agent::target_directory;
use podvm_lab::{Lab, LabCommand, LabConfig};

use crate::build::{self, cargo, prefix, run_visibly};
use crate::lab::write_through;
use crate::step::step;
use crate::{images, setup};

/// Ten pods at a time start in an emulated machine.
const TIME_LIMIT: Duration = Duration::from_secs(40 * 60);
/// Memory of the lab: the images are copied into it.
const MEMORY_MIB: u32 = 6 << 10;

/// How to measure.
#[derive(Clone, clap::Args)]
pub struct Arguments {
    /// Pods of one image at once
    #[arg(long, default_value_t = 10)]
    pods: u16,
    /// Starts of each kind; the fastest counts
    #[arg(long, default_value_t = 2)]
    runs: usize,
    /// Fail when a figure is over its limit
    #[arg(long)]
    check: bool,
}

/// Builds what is measured and runs `memory-bench`; its exit code is ours.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    setup::run()?;
    build::run(build::Arguments::default())?;
    step("build memory-bench", || run_visibly(cargo().args(["build", "--release", "--package", "podvm-benches"])))?;
    let root = target_directory().join("memory-bench");
    let command = |part: &[&str]| {
        let mut words = vec![target_directory().join("release/memory-bench").display().to_string()];
        words.extend(["--podvm".into(), prefix().join("bin/podvm").display().to_string()]);
        words.extend(["--root".into(), root.display().to_string()]);
        if arguments.check {
            words.push("--check".into());
        }
        words.extend(part.iter().map(ToString::to_string));
        words
    };
    let (etcd, busybox) = (images::make("etcd")?, images::make("busybox")?);
    step("make the images", || {
        let words = ["prepare", "--etcd", &etcd.display().to_string(), "--busybox", &busybox.display().to_string()];
        let words = command(&words);
        run_visibly(Command::new(&words[0]).args(&words[1..]))
    })?;
    let memory = LabConfig { memory_mib: MEMORY_MIB, ..LabConfig::default() };
    let counting = LabConfig { icount: true, ..memory.clone() };
    let parts = [
        (Lab::select(memory), command(&["pods", "--pods", &arguments.pods.to_string()])),
        // Always emulated: only there does the clock count instructions.
        (Lab::Emulated(counting), command(&["starts", "--runs", &arguments.runs.to_string()])),
    ];
    let mut worst = 0;
    for (lab, words) in parts {
        let code = step(&format!("measure {}", words.get(5..).unwrap_or_default().join(" ")), || {
            let ended = lab.session()?.run(LabCommand::new(words).time_limit(TIME_LIMIT), &mut write_through)?;
            Ok(ended.exit_code())
        })?;
        ensure!(code == 0 || arguments.check, "memory-bench failed ({code})");
        worst = worst.max(code);
    }
    Ok(ExitCode::from(u8::try_from(worst).unwrap_or(u8::MAX)))
}
