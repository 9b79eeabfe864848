//! A machine, from its parts to its end.
//!
//! [`Vm::build`] acquires everything that needs privileges (KVM, memory, files). Then the caller gives up its
//! own. [`Vm::start`] starts one thread per vCPU and per device, each confined to its kind's profile, and
//! gives a [`RunningVm`] to wait for.

pub mod bus;
pub mod config;
pub mod running;
pub mod state;

use std::sync::Arc;
use std::{io, thread};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemory as _, GuestMemoryError, GuestMemoryRegion, MemoryRegionAddress};
use vmm_sys_util::eventfd::EventFd;

use self::bus::Bus;
pub use self::config::{ConsoleSink, Device, VmConfig};
pub use self::running::{RunningVm, VmHandle, VmStats};
pub use self::state::VmState;
use crate::boot::{self, BootError, Entry, mptable};
use crate::devices::pmem::ReadOnlyFiles;
use crate::devices::worker::DeviceLink;
use crate::devices::{DeviceError, DeviceKind};
use crate::legacy::console::{ConsoleLog, ConsoleWriter};
use crate::legacy::serial::{self, SerialPort};
use crate::memory::{self, GuestMemory, MemoryError, SharedMemory};
use crate::persist::{Persist, PersistError};
use crate::probe::{self, ProbeError};
use crate::sandbox::{Sandbox, SandboxError};
use crate::vcpu::cpuid::{self, CpuidHost};
use crate::vcpu::{ExitCounts, Vcpu, VcpuHandle, registers};
use crate::virtio::mmio::{self, MmioTransport};

/// Interrupt line of the first virtio device; the IOAPIC has lines up to 23.
pub const FIRST_DEVICE_IRQ: u32 = 5;

/// Most devices: one interrupt line each.
pub const MAX_DEVICES: usize = mptable::IOAPIC_PINS as usize - FIRST_DEVICE_IRQ as usize;

/// Far below 2 MiB, or the host may give the loader's stack a huge page and clear it first.
const LOADER_STACK_BYTES: usize = 256 << 10;

/// Three pages that KVM needs on Intel CPUs, within the device hole.
const TSS_ADDRESS: usize = 0xfffb_d000;

