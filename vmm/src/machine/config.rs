//! What a machine is made of.

use std::fmt;
use std::io;

use vm_memory::GuestAddress;

use crate::boot::{BootFile, BootSource};
use crate::devices::pmem::{Pmem, ReadOnlyFiles};
use crate::devices::worker::{DeviceLink, DeviceWorker};
use crate::devices::{DeviceError, VirtioDevice};
use crate::legacy::console::Sink;
use crate::memory::MMIO_HOLE;
use crate::persist::{self, PersistError};
use crate::sandbox::Sandbox;
use crate::virtio::mmio::TransportState;

/// Kernel arguments that fit this machine: the serial console is quiet but for panics, a panic or a reboot resets at
/// once through the keyboard controller, nothing is probed for that is not there, what does not pay in a small machine
/// is left out, and boot allocates upwards from the kernel (`movable_node`), so that it touches few huge pages.
/// `kernel-config/README.md` has a line on each.
pub const BASE_COMMAND_LINE: &str = "console=ttyS0 quiet reboot=k panic=-1 noreplace-smp movable_node swiotlb=noforce \
    dummy.numdummies=0 rcupdate.rcu_expedited=1 8250.nr_uarts=1 i8042.noaux i8042.nomux i8042.dumbkbd random.trust_cpu=on";

/// A machine to be built.
#[derive(Debug)]
pub struct VmConfig {
    /// Size of guest memory in bytes; whole pages.
    pub memory_bytes: u64,
    /// Number of CPUs, 1 to [`crate::boot::mptable::MAX_VCPUS`].
    pub vcpus: u8,
    /// Kernel, initramfs, command line. The machine appends its devices to the command line.
    pub boot: BootSource,
    /// The devices; the guest finds them in this order (`/dev/vda` is the first block device).
    pub devices: Vec<Device>,
    /// Files that are mapped into the guest; each has a device ([`Self::add_pmem`]).
    pub files: Vec<ReadOnlyFiles>,
    /// Where console output also goes; it is kept for messages in any case.
    pub console: Option<ConsoleSink>,
    /// Whether the machine's threads are confined.
    pub sandbox: Sandbox,
}

impl VmConfig {
    /// A machine with one CPU and no devices, with [`BASE_COMMAND_LINE`].
    pub fn new(kernel: BootFile, memory_bytes: u64) -> Self {
        Self {
            memory_bytes,
            vcpus: 1,
            boot: BootSource { kernel, initramfs: None, command_line: BASE_COMMAND_LINE.to_owned() },
            devices: Vec::new(),
            files: Vec::new(),
            console: None,
            sandbox: Sandbox::On,
        }
    }

    /// Adds a device.
    ///
    /// # Errors
    /// The host's error, if it has no more file descriptors.
    pub fn add_device<D: VirtioDevice>(&mut self, device: D) -> io::Result<()> {
        self.devices.push(Device::new(device)?);
        Ok(())
    }

    /// Adds files that are mapped into the guest, made by [`ReadOnlyFiles::map`] at [`Self::free_address`], and their
    /// device.
    ///
    /// # Errors
    /// The host's error, if it has no more file descriptors.
    pub fn add_pmem(&mut self, files: ReadOnlyFiles) -> io::Result<()> {
        self.files.push(files.clone());
        self.add_device(Pmem::new(files))
    }

    /// Where the guest has neither RAM nor devices nor files yet: a whole GiB from 4 GiB on.
    pub fn free_address(&self) -> GuestAddress {
        let ram_end = MMIO_HOLE.end + self.memory_bytes.saturating_sub(MMIO_HOLE.start);
        let files_end = self.files.iter().map(|files| files.end().0).max().unwrap_or(0);
        GuestAddress(ram_end.max(files_end).next_multiple_of(1 << 30))
    }

    /// Appends arguments to the kernel's command line.
    pub fn append_command_line(&mut self, arguments: &str) {
        if !arguments.is_empty() {
            self.boot.command_line.push(' ');
            self.boot.command_line.push_str(arguments);
        }
    }
}

/// A writer for console output.
pub struct ConsoleSink(pub Sink);

impl fmt::Debug for ConsoleSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConsoleSink")
    }
}

/// Why a device could not be made again.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Its state.
    #[error(transparent)]
    State(#[from] PersistError),
    /// The host's resources.
    #[error("a device's event descriptors cannot be made; raise the limit of open files")]
    Events(#[from] io::Error),
}

/// A device of any type, in its worker, ready for its thread.
pub struct Device {
    pub(super) run: Box<dyn FnOnce() -> Result<(), DeviceError> + Send>,
    pub(super) link: DeviceLink,
}

impl Device {
    /// Wraps a device.
    ///
    /// # Errors
    /// The host's error, if it has no more file descriptors.
    pub fn new<D: VirtioDevice>(device: D) -> io::Result<Self> {
        let (worker, link) = DeviceWorker::new(device)?;
        Ok(Self { run: Box::new(move || worker.run()), link })
    }

    /// Makes a device again from its part of a [`super::VmState`] and what the host provides anew.
    ///
    /// # Errors
    /// [`RestoreError`] if the state is damaged or of another device, or file descriptors run out.
    pub fn restore<D: VirtioDevice>(args: D::Args, state: &TransportState) -> Result<Self, RestoreError> {
        let device = D::restore(args, persist::decode(&state.device().device)?)?;
        Ok(Self::new(device)?)
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Device").field(&self.link.kind).finish()
    }
}
