//! The command line of `podvm run`, as far as it is one app's.

use std::path::PathBuf;

use clap::Args;
use podvm_pod::manifest::{
    AppName, ByteSize, Capability, CpuLimit, EnvironmentVariable, Mount, RestartPolicy, Rlimit, Seccomp,
};

use super::bind::Bind;
use crate::duration::Wait;

const APP: &str = "App options (for each image)";
const LIMITS: &str = "Limits and privileges (for each image)";
const HEALTH: &str = "Health and restarts (for each image)";

/// One app of a pod.
#[derive(Debug, Clone, Args)]
pub struct AppArgs {
    /// Image to run: a name, which is fetched if it is not stored, the beginning of a stored image's ID, or the path of an
    /// OCI layout or archive or an appc image; names of appc images have labels (NAME,version=1.0) or begin with appc:
    #[arg(value_name = "IMAGE")]
    pub image: Option<String>,
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
    /// Put a directory of the host at a place in the app: SOURCE:TARGET[:ro]. Can be repeated
    #[arg(long = "bind", short = 'v', value_name = "BIND", help_heading = APP)]
    pub binds: Vec<Bind>,
    /// Set a variable of the app's environment: NAME=VALUE
    #[arg(long = "environment", visible_alias = "env", short = 'e', value_name = "VARIABLE", help_heading = APP)]
    pub environment: Vec<EnvironmentVariable>,
    /// Set the variables of a file: a line NAME=VALUE each; # begins a comment. Can be repeated
    #[arg(long, value_name = "FILE", help_heading = APP)]
    pub set_env_file: Vec<PathBuf>,
    /// Set the variables of this process's environment that neither the image nor an option sets
    #[arg(long, help_heading = APP)]
    pub inherit_env: bool,
    /// User to run as: a name or number of the image's, with an optional :GROUP
    #[arg(long, short, value_name = "USER", help_heading = APP)]
    pub user: Option<String>,
    /// Group to run as
    #[arg(long, value_name = "GROUP", help_heading = APP)]
    pub group: Option<String>,
    /// Groups to be in besides, by number: 27,100
    #[arg(long, value_name = "GIDS", value_delimiter = ',', help_heading = APP)]
    pub supplementary_gids: Vec<u32>,
    /// Directory to start in
    #[arg(long, value_name = "DIR", help_heading = APP)]
    pub working_dir: Option<PathBuf>,
    /// Most memory the app may use, such as 256M; beyond it, it is killed
    #[arg(long, short, value_name = "SIZE", help_heading = LIMITS)]
    pub memory: Option<ByteSize>,
    /// CPU time the app may use, such as 0.5 or 2
    #[arg(long, value_name = "CPUS", help_heading = LIMITS)]
    pub cpu: Option<CpuLimit>,
    /// Weight against other apps when all want CPU time: 2 to 262144, 1024 being what an app without has
    #[arg(long, value_name = "SHARES", value_parser = clap::value_parser!(u64).range(2..=262_144), help_heading = LIMITS)]
    pub cpu_shares: Option<u64>,
    /// Most processes and threads the app may have at a time
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..), help_heading = LIMITS)]
    pub pids: Option<u32>,
    /// Limit of each of the app's processes: NAME=SOFT[:HARD], in bytes, seconds or a count as setrlimit(2) has it, such as
    /// nofile=1024:4096 or core=unlimited. Can be repeated
    #[arg(long = "rlimit", value_name = "LIMIT", help_heading = LIMITS)]
    pub rlimits: Vec<Rlimit>,
    /// How readily the kernel kills the app when memory runs out: -1000 (never) to 1000 (first)
    #[arg(
        long, value_name = "NUMBER", allow_negative_numbers = true,
        value_parser = clap::value_parser!(i32).range(-1000..=1000), help_heading = LIMITS
    )]
    pub oom_score_adj: Option<i32>,
    /// Connect this terminal's or pipe's input to the app
    #[arg(long, short, help_heading = APP)]
    pub interactive: bool,
    /// Give the app a terminal
    #[arg(long, short, help_heading = APP)]
    pub tty: bool,
    /// The only capabilities the app has, such as CAP_NET_ADMIN,CAP_CHOWN; see capabilities(7)
    #[arg(long, value_name = "CAPS", value_delimiter = ',', conflicts_with = "caps_remove", help_heading = LIMITS)]
    pub caps_retain: Option<Vec<Capability>>,
    /// Capabilities of the usual ones that the app does not have
    #[arg(long, value_name = "CAPS", value_delimiter = ',', help_heading = LIMITS)]
    pub caps_remove: Vec<Capability>,
    /// System calls the app may make: mode=default (an allow-list as strict as podman's), mode=unconfined (all),
    /// mode=retain[,errno=NAME],CALL,… (only these) or mode=remove[,errno=NAME],CALL,… (all but these). Without an errno the
    /// process that makes another call is killed
    #[arg(long, value_name = "MODE", help_heading = LIMITS)]
    pub seccomp: Option<Seccomp>,
    /// Keep the app from writing to its root filesystem
    #[arg(long, help_heading = LIMITS)]
    pub readonly_rootfs: bool,
    /// Command of a shell in the app that tells by its exit code 0 that the app is well, such as 'redis-cli ping'; none for no
    /// check [default: the image's]
    #[arg(long, value_name = "COMMAND", help_heading = HEALTH)]
    pub health_cmd: Option<String>,
    /// Time between two checks, such as 30s or 500ms; an app that was not found well yet is looked at every second [default: 30s]
    #[arg(long, value_name = "TIME", help_heading = HEALTH)]
    pub health_interval: Option<Wait>,
    /// Longest time of a check, such as 5s; a longer one has failed [default: 30s]
    #[arg(long, value_name = "TIME", help_heading = HEALTH)]
    pub health_timeout: Option<Wait>,
    /// Failures in a row that make the app unhealthy [default: 3]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..), help_heading = HEALTH)]
    pub health_retries: Option<u32>,
    /// Time from the app's start in which failures do not count, such as 1m [default: one interval]
    #[arg(long, value_name = "TIME", help_heading = HEALTH)]
    pub health_start_period: Option<Wait>,
    /// What is done when the app ends by itself: no, on-failure[:N] (start it again when it failed, at most N times) or always;
    /// after 100ms at first, and a longer pause each time, up to 60s
    #[arg(long, value_name = "POLICY", default_value = "no", help_heading = HEALTH)]
    pub restart: RestartPolicy,
    /// Keep whatever the app executes from gaining privileges
    #[arg(long, help_heading = LIMITS)]
    pub no_new_privileges: bool,
}
