//! `podvm stop`: ends running pods, gently first.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use podvm_pod::client::SupervisorClient;
use podvm_pod::directory::{Phase, PodState};
use podvm_pod::{PodDir, Uuid};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::os::fd::AsFd;

use crate::config::Config;
use crate::duration::Wait;
use crate::{chain, report};

/// How long a pod may take to end beside the grace period: its filesystems are synced, its VM is shut down.
const MARGIN: Duration = Duration::from_secs(30);
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
    let asked = SupervisorClient::of_pod(dir).stop(grace);
    if let Err(error) = &asked {
        // No supervisor that could be asked: it is not up yet, or hangs. The pod's own process can still end the pod.
        if !matches!(error, podvm_pod::client::ClientError::Unreachable(_)) {
            report(&format!("pod {}: {error}", dir.uuid()));
        }
        process.signal(Signal::TERM)?;
    }
    if process.ends_within(grace + MARGIN)? {
        return Ok(());
    }
    if !force {
        bail!("pod {} does not end; `podvm stop --force {}` kills it", process.uuid, process.uuid);
    }
    process.signal(Signal::KILL)?;
    if process.ends_within(KILL_LIMIT)? {
        return Ok(());
    }
    bail!("pod {}: its process is killed and still not gone; something in the kernel holds it", process.uuid)
}

/// Stops a pod whose records do not tell its process, as `error` says: its supervisor may still hear.
fn stop_unrecorded(dir: &PodDir, grace: Duration, error: anyhow::Error) -> Result<()> {
    if !dir.is_alive()? {
        return Err(error);
    }
    SupervisorClient::of_pod(dir).stop(grace).map_err(|_| error)?;
    let latest = Instant::now() + grace + MARGIN;
    while dir.is_alive()? {
        if Instant::now() > latest {
            bail!("pod {} does not end, and its process is not on record; `ps` shows it", dir.uuid());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The process that is a pod, so held that its PID cannot come to mean another.
struct PodProcess {
    uuid: Uuid,
    handle: OwnedFd,
}

impl PodProcess {
    /// None when the pod does not live.
    fn of(dir: &PodDir) -> Result<Option<Self>> {
        // A pod that is only now being prepared has no process on record yet.
        let latest = Instant::now() + KILL_LIMIT;
        let pid = loop {
            let (state, phase) = dir.state()?;
            match (state, phase) {
                (PodState::Starting | PodState::Running, Phase::Starting { pid, .. } | Phase::Running { pid, .. }) => {
                    break pid;
                }
                (PodState::Starting, _) if Instant::now() < latest => std::thread::sleep(Duration::from_millis(20)),
                (PodState::Starting, _) => bail!("pod {} is prepared and not started; try again", dir.uuid()),
                (PodState::Exited, _) if dir.is_alive()? => {
                    // It has said how it ended, and is about to be gone.
                    dir.wait_until_dead()?;
                    return Ok(None);
                }
                _ => return Ok(None),
            }
        };
        let Some(pid) = Pid::from_raw(pid) else { bail!("pod {} has no process on record", dir.uuid()) };
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            other => other?,
        };
        // The lock is still held, so the process that holds it has lived all the while: the handle is that one's.
        Ok(dir.is_alive()?.then_some(Self { uuid: dir.uuid(), handle }))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        match pidfd_send_signal(&self.handle, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => bail!("pod {}: its process cannot be signalled: {errno}", self.uuid),
        }
    }

    fn ends_within(&self, limit: Duration) -> Result<bool> {
        let latest = Instant::now() + limit;
        loop {
            let left = latest.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.handle.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) if left.is_zero() => return Ok(false),
                Ok(0) | Err(nix::errno::Errno::EINTR) => {}
                Ok(_) => return Ok(true),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}