/// Why a machine could not be built or started.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// KVM cannot be used.
    #[error(transparent)]
    Kvm(#[from] ProbeError),
    /// KVM refused a step.
    #[error("KVM refused {what}")]
    Refused {
        /// The step.
        what: &'static str,
        /// KVM's error.
        #[source]
        source: io::Error,
    },
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The boot files or the command line.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Boot structures could not be written or guest memory found.
    #[error("guest memory is too small for the boot structures")]
    Structures(#[from] GuestMemoryError),
    /// Too many CPUs, or none.
    #[error("{given} CPUs cannot be had; choose 1 to {most}")]
    Vcpus {
        /// The number asked for.
        given: u8,
        /// Most that KVM and the machine support.
        most: usize,
    },
    /// Too many devices.
    #[error("{given} devices are too many; a machine has at most {MAX_DEVICES}")]
    TooManyDevices {
        /// The number asked for.
        given: usize,
    },
    /// The host has no more eventfds.
    #[error("no event descriptor can be made; raise the limit of open files")]
    Event(#[source] io::Error),
    /// The host has no more threads.
    #[error("no thread can be started; raise the limit of processes")]
    Thread(#[source] io::Error),
    /// A saved state does not fit.
    #[error(transparent)]
    State(#[from] PersistError),
    /// A thread cannot be started.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// Turns a KVM error into a named one.
fn refused(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> BuildError {
    move |error| BuildError::Refused { what, source: io::Error::from_raw_os_error(error.errno()) }
}

type DeviceBody = Box<dyn FnOnce() -> Result<(), DeviceError> + Send>;

/// A machine that has everything it needs, and has not run yet.
pub struct Vm {
    fd: VmFd,
    memory: SharedMemory,
    vcpus: Vec<(Vcpu, VcpuHandle)>,
    devices: Vec<(String, DeviceKind, DeviceBody)>,
    bus: Arc<Bus>,
    counts: Arc<ExitCounts>,
    console: ConsoleLog,
    sandbox: Sandbox,
}

impl Vm {
    /// Acquires and sets up everything.
    ///
    /// # Errors
    /// [`BuildError`]; nothing stays behind.
    pub fn build(config: VmConfig) -> Result<Self, BuildError> {
        let kvm = probe::open_kvm()?;
        check_limits(&kvm, &config)?;
        let memory = memory::map_ram(config.memory_bytes)?;
        let memory = memory.with_read_only(config.files.iter().map(ReadOnlyFiles::region))?;
        let mut boot = config.boot;
        boot.command_line.push_str(&device_arguments(config.devices.len()));
        // The host kernel waits for other CPUs while it creates a machine, ten milliseconds or more; kernel and
        // initramfs are loaded meanwhile.
        let (fd, entry) = thread::scope(|scope| {
            let loading = thread::Builder::new().name("loader".into()).stack_size(LOADER_STACK_BYTES);
            let loading = loading.spawn_scoped(scope, || boot::load(&memory, &boot, config.vcpus));
            let fd = create(&kvm);
            let entry = match loading.map_err(BuildError::Thread)?.join() {
                Ok(entry) => entry?,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            Ok::<_, BuildError>((fd?, entry))
        })?;
        drop(boot);
        let parts = Parts::wire(&fd, &memory, config.devices)?;
        let transports = parts.links.into_iter().map(|link| MmioTransport::new(link, memory.clone())).collect();
        let console = ConsoleLog::new();
        let serial = SerialPort::new(parts.serial_line, writer(&console, config.console));
        let bus = Arc::new(Bus::new(serial, transports));
        let set_up = |vcpu: &VcpuFd, cpuid: &CpuId, _id| set_up_vcpu(vcpu, cpuid, &memory, entry);
        let (vcpus, counts) = create_vcpus(&kvm, &fd, config.vcpus, &bus, set_up)?;
        Ok(Self { fd, memory, vcpus, devices: parts.devices, bus, counts, console, sandbox: config.sandbox })
    }

    /// Makes a machine that goes on where a saved one stood. `memory` is the saved machine's, or a copy of it; the
    /// devices are the restored ones ([`Device::restore`]), in the same order. The configuration's boot files are not
    /// used again.
    ///
    /// # Errors
    /// [`BuildError`], among them [`BuildError::State`] if the state does not fit the configuration.
    pub fn restore(config: VmConfig, memory: SharedMemory, state: VmState) -> Result<Self, BuildError> {
        let kvm = probe::open_kvm()?;
        check_limits(&kvm, &config)?;
        let fd = create(&kvm)?;
        state.check_shape(config.vcpus, config.devices.len())?;
        let memory = memory.with_read_only(config.files.iter().map(ReadOnlyFiles::region))?;
        let parts = Parts::wire(&fd, &memory, config.devices)?;
        let VmState { vcpus: vcpu_states, serial, transports, .. } = &state;
        let transports = parts.links.into_iter().zip(transports.iter().cloned());
        let transports = transports
            .map(|(link, state)| MmioTransport::restore(link, memory.clone(), state))
            .collect::<Result<_, _>>()?;
        let console = ConsoleLog::new();
        let serial = SerialPort::restore((parts.serial_line, writer(&console, config.console)), serial.clone())?;
        let bus = Arc::new(Bus::new(serial, transports));
        let set_up = |vcpu: &VcpuFd, _: &CpuId, id: u8| {
            crate::vcpu::state::restore(vcpu, &vcpu_states[usize::from(id)]).map_err(refused("a saved CPU"))
        };
        let (vcpus, counts) = create_vcpus(&kvm, &fd, config.vcpus, &bus, set_up)?;
        state.restore_controllers(&fd)?;
        Ok(Self { fd, memory, vcpus, devices: parts.devices, bus, counts, console, sandbox: config.sandbox })
    }

    /// The guest's memory.
    pub fn memory(&self) -> &SharedMemory {
        &self.memory
    }
}

/// An empty virtual machine with interrupt controllers.
fn create(kvm: &Kvm) -> Result<VmFd, BuildError> {
    let fd = kvm.create_vm().map_err(refused("a virtual machine"))?;
    fd.set_tss_address(TSS_ADDRESS).map_err(refused("the TSS address"))?;
    fd.create_irq_chip().map_err(refused("an interrupt controller"))?;
    Ok(fd)
}

/// Devices and serial port, connected with KVM.
struct Parts {
    links: Vec<DeviceLink>,
    devices: Vec<(String, DeviceKind, DeviceBody)>,
    serial_line: EventFd,
}

impl Parts {
    fn wire(fd: &VmFd, memory: &SharedMemory, devices: Vec<Device>) -> Result<Self, BuildError> {
        register_memory(fd, memory)?;
        let (links, devices) = split_devices(devices);
        for (index, link) in links.iter().enumerate() {
            wire_device(fd, index, link)?;
        }
        Ok(Self { links, devices, serial_line: serial_line(fd)? })
    }
}

fn writer(console: &ConsoleLog, sink: Option<ConsoleSink>) -> ConsoleWriter {
    ConsoleWriter::new(console.clone(), sink.map(|ConsoleSink(sink)| sink))
}

fn check_limits(kvm: &Kvm, config: &VmConfig) -> Result<(), BuildError> {
    let most = kvm.get_max_vcpus().min(mptable::MAX_VCPUS.into());
    if config.vcpus == 0 || usize::from(config.vcpus) > most {
        return Err(BuildError::Vcpus { given: config.vcpus, most });
    }
    if config.devices.len() > MAX_DEVICES {
        return Err(BuildError::TooManyDevices { given: config.devices.len() });
    }
    Ok(())
}

fn register_memory(fd: &VmFd, memory: &SharedMemory) -> Result<(), BuildError> {
    for (slot, region) in memory.readable().iter().enumerate() {
        let region = kvm_userspace_memory_region {
            slot: slot as u32,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.get_host_address(MemoryRegionAddress(0))? as u64,
            flags: if region.is_read_only() { KVM_MEM_READONLY } else { 0 },
        };
        // SAFETY: the region is mapped as long as the machine holds its memory, which it drops after the
        // VM's descriptor; slots do not overlap.
        unsafe { fd.set_user_memory_region(region) }.map_err(refused("guest memory"))?;
    }
    Ok(())
}

/// What tells the kernel where its devices are.
fn device_arguments(count: usize) -> String {
    let device = |index: usize| {
        format!(" virtio_mmio.device=4K@{:#x}:{}", bus::window(index), FIRST_DEVICE_IRQ as usize + index)
    };
    (0..count).map(device).collect()
}

fn split_devices(devices: Vec<Device>) -> (Vec<DeviceLink>, Vec<(String, crate::devices::DeviceKind, DeviceBody)>) {
    devices
        .into_iter()
        .enumerate()
        .map(|(index, device)| {
            let kind = device.link.kind;
            (device.link, (format!("{}{index}", kind.name()), kind, device.run))
        })
        .unzip()
}

/// Connects a device's interrupt line and its queues' kicks with KVM.
fn wire_device(fd: &VmFd, index: usize, link: &DeviceLink) -> Result<(), BuildError> {
    fd.register_irqfd(link.interrupt.line(), FIRST_DEVICE_IRQ + index as u32)
        .map_err(refused("a device's interrupt"))?;
    let notify = IoEventAddress::Mmio(bus::window(index) + mmio::QUEUE_NOTIFY);
    for (queue, kick) in (0_u32..).zip(&link.kicks) {
        fd.register_ioevent(kick, &notify, queue).map_err(refused("a device's notifications"))?;
    }
    Ok(())
}

fn serial_line(fd: &VmFd) -> Result<EventFd, BuildError> {
    let line = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(BuildError::Event)?;
    fd.register_irqfd(&line, serial::IRQ).map_err(refused("the serial port's interrupt"))?;
    Ok(line)
}

/// CPUs with their handles, and the counters they share.
type Vcpus = (Vec<(Vcpu, VcpuHandle)>, Arc<ExitCounts>);

/// Creates the CPUs; `set_up` gives each its state.
fn create_vcpus(
    kvm: &Kvm,
    fd: &VmFd,
    count: u8,
    bus: &Arc<Bus>,
    set_up: impl Fn(&VcpuFd, &CpuId, u8) -> Result<(), BuildError>,
) -> Result<Vcpus, BuildError> {
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(refused("its list of CPU features"))?;
    let host = CpuidHost { tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer) };
    let msrs = kvm.get_msr_index_list().map_err(refused("its list of MSRs"))?;
    let msr_indices: Arc<[u32]> = msrs.as_slice().into();
    let counts: Arc<ExitCounts> = Arc::default();
    let create = |id: u8| {
        let vcpu = fd.create_vcpu(id.into()).map_err(refused("a CPU"))?;
        let cpuid = CpuId::from_entries(&cpuid::for_vcpu(&supported, host, id, count)).map_err(too_long)?;
        set_up(&vcpu, &cpuid, id)?;
        Ok(Vcpu::new(id, vcpu, Arc::clone(bus), Arc::clone(&counts), Arc::clone(&msr_indices)))
    };
    let vcpus = (0..count).map(create).collect::<Result<_, BuildError>>()?;
    Ok((vcpus, counts))
}

/// A list that is longer than KVM takes.
fn too_long(_: vmm_sys_util::fam::Error) -> BuildError {
    refused("the CPU's features")(kvm_ioctls::Error::new(libc::E2BIG))
}

/// Sets a CPU's registers. CPUs after the first wait for the guest to start them, whatever these hold.
fn set_up_vcpu(vcpu: &VcpuFd, cpuid: &CpuId, memory: &GuestMemory, entry: Entry) -> Result<(), BuildError> {
    vcpu.set_cpuid2(cpuid).map_err(refused("the CPU's features"))?;
    let msrs = registers::msrs().map_err(too_long)?;
    vcpu.set_msrs(&msrs).map_err(refused("the CPU's MSRs"))?;
    vcpu.set_fpu(&registers::fpu()).map_err(refused("the CPU's FPU"))?;
    if let Some(xcrs) = registers::extended_state(cpuid.as_slice()) {
        vcpu.set_xcrs(&xcrs).map_err(refused("the CPU's extended state"))?;
    }
    let mut lapic = vcpu.get_lapic().map_err(refused("the CPU's APIC"))?;
    registers::wire_interrupt_pins(&mut lapic);
    vcpu.set_lapic(&lapic).map_err(refused("the CPU's APIC"))?;
    let mut sregs = vcpu.get_sregs().map_err(refused("the CPU's segments"))?;
    registers::set_up_system(&mut sregs, entry, memory)?;
    vcpu.set_sregs(&sregs).map_err(refused("the CPU's segments"))?;
    vcpu.set_regs(&registers::general(entry)).map_err(refused("the CPU's registers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_told_of_every_device() {
        assert_eq!(device_arguments(0), "");
        assert_eq!(device_arguments(2), " virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6");
    }

    #[test]
    fn the_last_device_has_the_last_interrupt_line() {
        assert!(device_arguments(MAX_DEVICES).ends_with(":23"));
    }
}
