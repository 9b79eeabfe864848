//! What the lab's host end tells PID 1 of its machine, as a JSON file in the initramfs.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where PID 1 finds its plan.
pub const PLAN_PATH: &str = "/plan.json";

/// Where PID 1 leaves a copy of itself for the machine's further life.
pub const AGENT_PATH: &str = "/run/podvm-lab-agent";

/// The 9p tag of the host's own tree.
pub const HOST_TAG: &str = "host";

/// How PID 1 is to set its machine up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootPlan {
    /// Which machine to become.
    pub flavour: FlavourPlan,
    /// The machine's name.
    pub hostname: String,
    /// Module files in the initramfs without which nothing can be mounted, in the order of loading.
    pub first_modules: Vec<PathBuf>,
    /// Module files in the initramfs that are loaded at the same time as those, in the order of loading.
    pub later_modules: Vec<PathBuf>,
}

/// The two kinds of machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FlavourPlan {
    /// The host's own tree under an overlay whose upper layer is on the scratch disk.
    Fast {
        /// The host's directory with the kernel's modules (it holds `modules.dep`).
        modules: PathBuf,
        /// The kernel's release, which names the modules' directory.
        release: String,
    },
    /// A disk with a system of its own, whose init is handed over to.
    Full,
}
