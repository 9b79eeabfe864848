//! The namespace stage1: a pod behind the kernel's namespaces.
//!
//! | module | subject |
//! |---|---|
//! | [`walls`] | the supervisor's process: its namespaces, and what it is told when it cannot start |
//! | [`inside`] | what that process does before it is the supervisor: the pod's own filesystem tree |
//! | [`layer`] | EROFS images as mounts |
//! | [`loop_device`] | files as block devices |
//! | [`cgroup`] | where the pod's cgroup goes, and what is left of it |
//! | [`spec`] | what the supervisor is told |
//!
//! Nothing is mounted where the host can see it: all mounts are made in the pod's own mount namespace, and go with its last
//! process. The supervisor dies with the pod's process (`PR_SET_PDEATHSIG`), and with it, as the first of its PID namespace,
//! everything in the pod. What is left then is the pod's cgroup, which is written down before it is made, and is removed by
//! [`undo`].

pub mod cgroup;
pub mod inside;
pub mod layer;
pub mod loop_device;
pub mod spec;
pub mod walls;

use std::net::IpAddr;
use std::path::PathBuf;

use caps::{CapSet, Capability};
use podvm_net::{Endpoint, LeaseDir, NetworkConfig, NetworkRequest, PodNetwork};
use podvm_pod::client::SupervisorClient;
use podvm_pod::console::Signals;
use podvm_pod::directory::{DirectoryError, PreparedPod, RunningPod};
use podvm_pod::runner::{PodIo, Runner};
use podvm_pod::status::PodReport;
use podvm_pod::writable::WritableError;
use podvm_pod::{PodsRoot, Stage1, Stage1Kind};

pub use cgroup::undo;

use crate::cgroup::{CgroupError, PodCgroup};
use crate::inside::Tree;
use crate::walls::{Walls, WallsError};

/// Why a pod could not be started behind namespaces.
#[derive(Debug, thiserror::Error)]
pub enum NsError {
    /// The pod's directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The pod's network.
    #[error(transparent)]
    Network(#[from] podvm_net::CreateError),
    /// The folder of address leases.
    #[error(transparent)]
    Leases(#[from] podvm_net::LeaseError),
    /// The disk of what the apps write.
    #[error(transparent)]
    Writable(#[from] WritableError),
    /// The pod's cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The walls themselves.
    #[error(transparent)]
    Walls(#[from] WallsError),
    /// Signals could not be redirected.
    #[error("signals cannot be taken in: {0}")]
    Signals(#[source] std::io::Error),
    /// Privileges could not be given up.
    #[error("privileges cannot be given up: {0}")]
    Privileges(String),
}

/// The namespace stage1 and what it needs of the host.
#[derive(Debug)]
pub struct NsStage1 {
    /// The supervisor's program, a static binary.
    pub supervisor: PathBuf,
    /// The folder of podvm's state, usually `/var/lib/podvm`.
    pub root: PathBuf,
    /// Addresses that pods get.
    pub network: NetworkConfig,
    /// How the pod is connected to this process.
    pub io: PodIo,
}

impl Stage1 for NsStage1 {
    type Error = NsError;

    fn kind(&self) -> Stage1Kind {
        Stage1Kind::Ns
    }

    fn run(&self, pod: PreparedPod) -> Result<PodReport, NsError> {
        let pod = pod.start(Stage1Kind::Ns)?;
        let signals = Signals::block().map_err(NsError::Signals)?;
        let leases = LeaseDir::open(PodsRoot::new(&self.root).leases())?;
        let network = self.connect(&pod, &leases)?;
        let cgroup = PodCgroup::make(pod.dir())?;
        let tree = Tree::of_pod(self, &pod, cgroup.as_ref())?;
        let walls = Walls::build(&tree, &pod)?;
        keep_only_network_privileges()?;

        let spec = spec::pod_spec(pod.manifest(), network.spec());
        let runner = Runner {
            pod: &pod,
            primary: walls.primary,
            supervisor: SupervisorClient::of_pod(pod.dir()),
            io: self.io.clone(),
            signals,
            addresses: addresses(&network),
            walls: Some(walls.supervisor.watch()),
        };
        let report = runner.run(spec);
        walls.supervisor.end();
        network.end(&leases);
        drop(cgroup);
        Ok(report)
    }
}

impl NsStage1 {
    fn connect(&self, pod: &RunningPod, leases: &LeaseDir) -> Result<PodNetwork, NsError> {
        let manifest = pod.manifest();
        let request = NetworkRequest {
            mode: manifest.network.clone(),
            ports: manifest.ports.clone(),
            config: self.network.clone(),
            ..NetworkRequest::new(manifest.uuid, Endpoint::Namespace)
        };
        Ok(PodNetwork::create(&request, leases)?)
    }
}

/// Keeps what taking the network down needs. The rest goes: from here on this process only carries streams.
fn keep_only_network_privileges() -> Result<(), NsError> {
    let failed = |error: caps::errors::CapsError| NsError::Privileges(error.to_string());
    let kept = [Capability::CAP_NET_ADMIN].into();
    caps::clear(None, CapSet::Inheritable).map_err(failed)?;
    caps::set(None, CapSet::Effective, &kept).map_err(failed)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(failed)?;
    nix::sys::prctl::set_no_new_privs().map_err(|errno| NsError::Privileges(errno.to_string()))
}

fn addresses(network: &PodNetwork) -> Vec<IpAddr> {
    network.interface().map(|interface| interface.addresses.iter().map(|(ip, _)| *ip).collect()).unwrap_or_default()
}
