//! Boots a kernel and waits for the guest to end: the smallest user of the library, and what the benchmarks run.
//!
//!     boot --kernel FILE [--initramfs FILE] [--memory MIB] [--vcpus N] [--disk FILE]… [--cmdline ARGS]
//!          [--console] [--announce] [--stats] [--no-sandbox]
//!
//! With `--announce` it prints `ended` as soon as the guest has ended, before it tidies up: what a stopwatch waits for.
//! It ends with 0 when the guest resets its machine (`reboot -f`), and with 1 and a message otherwise.

use std::fs::{OpenOptions, read_to_string};
use std::io::stdout;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::ExitCode;

use podvm_vmm::boot::BootFile;
use podvm_vmm::devices::block::{Block, Disk};
use podvm_vmm::devices::rng::Rng;
use podvm_vmm::machine::{ConsoleSink, RunningVm, Vm, VmConfig, VmHandle};
use podvm_vmm::memory::MemoryRegion;
use podvm_vmm::sandbox::Sandbox;
use podvm_vmm::vcpu::exit::VmExit;
use vm_memory::{GuestMemory as _, GuestMemoryRegion as _, MemoryRegionAddress};

type AnyError = Box<dyn std::error::Error>;

/// The command line.
struct Arguments {
    kernel: PathBuf,
    initramfs: Option<PathBuf>,
    memory_mib: u64,
    vcpus: u8,
    disks: Vec<PathBuf>,
    command_line: String,
    console: bool,
    announce: bool,
    stats: bool,
    sandbox: Sandbox,
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, AnyError> {
    let mut arguments = Arguments {
        kernel: PathBuf::new(),
        initramfs: None,
        memory_mib: 256,
        vcpus: 1,
        disks: Vec::new(),
        command_line: String::new(),
        console: false,
        announce: false,
        stats: false,
        sandbox: Sandbox::On,
    };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--kernel" => arguments.kernel = value()?.into(),
            "--initramfs" => arguments.initramfs = Some(value()?.into()),
            "--memory" => arguments.memory_mib = value()?.parse()?,
            "--vcpus" => arguments.vcpus = value()?.parse()?,
            "--disk" => arguments.disks.push(value()?.into()),
            "--cmdline" => arguments.command_line = value()?,
            "--console" => arguments.console = true,
            "--announce" => arguments.announce = true,
            "--stats" => arguments.stats = true,
            "--no-sandbox" => arguments.sandbox = Sandbox::Off,
            _ => return Err(format!("{word} is not an option; see the top of examples/boot.rs").into()),
        }
    }
    Ok(arguments)
}

fn boot(arguments: Arguments) -> Result<VmExit, AnyError> {
    let mut config = VmConfig::new(BootFile::kernel(&arguments.kernel)?, arguments.memory_mib << 20);
    config.boot.initramfs = arguments.initramfs.as_deref().map(BootFile::initramfs).transpose()?;
    config.vcpus = arguments.vcpus;
    config.sandbox = arguments.sandbox;
    config.append_command_line(&arguments.command_line);
    if arguments.console {
        config.console = Some(ConsoleSink(Box::new(stdout())));
    }
    config.add_device(Rng::new())?;
    for path in &arguments.disks {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        config.add_device(Block::new(Disk::writable(file)?, path.display().to_string()))?;
    }
    let vm = Vm::build(config)?;
    let guest = guest_ranges(&vm)?;
    let running = vm.start()?;
    let handle = running.handle();
    if arguments.announce {
        await_exit(&running);
        println!("ended");
    }
    let exit = running.wait();
    if arguments.stats {
        print_stats(&handle, &guest)?;
    }
    Ok(exit)
}

/// Waits until the guest has ended, without taking the machine down.
fn await_exit(running: &RunningVm) {
    let mut event = libc::pollfd { fd: running.exit_event().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd. Interrupted by a signal it is tried again.
    while unsafe { libc::poll(&mut event, 1, -1) } < 1 {}
}

/// Prints what the run cost. KVM's own counters are those of all machines of the host; they include this one as long
/// as the handle keeps it.
fn print_stats(handle: &VmHandle, guest: &[Range<u64>]) -> Result<(), AnyError> {
    eprintln!("{:?}", handle.stats());
    eprintln!("resident beyond guest memory: {} KiB", resident_beyond(guest)?);
    for counter in ["exits", "pf_fixed", "pf_taken"] {
        if let Ok(value) = read_to_string(format!("/sys/kernel/debug/kvm/{counter}")) {
            eprintln!("KVM {counter}: {}", value.trim());
        }
    }
    Ok(())
}

/// KiB of this process's memory that are resident outside the guest's memory.
fn resident_beyond(guest: &[Range<u64>]) -> Result<u64, AnyError> {
    let (mut sum, mut in_guest) = (0, false);
    for line in read_to_string("/proc/self/smaps")?.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if let Some((start, _)) = first.split_once('-') {
            let start = u64::from_str_radix(start, 16)?;
            in_guest = guest.iter().any(|range| range.contains(&start));
        } else if first == "Rss:" && !in_guest {
            sum += line.split_whitespace().nth(1).unwrap_or("0").parse::<u64>()?;
        }
    }
    Ok(sum)
}

/// Where the guest's memory is in this process.
fn guest_ranges(vm: &Vm) -> Result<Vec<Range<u64>>, AnyError> {
    let range = |region: &MemoryRegion| {
        let start = region.get_host_address(MemoryRegionAddress(0))? as u64;
        Ok(start..start + region.len())
    };
    vm.memory().iter().map(range).collect()
}

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)).and_then(boot) {
        Ok(VmExit::Reset) => ExitCode::SUCCESS,
        Ok(exit) => {
            eprintln!("boot: {exit}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprint!("boot: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprint!(": {error}");
                cause = error.source();
            }
            eprintln!();
            ExitCode::FAILURE
        }
    }
}
