//! The command line of `podvm run`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use podvm_pod::manifest::{
    AppName, ByteSize, Capability, CpuLimit, EnvironmentVariable, Mount, NetworkMode, PortRequest, Volume,
};
use podvm_pod::stage1::Stage1Choice;

use crate::commands::image::registries::RegistryArgs;

const POD: &str = "Pod options (before the first ---)";
const APP: &str = "App options (for each image)";

const EXAMPLES: &str = "\
Examples:
  Run a program of an image, and have its exit code:
    podvm run debian -- /bin/true
  Run a server in the background, its data in a directory of the host, its port on the host:
    podvm run -d --volume data-dir,kind=host,source=/srv/etcd --port client:2379 etcd -- --listen-client-urls=http://0.0.0.0:2379
  Run two apps that share a network and a volume:
    podvm run --volume site,kind=empty --port 80:8080 nginx --mount volume=site,target=/srv --- \\
      debian --name writer --mount volume=site,target=/out -- sh -c 'date > /out/index.html; sleep inf'
  Open a shell:
    podvm run -it --rm debian -- bash

Sizes are whole numbers with K, M, G or T (powers of 1024): 256M. CPUs are numbers such as 2, 0.5 or 500m.
The exit code is that of the first app that failed, 0 when none did, 128+N for signal N, 254 when podvm itself failed.";

/// Options and images of a pod.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = EXAMPLES,
    override_usage = "podvm run [OPTIONS] IMAGE [OPTIONS] [-- ARGS…] [--- IMAGE [APP OPTIONS] [-- ARGS…]]…"
)]
pub struct RunArgs {
    /// What walls the pod in: auto, kvm (a micro-VM) or ns (namespaces)
    #[arg(long, value_name = "STAGE1", help_heading = POD)]
    pub stage1: Option<Stage1Choice>,
    /// A volume: NAME,kind=host,source=DIR[,readOnly=true] or NAME,kind=empty. An app whose image declares a volume of that
    /// name has it at the declared place; --mount puts it elsewhere
    #[arg(long = "volume", value_name = "VOLUME", help_heading = POD)]
    pub volumes: Vec<Volume>,
    /// A port of the pod to be reached at the host: NAME:[IP:]PORT, NAME being a port's name in the image or a number such
    /// as 80 or 53/udp
    #[arg(long = "port", short = 'p', value_name = "PORT", help_heading = POD)]
    pub ports: Vec<PortRequest>,
    /// Network: default (an address of its own behind the host), none, or host
    #[arg(
        long, value_name = "NETWORK", help_heading = POD,
        num_args = 0..=1, require_equals = true, default_missing_value = "default", conflicts_with = "private_net"
    )]
    pub net: Option<NetChoice>,
    /// The same as --net, as rkt once spelled it
    #[arg(
        long, value_name = "NETWORK", help_heading = POD,
        num_args = 0..=1, require_equals = true, default_missing_value = "default"
    )]
    pub private_net: Option<NetChoice>,
    /// Give the pod users of its own: its root, and all others, are at the host users that nobody else is
    #[arg(long, help_heading = POD)]
    pub private_users: bool,
    /// Hostname [default: podvm-UUID]
    #[arg(long, value_name = "NAME", help_heading = POD)]
    pub hostname: Option<String>,
    /// Most that the apps may write beside their volumes, together
    #[arg(long, value_name = "SIZE", default_value = "10G", help_heading = POD)]
    pub disk: ByteSize,
    /// Start in the background and print the pod's UUID once its apps run
    #[arg(long, short, help_heading = POD)]
    pub detach: bool,
    /// Remove the pod and its logs when it has ended
    #[arg(long, help_heading = POD)]
    pub rm: bool,
    /// Write the pod's UUID to this file before it starts
    #[arg(long, value_name = "FILE", help_heading = POD)]
    pub uuid_file_save: Option<PathBuf>,
    /// Say nothing but what the apps say, and errors
    #[arg(long, short, help_heading = POD)]
    pub quiet: bool,
    /// From where images are fetched, and when.
    #[command(flatten, next_help_heading = POD)]
    pub registry: RegistryArgs,
    /// The first app.
    #[command(flatten)]
    pub app: AppArgs,
    /// The apps behind each `---`.
    #[arg(skip)]
    pub further_apps: Vec<AppArgs>,
}

