//! Which stage1 a pod gets: what was asked for, held against what this host can do.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use podvm_pod::stage1::Stage1Choice;
use serde::{Deserialize, Serialize};

/// Where what the probe found is kept until the next boot.
const PROBE_CACHE: &str = "/run/podvm/kvm-probe.json";

/// Why no stage1 can run the pod.
#[derive(Debug, thiserror::Error)]
pub enum Stage1Error {
    /// The namespace stage1 was asked for.
    #[error("the namespace stage1 is not built yet; use --stage1=kvm or leave it out")]
    NamespacesNotBuilt,
    /// A VM was asked for and cannot be had.
    #[error("this host cannot run pods in VMs: {0}")]
    NoKvm(String),
    /// No VM can be had, and the other walls are not there yet.
    #[error(
        "this host cannot run pods in VMs, and the namespace stage1, which will stand in for them, is not built yet: {0}"
    )]
    NoFallback(String),
}

/// Settles on the kvm stage1, the only one there is so far.
///
/// # Errors
/// [`Stage1Error`].
pub fn require_kvm(choice: Stage1Choice) -> Result<(), Stage1Error> {
    match choice {
        Stage1Choice::Ns => Err(Stage1Error::NamespacesNotBuilt),
        Stage1Choice::Kvm => probe_once_per_boot().map_err(Stage1Error::NoKvm),
        Stage1Choice::Auto => probe_once_per_boot().map_err(Stage1Error::NoFallback),
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
    let new = folder.join(format!(".kvm-probe.{}", std::process::id()));
    let written = serde_json::to_vec(host).map_err(std::io::Error::from).and_then(|bytes| fs::write(&new, bytes));
    if written.and_then(|()| fs::rename(&new, cache)).is_err() {
        let _ = fs::remove_file(&new);
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
    fn the_namespace_stage1_is_refused_by_name() {
        let message = require_kvm(Stage1Choice::Ns).unwrap_err().to_string();
        assert!(message.contains("namespace stage1 is not built yet"), "{message}");
    }
}
