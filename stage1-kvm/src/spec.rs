//! What the supervisor in the VM is told: the manifest's apps, and which device holds each of their parts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use podvm_pod::PodManifest;
use podvm_pod::manifest::VolumeKind;
use podvm_pod::protocol::{
    AppSpec, NetworkSpec, PodSpec, SocketSource, SocketSpec, VolumeSource, VolumeSpec, WritableSource,
};
use podvm_pod::sockets::{AppSocket, SocketKind};

use crate::layers::Way;

/// The host directories to share, with their virtio-fs tags: the volumes' names.
pub fn shared_directories(manifest: &PodManifest) -> Vec<(&str, &Path, bool)> {
    manifest
        .volumes
        .iter()
        .filter_map(|volume| match &volume.kind {
            VolumeKind::Host { source } => Some((volume.name.as_str(), source.as_path(), volume.read_only)),
            VolumeKind::Empty => None,
        })
        .collect()
}

/// The pod as the supervisor is to run it.
pub fn pod_spec(manifest: &PodManifest, layers: Way, sockets: &[AppSocket], network: NetworkSpec) -> PodSpec {
    let numbers: BTreeMap<&Path, usize> = manifest.distinct_layers().into_iter().zip(1..).collect();
    let source = |layer: &PathBuf| layers.layer(numbers.get(layer.as_path()).copied().unwrap_or_default());
    let apps = manifest.apps.iter();
    let apps = apps.map(|app| AppSpec {
        app: app.clone(),
        layers: app.image.layers.iter().map(source).collect(),
        sockets: sockets.iter().filter(|socket| socket.app == app.name).map(socket_like).collect(),
    });
    let volumes = manifest.volumes.iter().map(|volume| VolumeSpec {
        name: volume.name.clone(),
        source: match volume.kind {
            VolumeKind::Host { .. } => VolumeSource::VirtioFs(volume.name.to_string()),
            VolumeKind::Empty => VolumeSource::Empty,
        },
        read_only: volume.read_only,
    });
    PodSpec {
        uuid: manifest.uuid,
        hostname: manifest.hostname.clone(),
        apps: apps.collect(),
        volumes: volumes.collect(),
        writable: WritableSource::Ext4(layers.next_disk().into()),
        shm: None,
        network,
    }
}

/// The app's own socket that stands for one of the host's.
fn socket_like(socket: &AppSocket) -> SocketSpec {
    let source = match socket.kind {
        SocketKind::TcpListener(address) => SocketSource::Tcp(address),
        // Others have been refused (`podvm_pod::sockets::check_for_vm`).
        SocketKind::UnixListener | SocketKind::Udp(_) | SocketKind::Other => SocketSource::Unix,
    };
    SocketSpec { name: socket.name.clone(), source }
}
