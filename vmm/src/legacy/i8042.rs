//! The keyboard controller, as far as a kernel that reboots needs it: command 0xfe pulses the reset line.

/// Ports the controller answers at.
pub const DATA_PORT: u16 = 0x60;
/// Status when read, command when written.
pub const COMMAND_PORT: u16 = 0x64;

const COMMAND_RESET: u8 = 0xfe;

/// Whether this write asks for a reset of the machine.
pub fn is_reset(port: u16, data: &[u8]) -> bool {
    port == COMMAND_PORT && data == [COMMAND_RESET]
}

/// What a read gives: no data, and buffers that are empty, so that a kernel does not wait for them.
pub const IDLE: u8 = 0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reset_command_resets() {
        assert!(is_reset(0x64, &[0xfe]));
        assert!(!is_reset(0x64, &[0xaa]));
        assert!(!is_reset(0x60, &[0xfe]));
        assert!(!is_reset(0x64, &[0xfe, 0xfe]));
    }
}
