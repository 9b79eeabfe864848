//! The subcommands, a file each. Each takes its arguments and the configuration, and returns the exit code.

pub mod attach;
pub mod cat_manifest;
pub mod completion;
pub mod cp;
pub mod doctor;
pub mod exec;
pub mod export;
pub mod gc;
pub mod image;
pub mod list;
pub mod logs;
pub mod man;
pub mod pause;
pub mod rm;
pub mod run;
pub mod stats;
pub mod status;
pub mod stop;
pub mod summary;
pub mod target;
pub mod top;
pub mod trust;
pub mod version;

use anyhow::Result;
use podvm_pod::PodDir;
use podvm_pod::directory::{DirectoryError, RetiredPod};
use podvm_stage1_ns::cgroup::CgroupError;

use crate::cli::{Cli, Command};
use crate::config::Config;
use crate::rootless;

/// Does what the command line says; returns the exit code.
pub fn run_command(cli: Cli) -> Result<u8> {
    // Found before it is root of a namespace: where a user's files are does not depend on it.
    let config = || Config::load(&cli.global);
    let as_root = || -> Result<Config> {
        let config = config()?;
        if config.is_unprivileged {
            rootless::become_root()?;
        }
        Ok(config)
    };
    match cli.command {
        Command::Run(args) => run::run(&args, &as_root()?),
        Command::Prepare(args) => run::prepare(&args, &as_root()?),
        Command::RunPrepared(args) => run::run_prepared(&args, &as_root()?),
        Command::List(args) => list::run(&args, &config()?),
        Command::Status(args) => status::run(&args, &config()?),
        Command::Attach(args) => attach::run(&args, &config()?),
        Command::Cp(args) => cp::run(&args, &config()?),
        Command::Export(args) => export::run(&args, &config()?),
        Command::Pause(args) => pause::run(&args, true, &config()?),
        Command::Resume(args) => pause::run(&args, false, &config()?),
        Command::Stats(args) => stats::run(&args, &config()?),
        Command::Top(args) => top::run(&args, &config()?),
        Command::CatManifest(args) => cat_manifest::run(&args, &config()?),
        Command::Exec(args) => exec::run(&args, &config()?),
        Command::Logs(args) => logs::run(&args, &config()?),
        Command::Stop(args) => stop::run(&args, &config()?),
        Command::Rm(args) => rm::run(&args, &as_root()?),
        Command::Gc(args) => gc::run(&args, &as_root()?),
        Command::Fetch(args) => image::run(&image::ImageCommand::Fetch(args), &as_root()?),
        Command::Image(command) => image::run(&command, &as_root()?),
        Command::Trust(command) => trust::run(&command, &config()?),
        Command::Doctor(args) => doctor::run(&args, &config()?),
        // These work where the configuration is broken.
        Command::Version(args) => version::run(&args),
        Command::Completion(args) => completion::run(&args),
        Command::Man(args) => man::run(&args),
    }
}

/// Why a pod could not be removed.
#[derive(Debug, thiserror::Error)]
enum RemoveError {
    /// It is alive, or its directory cannot be removed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// What it had at the host cannot be given back.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

/// Removes a pod that is not alive, with all it had at the host.
fn remove(dir: &PodDir) -> Result<(), RemoveError> {
    Ok(retire(dir)?.remove()?)
}

/// Gives back all that a pod that is not alive had at the host, and takes it out of the list of pods: what is left are files.
fn retire(dir: &PodDir) -> Result<RetiredPod, RemoveError> {
    dir.retire_after(|dir| Ok(podvm_stage1_ns::undo(dir)?))
}

/// What tests prepare.
#[cfg(test)]
fn pod_without_apps() -> podvm_pod::PodManifest {
    use podvm_pod::manifest::{ByteSize, MANIFEST_VERSION, NetworkMode, PodManifest, PodResources};
    PodManifest {
        version: MANIFEST_VERSION,
        uuid: podvm_pod::Uuid::new_v4(),
        created: 1,
        hostname: "pod".into(),
        apps: Vec::new(),
        volumes: Vec::new(),
        ports: Vec::new(),
        network: NetworkMode::None,
        private_users: false,
        dns: Default::default(),
        hosts: Vec::new(),
        ipc: Default::default(),
        resources: PodResources { memory: ByteSize::mib(64), cpus: 1, disk: Some(ByteSize::mib(64)) },
    }
}
