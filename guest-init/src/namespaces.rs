//! The walls of namespaces, from inside: the stage1 has made them all and set up the network; layers, writable layers and
//! volumes are directories that are there already.

use std::path::{Path, PathBuf};

use podvm_pod::protocol::NetworkSpec;

use crate::step::{Step, StepError};
use crate::sys::mount::{Detached, MountAttrFlags};
use crate::walls::{Source, Walls};

/// The walls of namespaces.
#[derive(Debug)]
pub struct Namespaces {
    scratch: PathBuf,
    cgroup_root: Option<PathBuf>,
}

impl Namespaces {
    /// Takes the namespaces the calling process is in, which must be the pod's own; mounts the scratch directory at the empty
    /// directory `scratch`. The apps' cgroups are made in `cgroup`, the pod's own, if there is one.
    ///
    /// # Errors
    /// When the mount namespace cannot be changed.
    pub fn enter(scratch: &Path, cgroup: Option<&Path>) -> Result<Self, StepError> {
        use rustix::mount::{MountPropagationFlags, mount_change};
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
            .step(|| "keep the pod's mounts to itself")?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
        Detached::new("tmpfs", &[("size", Some("16m")), ("mode", Some("0700"))], attributes)
            .and_then(|mount| mount.attach_at(scratch))
            .step(|| format!("mount a tmpfs at {}", scratch.display()))?;
        let cgroup_root = cgroup.map(Path::to_owned);
        Ok(Self { scratch: scratch.into(), cgroup_root })
    }
}

impl Walls for Namespaces {
    fn scratch(&self) -> &Path {
        &self.scratch
    }

    fn is_greeted(&self) -> bool {
        true
    }

    fn cgroup_root(&self) -> Option<&Path> {
        self.cgroup_root.as_deref()
    }

    fn has_own_devices(&self) -> bool {
        false
    }

    fn has_mapped_users(&self) -> bool {
        /// The map of a process in the host's own user namespace.
        const WHOLE: [&str; 3] = ["0", "0", "4294967295"];
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        !map.split_whitespace().eq(WHOLE)
    }

    /// The stage1 has set the interfaces up, from outside.
    fn configure_network(&mut self, _: &NetworkSpec) -> Result<(), StepError> {
        Ok(())
    }

    fn mount(&mut self, source: Source<'_>, at: &Path) -> Result<(), StepError> {
        Err(StepError::because(
            format!("mount {source:?} at {}", at.display()),
            "behind namespaces only directories can be used; the stage1 mounts devices at the host",
        ))
    }

    /// What was written is in the host's memory, which outlives the pod. A sync here would be one of the whole host.
    fn settle(&self) {}

    fn leave(&mut self) {}
}
