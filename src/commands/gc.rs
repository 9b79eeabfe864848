//! `podvm gc`: removes what has ended, and what crashes left.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
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

/// How long a supervisor may take to follow its pod's process.
const ORPHAN_LIMIT: Duration = Duration::from_secs(5);

/// Options of `podvm gc`.
#[derive(Debug, clap::Args)]
pub struct GcArgs {
    /// Keep pods for this long after their end, or after they were marked, such as 30m or 0s
    #[arg(long, value_name = "TIME", default_value = "30m")]
    pub grace_period: Wait,
    /// Keep pods that were prepared and never started for this long
    #[arg(long, value_name = "TIME", default_value = "24h")]
    pub expire_prepared: Wait,
    /// Remove nothing: mark pods that have ended as garbage, so that their grace period begins now
    #[arg(long)]
    pub mark_only: bool,
    /// Form of the output.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What was removed, or marked.
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
    let now = Timestamp::now().seconds();
    for dir in pods.list()? {
        wait_for_orphan(&dir);
        if let (false, Err(error)) = (args.mark_only, remove_cgroup(&dir)) {
            complain(error.to_string());
        }
        let collected_now = match verdict(&dir, args, now) {
            Ok(Verdict::Keep) => Ok(false),
            Ok(Verdict::Mark) => dir.mark_garbage(now).map(|()| args.mark_only).map_err(RemoveError::from),
            Ok(Verdict::Remove) => remove(&dir).map(|()| true),
            Err(error) => Err(error.into()),
        };
        match collected_now {
            Ok(true) => collected.pods.push(dir.uuid()),
            // Another gc, or a start, was faster.
            Ok(false) | Err(RemoveError::Directory(DirectoryError::Alive(_))) => {}
            Err(_) if !dir.path().exists() => {}
            Err(error) => complain(error.to_string()),
        }
    }
    reach(FaultPoint::PodsCollected);
    if args.mark_only {
        print(args.output, &collected, as_text)?;
        return Ok(code);
    }
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

/// Removes the cgroup of a pod whose process was killed: it is of no use to who looks at the pod later.
fn remove_cgroup(dir: &PodDir) -> Result<(), RemoveError> {
    match dir.state() {
        Ok((PodState::Aborted | PodState::Exited, _)) if !dir.is_alive()? => Ok(podvm_stage1_ns::undo(dir)?),
        // What is wrong with its directory is said when it is collected.
        _ => Ok(()),
    }
}

/// What becomes of a pod.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Keep,
    /// It is marked as garbage since now.
    Mark,
    Remove,
}

