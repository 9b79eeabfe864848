//! Where the guest's port and memory-mapped accesses go. What nobody answers reads as all ones and is
//! ignored when written, as on a PC.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::legacy::{i8042, serial, serial::SerialPort};
use crate::memory::MMIO_HOLE;
use crate::virtio::mmio::{self, MmioTransport};

/// First register window; device `n` has the `n`th.
pub const MMIO_START: u64 = MMIO_HOLE.start + (256 << 20);

/// What an access means for the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// The guest goes on.
    Continue,
    /// The guest has pulsed the reset line.
    Reset,
}

/// Everything that answers accesses, shared by all vCPUs.
pub struct Bus {
    serial: Mutex<SerialPort>,
    transports: Vec<Mutex<MmioTransport>>,
}

impl Bus {
    /// A bus with these devices; transport `n` answers at [`window`]`(n)`.
    pub fn new(serial: SerialPort, transports: Vec<MmioTransport>) -> Self {
        Self { serial: Mutex::new(serial), transports: transports.into_iter().map(Mutex::new).collect() }
    }

    /// The serial port.
    pub fn serial(&self) -> MutexGuard<'_, SerialPort> {
        self.serial.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All transports, in order.
    pub fn transports(&self) -> impl Iterator<Item = MutexGuard<'_, MmioTransport>> {
        self.transports.iter().map(|one| one.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The guest reads from a port. A repeated instruction reads several times.
    pub fn io_read(&self, port: u16, data: &mut [u8]) {
        match port {
            i8042::DATA_PORT | i8042::COMMAND_PORT => data.fill(i8042::IDLE),
            _ => match serial_register(port) {
                Some(register) => data.fill_with(|| self.serial().read(register)),
                None => data.fill(0xff),
            },
        }
    }

    /// The guest writes to a port.
    pub fn io_write(&self, port: u16, data: &[u8]) -> Flow {
        if i8042::is_reset(port, data) {
            return Flow::Reset;
        }
        if let Some(register) = serial_register(port) {
            let mut serial = self.serial();
            data.iter().for_each(|byte| serial.write(register, *byte));
        }
        Flow::Continue
    }

    /// The guest reads where there is no memory.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        match self.transport(address) {
            Some((transport, offset)) => transport.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// The guest writes where there is no memory.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        if let Some((mut transport, offset)) = self.transport(address) {
            transport.write(offset, data);
        }
    }

    fn transport(&self, address: u64) -> Option<(MutexGuard<'_, MmioTransport>, u64)> {
        let offset = address.checked_sub(MMIO_START)?;
        let transport = self.transports.get(usize::try_from(offset / mmio::WINDOW).ok()?)?;
        Some((transport.lock().unwrap_or_else(PoisonError::into_inner), offset % mmio::WINDOW))
    }
}

/// Where transport `index` has its registers.
pub fn window(index: usize) -> u64 {
    MMIO_START + index as u64 * mmio::WINDOW
}

fn serial_register(port: u16) -> Option<u8> {
    let offset = port.checked_sub(serial::BASE_PORT).filter(|offset| *offset < serial::PORTS)?;
    u8::try_from(offset).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::console::{ConsoleLog, ConsoleWriter};
    use vmm_sys_util::eventfd::EventFd;

    fn bus(log: &ConsoleLog) -> Bus {
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        Bus::new(SerialPort::new(line, ConsoleWriter::new(log.clone(), None)), vec![])
    }

    #[test]
    fn unknown_places_read_as_all_ones_and_take_writes() {
        let bus = bus(&ConsoleLog::new());
        let mut data = [0; 4];
        bus.io_read(0xcf8, &mut data);
        assert_eq!(data, [0xff; 4]);
        bus.mmio_read(MMIO_START, &mut data);
        assert_eq!(data, [0xff; 4]);
        bus.mmio_write(u64::MAX, &data);
        assert_eq!(bus.io_write(0x80, &[1]), Flow::Continue);
    }

    #[test]
    fn the_keyboard_controllers_reset_ends_the_machine() {
        assert_eq!(bus(&ConsoleLog::new()).io_write(0x64, &[0xfe]), Flow::Reset);
    }

    #[test]
    fn a_repeated_write_reaches_the_serial_port_byte_by_byte() {
        let log = ConsoleLog::new();
        bus(&log).io_write(0x3f8, b"text\n");
        assert_eq!(log.text(), "text\n");
    }
}
