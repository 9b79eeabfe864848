//! What a pod recorded of itself, and the state that this and its lock tell together.

use std::io;

use serde::{Deserialize, Serialize};

use super::json::replace_json_at;
use super::lock::{Locking, lock_exclusive};
use super::{DirectoryError, PodDir, io_error};
use crate::stage1::Stage1Kind;
use crate::status::{AppStatus, PodReport};

/// The file in which the pod records its [`Phase`].
pub(super) const STATE: &str = "state.json";
/// The file that marks an ended pod as garbage.
const GARBAGE: &str = "garbage.json";

/// What a pod's own process last recorded of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "phase")]
pub enum Phase {
    /// Everything is resolved; nothing runs.
    Prepared {
        /// The walls it was prepared for, if it was left to be started later.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stage1: Option<Stage1Kind>,
    },
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
        /// The process that was the pod, and is for a moment more; older pods do not tell.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pid: Option<i32>,
        /// Which walls it had; older pods do not tell.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stage1: Option<Stage1Kind>,
        /// Seconds since the Unix epoch.
        finished: u64,
        /// How.
        report: PodReport,
    },
}

impl Phase {
    /// The process that is the pod, or was, as far as it is on record.
    pub fn pid(&self) -> Option<i32> {
        match self {
            Self::Prepared { .. } => None,
            Self::Starting { pid, .. } | Self::Running { pid, .. } => Some(*pid),
            Self::Exited { pid, .. } => *pid,
        }
    }
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

impl PodState {
    /// Whether the pod was started and is over.
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Exited | Self::Aborted)
    }
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

/// The mark of an ended pod that is to be collected.
#[derive(Serialize, Deserialize)]
struct Garbage {
    /// Seconds since the Unix epoch.
    since: u64,
}

impl PodDir {
    /// What the pod last recorded, and the state that follows from it and the lock.
    ///
    /// # Errors
    /// [`DirectoryError::Missing`], [`DirectoryError::Io`], [`DirectoryError::Damaged`].
    pub fn state(&self) -> Result<(PodState, Phase), DirectoryError> {
        // The lock is looked at first: a pod that exits in between is then seen as exited, not as aborted.
        let alive = self.is_alive()?;
        let path = self.path.join(STATE);
        let phase = match self.read(&path)? {
            // What a host that went down had not yet written to its disk.
            empty if empty.is_empty() => Phase::Prepared { stage1: None },
            json => serde_json::from_slice(&json).map_err(|source| DirectoryError::Damaged { path, source })?,
        };
        let state = match (&phase, alive) {
            (Phase::Exited { .. }, _) => PodState::Exited,
            (Phase::Prepared { stage1: Some(_) }, false) => PodState::Prepared,
            (Phase::Prepared { .. } | Phase::Starting { .. }, true) => PodState::Starting,
            (Phase::Running { .. }, true) => PodState::Running,
            (Phase::Prepared { stage1: None } | Phase::Starting { .. } | Phase::Running { .. }, false) => {
                PodState::Aborted
            }
        };
        Ok((state, phase))
    }

    /// Since when the pod is marked as garbage, in seconds since the Unix epoch. A mark that cannot be read is none.
    pub fn garbage_since(&self) -> Option<u64> {
        self.read_json(GARBAGE).ok().map(|Garbage { since }| since)
    }

    /// Marks a pod that is not alive as garbage since `now`, over an earlier mark. One that is gone needs none.
    ///
    /// # Errors
    /// [`DirectoryError::Alive`], [`DirectoryError::Io`].
    pub fn mark_garbage(&self, now: u64) -> Result<(), DirectoryError> {
        use std::os::fd::AsFd;
        match lock_exclusive(&self.path)? {
            Locking::Gone => Ok(()),
            Locking::Held => Err(DirectoryError::Alive(self.uuid)),
            Locking::Taken(lock) => match replace_json_at(lock.as_fd(), GARBAGE, &Garbage { since: now }) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other.map_err(io_error(&self.path.join(GARBAGE))),
            },
        }
    }
}
