//! Which stage1 a pod gets: what was asked for, held against what this host can do.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use podvm_pod::draft::write_whole;
use podvm_pod::stage1::{Stage1Choice, Stage1Kind};
use serde::{Deserialize, Serialize};

/// Where what the probe found is kept until the next boot.
const PROBE_CACHE: &str = "/run/podvm/kvm-probe.json";

/// Why the stage1 that was asked for cannot run the pod.
#[derive(Debug, thiserror::Error)]
#[error("this host cannot run pods in VMs: {0}; --stage1=ns puts them behind namespaces instead")]
pub struct NoKvm(String);

/// The stage1 for a pod.
#[derive(Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Which one.
    pub kind: Stage1Kind,
    /// Why it is not the VM that an automatic choice would rather be.
    pub fallback: Option<String>,
}

/// Settles on a stage1.
///
/// # Errors
/// [`NoKvm`] when nothing but a VM will do, and this host has none.
pub fn choose(choice: Stage1Choice) -> Result<Chosen, NoKvm> {
    choose_by(choice, probe_once_per_boot)
}

fn choose_by(choice: Stage1Choice, probe: impl FnOnce() -> Result<(), String>) -> Result<Chosen, NoKvm> {
    let chosen = |kind| Chosen { kind, fallback: None };
    match choice {
        Stage1Choice::Ns => Ok(chosen(Stage1Kind::Ns)),
        Stage1Choice::Kvm => probe().map_err(NoKvm).map(|()| chosen(Stage1Kind::Kvm)),
        Stage1Choice::Auto => Ok(match probe() {
            Ok(()) => chosen(Stage1Kind::Kvm),
            Err(reason) => Chosen { kind: Stage1Kind::Ns, fallback: Some(reason) },
        }),
    }
}

/// A host that was found to run guests.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ProbedHost {
    boot_id: String,
    kernel: String,
}

impl ProbedHost {
    fn this() -> Option<Self> {
        let read = |path| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        let boot_id = read("/proc/sys/kernel/random/boot_id")?;
        Some(Self { boot_id, kernel: read("/proc/sys/kernel/osrelease")? })
    }
}

/// Probes KVM unless it was found to work since the last boot. That it does not work is never remembered: it may have been
/// mended since.
fn probe_once_per_boot() -> Result<(), String> {
    probe_unless_known(Path::new(PROBE_CACHE), || podvm_stage1_kvm::probe().map_err(|error| error.to_string()))
}

fn probe_unless_known(cache: &Path, probe: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    let this = ProbedHost::this();
    let known = fs::read(cache).ok().and_then(|bytes| serde_json::from_slice::<ProbedHost>(&bytes).ok());
    if this.is_some() && this == known {
        return Ok(());
    }
    probe()?;
    if let Some(host) = this {
        remember(cache, &host);
    }
    Ok(())
}

/// Without it, the next pod is probed for again, and that is all.
fn remember(cache: &Path, host: &ProbedHost) {
    let Some(folder) = cache.parent() else { return };
    let _ = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    if let Ok(bytes) = serde_json::to_vec(host) {
        let _ = write_whole(cache, &bytes, 0o600);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_works_is_probed_once() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("podvm/kvm-probe.json");
        assert_eq!(probe_unless_known(&cache, || Err("no".into())), Err("no".into()));
        assert_eq!(probe_unless_known(&cache, || Ok(())), Ok(()));
        assert_eq!(probe_unless_known(&cache, || panic!("probed again")), Ok(()));
        fs::write(&cache, r#"{"boot_id":"another","kernel":"0"}"#).unwrap();
        assert_eq!(probe_unless_known(&cache, || Err("no".into())), Err("no".into()));
    }

    #[test]
    fn only_an_automatic_choice_falls_back() {
        let broken = || Err("no /dev/kvm".to_owned());
        let fallen = choose_by(Stage1Choice::Auto, broken).unwrap();
        assert_eq!(fallen, Chosen { kind: Stage1Kind::Ns, fallback: Some("no /dev/kvm".into()) });
        let message = choose_by(Stage1Choice::Kvm, broken).unwrap_err().to_string();
        assert!(message.contains("no /dev/kvm") && message.contains("--stage1=ns"), "{message}");
        let chosen = choose_by(Stage1Choice::Ns, || panic!("probed without need")).unwrap();
        assert_eq!(chosen, Chosen { kind: Stage1Kind::Ns, fallback: None });
        assert_eq!(choose_by(Stage1Choice::Auto, || Ok(())).unwrap().kind, Stage1Kind::Kvm);
    }
}
