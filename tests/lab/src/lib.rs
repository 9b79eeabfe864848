//! The KVM lab: a machine whose `/dev/kvm` runs guests, on any Linux.
//!
//! [`Lab::select`] decides: a host whose own KVM runs guests needs no lab, and commands run on it directly.
//! Elsewhere QEMU's emulator plays an AMD machine with nested paging (*L1*) whose Linux has a genuine `/dev/kvm`.
//! L1 comes in two [`Flavour`]s and is spoken to through an agent ([`podvm_lab_agent`]), so that any number of
//! commands run in one boot, each with its own exit code, output and time limit: [`Lab::session`].
//!
//! Nothing is left behind: QEMU is killed by the kernel when its starter dies, L1's disk is a file without a name,
//! and the host's tree is exported read-only. What is worth keeping is in the [`cache`].

pub mod agent;
pub mod apt;
pub mod cache;
mod full;
pub mod images;
pub mod initramfs;
pub mod kernel;
mod machine;
pub mod program;
mod session;
pub mod terminal;

use std::path::{Path, PathBuf};

pub use podvm_lab_agent::protocol::{Ended, Ready, Stream, TerminalSize};
pub use session::{LabCommand, RunError, Session};

/// Which machine L1 is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Flavour {
    /// The host's own tree, read-only, under an overlay that is forgotten. Up in seconds.
    #[default]
    Fast,
    /// A Debian with systemd, with the host's tree at `/host`.
    Full,
}

/// The lab's machine, described.
#[derive(Debug, Clone)]
pub struct LabConfig {
    /// Which machine.
    pub flavour: Flavour,
    /// Its memory.
    pub memory_mib: u32,
    /// Its CPUs. One by default: emulated CPUs spend twice the time on waiting for each other, and with more than
    /// one, QEMU's nested virtualization hangs once in some hundred guests.
    pub cpus: u32,
    /// One CPU whose clock counts instructions: one virtual millisecond is 10^6 of them.
    pub icount: bool,
    /// Shows the machine's kernel messages on standard error as they come.
    pub show_console: bool,
}

impl Default for LabConfig {
    fn default() -> Self {
        Self { flavour: Flavour::Fast, memory_mib: 4096, cpus: 1, icount: false, show_console: false }
    }
}

/// Why there is no lab.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A file operation.
    #[error("cannot {what}: {source}")]
    Io {
        /// The operation and its object.
        what: String,
        /// Why.
        source: std::io::Error,
    },
    /// A program that the lab needs is not there.
    #[error("{program} is not installed; `cargo xtask setup` installs what the lab needs")]
    ProgramMissing {
        /// Its name.
        program: String,
    },
    /// A program failed.
    #[error("`{command}` failed ({status}):\n{output}")]
    ProgramFailed {
        /// The command line.
        command: String,
        /// Its exit status.
        status: String,
        /// What it said.
        output: String,
    },
    /// The distribution has no kernel package that the lab knows.
    #[error("no kernel package found (looked for {looked_for}); run `apt-get update`, or use Debian or Ubuntu")]
    NoKernelPackage {
        /// The names.
        looked_for: String,
    },
    /// The kernel package does not hold what it should.
    #[error("{path}: {reason}")]
    BadKernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The machine did not come up.
    #[error("the lab's machine did not come up: {reason}\n--- end of its console ---\n{console}")]
    BootFailed {
        /// What happened instead.
        reason: String,
        /// The end of its kernel messages.
        console: String,
    },
}

impl LabError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// Where commands that need KVM are run.
#[derive(Debug)]
pub enum Lab {
    /// On this host itself.
    Direct,
    /// In an emulated machine.
    Emulated(LabConfig),
}

impl Lab {
    /// This host if its KVM runs guests and we are root, otherwise an emulated machine.
    ///
    /// An instruction count and systemd are only to be had in a machine of the lab's own, so asking for them
    /// chooses it.
    pub fn select(config: LabConfig) -> Self {
        let direct = config.flavour == Flavour::Fast && !config.icount;
        if direct && nix::unistd::geteuid().is_root() && host_runs_guests() {
            Self::Direct
        } else {
            Self::Emulated(config)
        }
    }

    /// Boots the machine, if one is needed, and waits until it takes commands.
    pub fn session(&self) -> Result<Session, LabError> {
        match self {
            Self::Direct => Ok(Session::direct()),
            Self::Emulated(config) => Session::emulated(config),
        }
    }
}

/// Whether this host's `/dev/kvm` is backed by hardware: it opens, and one of the two hardware modules runs it.
///
/// Opening alone proves nothing: `kvm_pvm` opens too, and interprets a guest's kernel until it gives up.
fn host_runs_guests() -> bool {
    let module = |name: &str| Path::new("/sys/module").join(name).exists();
    let opens = std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    opens && (module("kvm_intel") || module("kvm_amd")) && !module("kvm_pvm")
}
