//! The kvm stage1: a pod turned into a micro-VM.

pub mod gpt;
pub mod writable;
