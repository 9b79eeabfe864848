//! How each virtual machine monitor is started and measured.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;

use crate::init_marker::MARKER;
use crate::kvm_stats::KvmStats;
use crate::local::{self, LocalCopies};
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

/// The kernel's command line for the peers: what podvm gives it by itself (`BASE_COMMAND_LINE` of the vmm crate).
const COMMAND_LINE: &str = "console=ttyS0 quiet reboot=k panic=-1 noreplace-smp movable_node swiotlb=noforce \
    dummy.numdummies=0 rcupdate.rcu_expedited=1 8250.nr_uarts=1 i8042.noaux i8042.nomux i8042.dumbkbd random.trust_cpu=on";

/// What QEMU reads beside its program for this machine.
const QEMU_FIRMWARE: [&str; 4] = ["qboot.rom", "pvh.bin", "linuxboot_dma.bin", "kvmvapic.bin"];

/// A monitor, ready to be started any number of times.
#[derive(Debug)]
pub struct Monitor<'a> {
    name: &'static str,
    command: Vec<String>,
    guest: &'a Guest,
    copies: &'a LocalCopies,
}

/// podvm's own, as the vmm crate's example `boot`.
///
/// # Errors
/// When it cannot be copied.
pub fn podvm<'a>(boot: &Path, guest: &'a Guest, copies: &'a LocalCopies) -> Result<Monitor<'a>> {
    let mut command = vec![copies.program(boot)?.display().to_string()];
    command.extend(["--kernel".into(), guest.kernel.display().to_string()]);
    command.extend(["--initramfs".into(), guest.initramfs.display().to_string()]);
    command.extend(["--memory".into(), guest.memory_mib.to_string(), "--console".into()]);
    Ok(Monitor { name: "podvm", command, guest, copies })
}

/// QEMU's smallest machine, without firmware options, ACPI or what else podvm has not either.
///
/// # Errors
/// When QEMU is not installed.
pub fn qemu_microvm<'a>(guest: &'a Guest, copies: &'a LocalCopies) -> Result<Monitor<'a>> {
    let program = copies.program(&local::in_search_path("qemu-system-x86_64")?)?;
    for file in QEMU_FIRMWARE {
        copies.file(&Path::new("/usr/share/qemu").join(file))?;
    }
    let mut command = vec![program.display().to_string(), "-L".into(), copies.path().display().to_string()];
    let machine = "microvm,accel=kvm,acpi=off,pic=off,pit=off,rtc=off";
    command.extend(["-M", machine, "-cpu", "host", "-smp", "1", "-m"].map(String::from));
    command.push(guest.memory_mib.to_string());
    command.extend(["-kernel".into(), guest.kernel.display().to_string()]);
    command.extend(["-initrd".into(), guest.initramfs.display().to_string()]);
    command.extend(["-append", COMMAND_LINE, "-nodefaults", "-no-user-config", "-nographic"].map(String::from));
    command.extend(["-no-reboot", "-serial", "stdio"].map(String::from));
    Ok(Monitor { name: "QEMU microvm", command, guest, copies })
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

/// A monitor's figures: those of its fastest boot. What disturbs a boot, a busy host above all, only adds to it.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// Name of the monitor.
    pub monitor: &'static str,
    /// The boot that took the least time.
    pub fastest: Boot,
    /// All of them.
    pub boots: Vec<Boot>,
}

/// Boots the monitors in turn, so that drift of the machine meets all alike, after one boot each that does not count.
///
/// # Errors
/// When a monitor cannot be started or its guest does not reach init.
pub fn measure_in_turn<const N: usize>(monitors: [Monitor<'_>; N], runs: usize) -> Result<[Figures; N]> {
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
    let figures = monitors.iter().zip(boots).map(|(monitor, boots)| {
        let fastest = boots.iter().min_by(|a, b| a.exec_to_init_ms.total_cmp(&b.exec_to_init_ms))?.clone();
        Some(Figures { monitor: monitor.name, fastest, boots })
    });
    let figures: Vec<Figures> = figures.collect::<Option<_>>().context("nothing was measured")?;
    figures.try_into().map_err(|_| anyhow!("nothing was measured"))
}

impl Monitor<'_> {
    fn boot(&self) -> Result<Boot> {
        let begin = Instant::now();
        let mut child = Command::new(&self.command[0])
            .args(&self.command[1..])
            .env("LD_LIBRARY_PATH", self.copies.path())
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
