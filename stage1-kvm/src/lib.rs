//! The kvm stage1: a pod turned into a micro-VM.
//!
//! | module | subject |
//! |---|---|
//! | [`machine`] | the pod's devices: disks, shared directories, network card, sockets |
//! | [`layers`] | how image layers come into the VM: as memory or as a disk |
//! | [`gpt`] | the layers of all apps as one device |
//! | [`spec`] | what the supervisor in the VM is told |
//! | [`sandbox`] | what the process gives up before the guest runs |
//! | [`profile`] | what its main thread may still do |
//! | [`fall`] | how a VM that ended by itself is reported |
//!
//! The order in [`KvmStage1::run`] is the design: first everything that takes privileges, then none are left, then the
//! guest runs.

pub mod fall;
pub mod gpt;
pub mod layers;
pub mod machine;
pub mod profile;
pub mod sandbox;
pub mod spec;

use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use podvm_net::{Endpoint, LeaseDir, NetworkConfig, NetworkRequest, PodNetwork};
use podvm_pod::client::SupervisorClient;
use podvm_pod::console::Signals;
use podvm_pod::directory::{DirectoryError, PreparedPod, RunningPod};
use podvm_pod::fault::{FaultPoint, reach};
use podvm_pod::manifest::{IpcMode, NetworkMode};
use podvm_pod::protocol::REQUEST_PORT;
use podvm_pod::runner::{PodIo, Runner};
use podvm_pod::status::PodReport;
use podvm_pod::{PodsRoot, Stage1, Stage1Kind, exit, sockets};
use podvm_vmm::devices::vsock::VsockConnector;
use podvm_vmm::machine::{BuildError, Vm};
use podvm_vmm::sandbox::Confinement;

pub use podvm_vmm::probe::{ProbeError, probe};

use crate::layers::{LayerAccess, Way};
use crate::machine::{Machine, MachineError};

