//! The pod directory: all that is known of a pod, and the lock that says it is alive.
//!
//! `<root>/pods/<uuid>/` holds:
//!
//! | name | content |
//! |---|---|
//! | `manifest.json` | the [`PodManifest`], written once |
//! | `state.json` | the [`Phase`] the pod's own process last recorded |
//! | `logs/<app>.log` | what the app printed |
//! | `console.log` | what the guest's kernel printed, or the supervisor behind namespaces |
//! | `writable.img` | the disk of the apps' writable layers |
//! | `cgroup` | the path of the pod's cgroup, ns only |
//! | `supervisor.sock` | where the supervisor's request connections are made |
//!
//! A pod is alive exactly while some process holds the exclusive flock(2) on its directory: whatever ends the process,
//! the kernel drops the lock. Every change is one atomic rename: a new pod is prepared as `<root>/pods/.new-<uuid>` and
//! renamed when whole; a removed one is renamed to `.old-<uuid>` first. Names with a leading dot are never pods, only
//! what a crash may have left; [`PodsRoot::sweep`] removes those that nobody holds locked.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::manifest::{MANIFEST_VERSION, PodManifest};
use crate::stage1::Stage1Kind;
use crate::status::{AppStatus, PodReport};

/// What goes wrong with pod directories.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// A file operation failed.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the pod cannot be read as what it should be.
    #[error("{path} is damaged ({source}); `podvm rm --force` removes the pod", path = .path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// A manifest of a version to come.
    #[error("pod {uuid} was made by a newer podvm (manifest version {version}); use that one")]
    TooNew {
        /// The pod.
        uuid: Uuid,
        /// Its version.
        version: u32,
    },
    /// No pod of that name.
    #[error("no pod {0:?}; `podvm list` shows those there are")]
    NotFound(String),
    /// Several pods begin with that prefix.
    #[error("{prefix:?} could be any of {count} pods; write more of the UUID")]
    Ambiguous {
        /// What was given.
        prefix: String,
        /// How many match.
        count: usize,
    },
    /// The pod is alive and the operation needs it not to be.
    #[error("pod {0} is running; stop it first with `podvm stop {0}`")]
    Alive(Uuid),
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> DirectoryError + '_ {
    move |source| DirectoryError::Io { path: path.into(), source }
}

/// What a pod's own process last recorded of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "phase")]
pub enum Phase {
    /// Everything is resolved; nothing runs.
    Prepared,
    /// Walls and supervisor are being started.
    Starting {
        /// The process that is the pod, as the host sees it.
        pid: i32,
        /// Which walls.
        stage1: Stage1Kind,
    },
    /// The apps were started.
    Running {
        /// The process that is the pod, as the host sees it.
        pid: i32,
        /// Which walls.
        stage1: Stage1Kind,
        /// Seconds since the Unix epoch.
        started: u64,
        /// The pod's addresses, if it has any.
        addresses: Vec<std::net::IpAddr>,
        /// The last state of each app.
        apps: Vec<AppStatus>,
    },
    /// The pod has ended and said how.
    Exited {
        /// Seconds since the Unix epoch.
        finished: u64,
        /// How.
        report: PodReport,
    },
}

/// A pod's state: what it recorded, seen in the light of its lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PodState {
    /// Prepared, and not started yet.
    Prepared,
    /// Alive, apps not started yet.
    Starting,
    /// Alive.
    Running,
    /// Ended, and said how.
    Exited,
    /// Dead without a word: its process was killed, or the host went down.
    Aborted,
}

impl std::fmt::Display for PodState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Prepared => "prepared",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Exited => "exited",
            Self::Aborted => "aborted",
        })
    }
}

/// The folder that holds all of podvm's state, usually `/var/lib/podvm`.
#[derive(Debug, Clone)]
pub struct PodsRoot {
    root: PathBuf,
}

impl PodsRoot {
    /// The root at this path; nothing is made until a pod is.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder of the pod directories.
    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// The folder of the pods' address leases.
    pub fn leases(&self) -> PathBuf {
        self.root.join("leases")
    }

    /// The folder of leases of user IDs.
    pub fn users(&self) -> PathBuf {
        self.root.join("users")
    }

