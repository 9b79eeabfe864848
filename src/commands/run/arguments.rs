//! The command line of `podvm run`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use podvm_pod::manifest::{
    ByteSize, DnsChoice, DnsSettings, DnsSource, DnsWord, HostsChoice, IpcMode, NetworkMode, PortRequest, Volume,
};
use podvm_pod::stage1::Stage1Choice;

use super::app_arguments::AppArgs;
use super::error::PrepareError;
use crate::commands::image::registries::RegistryArgs;

const POD: &str = "Pod options (before the first ---)";
const NETWORK: &str = "Network options (before the first ---)";

const EXAMPLES: &str = "\
Examples:
  Run a program of an image, and have its exit code:
    podvm run debian -- /bin/true
  Run a server in the background, its data in a directory of the host, its port on the host:
    podvm run -d --volume data-dir,kind=host,source=/srv/etcd --port client:2379 etcd -- --listen-client-urls=http://0.0.0.0:2379
  Run a program on the files of this directory:
    podvm run --rm -v .:/work --working-dir /work debian -- make
  Run two apps that share a network and a volume:
    podvm run --volume site,kind=empty --port 80:8080 nginx --mount volume=site,target=/srv --- \\
      debian --name writer --mount volume=site,target=/out -- sh -c 'date > /out/index.html; sleep inf'
  Open a shell:
    podvm run -it --rm debian -- bash
  Limit what a program may use and do:
    podvm run --memory 256M --cpu 0.5 --pids 64 --rlimit nofile=1024 --seccomp mode=remove,errno=EPERM,ptrace debian -- job
  Run once more what ran before:
    podvm cat-manifest 24a39b7f > pod.json && podvm run --pod-manifest pod.json

Sizes are whole numbers with K, M, G or T (powers of 1024): 256M. CPUs are numbers such as 2, 0.5 or 500m.
Started with open sockets, as by a .socket unit of systemd (LISTEN_FDS), podvm starts apps with them: a socket is for the app whose
published port it is at, else the app it is named after, else the only one.
The exit code is that of the first app that failed, 0 when none did, 128+N for signal N, 254 when podvm itself failed.";

/// Options and images of a pod.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = EXAMPLES,
    override_usage = "podvm run [OPTIONS] IMAGE [OPTIONS] [-- ARGS…] [--- IMAGE [APP OPTIONS] [-- ARGS…]]…\n       \
                      podvm run --pod-manifest FILE [POD OPTIONS]"
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
    /// as 80 or 53/udp. A port of the host belongs to one pod at a time
    #[arg(long = "port", short = 'p', value_name = "PORT", help_heading = NETWORK)]
    pub ports: Vec<PortRequest>,
    /// Network: default (an address of its own behind the host), none, or host
    #[arg(
        long, value_name = "NETWORK", help_heading = NETWORK,
        num_args = 0..=1, require_equals = true, default_missing_value = "default", conflicts_with = "private_net"
    )]
    pub net: Option<NetChoice>,
    /// The same as --net, as rkt once spelled it
    #[arg(
        long, value_name = "NETWORK", help_heading = NETWORK,
        num_args = 0..=1, require_equals = true, default_missing_value = "default"
    )]
    pub private_net: Option<NetChoice>,
    /// Give the pod users of its own: its root, and all others, are at the host users that nobody else is
    #[arg(long, help_heading = POD)]
    pub private_users: bool,
    /// Hostname [default: podvm-UUID]
    #[arg(long, value_name = "NAME", help_heading = NETWORK)]
    pub hostname: Option<String>,
    /// Name server for /etc/resolv.conf, an IP address; host for the host's own file as it is; none to leave the image's file
    /// alone. Can be repeated [default: the host's servers that the pod can reach]
    #[arg(long, value_name = "SERVER", help_heading = NETWORK)]
    pub dns: Vec<DnsChoice>,
    /// Domain that short names are looked up in, such as example.org. Can be repeated [default: the host's]
    #[arg(long, value_name = "DOMAIN", help_heading = NETWORK)]
    pub dns_search: Vec<DnsWord>,
    /// Option of resolv.conf(5), such as ndots:2. Can be repeated [default: the host's]
    #[arg(long, value_name = "OPTION", help_heading = NETWORK)]
    pub dns_opt: Vec<DnsWord>,
    /// Entry of /etc/hosts: IP=NAME[,NAME…], such as 10.0.0.5=db,db.local; host for what the host's file says of other machines.
    /// Can be repeated
    #[arg(long = "hosts-entry", value_name = "ENTRY", help_heading = NETWORK)]
    pub hosts_entries: Vec<HostsChoice>,
    /// Shared memory, semaphores and message queues: private (the pod's own) or host (only with --stage1=ns)
    #[arg(long, value_name = "IPC", help_heading = POD)]
    pub ipc: Option<IpcChoice>,
    /// Run the pod that this file describes, as `podvm cat-manifest` printed it, under a UUID of its own
    #[arg(
        long, value_name = "FILE", help_heading = POD,
        conflicts_with_all = [
            "image", "arguments", "name", "exec", "mounts", "binds", "environment", "inherit_env", "set_env_file", "user", "group",
            "supplementary_gids", "working_dir", "memory", "cpu", "cpu_shares", "pids", "rlimits", "oom_score_adj",
            "interactive", "tty", "caps_retain", "caps_remove", "seccomp", "readonly_rootfs", "no_new_privileges",
            "volumes", "ports", "net", "private_net", "hostname", "dns", "dns_search", "dns_opt", "hosts_entries", "ipc",
            "disk", "private_users", "health_cmd", "health_interval", "health_timeout", "health_retries",
            "health_start_period", "restart",
        ]
    )]
    pub pod_manifest: Option<PathBuf>,
    /// Most that the apps may write beside their volumes, together [default: 10G in a VM]
    #[arg(long, value_name = "SIZE", help_heading = POD)]
    pub disk: Option<ByteSize>,
    /// Start in the background and print the pod's UUID once its apps run
    #[arg(long, short, help_heading = POD)]
    pub detach: bool,
    /// Remove the pod and its logs when it has ended
    #[arg(long, help_heading = POD)]
    pub rm: bool,
    /// Write the pod's UUID to this file before it starts, in place of what is there, and whole
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

