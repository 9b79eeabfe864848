//! The host as podvm's user sees it: an installed podvm and a directory for its state.

use std::ffi::{OsStr, OsString};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::{Finished, Invocation, layout, prefix, prefix_with_faults, stage1, workspace};

/// Where the tests of one checkout keep the images they have imported: importing is slow under emulation.
fn shared_root() -> PathBuf {
    let mut hasher = DefaultHasher::new();
    workspace().hash(&mut hasher);
    format!("/var/tmp/podvm-e2e-{:016x}", hasher.finish()).into()
}

/// An installed podvm with a state directory. Dropped, its pods are stopped and removed.
pub struct Host {
    root: PathBuf,
    prefix: PathBuf,
    /// Removes itself; `None` for the shared one.
    _own: Option<TempDir>,
    /// For volumes and whatever else a test writes.
    scratch: TempDir,
}

impl Host {
    /// With the state that tests share, so that an image is imported once.
    pub fn new() -> Self {
        let root = shared_root();
        std::fs::create_dir_all(&root).expect("the tests' state directory can be made");
        Self { root, prefix: prefix(), _own: None, scratch: scratch() }
    }

    /// With an empty state of its own.
    pub fn empty() -> Self {
        let own = scratch();
        Self { root: own.path().to_owned(), prefix: prefix(), _own: Some(own), scratch: scratch() }
    }

    /// As [`Host::empty`], with a podvm that can be made to die at every step.
    pub fn with_faults() -> Self {
        let mut host = Self::empty();
        host.prefix = prefix_with_faults();
        host
    }

    /// As [`Host::empty`], with its state in this directory, which stays.
    pub fn at(root: &Path) -> Self {
        Self { root: root.into(), prefix: prefix(), _own: None, scratch: scratch() }
    }

    /// podvm's state directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A directory of the test's own, on a real file system, that is removed with this.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// A new directory in [`Host::scratch`].
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.scratch().join(name);
        std::fs::create_dir_all(&path).expect("a scratch directory can be made");
        path
    }

    /// A call of podvm. Pods that it runs get the stage1 that is tested.
    pub fn podvm<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Invocation {
        let mut all = vec![OsString::from("--root"), self.root.clone().into()];
        all.extend(arguments.into_iter().map(|word| word.as_ref().to_owned()));
        if let Some(run) = all.iter().position(|word| word == "run" || word == "prepare")
            && !all.iter().any(|word| word.to_string_lossy().starts_with("--stage1"))
        {
            all.insert(run + 1, format!("--stage1={}", stage1()).into());
        }
        Invocation::new(self.prefix.join("bin/podvm"), all)
    }

    /// The reference of one of the tests' images, imported if it is not yet.
    #[track_caller]
    pub fn image(&self, name: &str) -> String {
        let layout = layout(name);
        // Of the layout's content, for the state that tests share outlives one that is made anew.
        let mut hasher = DefaultHasher::new();
        std::fs::read(layout.join("index.json")).expect("a layout has an index").hash(&mut hasher);
        let reference = format!("{name}:{:016x}", hasher.finish());
        let listed = self.podvm(["image", "list", "--output", "json"]).run().expect_code(0);
        if !listed.stdout.contains(&reference) {
            let words = [OsStr::new("image"), OsStr::new("import"), layout.as_os_str(), OsStr::new("--name")];
            let import = self.podvm(words).arg(&reference);
            import.time_limit(Duration::from_secs(300)).run().expect_code(0);
        }
        reference
    }

    /// The UUIDs of all pods.
    pub fn pods(&self) -> Vec<String> {
        let listed = self.podvm(["list", "--output", "json"]).run().expect_code(0).json();
        let pods = listed.as_array().into_iter().flatten();
        pods.filter_map(|pod| Some(pod.get("uuid")?.as_str()?.to_owned())).collect()
    }

    /// Removes what has ended.
    pub fn gc(&self) -> Finished {
        self.podvm(["gc", "--grace-period", "0s"]).run()
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // A test that already fails is to report its own failure, not a second one of its cleaning up.
        let quietly = || {
            for pod in self.pods() {
                self.podvm(["stop", "--force", &pod]).run();
            }
            self.gc();
        };
        if std::thread::panicking() {
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(quietly));
        } else {
            quietly();
        }
    }
}

/// `TMPDIR`, which the lab sets to a directory on a real file system.
fn scratch() -> TempDir {
    tempfile::tempdir().expect("a temporary directory can be made")
}
