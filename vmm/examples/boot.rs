//! Boots a kernel and waits for the guest to end: the smallest user of the library, and what the benchmarks run.
//!
//!     boot --kernel FILE [--initramfs FILE] [--memory MIB] [--vcpus N] [--disk FILE]… [--cmdline ARGS]
//!          [--console] [--stats] [--no-sandbox]
//!
//! It ends with 0 when the guest resets its machine (`reboot -f`), and with 1 and a message otherwise.

use std::fs::OpenOptions;
use std::io::stdout;
use std::path::PathBuf;
use std::process::ExitCode;

use podvm_vmm::boot::BootFile;
use podvm_vmm::devices::block::{Block, Disk};
use podvm_vmm::devices::rng::Rng;
use podvm_vmm::machine::{ConsoleSink, Vm, VmConfig};
use podvm_vmm::sandbox::Sandbox;
use podvm_vmm::vcpu::exit::VmExit;

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
    let running = Vm::build(config)?.start()?;
    let handle = running.handle();
    let exit = running.wait();
    if arguments.stats {
        eprintln!("{:?}", handle.stats());
    }
    Ok(exit)
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
