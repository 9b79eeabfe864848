//! Exit codes of the `podvm` command.
//!
//! A pod's exit code is that of the first app that failed, 0 when none did. An app killed by signal N counts as
//! [`SIGNAL_BASE`] + N, as in every shell. The codes here are podvm's own; they lie where apps seldom exit.

/// podvm itself could not do what was asked (the same code as rkt's).
pub const PODVM_ERROR: u8 = 254;
/// The guest kernel panicked.
pub const GUEST_PANIC: u8 = 240;
/// The guest shut down by a triple fault.
pub const GUEST_TRIPLE_FAULT: u8 = 241;
/// KVM could not go on with the guest (`KVM_EXIT_INTERNAL_ERROR`).
pub const KVM_INTERNAL_ERROR: u8 = 242;
/// The processor refused to enter the guest (`KVM_EXIT_FAIL_ENTRY`).
pub const VM_ENTRY_FAILED: u8 = 243;
/// The walls fell, or the supervisor left, without a report of the apps.
pub const NO_REPORT: u8 = 244;
/// What is added to the number of the signal that killed an app.
pub const SIGNAL_BASE: u8 = 128;
