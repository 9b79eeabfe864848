//! `podvm pause` and `podvm resume`: a pod's apps held still, and let go on.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use podvm_pod::directory::Phase;
use podvm_pod::manifest::AppName;
use podvm_pod::status::AppState;

use super::target::RunningPod;
use crate::config::Config;

/// Options of `podvm pause` and `podvm resume`.
#[derive(Debug, clap::Args)]
pub struct PauseArgs {
    /// The pod: its UUID, or enough of its beginning
    #[arg(value_name = "POD")]
    pub pod: String,
    /// Only this app [default: all]
    #[arg(long, value_name = "APP")]
    pub app: Option<AppName>,
}

/// How long the pod's process may take to write down what has come about, and how often that is looked for.
const RECORDED_WITHIN: Duration = Duration::from_secs(5);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Holds apps still, or lets them go on.
pub fn run(args: &PauseArgs, frozen: bool, config: &Config) -> Result<u8> {
    let pod = RunningPod::find(config, &args.pod)?;
    let app = args.app.as_ref().map(|app| pod.app(Some(app))).transpose()?;
    pod.client().freeze(app, frozen)?;
    wait_until_recorded(&pod, args.app.as_ref(), frozen)?;
    Ok(0)
}

/// Whoever looks at the pod next is to see what was done. That nobody has written it down in time changes nothing of it.
fn wait_until_recorded(pod: &RunningPod, app: Option<&AppName>, frozen: bool) -> Result<()> {
    let until = Instant::now() + RECORDED_WITHIN;
    while let (_, Phase::Running { apps, .. }) = pod.dir.state()? {
        let mut chosen = apps.iter().filter(|status| app.is_none_or(|app| *app == status.name));
        let is_so = chosen.all(|status| status.paused == frozen || !matches!(status.state, AppState::Running { .. }));
        if is_so || Instant::now() >= until {
            break;
        }
        sleep(LOOK_INTERVAL);
    }
    Ok(())
}
