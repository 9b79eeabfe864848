//! System calls that no library wraps, or not as they are needed here, made safe.

pub mod mount;
pub mod process;
pub mod socket;