    /// Writes down a new pod, whole and locked by this process.
    ///
    /// # Errors
    /// [`DirectoryError::Io`]; nothing is left then.
    pub fn prepare(&self, manifest: PodManifest) -> Result<PreparedPod, DirectoryError> {
        let pods = self.pods();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&pods).map_err(io_error(&pods))?;
        let new = pods.join(format!(".new-{}", manifest.uuid));
        fs::DirBuilder::new().mode(0o700).create(&new).map_err(io_error(&new))?;
        let fill = || {
            let lock = lock_exclusive(&new)?.ok_or(DirectoryError::Alive(manifest.uuid))?;
            let dir = PodDir { path: new.clone(), uuid: manifest.uuid };
            let logs = new.join("logs");
            fs::DirBuilder::new().mode(0o700).create(&logs).map_err(io_error(&logs))?;
            dir.write_json("manifest.json", &manifest)?;
            dir.write_json("state.json", &Phase::Prepared)?;
            let path = pods.join(manifest.uuid.to_string());
            fs::rename(&new, &path).map_err(io_error(&path))?;
            sync_directory(&pods)?;
            Ok((lock, path))
        };
        match fill() {
            Ok((lock, path)) => {
                let dir = PodDir { path, uuid: manifest.uuid };
                Ok(PreparedPod { dir, manifest, lock })
            }
            Err(error) => {
                let _ = fs::remove_dir_all(&new);
                Err(error)
            }
        }
    }

    /// All pods, oldest first. A directory that is not a pod's is passed over.
    ///
    /// # Errors
    /// [`DirectoryError::Io`] when the folder cannot be read; one that is missing holds no pods.
    pub fn list(&self) -> Result<Vec<PodDir>, DirectoryError> {
        let pods = self.pods();
        let entries = match fs::read_dir(&pods) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(io_error(&pods))?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(io_error(&pods))?;
            if let Some(uuid) = entry.file_name().to_str().and_then(parse_pod_name) {
                let made = entry.metadata().and_then(|metadata| metadata.modified()).ok();
                found.push((made, PodDir { path: entry.path(), uuid }));
            }
        }
        found.sort_by_key(|(made, dir)| (dir.manifest().map(|m| m.created).ok(), *made));
        Ok(found.into_iter().map(|(_, dir)| dir).collect())
    }

    /// The pod whose UUID is, or alone begins with, this text.
    ///
    /// # Errors
    /// [`DirectoryError::NotFound`] or [`DirectoryError::Ambiguous`].
    pub fn find(&self, prefix: &str) -> Result<PodDir, DirectoryError> {
        let wanted = prefix.to_ascii_lowercase();
        let mut matching: Vec<_> = self.list()?;
        matching.retain(|dir| !wanted.is_empty() && dir.uuid.to_string().starts_with(&wanted));
        match matching.len() {
            0 => Err(DirectoryError::NotFound(prefix.into())),
            1 => Ok(matching.remove(0)),
            count => Err(DirectoryError::Ambiguous { prefix: prefix.into(), count }),
        }
    }

    /// The directory of the pod with exactly this UUID, whether or not it is there.
    pub fn pod(&self, uuid: Uuid) -> PodDir {
        PodDir { path: self.pods().join(uuid.to_string()), uuid }
    }

    /// Removes what crashed preparations and removals left. Returns how many it removed.
    ///
    /// # Errors
    /// [`DirectoryError::Io`].
    pub fn sweep(&self) -> Result<usize, DirectoryError> {
        let pods = self.pods();
        let entries = match fs::read_dir(&pods) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            other => other.map_err(io_error(&pods))?,
        };
        let mut swept = 0;
        for entry in entries {
            let path = entry.map_err(io_error(&pods))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let left_over = name.starts_with(".new-") || name.starts_with(".old-");
            if left_over && lock_exclusive(&path)?.is_some() {
                fs::remove_dir_all(&path).map_err(io_error(&path))?;
                swept += 1;
            }
        }
        Ok(swept)
    }
}

/// The UUID a directory's name is, in the one spelling that is used.
fn parse_pod_name(name: &str) -> Option<Uuid> {
    Uuid::parse_str(name).ok().filter(|uuid| uuid.to_string() == name)
}

/// Locks a directory, or returns nothing when another process holds it.
fn lock_exclusive(path: &Path) -> Result<Option<Flock<File>>, DirectoryError> {
    let directory = File::open(path).map_err(io_error(path))?;
    match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(DirectoryError::Io { path: path.into(), source: errno.into() }),
    }
}

