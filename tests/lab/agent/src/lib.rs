//! What the two ends of the lab share: the protocol between them, and running one command.
//!
//! The binary of this crate is the inside of the lab's machine (PID 1 and the agent). The crate `podvm-lab` is its
//! outside; on a host with real KVM it has no inside and runs commands itself, by the same [`process`] module.

pub mod plan;
pub mod process;
pub mod protocol;
