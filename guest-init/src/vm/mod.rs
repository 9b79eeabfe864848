//! The walls of a VM, from inside: everything that is nobody else's to do there.

mod boot;
mod disk;
mod netlink;
mod network;
mod vsock;

use std::path::Path;

use podvm_pod::protocol::NetworkSpec;

use crate::step::{StepError, note};
use crate::walls::{Connections, Source, Walls};

/// Where the supervisor keeps what is its own.
const SCRATCH: &str = "/run/podvm";
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// The walls of a VM whose first process is the caller.
#[derive(Debug)]
pub struct Vm(());

impl Vm {
    /// Mounts what every Linux has, and connects to the host.
    ///
    /// # Errors
    /// What could not be mounted or connected.
    pub fn boot() -> Result<(Self, Connections), StepError> {
        boot::mount_system(Path::new(SCRATCH))?;
        let listener = vsock::listen()?;
        let primary = vsock::connect()?;
        Ok((Self(()), Connections { primary, listener }))
    }
}

impl Walls for Vm {
    fn scratch(&self) -> &Path {
        Path::new(SCRATCH)
    }

    fn is_greeted(&self) -> bool {
        false
    }

    fn cgroup_root(&self) -> Option<&Path> {
        Some(Path::new(CGROUP_ROOT))
    }

    fn has_own_devices(&self) -> bool {
        true
    }

    fn has_mapped_users(&self) -> bool {
        false
    }

    fn configure_network(&mut self, network: &NetworkSpec) -> Result<(), StepError> {
        network::configure(network)
    }

    fn mount(&mut self, source: Source<'_>, at: &Path) -> Result<(), StepError> {
        disk::mount(source, at)
    }

    fn settle(&self) {
        nix::unistd::sync();
    }

    fn leave(&mut self) {
        power_off()
    }
}

/// Ends the VM. The kernel's command line has it reset by the keyboard controller, which the VMM takes as the end.
pub fn power_off() -> ! {
    nix::unistd::sync();
    let Err(error) = nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_AUTOBOOT);
    note(format_args!("cannot end the VM: {error}"));
    // The end of the first process is a panic of the kernel, which the VMM reports.
    std::process::exit(podvm_pod::exit::PODVM_ERROR.into())
}
