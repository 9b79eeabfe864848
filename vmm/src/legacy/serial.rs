//! The serial port ttyS0: a 16550 from vm-superio whose output goes to the [console](super::console).

use std::io;

use serde::{Deserialize, Serialize};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use super::console::ConsoleWriter;
use crate::persist::{Persist, PersistError};

/// First of the port's eight I/O ports.
pub const BASE_PORT: u16 = 0x3f8;
/// How many I/O ports it has.
pub const PORTS: u16 = 8;
/// Its interrupt line.
pub const IRQ: u32 = 4;

/// Raises the port's interrupt.
struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The serial port.
pub struct SerialPort {
    serial: Serial<Line, NoEvents, ConsoleWriter>,
}

impl SerialPort {
    /// A port that interrupts through `line` and writes to `console`.
    pub fn new(line: EventFd, console: ConsoleWriter) -> Self {
        Self { serial: Serial::new(Line(line), console) }
    }

    /// The guest reads register `offset`.
    pub fn read(&mut self, offset: u8) -> u8 {
        self.serial.read(offset)
    }

    /// The guest writes register `offset`.
    pub fn write(&mut self, offset: u8, value: u8) {
        // Errors are a full interrupt counter, or input that overflows in loopback: the guest's own loss.
        let _ = self.serial.write(offset, value);
    }
}

/// The port's registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialPortState {
    divisor: [u8; 2],
    interrupt: [u8; 2],
    line: [u8; 2],
    modem: [u8; 2],
    scratch: u8,
    input: Vec<u8>,
}

impl Persist for SerialPort {
    type State = SerialPortState;
    type Args = (EventFd, ConsoleWriter);

    fn save(&self) -> SerialPortState {
        let s = self.serial.state();
        SerialPortState {
            divisor: [s.baud_divisor_low, s.baud_divisor_high],
            interrupt: [s.interrupt_enable, s.interrupt_identification],
            line: [s.line_control, s.line_status],
            modem: [s.modem_control, s.modem_status],
            scratch: s.scratch,
            input: s.in_buffer,
        }
    }

    fn restore((line, console): Self::Args, state: SerialPortState) -> Result<Self, PersistError> {
        let raw = SerialState {
            baud_divisor_low: state.divisor[0],
            baud_divisor_high: state.divisor[1],
            interrupt_enable: state.interrupt[0],
            interrupt_identification: state.interrupt[1],
            line_control: state.line[0],
            line_status: state.line[1],
            modem_control: state.modem[0],
            modem_status: state.modem[1],
            scratch: state.scratch,
            in_buffer: state.input,
        };
        let serial = Serial::from_state(&raw, Line(line), NoEvents, console)
            .map_err(|error| PersistError::Invalid { what: "the serial port", why: error.to_string() })?;
        Ok(Self { serial })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::console::ConsoleLog;

    fn line() -> EventFd {
        EventFd::new(libc::EFD_NONBLOCK).unwrap()
    }

    #[test]
    fn what_the_guest_writes_is_kept() {
        let log = ConsoleLog::new();
        let mut port = SerialPort::new(line(), ConsoleWriter::new(log.clone(), None));
        for byte in b"hello\n" {
            port.write(0, *byte);
        }
        assert_eq!(log.last_line().unwrap(), "hello");
    }

    #[test]
    fn registers_survive_the_round_trip() {
        let writer = || ConsoleWriter::new(ConsoleLog::new(), None);
        let mut port = SerialPort::new(line(), writer());
        port.write(1, 0x05);
        port.write(7, 0x42);
        let state = port.save();
        let mut again = SerialPort::restore((line(), writer()), state.clone()).unwrap();
        assert_eq!(again.save(), state);
        assert_eq!(again.read(7), 0x42);
    }
}