impl RunArgs {
    /// All apps, in order.
    pub fn apps(&self) -> impl Iterator<Item = &AppArgs> {
        std::iter::once(&self.app).chain(&self.further_apps)
    }

    /// The network that was asked for.
    pub fn network(&self) -> NetworkMode {
        self.net.clone().or_else(|| self.private_net.clone()).map(|choice| choice.0).unwrap_or_default()
    }

    /// The name service that was asked for; `host` and `none` can be asked for once and alone.
    ///
    /// # Errors
    /// [`PrepareError::DnsTogether`].
    pub fn name_service(&self) -> Result<DnsSettings, PrepareError> {
        let servers = |choice: &DnsChoice| match choice {
            DnsChoice::Server(address) => Some(*address),
            DnsChoice::Host | DnsChoice::None => None,
        };
        let words = |words: &[DnsWord]| words.iter().map(|word| word.0.clone()).collect();
        let source = match self.dns.as_slice() {
            [] => DnsSource::Network,
            [DnsChoice::Host] => DnsSource::Host,
            [DnsChoice::None] if self.dns_search.is_empty() && self.dns_opt.is_empty() => DnsSource::Image,
            choices => {
                let servers: Option<Vec<_>> = choices.iter().map(servers).collect();
                DnsSource::Servers(servers.ok_or(PrepareError::DnsTogether)?)
            }
        };
        Ok(DnsSettings { source, search: words(&self.dns_search), options: words(&self.dns_opt) })
    }
}

/// `--ipc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpcChoice(IpcMode);

/// No such choice.
#[derive(Debug, thiserror::Error)]
#[error("{0:?}: use private or host")]
pub struct UnknownIpc(String);

impl FromStr for IpcChoice {
    type Err = UnknownIpc;

    fn from_str(text: &str) -> Result<Self, UnknownIpc> {
        match text {
            "private" => Ok(Self(IpcMode::Private)),
            // As rkt spells it.
            "host" | "parent" => Ok(Self(IpcMode::Host)),
            _ => Err(UnknownIpc(text.into())),
        }
    }
}

impl From<IpcChoice> for IpcMode {
    fn from(choice: IpcChoice) -> Self {
        choice.0
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
