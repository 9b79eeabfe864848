//! The limits that podvm keeps when it boots a guest of 256 MiB, in the lab's virtual time.

use crate::monitor::Figures;

/// Most of QEMU's time to init that podvm takes.
const MOST_OF_QEMU: f64 = 0.50;
/// Most virtual milliseconds from exec to init.
const MOST_MS: f64 = 120.0;
/// Most KiB resident beside the guest's memory.
const MOST_KIB: u64 = 3 * 1024;
/// Most nested page faults.
const MOST_FAULTS: u64 = 999;

/// One promise and what was measured.
#[derive(Debug)]
pub struct Promise {
    /// What is promised.
    pub text: String,
    /// What was measured.
    pub measured: String,
    /// Whether it is kept.
    pub kept: bool,
}

/// All promises of a run.
#[derive(Debug)]
pub struct Promises(pub Vec<Promise>);

impl Promises {
    /// Holds podvm's figures against the limits.
    pub fn of(podvm: &Figures, qemu: &Figures) -> Self {
        let (own, peer) = (&podvm.fastest, &qemu.fastest);
        let ratio = own.exec_to_init_ms / peer.exec_to_init_ms;
        Self(vec![
            Promise {
                text: format!("exec to init at most {MOST_OF_QEMU:.2} of QEMU's"),
                measured: format!("{ratio:.2}"),
                kept: ratio <= MOST_OF_QEMU,
            },
            Promise {
                text: format!("exec to init at most {MOST_MS:.0} virtual ms"),
                measured: format!("{:.1}", own.exec_to_init_ms),
                kept: own.exec_to_init_ms <= MOST_MS,
            },
            Promise {
                text: format!("at most {MOST_KIB} KiB resident beside the guest"),
                measured: own.beyond_guest_kib.to_string(),
                kept: own.beyond_guest_kib <= MOST_KIB,
            },
            Promise {
                text: format!("at most {MOST_FAULTS} nested page faults"),
                measured: own.kvm.nested_faults.to_string(),
                kept: own.kvm.nested_faults <= MOST_FAULTS,
            },
        ])
    }

    /// Whether every one is kept.
    pub fn all_kept(&self) -> bool {
        self.0.iter().all(|promise| promise.kept)
    }
}