fn sync_directory(path: &Path) -> Result<(), DirectoryError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(io_error(path))
}

/// One pod's directory, whether or not the pod is alive.
#[derive(Debug, Clone)]
pub struct PodDir {
    path: PathBuf,
    uuid: Uuid,
}

impl PodDir {
    /// The pod's name.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the supervisor's request connections are made.
    pub fn supervisor_socket(&self) -> PathBuf {
        self.path.join("supervisor.sock")
    }

    /// The folder of the apps' logs.
    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// The manifest.
    ///
    /// # Errors
    /// [`DirectoryError::Io`], [`DirectoryError::Damaged`], [`DirectoryError::TooNew`].
    pub fn manifest(&self) -> Result<PodManifest, DirectoryError> {
        let manifest: PodManifest = self.read_json("manifest.json")?;
        if manifest.version > MANIFEST_VERSION {
            return Err(DirectoryError::TooNew { uuid: self.uuid, version: manifest.version });
        }
        Ok(manifest)
    }

    /// What the pod last recorded, and the state that follows from it and the lock.
    ///
    /// # Errors
    /// [`DirectoryError::Io`], [`DirectoryError::Damaged`].
    pub fn state(&self) -> Result<(PodState, Phase), DirectoryError> {
        // The lock is looked at first: a pod that exits in between is then seen as exited, not as aborted.
        let alive = self.is_alive()?;
        let phase: Phase = self.read_json("state.json")?;
        let state = match (&phase, alive) {
            (Phase::Exited { .. }, _) => PodState::Exited,
            (Phase::Prepared, false) => PodState::Prepared,
            (Phase::Prepared | Phase::Starting { .. }, true) => PodState::Starting,
            (Phase::Running { .. }, true) => PodState::Running,
            (Phase::Starting { .. } | Phase::Running { .. }, false) => PodState::Aborted,
        };
        Ok((state, phase))
    }

