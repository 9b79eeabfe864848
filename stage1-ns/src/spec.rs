//! What the supervisor behind namespaces is told: the manifest's apps, and where in the pod's own tree their parts are.

use std::path::{Path, PathBuf};

use podvm_pod::PodManifest;
use podvm_pod::manifest::{IpcMode, VolumeKind};
use podvm_pod::protocol::{
    AppSpec, LayerSource, NetworkSpec, PodSpec, SocketSource, SocketSpec, VolumeSource, VolumeSpec, WritableSource,
};
use podvm_pod::sockets::AppSocket;

use crate::inside::FIRST_SOCKET;

/// Where the supervisor keeps what is its own; in memory.
pub const SCRATCH: &str = "/scratch";
/// Where the pod's cgroup is.
pub const CGROUP: &str = "/cgroup";
/// Where what the apps write goes.
pub const WRITABLE: &str = "/writable";
/// The host's `/dev/shm`, for pods that share it.
pub const SHM: &str = "/shm";
/// The folder of the layers, each named by its number.
pub const LAYERS: &str = "/layers";
/// The folder of the host's directories, each named as its volume.
pub const VOLUMES: &str = "/volumes";

/// The pod as the supervisor is to run it.
pub fn pod_spec(manifest: &PodManifest, sockets: &[AppSocket], network: NetworkSpec) -> PodSpec {
    let distinct = manifest.distinct_layers();
    let place = |layer: &PathBuf| {
        let number = distinct.iter().position(|other| *other == layer).unwrap_or_default();
        LayerSource::Directory(Path::new(LAYERS).join(number.to_string()))
    };
    let apps = manifest.apps.iter();
    let apps = apps.map(|app| {
        let own = (FIRST_SOCKET..).zip(sockets).filter(|(_, socket)| socket.app == app.name);
        let own = own
            .map(|(number, socket)| SocketSpec { name: socket.name.clone(), source: SocketSource::Inherited(number) });
        AppSpec { app: app.clone(), layers: app.image.layers.iter().map(place).collect(), sockets: own.collect() }
    });
    let volumes = manifest.volumes.iter().map(|volume| VolumeSpec {
        name: volume.name.clone(),
        source: match volume.kind {
            VolumeKind::Host { .. } => VolumeSource::Directory(Path::new(VOLUMES).join(volume.name.as_str())),
            VolumeKind::Empty => VolumeSource::Empty,
        },
        read_only: volume.read_only,
    });
    PodSpec {
        uuid: manifest.uuid,
        hostname: manifest.hostname.clone(),
        apps: apps.collect(),
        volumes: volumes.collect(),
        writable: WritableSource::Directory(WRITABLE.into()),
        shm: (manifest.ipc == IpcMode::Host).then(|| SHM.into()),
        network,
    }
}
