//! A host for one test alone: network, processes, mounts and cgroups that nobody else changes meanwhile.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Invocation;

/// Says that the test is on its private host already.
const INSIDE: &str = "PODVM_E2E_PRIVATE_HOST";
/// Where cgroup2 is mounted: alone, or beside version 1.
const CGROUP_MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// Runs the rest of the calling test, whose full name is `test`, on a host of its own. Returns whether this is there: otherwise
/// the test has been run, and is over.
///
/// The host is made of namespaces, around another call of this executable. Its first process is a shell, which reaps.
#[track_caller]
pub fn on_private_host(test: &str, limit: Duration) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let executable = std::env::current_exe().expect("the test has an executable");
    let cgroup = PrivateCgroup::make();
    let inside = format!(
        "ip link set lo up; {cgroup}; '{executable}' --exact {test} --nocapture --test-threads=1 & wait $!",
        cgroup = cgroup.as_ref().map_or("true".into(), PrivateCgroup::enter),
        executable = executable.display(),
    );
    let unshare = "exec unshare --net --pid --fork --kill-child --mount --mount-proc --cgroup sh -c \"$0\"";
    let outside = match &cgroup {
        Some(cgroup) => format!("echo $$ > {}/cgroup.procs && {unshare}", cgroup.path.display()),
        None => unshare.to_owned(),
    };
    let call = Invocation::new("/bin/sh", ["-c", &outside, &inside]).env(INSIDE, "1").time_limit(limit).run();
    drop(cgroup);
    println!("{call}");
    assert!(call.status.success(), "the test failed on its private host");
    false
}

/// The cgroup that is the private host's whole hierarchy.
struct PrivateCgroup {
    mount: &'static Path,
    path: PathBuf,
}

impl PrivateCgroup {
    fn make() -> Option<Self> {
        let mut mounts = CGROUP_MOUNTS.into_iter().map(Path::new);
        let mount = mounts.find(|mount| mount.join("cgroup.controllers").exists())?;
        let path = mount.join(format!("podvm-e2e-{}", std::process::id()));
        std::fs::create_dir(&path).ok()?;
        Some(Self { mount, path })
    }

    /// Commands that make it the root, and take the test out of it into a child, so that it can pass controllers on.
    fn enter(&self) -> String {
        let mount = self.mount.display();
        // The same filesystem is not mounted over itself.
        let renew = format!("umount --lazy {mount} && mount -t cgroup2 none {mount}");
        format!("{renew} && mkdir {mount}/tests && echo 0 > {mount}/tests/cgroup.procs")
    }
}

impl Drop for PrivateCgroup {
    fn drop(&mut self) {
        remove_with_children(&self.path);
    }
}

/// Removes a cgroup and those below it, made by the test or by what it ran.
fn remove_with_children(cgroup: &Path) {
    for entry in std::fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_with_children(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(cgroup);
}