/// One app of a pod.
#[derive(Debug, Clone, Args)]
pub struct AppArgs {
    /// Image to run: a name, which is fetched if it is not stored, the beginning of a stored image's ID, or the path of an
    /// OCI layout or archive
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// Arguments for the image's program, instead of those the image gives
    #[arg(last = true, value_name = "ARGS")]
    pub arguments: Vec<String>,
    /// Name of the app, unique in its pod [default: from the image's name]
    #[arg(long, value_name = "NAME", help_heading = APP)]
    pub name: Option<AppName>,
    /// Program to run instead of the image's; looked up in the app's PATH
    #[arg(long, value_name = "PROGRAM", help_heading = APP)]
    pub exec: Option<String>,
    /// Put a volume at a place in the app: volume=NAME,target=DIR[,readOnly=true]
    #[arg(long = "mount", value_name = "MOUNT", help_heading = APP)]
    pub mounts: Vec<Mount>,
    /// Set a variable of the app's environment: NAME=VALUE
    #[arg(long = "environment", short = 'e', value_name = "VARIABLE", help_heading = APP)]
    pub environment: Vec<EnvironmentVariable>,
    /// User to run as: a name or number of the image's, with an optional :GROUP
    #[arg(long, short, value_name = "USER", help_heading = APP)]
    pub user: Option<String>,
    /// Group to run as
    #[arg(long, value_name = "GROUP", help_heading = APP)]
    pub group: Option<String>,
    /// Directory to start in
    #[arg(long, value_name = "DIR", help_heading = APP)]
    pub working_dir: Option<PathBuf>,
    /// Most memory the app may use, such as 256M; beyond it, it is killed
    #[arg(long, short, value_name = "SIZE", help_heading = APP)]
    pub memory: Option<ByteSize>,
    /// CPU time the app may use, such as 0.5 or 2
    #[arg(long, value_name = "CPUS", help_heading = APP)]
    pub cpu: Option<CpuLimit>,
    /// Connect this terminal's or pipe's input to the app
    #[arg(long, short, help_heading = APP)]
    pub interactive: bool,
    /// Give the app a terminal
    #[arg(long, short, help_heading = APP)]
    pub tty: bool,
    /// The only capabilities the app has, such as CAP_NET_ADMIN,CAP_CHOWN
    #[arg(long, value_name = "CAPS", value_delimiter = ',', conflicts_with = "caps_remove", help_heading = APP)]
    pub caps_retain: Option<Vec<Capability>>,
    /// Capabilities of the usual ones that the app does not have
    #[arg(long, value_name = "CAPS", value_delimiter = ',', help_heading = APP)]
    pub caps_remove: Vec<Capability>,
    /// Keep the app from writing to its root filesystem
    #[arg(long, help_heading = APP)]
    pub readonly_rootfs: bool,
    /// Keep whatever the app executes from gaining privileges
    #[arg(long, help_heading = APP)]
    pub no_new_privileges: bool,
}

impl RunArgs {
    /// All apps, in order.
    pub fn apps(&self) -> impl Iterator<Item = &AppArgs> {
        std::iter::once(&self.app).chain(&self.further_apps)
    }

    /// The network that was asked for.
    pub fn network(&self) -> NetworkMode {
        self.net.clone().or_else(|| self.private_net.clone()).map(|choice| choice.0).unwrap_or_default()
    }
}

/// A network's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetChoice(NetworkMode);

/// No network of that name.
#[derive(Debug, thiserror::Error)]
#[error("no network {0:?}: use default, none or host; networks of CNI plugins are not built yet")]
pub struct UnknownNetwork(String);

impl FromStr for NetChoice {
    type Err = UnknownNetwork;

    fn from_str(text: &str) -> Result<Self, UnknownNetwork> {
        match text {
            "default" => Ok(Self(NetworkMode::Default)),
            "none" => Ok(Self(NetworkMode::None)),
            "host" => Ok(Self(NetworkMode::Host)),
            _ => Err(UnknownNetwork(text.into())),
        }
    }
}