/// Why a pod could not be started in a VM.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The pod's directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The pod wants the host's network.
    #[error("a VM cannot share the host's network; use --net=default with --port, or --stage1=ns")]
    HostNetwork,
    /// The pod wants the host's shared memory.
    #[error("a VM cannot share the host's memory and semaphores; leave out --ipc=host, or use --stage1=ns")]
    HostIpc,
    /// The pod was started with sockets that a VM cannot have.
    #[error(transparent)]
    Sockets(#[from] sockets::SocketError),
    /// The pod's network.
    #[error(transparent)]
    Network(#[from] podvm_net::CreateError),
    /// The folder of address leases.
    #[error(transparent)]
    Leases(#[from] podvm_net::LeaseError),
    /// The machine's parts.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The machine itself.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// Signals could not be redirected.
    #[error("signals cannot be taken in: {0}")]
    Signals(#[source] std::io::Error),
}

/// The kvm stage1 and what it needs of the host.
#[derive(Debug)]
pub struct KvmStage1 {
    /// The guest kernel.
    pub kernel: PathBuf,
    /// An initramfs whose `/init` is the supervisor.
    pub initramfs: PathBuf,
    /// The folder of podvm's state, usually `/var/lib/podvm`.
    pub root: PathBuf,
    /// Addresses that pods get.
    pub network: NetworkConfig,
    /// How the pod is connected to this process.
    pub io: PodIo,
    /// How image layers come into the VM.
    pub layers: LayerAccess,
    /// Whether this process is an ordinary user's, who has no privilege over the host's network.
    pub is_unprivileged: bool,
}

impl Stage1 for KvmStage1 {
    type Error = KvmError;

    fn kind(&self) -> Stage1Kind {
        Stage1Kind::Kvm
    }

    fn run(&self, pod: PreparedPod) -> Result<PodReport, KvmError> {
        let pod = pod.start(Stage1Kind::Kvm)?;
        let privileged = self.acquire(&pod)?;
        Ok(privileged.run(&pod, self.io.clone()))
    }
}

impl KvmStage1 {
    /// Acquires everything that takes privileges, and leaves no trace outside the pod's directory when it fails.
    fn acquire(&self, pod: &RunningPod) -> Result<Privileged, KvmError> {
        let signals = Signals::block().map_err(KvmError::Signals)?;
        sandbox::raise_open_files_limit();
        let network = self.connect(pod)?;
        reach(FaultPoint::NetworkMade);
        let machine = Machine::of_pod(self, pod, &network)?;
        let Machine { config, layers, connector, primary } = machine;
        reach(FaultPoint::MachineMade);
        let vm = Vm::build(config)?;
        reach(FaultPoint::MachineBuilt);
        Ok(Privileged { network, vm, layers, connector, primary, signals })
    }

    fn connect(&self, pod: &RunningPod) -> Result<PodNetwork, KvmError> {
        let manifest = pod.manifest();
        if manifest.network == NetworkMode::Host {
            return Err(KvmError::HostNetwork);
        }
        if manifest.ipc == IpcMode::Host {
            return Err(KvmError::HostIpc);
        }
        sockets::check_for_vm(&self.io.sockets)?;
        let request = NetworkRequest {
            is_unprivileged: self.is_unprivileged,
            ports: sockets::forwarded(&manifest.ports, &self.io.sockets),
            ..NetworkRequest::of_pod(manifest, Endpoint::Vm, &self.network)
        };
        let leases = LeaseDir::open(PodsRoot::new(&self.root).leases())?;
        Ok(PodNetwork::create(&request, &leases)?)
    }
}

/// All that took privileges to get.
struct Privileged {
    network: PodNetwork,
    vm: Vm,
    layers: Way,
    connector: VsockConnector,
    primary: UnixStream,
    signals: Signals,
}

impl Privileged {
    /// Gives up the privileges, starts the guest and runs the pod in it.
    fn run(self, pod: &RunningPod, io: PodIo) -> PodReport {
        let Self { network, vm, layers, connector, primary, signals } = self;
        let relayed = io.sockets.clone();
        let spec = spec::pod_spec(pod.manifest(), layers, &relayed, network.spec());
        let addresses = addresses(&network);
        let started = sandbox::leave_host_root(pod.dir().path())
            .and_then(|()| sandbox::forbid_tracing())
            .map_err(whole_chain)
            .inspect(|()| reach(FaultPoint::RootLeft))
            .and_then(|()| vm.start().map_err(whole_chain))
            .inspect(|_| reach(FaultPoint::MachineStarted))
            .and_then(|running| match Confinement::of(&profile::MAIN).apply() {
                Ok(()) => Ok(running),
                Err(error) => Err(whole_chain(error)),
            });
        let running = match started {
            Ok(running) => running,
            Err(message) => return recorded(pod, PodReport::failure(exit::PODVM_ERROR, message)),
        };
        let handle = running.handle();
        let supervisor = SupervisorClient::new(move || connector.connect(REQUEST_PORT));
        let walls = Box::new(move || fall::report(&running.wait()));
        let runner = Runner { pod, primary, supervisor, io, signals, addresses, walls: Some(walls), relayed };
        let report = runner.run(spec);
        handle.stop();
        reach(FaultPoint::WallsTornDown);
        report
    }
}

/// An error with the errors behind it, as one line.
fn whole_chain(error: impl std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        line = format!("{line}: {error}");
        source = error.source();
    }
    line
}

fn recorded(pod: &RunningPod, report: PodReport) -> PodReport {
    let now = podvm_pod::timestamp::Timestamp::now().seconds();
    if let Err(error) = pod.record_exit(now, &report) {
        eprintln!("podvm: the pod's end cannot be recorded: {error}");
    }
    report
}

fn addresses(network: &PodNetwork) -> Vec<IpAddr> {
    network.interface().map(|interface| interface.addresses.iter().map(|(ip, _)| *ip).collect()).unwrap_or_default()
}
