//! What the supervisor is told of the pod it is to run: the manifest's apps, and where inside the walls their parts are.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use crate::manifest::HostsEntry;
use crate::manifest::{App, ByteSize, VolumeName};

/// A pod as the supervisor sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSpec {
    /// The pod's name.
    pub uuid: Uuid,
    /// Hostname to set.
    pub hostname: String,
    /// The apps, in the manifest's order.
    pub apps: Vec<AppSpec>,
    /// Where each volume's content is.
    pub volumes: Vec<VolumeSpec>,
    /// Where the apps' writable layers and the empty volumes go.
    pub writable: WritableSource,
    /// The directory that is the apps' `/dev/shm`; one of the pod's own when none.
    #[serde(default)]
    pub shm: Option<PathBuf>,
    /// Network to set up; nothing but loopback when it has no interfaces.
    pub network: NetworkSpec,
}

/// An app and the layers of its root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppSpec {
    /// The app as in the manifest.
    pub app: App,
    /// Its layers, lowest first.
    pub layers: Vec<LayerSource>,
    /// Sockets that it is started with (sd_listen_fds(3)), in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sockets: Vec<SocketSpec>,
}

/// A socket that an app is started with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketSpec {
    /// What the app is told that it is called.
    pub name: String,
    /// What it is.
    pub source: SocketSource,
}

/// Where an app's socket comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SocketSource {
    /// The supervisor has inherited it under this number.
    Inherited(i32),
    /// The supervisor makes one that listens there, or at a loopback address where there is no such address.
    Tcp(SocketAddr),
    /// The supervisor makes a Unix stream socket that listens.
    Unix,
}

/// Where a read-only layer is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerSource {
    /// A block device with an EROFS filesystem.
    Erofs(PathBuf),
    /// The same on persistent memory: its files are used where they are (DAX), without a copy in the page cache.
    Pmem(PathBuf),
    /// A directory that is there already.
    Directory(PathBuf),
}

/// Where what apps write goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WritableSource {
    /// A block device with an ext4 filesystem, empty at the pod's first start.
    Ext4(PathBuf),
    /// A directory that is there already.
    Directory(PathBuf),
    /// Memory, bounded.
    Tmpfs(ByteSize),
}

/// Where a volume's content is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    /// The volume.
    pub name: VolumeName,
    /// Its content.
    pub source: VolumeSource,
    /// Whether nobody may write to it.
    pub read_only: bool,
}

/// What holds a volume's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeSource {
    /// A virtio-fs device with this tag.
    VirtioFs(String),
    /// A directory that is there already.
    Directory(PathBuf),
    /// A new directory beside the apps' writable layers.
    Empty,
}

/// The pod's network as it is to look from inside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// Interfaces to configure.
    pub interfaces: Vec<InterfaceSpec>,
    /// Name service; the image's own `resolv.conf` is left alone when none.
    pub dns: Option<DnsSpec>,
    /// Lines of `/etc/hosts` beside those for localhost and the pod itself.
    pub hosts: Vec<HostsEntry>,
}

/// One network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceSpec {
    /// Name it gets.
    pub name: String,
    /// Hardware address it is found by.
    pub mac: [u8; 6],
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Addresses with the length of their network's prefix.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Default gateways, at most one of each family. They need not lie within an address's prefix.
    pub gateways: Vec<IpAddr>,
}

/// Content of `/etc/resolv.conf` (resolv.conf(5)).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsSpec {
    /// Name servers.
    pub servers: Vec<IpAddr>,
    /// Search domains.
    pub search: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}
