//! `podvm rm`: removes pods with all that is kept of them.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use podvm_pod::PodDir;
use podvm_pod::directory::PodState;

use super::remove;
use super::stop::stop;
use crate::config::Config;
use crate::output::print_text;
use crate::{chain, report};

/// How long a pod that is removed by force may take to end by itself.
const FORCED_GRACE: Duration = Duration::from_secs(2);
/// How long the process of a pod that has ended may take to be gone.
const ENDING_LIMIT: Duration = Duration::from_secs(30);

/// Options of `podvm rm`.
#[derive(Debug, clap::Args)]
pub struct RmArgs {
    /// The pods: their UUIDs, or enough of their beginnings
    #[arg(value_name = "POD", required = true)]
    pub pods: Vec<String>,
    /// Stop a pod that still runs, and remove one that is damaged
    #[arg(long, short)]
    pub force: bool,
}

/// Removes pods and prints their UUIDs; one that cannot be removed does not keep the others from it.
pub fn run(args: &RmArgs, config: &Config) -> Result<u8> {
    let pods = config.pods();
    let mut code = 0;
    let mut printed = Ok(());
    for name in &args.pods {
        let removed = pods
            .find(name)
            .map_err(anyhow::Error::from)
            .and_then(|dir| stop_and_remove(&dir, args.force).map(|()| dir));
        match removed {
            Ok(dir) => printed = printed.and(print_text(&format!("{}\n", dir.uuid()))),
            Err(error) => {
                report(&chain(&error));
                code = podvm_pod::exit::PODVM_ERROR;
            }
        }
    }
    printed?;
    Ok(code)
}

fn stop_and_remove(dir: &PodDir, force: bool) -> Result<()> {
    match dir.state() {
        Ok(_) if force => stop(dir, FORCED_GRACE, true)?,
        // It has said how it ended, and its process is about to be gone.
        Ok((PodState::Exited, _)) if !dir.is_dead_by(Instant::now() + ENDING_LIMIT)? => {
            bail!("pod {0} has ended, but its process is still there; `podvm rm --force {0}` kills it", dir.uuid());
        }
        Ok(_) => {}
        Err(_) if force && dir.is_alive().unwrap_or(false) => stop(dir, FORCED_GRACE, true)?,
        Err(_) if force => {}
        Err(error) => return Err(error.into()),
    }
    Ok(remove(dir)?)
}
