//! The state of a whole machine, all but its memory.

use kvm_bindings::{
    KVM_CLOCK_TSC_STABLE, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data,
    kvm_irqchip,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use super::bus::Bus;
use crate::legacy::serial::SerialPortState;
use crate::persist::{Persist, PersistError};
use crate::vcpu::state::VcpuState;
use crate::vcpu::{VcpuCommand, VcpuHandle};
use crate::virtio::mmio::TransportState;

/// The interrupt controllers KVM emulates for the machine.
const IRQ_CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// A machine's state.
#[derive(Debug, Serialize, Deserialize)]
pub struct VmState {
    pub(super) vcpus: Vec<VcpuState>,
    irq_chips: Vec<kvm_irqchip>,
    clock: kvm_clock_data,
    pub(super) serial: SerialPortState,
    pub(super) transports: Vec<TransportState>,
}

impl VmState {
    /// The devices' states, in order; each is for [`super::Device::restore`].
    pub fn transports(&self) -> &[TransportState] {
        &self.transports
    }

    /// Checks that there are as many CPUs and devices as a configuration has.
    pub(super) fn check_shape(&self, vcpus: u8, devices: usize) -> Result<(), PersistError> {
        let (saved_vcpus, saved_devices) = (self.vcpus.len(), self.transports.len());
        if (saved_vcpus, saved_devices) == (usize::from(vcpus), devices) {
            return Ok(());
        }
        Err(PersistError::Invalid {
            what: "the machine",
            why: format!(
                "it has {saved_vcpus} CPUs and {saved_devices} devices, the configuration {vcpus} and {devices}"
            ),
        })
    }

    /// Writes the interrupt controllers and the clock back.
    pub(super) fn restore_controllers(&self, fd: &VmFd) -> Result<(), PersistError> {
        for chip in &self.irq_chips {
            fd.set_irqchip(chip).map_err(invalid("an interrupt controller"))?;
        }
        fd.set_clock(&self.clock).map_err(invalid("the clock"))
    }
}

/// Collects the state of a paused machine.
pub(super) fn save(fd: &VmFd, vcpus: &[VcpuHandle], bus: &Bus) -> Result<VmState, PersistError> {
    let mut clock = fd.get_clock().map_err(invalid("the clock"))?;
    // The flag is only ever read from KVM; writing it back is an error.
    clock.flags &= !KVM_CLOCK_TSC_STABLE;
    Ok(VmState {
        vcpus: vcpus.iter().map(save_vcpu).collect::<Result<_, _>>()?,
        irq_chips: IRQ_CHIPS.into_iter().map(|id| save_irq_chip(fd, id)).collect::<Result<_, _>>()?,
        clock,
        serial: bus.serial().save(),
        transports: bus.transports().map(|transport| transport.save()).collect::<Result<_, _>>()?,
    })
}

fn save_vcpu(vcpu: &VcpuHandle) -> Result<VcpuState, PersistError> {
    let ended = || PersistError::Invalid { what: "a CPU", why: "its thread has ended".into() };
    vcpu.ask(VcpuCommand::Save).ok_or_else(ended)?.map_err(invalid("a CPU"))
}

fn save_irq_chip(fd: &VmFd, chip_id: u32) -> Result<kvm_irqchip, PersistError> {
    let mut chip = kvm_irqchip { chip_id, ..Default::default() };
    fd.get_irqchip(&mut chip).map_err(invalid("an interrupt controller"))?;
    Ok(chip)
}

fn invalid(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> PersistError {
    move |error| PersistError::Invalid { what, why: error.to_string() }
}
