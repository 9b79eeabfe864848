//! The few PC devices a kernel meets before virtio: a serial port and the keyboard controller's reset line.

pub mod console;
pub mod i8042;
pub mod serial;
