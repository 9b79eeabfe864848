//! A virtio-mmio device's interrupt line and its status register (virtio 1.2, section 4.2.2).

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// Interrupt reasons in the status register.
const USED_BUFFER: u32 = 1;
const CONFIG_CHANGE: u32 = 2;

/// Raises a device's interrupt. Shared by the device's queues and its transport.
#[derive(Debug)]
pub struct Interrupt {
    reasons: AtomicU32,
    line: EventFd,
}

impl Interrupt {
    /// An interrupt whose line is an eventfd that KVM turns into an IRQ (irqfd).
    ///
    /// # Errors
    /// The error of eventfd(2).
    pub fn new() -> io::Result<Self> {
        let line = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Self { reasons: AtomicU32::new(0), line })
    }

    /// Says that buffers were used.
    pub fn raise_used_buffer(&self) {
        self.raise(USED_BUFFER);
    }

    /// Says that the configuration or the status changed.
    pub fn raise_config_change(&self) {
        self.raise(CONFIG_CHANGE);
    }

    fn raise(&self, reason: u32) {
        self.reasons.fetch_or(reason, Ordering::SeqCst);
        // The only failure of a non-blocking eventfd is a full counter: then an interrupt is pending anyway.
        let _ = self.line.write(1);
    }

    /// The InterruptStatus register.
    pub fn reasons(&self) -> u32 {
        self.reasons.load(Ordering::SeqCst)
    }

    /// The InterruptACK register: clears the reasons in `mask`.
    pub fn acknowledge(&self, mask: u32) {
        self.reasons.fetch_and(!mask, Ordering::SeqCst);
    }

    /// Sets the reasons as they were saved; raises nothing.
    pub fn restore(&self, reasons: u32) {
        self.reasons.store(reasons, Ordering::SeqCst);
    }

    /// The eventfd to register with KVM.
    pub fn line(&self) -> &EventFd {
        &self.line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_add_up_and_are_acknowledged_one_by_one() {
        let interrupt = Interrupt::new().unwrap();
        interrupt.raise_used_buffer();
        interrupt.raise_config_change();
        assert_eq!(interrupt.reasons(), USED_BUFFER | CONFIG_CHANGE);
        assert_eq!(interrupt.line().read().unwrap(), 2);
        interrupt.acknowledge(USED_BUFFER);
        assert_eq!(interrupt.reasons(), CONFIG_CHANGE);
    }
}
