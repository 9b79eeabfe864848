//! How each virtual machine monitor is started and measured.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::init_marker::MARKER;
use crate::kvm_stats::KvmStats;
use crate::smaps::resident_beyond_guest_kib;

/// The guest that every monitor boots.
#[derive(Debug, Clone)]
pub struct Guest {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
    /// Memory in MiB.
    pub memory_mib: u32,
}

/// The kernel's command line, the same for every monitor: a silent serial port, and what each adds by itself.
const COMMAND_LINE: &str = "console=ttyS0 quiet reboot=k panic=-1 random.trust_cpu=on";

/// A monitor, ready to be started any number of times.
#[derive(Debug)]
pub struct Monitor {
    name: &'static str,
    command: Vec<String>,
    guest: Guest,
}

/// podvm's own, as the vmm crate's example `boot`.
pub fn podvm(boot: &Path, guest: &Guest) -> Monitor {
    let mut command = vec![boot.display().to_string()];
    command.extend(["--kernel".into(), guest.kernel.display().to_string()]);
    command.extend(["--initramfs".into(), guest.initramfs.display().to_string()]);
    command.extend(["--memory".into(), guest.memory_mib.to_string(), "--console".into()]);
    Monitor { name: "podvm", command, guest: guest.clone() }
}

/// QEMU's smallest machine, without firmware options, ACPI or what else podvm has not either.
pub fn qemu_microvm(guest: &Guest) -> Monitor {
    let machine = "microvm,accel=kvm,acpi=off,pic=off,pit=off,rtc=off";
    let words = ["qemu-system-x86_64", "-M", machine, "-cpu", "host", "-smp", "1", "-m"];
    let mut command: Vec<String> = words.map(String::from).into();
    command.push(guest.memory_mib.to_string());
    command.extend(["-kernel".into(), guest.kernel.display().to_string()]);
    command.extend(["-initrd".into(), guest.initramfs.display().to_string()]);
    command.extend(["-append", COMMAND_LINE, "-nodefaults", "-no-user-config", "-nographic"].map(String::from));
    command.extend(["-no-reboot", "-serial", "stdio"].map(String::from));
    Monitor { name: "QEMU microvm", command, guest: guest.clone() }
}

/// What one boot cost.
#[derive(Debug, Clone, Serialize)]
pub struct Boot {
    /// From exec of the monitor to the guest's init, in milliseconds of the clock (virtual ones under `-icount`).
    pub exec_to_init_ms: f64,
    /// The monitor's resident memory beside the guest's, in KiB.
    pub beyond_guest_kib: u64,
    /// KVM's counters at that moment.
    pub kvm: KvmStats,
}

/// A monitor's figures: the medians of its boots.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// Name of the monitor.
    pub monitor: &'static str,
    /// The boot whose time is the median.
    pub median: Boot,
    /// All of them.
    pub boots: Vec<Boot>,
}

/// Boots the monitors in turn, so that drift of the machine meets all alike, after one boot each that does not count.
///
/// # Errors
/// When a monitor cannot be started or its guest does not reach init.
pub fn measure_in_turn<const N: usize>(monitors: [Monitor; N], runs: usize) -> Result<[Figures; N]> {
    let mut boots: [Vec<Boot>; N] = std::array::from_fn(|_| Vec::new());
    for run in 0..=runs.max(1) {
        for (monitor, boots) in monitors.iter().zip(&mut boots) {
            let boot = monitor.boot().with_context(|| format!("{} does not boot the guest", monitor.name))?;
            eprintln!("{} run {run}: {:.1} ms", monitor.name, boot.exec_to_init_ms);
            if run > 0 {
                boots.push(boot);
            }
        }
    }
    let mut figures = monitors.iter().zip(boots).map(|(monitor, boots)| {
        let mut sorted = boots.clone();
        sorted.sort_by(|a, b| a.exec_to_init_ms.total_cmp(&b.exec_to_init_ms));
        Figures { monitor: monitor.name, median: sorted[sorted.len() / 2].clone(), boots }
    });
    Ok(std::array::from_fn(|_| figures.next().unwrap_or_else(|| unreachable!("one a monitor"))))
}

impl Monitor {
    fn boot(&self) -> Result<Boot> {
        let begin = Instant::now();
        let mut child = Command::new(&self.command[0])
            .args(&self.command[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.command[0]))?;
        let measured = self.until_marker(&mut child, begin);
        // Whatever came of it, no monitor is left behind.
        let _ = child.kill();
        let _ = child.wait();
        measured
    }

    fn until_marker(&self, child: &mut Child, begin: Instant) -> Result<Boot> {
        let mut output = child.stdout.take().context("the monitor's output is not connected")?;
        let mut said = Vec::new();
        let mut buffer = [0; 4096];
        while !String::from_utf8_lossy(&said).contains(MARKER) {
            let count = output.read(&mut buffer)?;
            if count == 0 {
                bail!("it ended before the guest's init ran, saying: {}", String::from_utf8_lossy(&said));
            }
            said.extend(&buffer[..count]);
        }
        let elapsed = begin.elapsed();
        let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", child.id()))?;
        let files = [self.guest.kernel.as_path(), self.guest.initramfs.as_path()];
        Ok(Boot {
            exec_to_init_ms: milliseconds(elapsed),
            beyond_guest_kib: resident_beyond_guest_kib(&smaps, &files),
            kvm: KvmStats::of_process(child.id())?,
        })
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