    /// Whether some process holds the pod's lock.
    ///
    /// # Errors
    /// [`DirectoryError::Io`], except that a directory that is gone is not alive.
    pub fn is_alive(&self) -> Result<bool, DirectoryError> {
        let directory = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other.map_err(io_error(&self.path))?,
        };
        // A shared lock is refused exactly while someone has the exclusive one, and lookers do not disturb each other.
        match Flock::lock(directory, FlockArg::LockSharedNonblock) {
            Ok(_) => Ok(false),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(true),
            Err((_, errno)) => Err(DirectoryError::Io { path: self.path.clone(), source: errno.into() }),
        }
    }

    /// Waits until no process holds the pod's lock.
    ///
    /// # Errors
    /// [`DirectoryError::Io`], except that a directory that is gone is not alive.
    pub fn wait_until_dead(&self) -> Result<(), DirectoryError> {
        let directory = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(io_error(&self.path))?,
        };
        match Flock::lock(directory, FlockArg::LockShared) {
            Ok(_) => Ok(()),
            Err((_, errno)) => Err(DirectoryError::Io { path: self.path.clone(), source: errno.into() }),
        }
    }

    /// Takes a prepared pod's lock, to run it.
    ///
    /// # Errors
    /// [`DirectoryError::Alive`] when another process has it; those of [`PodDir::manifest`].
    pub fn claim(&self) -> Result<PreparedPod, DirectoryError> {
        let lock = lock_exclusive(&self.path)?.ok_or(DirectoryError::Alive(self.uuid))?;
        Ok(PreparedPod { dir: self.clone(), manifest: self.manifest()?, lock })
    }

    /// Removes a pod that is not alive, and all it wrote. Removing one that is gone does nothing.
    ///
    /// # Errors
    /// [`DirectoryError::Alive`], [`DirectoryError::Io`].
    pub fn remove(&self) -> Result<(), DirectoryError> {
        self.remove_after(|_| Ok(()))
    }

    /// As [`Self::remove`], once `undo` has given back what the pod had outside its directory. The pod's lock is held meanwhile.
    ///
    /// # Errors
    /// Those of [`Self::remove`], and those of `undo`; the directory, which says what is to be undone, is left then.
    pub fn remove_after<E: From<DirectoryError>>(&self, undo: impl FnOnce(&Self) -> Result<(), E>) -> Result<(), E> {
        let Some(parent) = self.path.parent() else { return Ok(()) };
        let old = parent.join(format!(".old-{}", self.uuid));
        let lock = match lock_exclusive(&self.path) {
            Err(DirectoryError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        let _lock = lock.ok_or(DirectoryError::Alive(self.uuid))?;
        undo(self)?;
        fs::rename(&self.path, &old).map_err(io_error(&self.path))?;
        sync_directory(parent)?;
        Ok(fs::remove_dir_all(&old).map_err(io_error(&old))?)
    }

    fn read_json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T, DirectoryError> {
        let path = self.path.join(name);
        let bytes = fs::read(&path).map_err(io_error(&path))?;
        serde_json::from_slice(&bytes).map_err(|source| DirectoryError::Damaged { path, source })
    }

    fn write_json(&self, name: &str, content: &impl Serialize) -> Result<(), DirectoryError> {
        let directory = File::open(&self.path).map_err(io_error(&self.path))?;
        replace_json_at(directory.as_fd(), name, content).map_err(io_error(&self.path.join(name)))
    }
}

/// A pod that is whole on disk, locked by this process, and does not run yet.
#[derive(Debug)]
pub struct PreparedPod {
    dir: PodDir,
    manifest: PodManifest,
    lock: Flock<File>,
}

impl PreparedPod {
    /// Its directory.
    pub fn dir(&self) -> &PodDir {
        &self.dir
    }

    /// Its manifest.
    pub fn manifest(&self) -> &PodManifest {
        &self.manifest
    }

    /// The lock's open directory, for a process that shall keep the pod alive beyond this one.
    pub fn lock_fd(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Records that this process has begun to start the pod.
    ///
    /// # Errors
    /// [`DirectoryError::Io`].
    pub fn start(self, stage1: Stage1Kind) -> Result<RunningPod, DirectoryError> {
        let pid = std::process::id() as i32;
        let pod = RunningPod { pod: self, stage1, pid };
        pod.record(&Phase::Starting { pid, stage1 })?;
        Ok(pod)
    }

    /// Removes the pod again: it was never started.
    ///
    /// # Errors
    /// [`DirectoryError::Io`].
    pub fn discard(self) -> Result<(), DirectoryError> {
        let Self { dir, lock, .. } = self;
        drop(lock);
        dir.remove()
    }
}

/// A pod that this process is.
#[derive(Debug)]
pub struct RunningPod {
    pod: PreparedPod,
    stage1: Stage1Kind,
    pid: i32,
}

impl RunningPod {
    /// Its directory. The path is of use only until this process has changed its root.
    pub fn dir(&self) -> &PodDir {
        &self.pod.dir
    }

    /// Its manifest.
    pub fn manifest(&self) -> &PodManifest {
        &self.pod.manifest
    }

    /// The lock's open directory, for a process in the pod that shall keep it alive beyond this one.
    pub fn lock_fd(&self) -> BorrowedFd<'_> {
        self.pod.lock_fd()
    }

    /// Records that the apps were started, and each later change of their states.
    ///
    /// # Errors
    /// [`DirectoryError::Io`].
    pub fn record_running(
        &self,
        started: u64,
        addresses: &[std::net::IpAddr],
        apps: &[AppStatus],
    ) -> Result<(), DirectoryError> {
        let (pid, stage1) = (self.pid, self.stage1);
        self.record(&Phase::Running { pid, stage1, started, addresses: addresses.into(), apps: apps.into() })
    }

    /// Records the pod's end.
    ///
    /// # Errors
    /// [`DirectoryError::Io`].
    pub fn record_exit(&self, finished: u64, report: &PodReport) -> Result<(), DirectoryError> {
        self.record(&Phase::Exited { finished, report: report.clone() })
    }

    /// Opens the folder of the apps' logs.
    ///
    /// # Errors
    /// [`DirectoryError::Io`].
    pub fn open_logs(&self) -> Result<std::os::fd::OwnedFd, DirectoryError> {
        use nix::fcntl::{OFlag, openat};
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        openat(self.pod.lock.as_fd(), "logs", flags, nix::sys::stat::Mode::empty())
            .map_err(|errno| io_error(&self.pod.dir.logs())(errno.into()))
    }

    /// Goes through the lock's own descriptor, for the process may have left the host's root by now.
    fn record(&self, phase: &Phase) -> Result<(), DirectoryError> {
        replace_json_at(self.pod.lock.as_fd(), "state.json", phase)
            .map_err(io_error(&self.pod.dir.path.join("state.json")))
    }
}

/// Replaces a file in an open directory in one step: readers see the old content or the new, also after a crash.
fn replace_json_at(directory: BorrowedFd<'_>, name: &str, content: &impl Serialize) -> io::Result<()> {
    use nix::fcntl::{OFlag, openat, renameat};
    use nix::sys::stat::Mode;

    let mut bytes = serde_json::to_vec_pretty(content)?;
    bytes.push(b'\n');
    let temporary = format!(".{name}.new");
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_CLOEXEC;
    let mut file = File::from(openat(directory, temporary.as_str(), flags, Mode::from_bits_truncate(0o600))?);
    file.write_all(&bytes)?;
    file.sync_data()?;
    Ok(renameat(directory, temporary.as_str(), directory, name)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{ByteSize, NetworkMode, PodResources};

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
            resources: PodResources { memory: ByteSize::mib(64), cpus: 1, disk: ByteSize::mib(64) },
        }
    }

    #[test]
    fn a_pod_is_alive_exactly_while_its_lock_is_held() {
        let root = tempfile::tempdir().unwrap();
        let pods = PodsRoot::new(root.path());
        let prepared = pods.prepare(manifest()).unwrap();
        let dir = prepared.dir().clone();
        assert_eq!(dir.state().unwrap().0, PodState::Starting);
        let running = prepared.start(Stage1Kind::Kvm).unwrap();
        running.record_running(2, &[], &[]).unwrap();
        assert_eq!(dir.state().unwrap().0, PodState::Running);
        assert!(matches!(dir.remove(), Err(DirectoryError::Alive(_))));
        drop(running);
        assert_eq!(dir.state().unwrap().0, PodState::Aborted);
    }

    #[test]
    fn a_recorded_exit_outlives_the_process() {
        let root = tempfile::tempdir().unwrap();
        let pods = PodsRoot::new(root.path());
        let running = pods.prepare(manifest()).unwrap().start(Stage1Kind::Ns).unwrap();
        let report = PodReport { code: 3, failed_app: None, error: None, apps: Vec::new() };
        running.record_exit(9, &report).unwrap();
        let dir = running.dir().clone();
        drop(running);
        let (state, phase) = dir.state().unwrap();
        assert_eq!(state, PodState::Exited);
        assert_eq!(phase, Phase::Exited { finished: 9, report });
        dir.remove().unwrap();
        dir.remove().unwrap();
        assert!(pods.list().unwrap().is_empty());
    }

    #[test]
    fn a_prefix_finds_the_one_pod_it_fits() {
        let root = tempfile::tempdir().unwrap();
        let pods = PodsRoot::new(root.path());
        let first = pods.prepare(manifest()).unwrap();
        let _second = pods.prepare(manifest()).unwrap();
        let uuid = first.dir().uuid().to_string();
        assert_eq!(pods.find(&uuid[..8]).unwrap().uuid().to_string(), uuid);
        assert!(matches!(pods.find("zz"), Err(DirectoryError::NotFound(_))));
        assert!(matches!(pods.find(""), Err(DirectoryError::NotFound(_))));
    }

    #[test]
    fn sweeping_takes_what_a_crash_left_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let pods = PodsRoot::new(root.path());
        let _pod = pods.prepare(manifest()).unwrap();
        fs::create_dir_all(pods.pods().join(".new-x/logs")).unwrap();
        fs::create_dir(pods.pods().join("keep")).unwrap();
        assert_eq!(pods.sweep().unwrap(), 1);
        assert_eq!(pods.sweep().unwrap(), 0);
        assert!(pods.pods().join("keep").exists());
        assert_eq!(pods.list().unwrap().len(), 1);
    }

    #[test]
    fn a_damaged_state_says_how_to_be_rid_of_it() {
        let root = tempfile::tempdir().unwrap();
        let pods = PodsRoot::new(root.path());
        let pod = pods.prepare(manifest()).unwrap();
        fs::write(pod.dir().path().join("state.json"), "{").unwrap();
        let message = pod.dir().state().unwrap_err().to_string();
        assert!(message.contains("state.json") && message.contains("podvm rm"), "{message}");
    }
}
