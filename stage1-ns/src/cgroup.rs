//! The pod's cgroup (Linux Documentation/admin-guide/cgroup-v2.rst): where it goes, that it is written down before it is made,
//! and that nothing of it stays.
//!
//! Under a service manager the pod belongs below the cgroup its process was started in, so that limits set there hold the pod.
//! A cgroup that has processes cannot also pass controllers on, so this is done where the process is alone in its cgroup, as in
//! a service's, after it has moved to a child of it. Elsewhere, as from a user's shell, the pod's cgroup is
//! `/podvm/<uuid>`. A host without cgroup2 has none; its pods run without limits, and the supervisor says which it missed.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use podvm_pod::fault::{FaultPoint, reach};
use podvm_pod::manifest::{App, Isolators};
use podvm_pod::protocol::SUPERVISOR_CGROUP;
use podvm_pod::{PodDir, PodManifest, Uuid};

/// Where cgroup2 is mounted: alone, or beside version 1.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// Name of the folder of pods' cgroups at the hierarchy's root.
const FOLDER: &str = "podvm";
/// Where the pod's process goes when it makes room for the pod in its own cgroup.
const OWN_CGROUP: &str = "_podvm";
/// The file of the pod directory that names the pod's cgroup.
const RECORD: &str = "cgroup";
/// The controllers that limits and statistics are from.
const USED_CONTROLLERS: [&str; 4] = ["cpu", "io", "memory", "pids"];
/// How long processes that were killed may take to be gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why the pod has no cgroup.
#[derive(Debug, thiserror::Error)]
#[error("the pod's cgroup {path} cannot be made or removed: {source}", path = .path.display())]
pub struct CgroupError {
    path: PathBuf,
    source: io::Error,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> CgroupError + '_ {
    move |source| CgroupError { path: path.into(), source }
}

/// A pod's cgroup; removed when dropped, with all below it.
#[derive(Debug)]
pub struct PodCgroup {
    path: PathBuf,
    /// The child that the supervisor is in, since a cgroup that passes controllers on may hold no process itself.
    supervisor: File,
}

impl PodCgroup {
    /// Makes the cgroup of the pod in `dir`; none where the host has no cgroup2 that can be written to.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn make(dir: &PodDir) -> Result<Option<Self>, CgroupError> {
        let Some(mount) = mount() else { return Ok(None) };
        let parent = parent(mount).map_err(at(mount))?;
        let path = parent.join(dir.uuid().to_string());
        let record = dir.path().join(RECORD);
        fs::write(&record, path.as_os_str().as_encoded_bytes()).map_err(at(&record))?;
        reach(FaultPoint::CgroupRecorded);
        match make_below(mount, &parent, &path) {
            Ok(supervisor) => {
                reach(FaultPoint::CgroupMade);
                Ok(Some(Self { path, supervisor }))
            }
            Err(error) if is_read_only(&error) => Ok(None),
            Err(error) => Err(at(&path)(error)),
        }
    }

    /// Lets `owner`, the pod's root at the host, divide it up.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn delegate(&self, owner: u32) -> Result<(), CgroupError> {
        for cgroup in [self.path.clone(), self.path.join(SUPERVISOR_CGROUP)] {
            // Those of cgroup-v2.rst, "Delegation Containment"; cgroup.type's reader needs no right.
            for file in ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] {
                let path = cgroup.join(file);
                std::os::unix::fs::chown(&path, Some(owner), Some(owner)).map_err(at(&path))?;
            }
            // The pod's own process has given up its privileges when it takes the cgroup away, but not its group.
            let own_group = nix::unistd::getegid().as_raw();
            std::os::unix::fs::chown(&cgroup, Some(owner), Some(own_group)).map_err(at(&cgroup))?;
            fs::set_permissions(&cgroup, fs::Permissions::from_mode(0o775)).map_err(at(&cgroup))?;
        }
        Ok(())
    }

    /// Where the supervisor's process is to be made: to move one takes the kernel ten milliseconds.
    pub fn supervisor(&self) -> BorrowedFd<'_> {
        self.supervisor.as_fd()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PodCgroup {
    fn drop(&mut self) {
        // What cannot be removed now is written down, and removed with the pod.
        let _ = remove(&self.path).and_then(|()| restore_parent(&self.path));
    }
}

