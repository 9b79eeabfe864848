//! Boot cost: podvm's VMM beside QEMU's `microvm`, with the same kernel and the same initramfs, in one run.
//!
//! Run by `cargo xtask bench` inside the lab in its `-icount` mode, where the clock counts executed instructions (1 virtual
//! millisecond is 10^6 of them), so that the figures repeat within a few per cent on any machine. For each monitor it takes
//!
//! - the time from exec of the monitor to the first system call of the guest's init ([`podvm_benches::init_marker`]),
//! - the memory the monitor holds beside the guest's own (`/proc/PID/smaps`),
//! - exits and nested page faults, as KVM counts them (`/sys/kernel/debug/kvm`).
//!
//! With `--check` it fails when a promise is broken.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use podvm_benches::local::LocalCopies;
use podvm_benches::promise::Promises;
use podvm_benches::{init_marker, monitor, report};

/// Measures what it costs to boot a guest, podvm's monitor beside QEMU's.
#[derive(Debug, Parser)]
struct Arguments {
    /// podvm's monitor: the vmm crate's example `boot`.
    #[arg(long)]
    boot: PathBuf,
    /// The guest kernel, an ELF image with a PVH entry.
    #[arg(long)]
    kernel: PathBuf,
    /// Guest memory in MiB.
    #[arg(long, default_value_t = 256)]
    memory_mib: u32,
    /// Runs of each monitor; the fastest is reported.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Write the figures to this file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Fail when a promise is broken.
    #[arg(long)]
    check: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let copies = LocalCopies::new()?;
    let initramfs = copies.path().join("initramfs");
    std::fs::write(&initramfs, init_marker::initramfs()?)?;
    let guest = monitor::Guest { kernel: copies.file(&arguments.kernel)?, initramfs, memory_mib: arguments.memory_mib };
    let monitors = [monitor::podvm(&arguments.boot, &guest, &copies)?, monitor::qemu_microvm(&guest, &copies)?];
    let [podvm, qemu] = monitor::measure_in_turn(monitors, arguments.runs)?;
    println!("{}", report::table(&[&podvm, &qemu]));
    let promises = Promises::of(&podvm, &qemu);
    println!("{}", report::promises(&promises));
    if let Some(path) = arguments.json {
        std::fs::write(path, serde_json::to_vec_pretty(&[&podvm, &qemu])?)?;
    }
    let kept = promises.all_kept() || !arguments.check;
    Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