/// A pod whose process was killed lives on until the kernel has ended its supervisor, too, which is a matter of milliseconds.
fn wait_for_orphan(dir: &PodDir) {
    let latest = Instant::now() + ORPHAN_LIMIT;
    while let Ok((_, Phase::Starting { pid, .. } | Phase::Running { pid, .. })) = dir.state() {
        let is_gone = kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH);
        if !is_gone || !dir.is_alive().unwrap_or(false) || Instant::now() > latest {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Times are those of the host's clock, which may be set back: what ends in the future ends now.
fn verdict(dir: &PodDir, args: &GcArgs, now: u64) -> Result<Verdict, DirectoryError> {
    let (state, phase) = dir.state()?;
    let recorded = || modified(&dir.path().join("state.json")).unwrap_or(now);
    let ended = match (state, phase) {
        (PodState::Exited, Phase::Exited { finished, .. }) => finished,
        // It could not say when it ended; its last word is the nearest to it that is known.
        (PodState::Aborted, _) => recorded(),
        (PodState::Prepared, _) if !args.mark_only => {
            let is_old = now.saturating_sub(recorded()) >= args.expire_prepared.0.as_secs();
            return Ok(if is_old { Verdict::Remove } else { Verdict::Keep });
        }
        _ => return Ok(Verdict::Keep),
    };
    // Its process may be on its way out.
    if dir.is_alive()? {
        return Ok(Verdict::Keep);
    }
    let mark = dir.garbage_since();
    let since = mark.unwrap_or(ended);
    Ok(if args.mark_only {
        if mark.is_some_and(|mark| mark <= now) { Verdict::Keep } else { Verdict::Mark }
    } else if now.saturating_sub(since) >= args.grace_period.0.as_secs() {
        Verdict::Remove
    } else if since > now {
        Verdict::Mark
    } else {
        Verdict::Keep
    })
}

/// When a file was written, in seconds since the Unix epoch.
fn modified(path: &Path) -> Option<u64> {
    let written = std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok()?;
    written.duration_since(SystemTime::UNIX_EPOCH).ok().map(|since| since.as_secs())
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
    use podvm_pod::status::PodReport;

    use super::*;
    use crate::commands::pod_without_apps;
    use crate::output::Format;

    fn args(grace: u64) -> GcArgs {
        let wait = |seconds| Wait(Duration::from_secs(seconds));
        let output = OutputArgs { output: Format::Table };
        GcArgs { grace_period: wait(grace), expire_prepared: wait(86_400), mark_only: false, output }
    }

    fn is_due(dir: &PodDir, args: &GcArgs) -> bool {
        verdict(dir, args, Timestamp::now().seconds()).unwrap() == Verdict::Remove
    }

    fn ended(pods: &PodsRoot, finished: u64) -> PodDir {
        let report = PodReport { code: 0, failed_app: None, error: None, apps: Vec::new() };
        let pod = pods.prepare(pod_without_apps()).unwrap().start(Stage1Kind::Kvm).unwrap();
        pod.record_exit(finished, &report).unwrap();
        pod.dir().clone()
    }

    #[test]
    fn only_pods_that_ended_long_enough_ago_are_due() {
        let folder = tempfile::tempdir().unwrap();
        let pods = PodsRoot::new(folder.path());
        let now = Timestamp::now().seconds();
        assert!(is_due(&ended(&pods, now - 100), &args(60)));
        assert!(!is_due(&ended(&pods, now - 10), &args(60)));
        assert!(is_due(&ended(&pods, now), &args(0)));

        let running = pods.prepare(pod_without_apps()).unwrap().start(Stage1Kind::Kvm).unwrap();
        assert!(!is_due(running.dir(), &args(0)));
        let dir = running.dir().clone();
        drop(running);
        assert!(is_due(&dir, &args(0)));
        assert!(!is_due(&dir, &args(60)));
        let prepared = pods.prepare(pod_without_apps()).unwrap().leave(Stage1Kind::Kvm).unwrap();
        assert!(!is_due(&prepared, &args(0)));
        let cut_short = pods.prepare(pod_without_apps()).unwrap().dir().clone();
        assert!(is_due(&cut_short, &args(0)));
    }

    #[test]
    fn the_grace_period_counts_from_the_mark() {
        let folder = tempfile::tempdir().unwrap();
        let pods = PodsRoot::new(folder.path());
        let pod = ended(&pods, 1_000);
        let marking = GcArgs { mark_only: true, ..args(60) };
        assert_eq!(verdict(&pod, &marking, 2_000).unwrap(), Verdict::Mark);
        pod.mark_garbage(2_000).unwrap();
        assert_eq!(verdict(&pod, &marking, 2_010).unwrap(), Verdict::Keep);
        assert_eq!(verdict(&pod, &args(60), 2_010).unwrap(), Verdict::Keep);
        assert_eq!(verdict(&pod, &args(60), 2_060).unwrap(), Verdict::Remove);
    }

    #[test]
    fn a_clock_that_is_set_back_lets_the_grace_period_begin_anew() {
        let folder = tempfile::tempdir().unwrap();
        let pods = PodsRoot::new(folder.path());
        let pod = ended(&pods, 1_000_000);
        assert_eq!(verdict(&pod, &args(60), 500).unwrap(), Verdict::Mark);
        assert_eq!(verdict(&pod, &args(0), 500).unwrap(), Verdict::Remove);
        pod.mark_garbage(500).unwrap();
        assert_eq!(verdict(&pod, &args(60), 510).unwrap(), Verdict::Keep);
        assert_eq!(verdict(&pod, &args(60), 560).unwrap(), Verdict::Remove);
        // And once more.
        assert_eq!(verdict(&pod, &args(60), 100).unwrap(), Verdict::Mark);
    }
}
