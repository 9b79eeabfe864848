//! A pod in the hands of the process that made or runs it: [`PreparedPod`], then [`RunningPod`].

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use nix::fcntl::Flock;

use super::json::replace_json_at;
use super::lock::sync;
use super::phase::{Phase, STATE};
use super::{DirectoryError, LOGS, MANIFEST, PodDir, io_error};
use crate::fault::{FaultPoint, reach};
use crate::manifest::PodManifest;
use crate::stage1::Stage1Kind;
use crate::status::{AppStatus, PodReport};

/// A pod that is whole on disk, locked by this process, and does not run yet.
#[derive(Debug)]
pub struct PreparedPod {
    pub(super) dir: PodDir,
    pub(super) manifest: PodManifest,
    pub(super) lock: Flock<File>,
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
        reach(FaultPoint::StartRecorded);
        Ok(pod)
    }

    /// Lets go of the pod, to be started later behind these walls, perhaps after the host was.
    ///
    /// # Errors
    /// [`DirectoryError::Io`].
    pub fn leave(self, stage1: Stage1Kind) -> Result<PodDir, DirectoryError> {
        self.dir.write_json(STATE, &Phase::Prepared { stage1: Some(stage1) })?;
        let path = self.dir.path();
        for synced in [&path.join(MANIFEST), &path.join(STATE), path, path.parent().unwrap_or(path)] {
            sync(synced)?;
        }
        Ok(self.dir)
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
        let (pid, stage1) = (Some(self.pid), Some(self.stage1));
        self.record(&Phase::Exited { pid, stage1, finished, report: report.clone() })
    }

    /// Opens the folder of the apps' logs.
    ///
    /// # Errors
    /// [`DirectoryError::Io`].
    pub fn open_logs(&self) -> Result<std::os::fd::OwnedFd, DirectoryError> {
        use nix::fcntl::{OFlag, openat};
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        openat(self.pod.lock.as_fd(), LOGS, flags, nix::sys::stat::Mode::empty())
            .map_err(|errno| io_error(&self.pod.dir.logs())(errno.into()))
    }

    /// Goes through the lock's own descriptor, for the process may have left the host's root by now.
    fn record(&self, phase: &Phase) -> Result<(), DirectoryError> {
        replace_json_at(self.pod.lock.as_fd(), STATE, phase).map_err(io_error(&self.pod.dir.path.join(STATE)))
    }
}
