//! The pod manifest: what was asked for, whole and explicit, as stage0 resolved it from flags and images.
//!
//! Written once as `manifest.json` into the pod directory, never changed afterwards. Both stage1s and the
//! supervisor work from it alone.

mod app;
mod health;
mod isolator;
mod name;
mod names;
mod port;
mod quantity;
mod rlimit;
mod seccomp;
mod volume;

pub use app::{App, AppImage, EnvironmentVariable, UserSpec};
pub use health::{HealthCheck, RestartError, RestartPolicy};
pub use isolator::{Capability, Isolators};
pub use name::{AppName, NameError, VolumeName};
pub use names::{DnsChoice, DnsSettings, DnsSource, DnsWord, HostsChoice, HostsEntry, is_host_name};
pub use port::{PortError, PortRequest, Protocol, PublishedPort};
pub use quantity::{ByteSize, CpuLimit, QuantityError};
pub use rlimit::{RESOURCES, Rlimit, RlimitError};
pub use seccomp::{Seccomp, SeccompAction, SeccompError};
pub use volume::{Mount, Volume, VolumeError, VolumeKind};

use std::path::Path;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Version of the manifest's form. A reader refuses a newer one and reads every older one.
pub const MANIFEST_VERSION: u32 = 1;

/// A whole pod as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodManifest {
    /// Form of this manifest, [`MANIFEST_VERSION`] when written by this program.
    pub version: u32,
    /// The pod's name for life.
    pub uuid: Uuid,
    /// When the pod was prepared, in seconds since the Unix epoch.
    pub created: u64,
    /// Hostname inside the pod.
    pub hostname: String,
    /// The apps, in the order given. All start together.
    pub apps: Vec<App>,
    /// Volumes that apps may mount, each named once.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// Ports of the pod that are reachable at the host.
    #[serde(default)]
    pub ports: Vec<PublishedPort>,
    /// Which network the pod is part of.
    #[serde(default)]
    pub network: NetworkMode,
    /// Whether the pod's users are, at the host, others than the host's own. In a VM they are anyway.
    #[serde(default)]
    pub private_users: bool,
    /// Its name service.
    #[serde(default)]
    pub dns: DnsSettings,
    /// Lines of `/etc/hosts` beside those for localhost and the pod itself.
    #[serde(default)]
    pub hosts: Vec<HostsEntry>,
    /// Whose System V and POSIX shared memory, semaphores and message queues its apps use.
    #[serde(default)]
    pub ipc: IpcMode,
    /// What the pod as a whole may use.
    pub resources: PodResources,
}

impl PodManifest {
    /// All layers of the pod's apps, each once, in the order of the apps.
    pub fn distinct_layers(&self) -> Vec<&Path> {
        let mut layers: Vec<&Path> = Vec::new();
        for layer in self.apps.iter().flat_map(|app| &app.image.layers) {
            if !layers.contains(&layer.as_path()) {
                layers.push(layer);
            }
        }
        layers
    }

    /// The volume of that name, if the pod has one.
    pub fn volume(&self, name: &VolumeName) -> Option<&Volume> {
        self.volumes.iter().find(|volume| &volume.name == name)
    }
}

/// Which network a pod is part of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkMode {
    /// podvm's own: an address of the pod's own behind the host, with port forwards.
    #[default]
    Default,
    /// Only loopback.
    None,
    /// The host's own network, unshared by nothing; only where the walls are namespaces.
    Host,
}

/// Whose shared memory, semaphores and message queues a pod's apps use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IpcMode {
    /// The pod's own, which its apps share.
    #[default]
    Private,
    /// The host's; only where the walls are namespaces.
    Host,
}

/// What a pod as a whole may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodResources {
    /// Memory of the VM, or the limit on the pod's cgroup.
    pub memory: ByteSize,
    /// Virtual CPUs of the VM, or the width of the pod's cgroup; at least 1.
    pub cpus: u32,
    /// Size of the writable layer that all apps of the pod share; it takes room only as it is filled. When none, a VM has
    /// [`crate::writable::DEFAULT_DISK`], and what is written behind namespaces is not bounded.
    #[serde(default)]
    pub disk: Option<ByteSize>,
}