/// Removes what a pod that is not alive left at the host. Safe to repeat.
///
/// # Errors
/// [`CgroupError`].
pub fn undo(dir: &PodDir) -> Result<(), CgroupError> {
    let record = dir.path().join(RECORD);
    let path = match fs::read_to_string(&record) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => PathBuf::from(other.map_err(at(&record))?),
    };
    // The record could have been written by anyone's hand: nothing is removed that does not look like a pod's.
    let is_pods = path.starts_with("/sys/fs/cgroup")
        && path.ends_with(dir.uuid().to_string())
        && !path.components().any(|part| part == Component::ParentDir);
    if is_pods { remove(&path).and_then(|()| restore_parent(&path)).map_err(at(&path)) } else { Ok(()) }
}

/// A hierarchy that this process only sees, as in a container.
fn is_read_only(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EROFS | libc::EACCES | libc::EPERM))
}

/// The limits of a pod's apps that cannot be applied here, a sentence for each app. They are asked for and missed, and the pod
/// runs: a host's administrator may limit it by other means.
pub fn missed_limits(manifest: &PodManifest) -> Vec<String> {
    let (controllers, cure) = match available_controllers() {
        Ok(controllers) => (
            controllers,
            "this host's cgroup2 has no such controllers; boot it with systemd.unified_cgroup_hierarchy=1",
        ),
        Err(_) => {
            let cure = "this user has no cgroup to divide; start podvm by systemd-run --user --scope -p Delegate=yes";
            (String::new(), cure)
        }
    };
    let has = |controller: &str| controllers.split_whitespace().any(|name| name == controller);
    let sentence = |app: &App| {
        let Isolators { memory, cpu, cpu_shares, pids, .. } = &app.isolators;
        let wanted = [
            ("--memory", "memory", memory.is_some()),
            ("--cpu", "cpu", cpu.is_some()),
            ("--cpu-shares", "cpu", cpu_shares.is_some()),
            ("--pids", "pids", pids.is_some()),
        ];
        let missed = wanted.into_iter().filter(|(_, controller, is_wanted)| *is_wanted && !has(controller));
        let options: Vec<&str> = missed.map(|(option, ..)| option).collect();
        let (name, options) = (&app.name, options.join(" and "));
        (!options.is_empty()).then(|| format!("app {name} runs without {options}: {cure}"))
    };
    manifest.apps.iter().filter_map(sentence).collect()
}

/// The controllers that pods' cgroups can have.
///
/// # Errors
/// When pods can have no cgroup.
pub fn available_controllers() -> io::Result<String> {
    let Some(mount) = mount() else { return Ok(String::new()) };
    let parent = parent(mount)?;
    let existing = parent.ancestors().find(|path| path.is_dir()).unwrap_or(mount);
    rustix::fs::access(existing, rustix::fs::Access::WRITE_OK)?;
    fs::read_to_string(existing.join("cgroup.controllers"))
}

fn mount() -> Option<&'static Path> {
    let is_cgroup2 = |path: &&Path| statfs(*path).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC);
    MOUNTS.map(Path::new).into_iter().find(is_cgroup2)
}

/// The cgroup that this pod's is to be made in.
fn parent(mount: &Path) -> io::Result<PathBuf> {
    let own = own_cgroup(mount)?;
    Ok(if own != mount && own_processes(&own)?.is_some() { own } else { mount.join(FOLDER) })
}

/// Makes a pod's cgroup in `parent`, to which all controllers are passed on, and its child for the supervisor.
fn make_below(mount: &Path, parent: &Path, path: &Path) -> io::Result<File> {
    let is_folder = parent == mount.join(FOLDER);
    if !is_folder {
        let inner = parent.join(OWN_CGROUP);
        make_directory(&inner)?;
        for process in own_processes(parent)?.unwrap_or_default() {
            match fs::write(inner.join("cgroup.procs"), process.to_string()) {
                // It has ended meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                other => other?,
            }
        }
    }
    loop {
        if is_folder {
            make_directory(parent)?;
        }
        reach(FaultPoint::CgroupFolderMade);
        match fs::create_dir(path) {
            // The last pod to end has taken the folder with it.
            Err(error) if is_folder && error.kind() == io::ErrorKind::NotFound => {}
            other => break other?,
        }
    }
    // Not before: only with a cgroup in it is the folder sure to be the one that stays.
    if is_folder {
        pass_controllers_on(mount);
    }
    pass_controllers_on(parent);
    let supervisor = path.join(SUPERVISOR_CGROUP);
    fs::create_dir(&supervisor)?;
    File::open(&supervisor)
}

