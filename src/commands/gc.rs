//! `podvm gc`: removes what has ended, and what crashes left.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use podvm_net::LeaseDir;
use podvm_pod::directory::{DirectoryError, Phase, PodState};
use podvm_pod::fault::{FaultPoint, reach};
use podvm_pod::timestamp::Timestamp;
use podvm_pod::{PodDir, Uuid};
use serde::Serialize;

use super::image::{open_store, uses};
use super::{RemoveError, remove};
use crate::config::Config;
use crate::duration::Wait;
use crate::output::{OutputArgs, print};
use crate::{chain, report};

/// Options of `podvm gc`.
#[derive(Debug, clap::Args)]
pub struct GcArgs {
    /// Keep pods for this long after their end, such as 30m or 0s
    #[arg(long, value_name = "TIME", default_value = "30m")]
    pub grace_period: Wait,
    /// Keep pods that were prepared and never started for this long
    #[arg(long, value_name = "TIME", default_value = "24h")]
    pub expire_prepared: Wait,
    /// Form of the output.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What was removed.
#[derive(Debug, Default, Serialize)]
struct Collected {
    /// Pods.
    pods: Vec<Uuid>,
    /// Directories of pods whose preparation or removal was cut short.
    leftovers: usize,
    /// Addresses whose pods are gone.
    addresses: Vec<String>,
    /// Network links whose pods are gone.
    links: Vec<String>,
    /// Image layers that no image names.
    layers: usize,
    /// Files of imports that were cut short.
    unfinished_imports: usize,
}

/// Removes pods that ended; one that cannot be removed does not keep the others from it.
pub fn run(args: &GcArgs, config: &Config) -> Result<u8> {
    let pods = config.pods();
    let mut collected = Collected::default();
    let mut code = 0;
    let mut complain = |message: String| {
        report(&message);
        code = podvm_pod::exit::PODVM_ERROR;
    };
    for dir in pods.list()? {
        let due = is_due(&dir, args).map_err(RemoveError::from);
        let removed = due.and_then(|due| if due { remove(&dir).map(|()| true) } else { Ok(false) });
        match removed {
            Ok(true) => collected.pods.push(dir.uuid()),
            // Another gc, or a start, was faster.
            Ok(false) | Err(RemoveError::Directory(DirectoryError::Alive(_))) => {}
            Err(_) if !dir.path().exists() => {}
            Err(error) => complain(error.to_string()),
        }
    }
    reach(FaultPoint::PodsCollected);
    match pods.sweep() {
        Ok(count) => collected.leftovers = count,
        Err(error) => complain(error.to_string()),
    }
    reach(FaultPoint::DirectoriesSwept);
    if pods.leases().is_dir() {
        match LeaseDir::open(pods.leases()).map_err(Into::into).and_then(|leases| podvm_net::gc(&leases)) {
            Ok(report) => {
                collected.addresses = report.addresses.iter().map(ToString::to_string).collect();
                collected.links = report.links;
            }
            Err(error) => complain(error.to_string()),
        }
    }
    reach(FaultPoint::LeasesCollected);
    if let Err(error) = podvm_stage1_ns::users::sweep(&pods) {
        complain(format!("leases of user IDs: {error}"));
    }
    if config.images().is_dir() {
        match open_store(config).and_then(|store| store.gc(&|| uses(&pods))) {
            Ok(report) => {
                collected.layers = report.layers;
                collected.unfinished_imports = report.leftovers;
            }
            Err(error) => complain(chain(&error.into())),
        }
    }
    reach(FaultPoint::StoreCollected);
    print(args.output, &collected, as_text)?;
    Ok(code)
}

fn is_due(dir: &PodDir, args: &GcArgs) -> Result<bool, DirectoryError> {
    let (state, phase) = dir.state()?;
    Ok(match (state, phase) {
        (PodState::Exited, Phase::Exited { finished, .. }) => {
            Timestamp::now().seconds().saturating_sub(finished) >= args.grace_period.0.as_secs()
        }
        // It could not say when it ended; its last word is the nearest to it that is known.
        (PodState::Aborted, _) => age(&dir.path().join("state.json")) >= args.grace_period.0,
        (PodState::Prepared, _) => age(&dir.path().join("state.json")) >= args.expire_prepared.0,
        _ => false,
    })
}

/// How long ago a file was written; one from the future, or that is gone, was written now.
fn age(path: &Path) -> Duration {
    let written = std::fs::metadata(path).and_then(|metadata| metadata.modified());
    written.ok().and_then(|written| SystemTime::now().duration_since(written).ok()).unwrap_or_default()
}

fn as_text(collected: &Collected) -> String {
    let mut text: String = collected.pods.iter().map(|uuid| format!("{uuid}\n")).collect();
    if collected.leftovers > 0 {
        text.push_str(&format!("{} unfinished pod directories\n", collected.leftovers));
    }
    for (count, what) in [(collected.layers, "image layers"), (collected.unfinished_imports, "unfinished imports")] {
        if count > 0 {
            text.push_str(&format!("{count} {what}\n"));
        }
    }
    for address in &collected.addresses {
        text.push_str(&format!("address {address}\n"));
    }
    for link in &collected.links {
        text.push_str(&format!("link {link}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use podvm_pod::PodsRoot;
    use podvm_pod::Stage1Kind;
    use podvm_pod::manifest::{ByteSize, MANIFEST_VERSION, NetworkMode, PodManifest, PodResources};
    use podvm_pod::status::PodReport;

    use super::*;
    use crate::output::Format;

    fn manifest() -> PodManifest {
        PodManifest {
            version: MANIFEST_VERSION,
            uuid: Uuid::new_v4(),
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
            resources: PodResources { memory: ByteSize::mib(64), cpus: 1, disk: ByteSize::mib(64) },
        }
    }

    fn args(grace: u64) -> GcArgs {
        let wait = |seconds| Wait(Duration::from_secs(seconds));
        let output = OutputArgs { output: Format::Table };
        GcArgs { grace_period: wait(grace), expire_prepared: wait(86_400), output }
    }

    #[test]
    fn only_pods_that_ended_long_enough_ago_are_due() {
        let folder = tempfile::tempdir().unwrap();
        let pods = PodsRoot::new(folder.path());
        let report = PodReport { code: 0, failed_app: None, error: None, apps: Vec::new() };
        let ended = |ago: u64| {
            let pod = pods.prepare(manifest()).unwrap().start(Stage1Kind::Kvm).unwrap();
            pod.record_exit(Timestamp::now().seconds() - ago, &report).unwrap();
            pod.dir().clone()
        };
        assert!(is_due(&ended(100), &args(60)).unwrap());
        assert!(!is_due(&ended(10), &args(60)).unwrap());
        assert!(is_due(&ended(0), &args(0)).unwrap());

        let running = pods.prepare(manifest()).unwrap().start(Stage1Kind::Kvm).unwrap();
        assert!(!is_due(running.dir(), &args(0)).unwrap());
        let dir = running.dir().clone();
        drop(running);
        assert!(is_due(&dir, &args(0)).unwrap());
        assert!(!is_due(&dir, &args(60)).unwrap());
        let prepared = pods.prepare(manifest()).unwrap().dir().clone();
        assert!(!is_due(&prepared, &args(0)).unwrap());
    }
}
