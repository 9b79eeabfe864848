//! `podvm stop`: ends running pods, gently first.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use podvm_pod::PodDir;
use podvm_pod::client::SupervisorClient;
use podvm_pod::directory::{Phase, PodState};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::os::fd::AsFd;

use crate::config::Config;
use crate::duration::Wait;
use crate::{chain, report};

/// How long a pod may take to end beside the grace period: its filesystems are synced, its VM is shut down.
const MARGIN: Duration = Duration::from_secs(30);
/// How long a supervisor may take to take the request in, at least, and its answer to come; one that is emulated is slow.
const ASK_LIMIT: Duration = Duration::from_secs(10);
/// How long a killed process may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Options of `podvm stop`.
#[derive(Debug, clap::Args)]
pub struct StopArgs {
    /// The pods: their UUIDs, or enough of their beginnings
    #[arg(value_name = "POD", required = true)]
    pub pods: Vec<String>,
    /// How long the apps may take before they are killed, such as 10s or 2m
    #[arg(long, short, alias = "time", value_name = "TIME", default_value = "10s")]
    pub timeout: Wait,
    /// Kill the pod's process when the pod does not end in time, or cannot be asked to
    #[arg(long)]
    pub force: bool,
}

/// Stops pods; one that cannot be stopped does not keep the others from it.
pub fn run(args: &StopArgs, config: &Config) -> Result<u8> {
    let pods = config.pods();
    let mut code = 0;
    for name in &args.pods {
        let stopped =
            pods.find(name).map_err(anyhow::Error::from).and_then(|dir| stop(&dir, args.timeout.0, args.force));
        if let Err(error) = stopped {
            report(&chain(&error));
            code = podvm_pod::exit::PODVM_ERROR;
        }
    }
    Ok(code)
}

/// Stops a pod and waits until its process is gone. One that does not run is stopped already.
pub fn stop(dir: &PodDir, grace: Duration, force: bool) -> Result<()> {
    let process = match PodProcess::of(dir) {
        Ok(Some(process)) => process,
        Ok(None) => return Ok(()),
        Err(error) => return stop_unrecorded(dir, grace, error),
    };
    let uuid = dir.uuid();
    let begun = Instant::now();
    let limit = match process.has_said_its_end {
        // It takes no requests any more, and is about to be gone.
        true if force => KILL_LIMIT,
        true => MARGIN,
        false => {
            ask(&process, grace)?;
            grace + MARGIN
        }
    };
    if process.is_gone_by(begun + limit)? {
        return Ok(());
    }
    if !force {
        bail!("pod {uuid} does not end; `podvm stop --force {uuid}` kills it");
    }
    process.signal(Signal::KILL)?;
    if process.is_gone_by(Instant::now() + KILL_LIMIT)? {
        return Ok(());
    }
    match process.handle {
        Some(_) => bail!("pod {uuid}: its process is killed and still not gone; something in the kernel holds it"),
        None => {
            bail!("pod {uuid} is held by a process that is not on record; `fuser {}` shows it", dir.path().display())
        }
    }
}

/// Asks a pod to end: its supervisor or, where that cannot be asked, since it is not up yet, or hangs, its own process.
fn ask(process: &PodProcess<'_>, grace: Duration) -> Result<()> {
    // What does not answer for so long has used the grace period up.
    let client = SupervisorClient::of_pod(process.dir).with_patience(grace.max(ASK_LIMIT));
    let Err(error) = client.stop(grace) else { return Ok(()) };
    if !matches!(error, podvm_pod::client::ClientError::Unreachable(_)) {
        report(&format!("pod {}: {error}", process.dir.uuid()));
    }
    process.signal(Signal::TERM)
}

/// Stops a pod whose records do not tell its process, as `error` says: its supervisor may still hear.
fn stop_unrecorded(dir: &PodDir, grace: Duration, error: anyhow::Error) -> Result<()> {
    if !dir.is_alive()? {
        return Err(error);
    }
    SupervisorClient::of_pod(dir).stop(grace).map_err(|_| error)?;
    if dir.is_dead_by(Instant::now() + grace + MARGIN)? {
        return Ok(());
    }
    bail!("pod {} does not end, and its process is not on record; `ps` shows it", dir.uuid())
}

/// The process that is a pod, so held that its PID cannot come to mean another.
struct PodProcess<'a> {
    dir: &'a PodDir,
    /// None when it is not on record, or gone, and others hold the pod: its supervisor, or what is left of it.
    handle: Option<OwnedFd>,
    /// Whether it has recorded how the pod ended.
    has_said_its_end: bool,
}

impl<'a> PodProcess<'a> {
    /// None when the pod does not live.
    fn of(dir: &'a PodDir) -> Result<Option<Self>> {
        // A pod that is only now being prepared has no process on record yet.
        let latest = Instant::now() + KILL_LIMIT;
        let phase = loop {
            match dir.state()? {
                (PodState::Prepared | PodState::Aborted, _) => return Ok(None),
                (PodState::Starting, Phase::Prepared { .. }) if Instant::now() < latest => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                (PodState::Starting, Phase::Prepared { .. }) => {
                    bail!("pod {} is prepared and not started; try again", dir.uuid());
                }
                (_, phase) => break phase,
            }
        };
        let pid = phase.pid();
        let handle = match pid.and_then(Pid::from_raw).map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
            None | Some(Err(rustix::io::Errno::SRCH)) => None,
            Some(other) => Some(other?),
        };
        // When others hold the pod, the one on record may have ended and its number may be a stranger's.
        let handle = handle.filter(|_| pid.is_none_or(|pid| dir.is_open_in(pid) != Some(false)));
        let has_said_its_end = matches!(phase, Phase::Exited { .. });
        // The lock is still held, so whoever holds it has lived all the while.
        Ok(dir.is_alive()?.then_some(Self { dir, handle, has_said_its_end }))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        match self.handle.as_ref().map(|handle| pidfd_send_signal(handle, signal)) {
            None | Some(Ok(()) | Err(rustix::io::Errno::SRCH)) => Ok(()),
            Some(Err(errno)) => bail!("pod {}: its process cannot be signalled: {errno}", self.dir.uuid()),
        }
    }

    /// Waits for its end, and until nobody else holds the pod, which what it leaves behind does for a moment.
    fn is_gone_by(&self, latest: Instant) -> Result<bool> {
        while let Some(handle) = &self.handle {
            let left = latest.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(handle.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) if left.is_zero() => return Ok(false),
                Ok(0) | Err(nix::errno::Errno::EINTR) => {}
                Ok(_) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(self.dir.is_dead_by(latest)?)
    }
}
