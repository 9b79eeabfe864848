//! The pod's machine: its memory, its CPUs, and a device for each thing that apps see.
//!
//! The order of the block devices is what [`crate::spec`] tells the supervisor: layers first, then the writable disk.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use podvm_net::{Card, PodNetwork};
use podvm_pod::PodDir;
use podvm_pod::directory::RunningPod;
use podvm_pod::fault::{self, FaultPoint, reach};
use podvm_pod::protocol::PRIMARY_PORT;
use podvm_vmm::boot::{BootError, BootFile};
use podvm_vmm::devices::block::{Block, Disk, DiskError};
use podvm_vmm::devices::fs::{DirectoryError, Fs, FsError, SharedDirectory};
use podvm_vmm::devices::net::{Net, NetConfig, NetError, NetworkEnd};
use podvm_vmm::devices::rng::Rng;
use podvm_vmm::devices::vsock::{Vsock, VsockConfig, VsockConnector};
use podvm_vmm::machine::{ConsoleSink, VmConfig};
use podvm_vmm::memory::MemoryError;

use crate::layers::{self, Way};
use crate::{KvmStage1, gpt, spec};
use podvm_pod::writable::{self, DEFAULT_DISK, WritableError};

/// The guest's vsock address. Each VM has a vsock of its own, so they can all have the same.
const GUEST_CID: u32 = 3;
/// Most CPUs a pod gets.
const MAX_CPUS: u32 = 64;
/// What the kernel should leave undone for a pod: dummy interfaces that nobody asked for.
const KERNEL_ARGUMENTS: &str = "dummy.numdummies=0";
/// Most bytes of the guest's console that are kept.
const MAX_CONSOLE_BYTES: u64 = 1 << 20;

/// Why a pod's machine cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Kernel or initramfs.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The writable disk.
    #[error(transparent)]
    Writable(#[from] WritableError),
    /// A layer's blob is not there or cannot be read.
    #[error("the image's layer {path} cannot be opened: {source}; import the image again", path = .path.display())]
    Layer {
        /// The blob.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The pod's apps have more layers than a disk has partitions.
    #[error("the pod's images have {0} layers; a VM takes at most {most}", most = gpt::MAX_PARTITIONS)]
    TooManyLayers(usize),
    /// A disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The layers cannot be mapped.
    #[error("the image's layers cannot be mapped; set layers = \"disk\" in podvm's configuration")]
    Map(#[source] MemoryError),
    /// A volume's directory.
    #[error("volume {volume}: {source}")]
    Volume {
        /// Its name.
        volume: String,
        /// Why.
        source: DirectoryError,
    },
    /// A volume's server.
    #[error("volume {volume}: {source}")]
    Fs {
        /// Its name.
        volume: String,
        /// Why.
        source: FsError,
    },
    /// The tap.
    #[error(transparent)]
    Tap(#[from] podvm_net::TapError),
    /// The network card.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The supervisor's socket, or the files of the pod's directory.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Descriptors ran out.
    #[error("no more descriptors for the VM's devices ({0}); raise the limit of open files (ulimit -n)")]
    Descriptors(#[from] io::Error),
}

/// A machine to be built, and the ends of the host's conversations with its supervisor.
pub(crate) struct Machine {
    pub config: VmConfig,
    pub layers: Way,
    pub connector: VsockConnector,
    pub primary: UnixStream,
}

impl Machine {
    /// Opens all that the pod's machine is made of.
    pub fn of_pod(stage1: &KvmStage1, pod: &RunningPod, network: &PodNetwork) -> Result<Self, MachineError> {
        let manifest = pod.manifest();
        let mut config = VmConfig::new(BootFile::kernel(&stage1.kernel)?, manifest.resources.memory.bytes());
        config.boot.initramfs = Some(BootFile::initramfs(&stage1.initramfs)?);
        config.append_command_line(KERNEL_ARGUMENTS);
        // The kernel hands words that it does not know to the supervisor, as its environment.
        if let Some(variable) = fault::inherited() {
            config.append_command_line(&variable);
        }
        config.vcpus = manifest.resources.cpus.clamp(1, MAX_CPUS) as u8;
        config.console = Some(console(&pod.dir().path().join("console.log"))?);

        let layers = layers::add(&mut config, &manifest.distinct_layers(), stage1.layers)?;
        let writable = pod.dir().path().join("writable.img");
        let size = manifest.resources.disk.unwrap_or(DEFAULT_DISK);
        let writable = writable::create(&writable, size, &stage1.root.join("templates"))?;
        config.add_device(Block::new(Disk::writable(writable)?, "writable"))?;
        if let Some(card) = card(network)? {
            config.add_device(card)?;
        }
        let (vsock, connector, primary) = vsock(pod.dir())?;
        config.add_device(vsock)?;
        config.add_device(Rng::new())?;
        for (name, source, read_only) in spec::shared_directories(manifest) {
            config.add_device(share(name, source, read_only)?)?;
        }
        Ok(Self { config, layers, connector, primary })
    }
}

fn card(network: &PodNetwork) -> Result<Option<Net>, MachineError> {
    let card = network.attach_card()?;
    let Some((card, interface)) = card.zip(network.interface()) else { return Ok(None) };
    reach(FaultPoint::TapAttached);
    let end = match card {
        Card::Tap(tap) => NetworkEnd::Tap(tap.file),
        Card::Stream(socket) => NetworkEnd::Stream(socket),
    };
    let mtu = u16::try_from(interface.mtu).ok();
    Ok(Some(Net::new(NetConfig { network: end, mac: interface.mac, mtu })?))
}

/// The sockets device, a way to connect through it from this process, and this process's end of the primary connection.
fn vsock(pod: &PodDir) -> Result<(Vsock, VsockConnector, UnixStream), MachineError> {
    let failed = |source| MachineError::Io { path: pod.supervisor_socket(), source };
    let listener = pod.bind_supervisor_socket().map_err(failed)?;
    reach(FaultPoint::SocketBound);
    let (primary, guest_end) = UnixStream::pair()?;
    let host_ports = vec![(PRIMARY_PORT, guest_end)];
    let vsock = Vsock::new(VsockConfig { guest_cid: GUEST_CID, listener: Some(listener), host_ports })?;
    let connector = vsock.connector();
    Ok((vsock, connector, primary))
}

fn share(name: &str, source: &Path, read_only: bool) -> Result<Fs, MachineError> {
    let root = SharedDirectory::open(source, read_only)
        .map_err(|source| MachineError::Volume { volume: name.into(), source })?;
    Fs::new(name, root).map_err(|source| MachineError::Fs { volume: name.into(), source })
}

/// Keeps what the guest's kernel says, but not without bound.
fn console(path: &Path) -> Result<ConsoleSink, MachineError> {
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    let file = file.map_err(|source| MachineError::Io { path: path.into(), source })?;
    Ok(ConsoleSink(Box::new(Bounded { file, left: MAX_CONSOLE_BYTES })))
}

/// A file that swallows what comes after its first bytes.
struct Bounded {
    file: File,
    left: u64,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let kept = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if kept > 0 {
            self.file.write_all(&bytes[..kept])?;
            self.left -= kept as u64;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_is_kept_up_to_a_limit() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut bounded = Bounded { file: file.reopen().unwrap(), left: 5 };
        bounded.write_all(b"abc").unwrap();
        bounded.write_all(b"defg").unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), b"abcde");
    }
}
