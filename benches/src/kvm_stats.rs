//! What KVM counted for a guest (Linux Documentation/virt/kvm/api.rst, "KVM statistics", as seen in debugfs).

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Serialize;

/// Where KVM's counters of each machine are, in directories named `PID-FD`.
const KVM_DEBUGFS: &str = "/sys/kernel/debug/kvm";

/// Counters of one machine since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct KvmStats {
    /// Times the processor left the guest.
    pub exits: u64,
    /// Nested page faults that KVM handled.
    pub nested_faults: u64,
}

impl KvmStats {
    /// Reads the counters of the machine that this process made.
    ///
    /// # Errors
    /// When debugfs is not mounted or the process has no machine.
    pub fn of_process(pid: u32) -> Result<Self> {
        let directory = directory_of(pid)?;
        let counter = |name: &str| -> Result<u64> {
            let path = directory.join(name);
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            Ok(text.trim().parse()?)
        };
        Ok(Self { exits: counter("exits")?, nested_faults: counter("pf_taken")? })
    }
}

fn directory_of(pid: u32) -> Result<PathBuf> {
    let prefix = format!("{pid}-");
    let entries = fs::read_dir(KVM_DEBUGFS).with_context(|| format!("{KVM_DEBUGFS} is not there; mount debugfs"))?;
    let found = entries.filter_map(|entry| entry.ok()).find(|e| e.file_name().to_string_lossy().starts_with(&prefix));
    found.map(|entry| entry.path()).with_context(|| format!("process {pid} has no virtual machine"))
}