/// Leaves the cgroup that a pod's was in as it was before: without the folder, when it was the last pod there; without the
/// child that its process had moved to. While another pod is there, as when a service was started anew, all stays as that needs it.
fn restore_parent(pod: &Path) -> io::Result<()> {
    let Some(parent) = pod.parent() else { return Ok(()) };
    if mount().is_some_and(|mount| parent == mount.join(FOLDER)) {
        // Other pods may still be there.
        let _ = fs::remove_dir(parent);
        return Ok(());
    }
    // Any other is a service's own, and not podvm's to remove.
    let inner = parent.join(OWN_CGROUP);
    if !inner.exists() {
        return Ok(());
    }
    let is_anothers = !fs::read_to_string(inner.join("cgroup.procs"))?.is_empty() && own_processes(&inner)?.is_none();
    if is_anothers || has_pod(parent)? {
        return Ok(());
    }
    let own = own_cgroup(mount().unwrap_or(parent))?;
    let passed = parent.join("cgroup.subtree_control");
    for controller in fs::read_to_string(&passed)?.split_whitespace() {
        fs::write(&passed, format!("-{controller}"))?;
    }
    if own == inner {
        fs::write(parent.join("cgroup.procs"), "0")?;
    }
    // The pod's process may be on its way out of it.
    let _ = fs::remove_dir(&inner);
    Ok(())
}

/// Whether a pod's cgroup is in this one.
fn has_pod(parent: &Path) -> io::Result<bool> {
    let is_pods = |entry: &fs::DirEntry| entry.file_name().to_str().is_some_and(|name| name.parse::<Uuid>().is_ok());
    Ok(fs::read_dir(parent)?.filter_map(Result::ok).any(|entry| is_pods(&entry)))
}

/// The cgroup of this process.
fn own_cgroup(mount: &Path) -> io::Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let own = mount.join(path);
    // Seen from a cgroup namespace, it may be outside.
    Ok(if path.is_empty() || path.contains("..") || !own.is_dir() { mount.into() } else { own })
}

/// The processes of a cgroup if they are only this one and its children; none if there are others.
fn own_processes(cgroup: &Path) -> io::Result<Option<Vec<u32>>> {
    let this = std::process::id();
    let is_child = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("PPid:").is_some_and(|parent| parent.trim() == this.to_string()))
    };
    let text = fs::read_to_string(cgroup.join("cgroup.procs"))?;
    let processes: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    let are_own = processes.contains(&this) && processes.iter().all(|pid| *pid == this || is_child(*pid));
    Ok(are_own.then_some(processes))
}

/// A controller that cannot be passed on is missed when a limit needs it, and then said.
fn pass_controllers_on(cgroup: &Path) {
    let available = fs::read_to_string(cgroup.join("cgroup.controllers")).unwrap_or_default();
    let passed = cgroup.join("cgroup.subtree_control");
    let present = fs::read_to_string(&passed).unwrap_or_default();
    let is_off = |name: &&str| !present.split_whitespace().any(|on| on == *name);
    for controller in available.split_whitespace().filter(|name| USED_CONTROLLERS.contains(name)).filter(is_off) {
        let _ = fs::write(&passed, format!("+{controller}"));
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Kills what is left in a cgroup, and removes it with all below.
fn remove(path: &Path) -> io::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    // Before Linux 5.14 there is no such file; the processes' end is then only waited for.
    let _ = fs::write(path.join("cgroup.kill"), "1");
    let until = Instant::now() + PATIENCE;
    loop {
        match remove_tree(path) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => return other,
        }
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

#[cfg(test)]
mod tests {
    use podvm_pod::PodsRoot;

    use super::*;

    #[test]
    fn a_record_that_names_another_place_removes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let dir = PodsRoot::new(folder.path()).pod(Uuid::new_v4());
        fs::create_dir_all(dir.path()).unwrap();
        undo(&dir).unwrap();
        let victim = folder.path().join(dir.uuid().to_string());
        fs::create_dir(&victim).unwrap();
        for record in [victim.to_str().unwrap(), "/sys/fs/cgroup", ""] {
            fs::write(dir.path().join(RECORD), record).unwrap();
            undo(&dir).unwrap();
        }
        assert!(victim.exists());
    }
}
