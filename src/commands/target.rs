//! The running pod and the app in it that a command is about.

use anyhow::{Result, bail};
use podvm_pod::PodDir;
use podvm_pod::client::SupervisorClient;
use podvm_pod::directory::PodState;
use podvm_pod::manifest::{AppName, PodManifest};

use crate::config::Config;

/// A pod that runs.
pub struct RunningPod {
    /// Its directory.
    pub dir: PodDir,
    /// What it was made from.
    pub manifest: PodManifest,
}

impl RunningPod {
    /// Finds a pod by enough of its UUID's beginning.
    ///
    /// # Errors
    /// There is none, or it does not run.
    pub fn find(config: &Config, pod: &str) -> Result<Self> {
        let dir = config.pods().find(pod)?;
        let manifest = dir.manifest()?;
        let state = dir.state()?.0;
        if state != PodState::Running {
            bail!("pod {} is {state}; this can be done with a running pod only", dir.uuid());
        }
        Ok(Self { dir, manifest })
    }

    /// The way to its supervisor.
    pub fn client(&self) -> SupervisorClient {
        SupervisorClient::of_pod(&self.dir)
    }

    /// The app of that name, or the only one.
    ///
    /// # Errors
    /// There is none, or several and no name.
    pub fn app(&self, wanted: Option<&AppName>) -> Result<AppName> {
        choose_app(&self.manifest, wanted)
    }
}

/// The app of that name, or the only one.
///
/// # Errors
/// There is none, or several and no name.
pub fn choose_app(manifest: &PodManifest, wanted: Option<&AppName>) -> Result<AppName> {
    let names = || manifest.apps.iter().map(|app| app.name.as_str()).collect::<Vec<_>>().join(", ");
    match (wanted, manifest.apps.as_slice()) {
        (Some(name), apps) if apps.iter().any(|app| app.name == *name) => Ok(name.clone()),
        (Some(name), _) => bail!("pod {} has no app {name}; its apps are {}", manifest.uuid, names()),
        (None, [app]) => Ok(app.name.clone()),
        (None, _) => bail!("pod {} has several apps; name one of them: {}", manifest.uuid, names()),
    }
}
