//! The pod directory: all that is known of a pod, and the lock that says it is alive.
//!
//! `<root>/pods/<uuid>/` holds:
//!
//! | name | content |
//! |---|---|
//! | `manifest.json` | the [`PodManifest`], written once |
//! | `state.json` | the [`Phase`] the pod's own process last recorded |
//! | `garbage.json` | since when the pod, which has ended, is marked as garbage |
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
//!
//! Only a pod that is prepared to be started later is waited for until it is on disk: what ran when the host went down is over.
//!
//! | module | subject |
//! |---|---|
//! | `lock` | who holds a pod |
//! | `phase` | what a pod recorded, and its state |
//! | `pod` | a pod in the hands of its process |
//! | `remove` | taking pods away |
//! | `json` | replacing small files |

mod json;
mod lock;
mod phase;
mod pod;
mod remove;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::fcntl::Flock;
use uuid::Uuid;

pub use phase::{Phase, PodState};
pub use pod::{PreparedPod, RunningPod};
pub use remove::RetiredPod;

use crate::fault::{FaultPoint, reach};
use crate::manifest::{MANIFEST_VERSION, PodManifest};
use crate::stage1::Stage1Kind;
use lock::{Locking, lock_exclusive};
use phase::STATE;

/// The socket of the supervisor.
const SUPERVISOR_SOCKET: &str = "supervisor.sock";
/// The file that holds the manifest.
const MANIFEST: &str = "manifest.json";
/// The folder of the apps' logs.
const LOGS: &str = "logs";
/// How often a new directory is made again when a collection took it for a crash's leftover.
const ATTEMPTS: u32 = 1000;

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
    /// A file that every pod has is not there.
    #[error("{path} is missing; `podvm rm --force` removes the pod", path = .path.display())]
    Missing {
        /// Which file.
        path: PathBuf,
    },
    /// Something else is where a pod's directory should be.
    #[error("{path} is no directory; `podvm rm --force` removes it", path = .path.display())]
    NoDirectory {
        /// Where.
        path: PathBuf,
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
    /// The pod was started before.
    #[error("pod {0} was started before; a pod runs once: make another with `podvm prepare` or `podvm run`")]
    NotPrepared(Uuid),
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> DirectoryError + '_ {
    move |source| DirectoryError::Io { path: path.into(), source }
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
        let fill = || {
            let lock = make_locked(&new)?.ok_or(DirectoryError::Alive(manifest.uuid))?;
            reach(FaultPoint::PrepareLocked);
            let dir = PodDir { path: new.clone(), uuid: manifest.uuid };
            let logs = new.join(LOGS);
            fs::DirBuilder::new().mode(0o700).create(&logs).map_err(io_error(&logs))?;
            dir.write_json(MANIFEST, &manifest)?;
            reach(FaultPoint::PrepareManifestWritten);
            dir.write_json(STATE, &Phase::Prepared { stage1: None })?;
            reach(FaultPoint::PrepareStateWritten);
            let path = pods.join(manifest.uuid.to_string());
            fs::rename(&new, &path).map_err(io_error(&path))?;
            reach(FaultPoint::PrepareRenamed);
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
}

/// Makes a directory and locks it; nothing when that does not succeed.
///
/// Between the two a collection may take it for what a crash left: it is then made again.
fn make_locked(path: &Path) -> Result<Option<Flock<File>>, DirectoryError> {
    for _ in 0..ATTEMPTS {
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io_error(path)(error)),
            _ => {}
        }
        reach(FaultPoint::PrepareMade);
        if let Locking::Taken(lock) = lock_exclusive(path)? {
            return Ok(Some(lock));
        }
    }
    Ok(None)
}

/// The UUID a directory's name is, in the one spelling that is used.
fn parse_pod_name(name: &str) -> Option<Uuid> {
    Uuid::parse_str(name).ok().filter(|uuid| uuid.to_string() == name)
}

/// One pod's directory, whether or not the pod is alive.
#[derive(Debug, Clone)]
pub struct PodDir {
    path: PathBuf,
    uuid: Uuid,
}

/// A short path of a name in an open directory, for the addresses of sockets, which hold no more than 107 bytes (unix(7)).
pub(crate) fn in_directory(directory: &File, name: impl AsRef<Path>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name)
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
        self.path.join(SUPERVISOR_SOCKET)
    }

    /// Makes the supervisor's socket. It is bound through a descriptor of the directory: the directory's path may be of any length,
    /// and a pod that sees the socket (proc_net_unix(5)) does not see it.
    ///
    /// # Errors
    /// Those of open(2) and bind(2).
    pub fn bind_supervisor_socket(&self) -> io::Result<UnixListener> {
        let directory = File::open(&self.path)?;
        UnixListener::bind(in_directory(&directory, SUPERVISOR_SOCKET))
    }

    /// The folder of the apps' logs.
    pub fn logs(&self) -> PathBuf {
        self.path.join(LOGS)
    }

    /// The manifest.
    ///
    /// # Errors
    /// [`DirectoryError::Io`], [`DirectoryError::Damaged`], [`DirectoryError::TooNew`].
    pub fn manifest(&self) -> Result<PodManifest, DirectoryError> {
        let manifest: PodManifest = self.read_json(MANIFEST)?;
        if manifest.version > MANIFEST_VERSION {
            return Err(DirectoryError::TooNew { uuid: self.uuid, version: manifest.version });
        }
        Ok(manifest)
    }

    /// Takes a prepared pod's lock, to run it behind the walls it was prepared for.
    ///
    /// # Errors
    /// [`DirectoryError::Alive`] when another process has it, [`DirectoryError::NotPrepared`] when it was started before; those
    /// of [`PodDir::manifest`] and [`PodDir::state`].
    pub fn claim(&self) -> Result<(PreparedPod, Stage1Kind), DirectoryError> {
        let lock = match lock_exclusive(&self.path)? {
            Locking::Taken(lock) => lock,
            Locking::Held => return Err(DirectoryError::Alive(self.uuid)),
            Locking::Gone => return Err(DirectoryError::NotFound(self.uuid.to_string())),
        };
        let Phase::Prepared { stage1: Some(stage1) } = self.read_json(STATE)? else {
            return Err(DirectoryError::NotPrepared(self.uuid));
        };
        Ok((PreparedPod { dir: self.clone(), manifest: self.manifest()?, lock }, stage1))
    }

    /// Makes a pod whose start by this process failed as it was before: prepared for these walls. Nothing of it has run. `undo` gives
    /// back what it had outside its directory. A pod that is gone, or was started by another process meanwhile, is left alone.
    ///
    /// # Errors
    /// [`DirectoryError::Alive`] when another process has it, those of `undo`, [`DirectoryError::Io`].
    pub fn restore_prepared<E: From<DirectoryError>>(
        &self,
        stage1: Stage1Kind,
        undo: impl FnOnce(&Self) -> Result<(), E>,
    ) -> Result<(), E> {
        let _lock = match lock_exclusive(&self.path)? {
            Locking::Taken(lock) => lock,
            Locking::Held => return Err(DirectoryError::Alive(self.uuid).into()),
            Locking::Gone => return Ok(()),
        };
        let own = std::process::id() as i32;
        if !matches!(self.read_json(STATE)?, Phase::Starting { pid, .. } if pid == own) {
            return Ok(());
        }
        undo(self)?;
        self.remove_all_but(&[MANIFEST, STATE, LOGS])?;
        Ok(self.write_json(STATE, &Phase::Prepared { stage1: Some(stage1) })?)
    }
}
