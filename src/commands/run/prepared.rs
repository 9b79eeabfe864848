//! `podvm prepare` and `podvm run-prepared`: the two halves of `podvm run`.
//!
//! A prepared pod is a pod directory that nobody holds. It keeps its images from being removed, takes nothing else of the host,
//! and is started once.

use anyhow::{Result, bail};
use podvm_pod::directory::PodState;
use podvm_pod::runner::PodIo;
use podvm_pod::{PodDir, Stage1Kind};

use super::{Outcome, Reaper, RunArgs, require_files, resolve_pod, run_behind, sockets, start_pod};
use crate::commands::RemoveError;
use crate::config::Config;
use crate::output::print_text;
use crate::report;

/// Options of `podvm run-prepared`.
#[derive(Debug, clap::Args)]
pub struct RunPreparedArgs {
    /// The pod: its UUID, or enough of its beginning
    #[arg(value_name = "POD")]
    pub pod: String,
    /// Start in the background and print the pod's UUID once its apps run
    #[arg(long, short)]
    pub detach: bool,
    /// Remove the pod and its logs when it has ended
    #[arg(long)]
    pub rm: bool,
    /// Say nothing but what the apps say, and errors
    #[arg(long, short)]
    pub quiet: bool,
}

/// Writes a pod down and prints its UUID.
pub fn prepare(args: &RunArgs, config: &Config) -> Result<u8> {
    for (option, is_given) in [("--detach", args.detach), ("--rm", args.rm)] {
        if is_given {
            bail!("podvm prepare starts no pod; give {option} to podvm run-prepared");
        }
    }
    let (manifest, images, stage1) = resolve_pod(args, config)?;
    let pod = config.pods().prepare(manifest)?;
    drop(images);
    let uuid = pod.dir().uuid();
    let saved = args.uuid_file_save.as_ref().map(|path| super::save_uuid(path, uuid));
    if let Some(Err(error)) = saved {
        pod.discard()?;
        return Err(error);
    }
    pod.leave(stage1)?;
    print_text(&format!("{uuid}\n"))?;
    Ok(0)
}

/// Starts a prepared pod; returns its exit code.
pub fn run_prepared(args: &RunPreparedArgs, config: &Config) -> Result<u8> {
    let dir = config.pods().find(&args.pod)?;
    let uuid = dir.uuid();
    let passed = sockets::take()?;
    start_pod(args.detach, uuid, |io| {
        let is_removed = args.rm && dir.state()?.0 == PodState::Prepared;
        let reaper = is_removed.then(|| Reaper::fork(dir.clone())).transpose()?;
        let (pod, stage1) = dir.claim()?;
        require_files(config, stage1)?;
        let manifest = pod.manifest().clone();
        let sockets = sockets::for_apps(passed, &manifest, stage1)?;
        if !args.quiet {
            sockets::remarks(&manifest, &sockets).iter().for_each(|line| report(line));
        }
        let report = run_behind(stage1, config, pod, PodIo { sockets, ..io }).inspect_err(|_| leave(&dir, stage1))?;
        Ok(Outcome::of(&report, &manifest, args.quiet).after(reaper))
    })
}

/// Leaves a pod that could not be started to be started again: what is in the way, such as a port that is in use, may go away.
fn leave(dir: &PodDir, stage1: Stage1Kind) {
    let restored = dir.restore_prepared(stage1, |dir| Ok::<_, RemoveError>(podvm_stage1_ns::undo(dir)?));
    if let Err(error) = restored {
        report(&format!("pod {} cannot be started again: {error}", dir.uuid()));
    }
}
