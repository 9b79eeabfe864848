//! The pod's users: a range of the host's user IDs that no other live pod has, and the map from the pod's to them
//! (user_namespaces(7)).
//!
//! A range is leased by a file `<root>/users/<first ID>` that holds the pod's UUID; it is free again when the pod is not alive.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Pid;
use podvm_pod::fault::{FaultPoint, reach};
use podvm_pod::{PodsRoot, Uuid};

/// IDs of a pod: all that images use.
pub const RANGE_LENGTH: u32 = 65536;
/// Where ranges are taken from: what systemd sets aside for containers (its UIDS-GIDS document).
const POOL: Range<u32> = 524_288..1_879_048_192;
/// Ranges that an administrator gave to users of the host.
const GIVEN_AWAY: [&str; 2] = ["/etc/subuid", "/etc/subgid"];

/// Why a pod has no users of its own.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// A file operation failed.
    #[error("the pod's user IDs cannot be leased: {path}: {source}", path = .path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No range is free.
    #[error("no range of {RANGE_LENGTH} user IDs is free for the pod; stop pods, or give fewer away in /etc/subuid")]
    Exhausted,
    /// The kernel refused the map.
    #[error("the pod's users cannot be mapped: {0}")]
    Map(#[source] io::Error),
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> UsersError + '_ {
    move |source| UsersError::Io { path: path.into(), source }
}

/// The host's IDs that a pod's users are: the pod's 0 is the first of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserRange {
    /// The first.
    pub first: u32,
}

impl UserRange {
    /// Leases a range for a pod whose lock this process holds.
    ///
    /// # Errors
    /// [`UsersError`].
    pub fn lease(pods: &PodsRoot, pod: Uuid) -> Result<Self, UsersError> {
        let folder = pods.users();
        fs::create_dir_all(&folder).map_err(at(&folder))?;
        let directory = File::open(&folder).map_err(at(&folder))?;
        let _alone = Flock::lock(directory, FlockArg::LockExclusive)
            .map_err(|(_, errno)| UsersError::Io { path: folder.clone(), source: errno.into() })?;
        let given_away: Vec<Range<u64>> = GIVEN_AWAY.into_iter().flat_map(|path| given_away(Path::new(path))).collect();
        for first in POOL.step_by(RANGE_LENGTH as usize) {
            let range = u64::from(first)..u64::from(first) + u64::from(RANGE_LENGTH);
            if given_away.iter().any(|other| other.start < range.end && range.start < other.end) {
                continue;
            }
            let path = folder.join(first.to_string());
            if is_free(&path, pods) {
                write_lease(&path, pod).map_err(at(&path))?;
                return Ok(Self { first });
            }
        }
        Err(UsersError::Exhausted)
    }

    /// Gives the range back.
    pub fn release(self, pods: &PodsRoot) {
        // One that stays is free all the same when the pod is not alive, and taken by the next.
        let _ = fs::remove_file(pods.users().join(self.first.to_string()));
        reach(FaultPoint::UsersReleased);
    }

    /// Writes the map of a process that is the first in its user namespace.
    ///
    /// # Errors
    /// [`UsersError::Map`].
    pub fn map(self, process: Pid) -> Result<(), UsersError> {
        let line = format!("0 {} {RANGE_LENGTH}\n", self.first);
        for file in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{process}/{file}"), &line).map_err(UsersError::Map)?;
        }
        Ok(())
    }
}

/// Removes the leases of pods that are not alive. Returns how many.
///
/// # Errors
/// Those of reading the folder.
pub fn sweep(pods: &PodsRoot) -> io::Result<usize> {
    let folder = pods.users();
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        other => other?,
    };
    let _alone = Flock::lock(File::open(&folder)?, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    let mut swept = 0;
    for entry in entries {
        let path = entry?.path();
        if is_free(&path, pods) && fs::remove_file(&path).is_ok() {
            swept += 1;
        }
    }
    Ok(swept)
}

fn is_free(lease: &Path, pods: &PodsRoot) -> bool {
    match fs::read_to_string(lease) {
        Err(error) => error.kind() == io::ErrorKind::NotFound,
        Ok(text) => match Uuid::parse_str(text.trim()) {
            Ok(uuid) => !pods.pod(uuid).is_alive().unwrap_or(true),
            // What a crash left half-written has no pod.
            Err(_) => true,
        },
    }
}

fn write_lease(path: &Path, pod: Uuid) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?
        .write_all(pod.to_string().as_bytes())
}

/// The ranges of a file of lines `name:first:count` (subuid(5)).
fn given_away(path: &Path) -> Vec<Range<u64>> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let range = |line: &str| {
        let mut fields = line.split(':').skip(1).map(|field| field.trim().parse::<u64>().ok());
        let (first, count) = (fields.next()??, fields.next()??);
        Some(first..first.saturating_add(count))
    };
    text.lines().filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_free_again_when_its_pod_is_not_alive() {
        let root = tempfile::tempdir().unwrap();
        let pods = PodsRoot::new(root.path());
        let (alive, dead) = (Uuid::new_v4(), Uuid::new_v4());
        fs::create_dir_all(pods.pod(alive).path()).unwrap();
        let lock = Flock::lock(File::open(pods.pod(alive).path()).unwrap(), FlockArg::LockExclusive).unwrap();
        let first = UserRange::lease(&pods, alive).unwrap();
        let second = UserRange::lease(&pods, dead).unwrap();
        assert_ne!(first, second);
        assert_eq!(UserRange::lease(&pods, Uuid::new_v4()).unwrap(), second);
        assert_eq!(sweep(&pods).unwrap(), 1);
        assert_eq!(sweep(&pods).unwrap(), 0);
        drop(lock);
        assert_eq!(sweep(&pods).unwrap(), 1);
    }

    #[test]
    fn what_was_given_to_users_is_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "me:100000:65536\n# no\nyou:x:1\nthem:5:18446744073709551615\n").unwrap();
        assert_eq!(given_away(file.path()), [100_000..165_536, 5..u64::MAX]);
    }
}
