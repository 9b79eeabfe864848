//! The namespace stage1: a pod behind the kernel's namespaces.
//!
//! | module | subject |
//! |---|---|
//! | [`walls`] | the supervisor's process and its namespaces |
//! | [`users`] | the range of the host's user IDs that the pod's are |
//! | [`tree`] | what the pod's filesystem tree is made of |
//! | [`handover`] | how it gets into the namespaces |
//! | [`inside`] | what the process there does before it is the supervisor |
//! | [`mount`], [`loop_device`] | mounts that are in no place yet; files as block devices |
//! | [`cgroup`] | where the pod's cgroup goes, and what is left of it |
//! | [`spec`] | what the supervisor is told |
//!
//! Nothing is mounted where the host can see it: all mounts are made in the pod's own mount namespace, and go with its last
//! process. The supervisor dies with the pod's process (`PR_SET_PDEATHSIG`), and with it, as the first of its PID namespace,
//! everything in the pod. What is left then is the pod's cgroup, which is written down before it is made, and is removed by
//! [`undo`].

pub mod cgroup;
pub mod handover;
pub mod inside;
pub mod loop_device;
pub mod mount;
pub mod spec;
pub mod tree;
pub mod users;
pub mod walls;

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use caps::{CapSet, Capability};
use podvm_net::{Endpoint, LeaseDir, NetworkConfig, NetworkRequest, PodNetwork};
use podvm_pod::client::SupervisorClient;
use podvm_pod::console::Signals;
use podvm_pod::directory::{DirectoryError, PreparedPod, RunningPod};
use podvm_pod::fault::{FaultPoint, reach};
use podvm_pod::manifest::NetworkMode;
use podvm_pod::runner::{PodIo, Runner};
use podvm_pod::status::PodReport;
use podvm_pod::writable::{self, DEFAULT_DISK, WritableError};
use podvm_pod::{PodManifest, PodsRoot, Stage1, Stage1Kind, sockets};

pub use cgroup::undo;

use crate::cgroup::{CgroupError, PodCgroup};
use crate::tree::{TreeError, TreeSource};
use crate::users::{UserRange, UsersError};
use crate::walls::{Supervisor, Walls, WallsError};

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
    /// The pod's users.
    #[error(transparent)]
    Users(#[from] UsersError),
    /// What the pod's filesystem tree is made of.
    #[error(transparent)]
    Tree(#[from] TreeError),
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
    /// Whether this process is an ordinary user's, in a user namespace that it has entered: the host's links, block devices and
    /// cgroups are then not its to make.
    pub is_unprivileged: bool,
}

impl Stage1 for NsStage1 {
    type Error = NsError;

    fn kind(&self) -> Stage1Kind {
        Stage1Kind::Ns
    }

    fn run(&self, pod: PreparedPod) -> Result<PodReport, NsError> {
        let pod = pod.start(Stage1Kind::Ns)?;
        let signals = Signals::block().map_err(NsError::Signals)?;
        let pods = PodsRoot::new(&self.root);
        let leases = LeaseDir::open(pods.leases())?;
        let Standing { supervisor, primary, network, users, cgroup } = self.build(&pod, &pods, &leases)?;
        keep_only_network_privileges()?;
        reach(FaultPoint::PrivilegesDropped);

        let runner = Runner {
            pod: &pod,
            primary,
            supervisor: SupervisorClient::of_pod(pod.dir()),
            io: self.io.clone(),
            signals,
            addresses: addresses(&network),
            walls: Some(supervisor.watch()),
            relayed: Vec::new(),
        };
        let report = runner.run(spec::pod_spec(pod.manifest(), &self.io.sockets, network.spec()));
        supervisor.end();
        reach(FaultPoint::WallsTornDown);
        network.end(&leases);
        reach(FaultPoint::NetworkEnded);
        if let Some(users) = users {
            users.release(&pods);
        }
        drop(cgroup);
        reach(FaultPoint::CgroupRemoved);
        Ok(report)
    }
}

/// Walls that stand, and what the pod holds of the host.
struct Standing {
    supervisor: Arc<Supervisor>,
    primary: UnixStream,
    network: PodNetwork,
    users: Option<UserRange>,
    cgroup: Option<PodCgroup>,
}

impl NsStage1 {
    fn build(&self, pod: &RunningPod, pods: &PodsRoot, leases: &LeaseDir) -> Result<Standing, NsError> {
        let manifest = pod.manifest();
        let writable = self.writable(pod)?;
        let users = manifest.private_users.then(|| UserRange::lease(pods, manifest.uuid)).transpose()?;
        reach(FaultPoint::UsersLeased);
        let cgroup = PodCgroup::make(pod.dir())?;
        if let (Some(cgroup), Some(range)) = (&cgroup, users) {
            cgroup.delegate(range.first)?;
        }
        let place = cgroup.as_ref().map(PodCgroup::supervisor);
        let walls = Walls::build(&self.supervisor, pod, self.is_unprivileged, place, &self.io.sockets)?;
        let mut user_namespace = None;
        if let Some(range) = users {
            range.map(walls.process())?;
            user_namespace = Some(walls.namespace("user")?);
        }
        let network = self.connect(manifest, &walls, leases)?;
        reach(FaultPoint::NetworkMade);
        let source = TreeSource {
            manifest,
            writable: &writable,
            cgroup: cgroup.as_ref().map(PodCgroup::path),
            users: user_namespace.as_ref().map(AsFd::as_fd),
            has_no_devices: self.is_unprivileged || manifest.private_users,
        };
        let parts = source.parts()?;
        let (supervisor, primary) = walls.complete(&parts)?;
        Ok(Standing { supervisor, primary, network, users, cgroup })
    }

    /// Where what the apps write goes: a directory, or a disk where its size is to be bounded or the host's filesystem will not
    /// do. To attach and mount one takes longer than all the rest, and takes root.
    fn writable(&self, pod: &RunningPod) -> Result<PathBuf, NsError> {
        let (manifest, dir) = (pod.manifest(), pod.dir().path());
        let must_be_disk = manifest.resources.disk.is_some() || manifest.private_users || !mount::can_be_upper(dir);
        if self.is_unprivileged || !must_be_disk {
            let directory = dir.join("writable");
            std::fs::create_dir(&directory).map_err(WallsError::Io)?;
            return Ok(directory);
        }
        let disk = dir.join("writable.img");
        let size = manifest.resources.disk.unwrap_or(DEFAULT_DISK);
        writable::create(&disk, size, &self.root.join("templates"))?;
        Ok(disk)
    }

    fn connect(&self, manifest: &PodManifest, walls: &Walls, leases: &LeaseDir) -> Result<PodNetwork, NsError> {
        let namespace = match manifest.network {
            NetworkMode::Host => None,
            NetworkMode::None | NetworkMode::Default => Some(walls.namespace("net")?),
        };
        let request = NetworkRequest {
            is_unprivileged: self.is_unprivileged,
            namespace,
            ports: sockets::forwarded(&manifest.ports, &self.io.sockets),
            ..NetworkRequest::of_pod(manifest, Endpoint::Namespace, &self.network)
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
