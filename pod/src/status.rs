//! What is known of a pod and its apps while it runs and after.

use serde::{Deserialize, Serialize};

use crate::exit;
use crate::manifest::AppName;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitStatus {
    /// It exited by itself with this code.
    Exited(u8),
    /// This signal ended it.
    Signaled(i32),
}

impl ExitStatus {
    /// The code a shell would give: the exit code, or 128 + the signal's number.
    pub fn code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => exit::SIGNAL_BASE.wrapping_add(signal as u8),
        }
    }

    /// Whether it exited with 0.
    pub fn is_success(self) -> bool {
        self == Self::Exited(0)
    }
}

impl std::fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited with {code}"),
            Self::Signaled(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}

/// Where an app is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum AppState {
    /// Not started yet.
    Waiting,
    /// Started.
    Running {
        /// Its PID as the supervisor sees it.
        pid: i32,
    },
    /// Ended.
    Exited {
        /// How.
        status: ExitStatus,
        /// Whether the kernel killed one of its processes for want of memory.
        oom_killed: bool,
    },
    /// Ended, and about to be started again.
    Restarting {
        /// How it ended.
        status: ExitStatus,
    },
    /// Never started.
    Failed {
        /// Why, as a sentence.
        message: String,
        /// The exit code this counts as: 127 when the program is not there, 126 when it cannot be executed, else 254.
        code: u8,
    },
}

impl AppState {
    /// The app's exit code, once it has one.
    pub fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Exited { status, .. } => Some(status.code()),
            Self::Failed { code, .. } => Some(*code),
            Self::Waiting | Self::Running { .. } | Self::Restarting { .. } => None,
        }
    }
}

/// One app's state by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppStatus {
    /// Name of the app.
    pub name: AppName,
    /// Its state.
    #[serde(flatten)]
    pub state: AppState,
    /// How often it was started again.
    #[serde(default)]
    pub restarts: u32,
    /// Whether its processes are held still.
    #[serde(default)]
    pub paused: bool,
    /// Whether it is well; none when it is not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// How its last health check failed, and the last of what that said; none when it found the app well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_failure: Option<String>,
}

impl AppStatus {
    /// An app in this state, of which nothing else is known.
    pub fn new(name: AppName, state: AppState) -> Self {
        Self { name, state, restarts: 0, paused: false, health: None, health_failure: None }
    }

    /// Whether it does its work, as far as can be told from outside: it runs and, if it is looked at, is well.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, AppState::Running { .. }) && self.health.is_none_or(|health| health == Health::Healthy)
    }
}

/// Whether an app is well, by its health check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// Not known yet.
    Starting,
    /// It is.
    Healthy,
    /// It failed as often as it may.
    Unhealthy,
}

impl std::fmt::Display for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        })
    }
}

/// A process of an app, for `podvm top`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Its PID, as the app sees it.
    pub pid: i32,
    /// Its effective user.
    pub uid: u32,
    /// Its state's letter, as in proc_pid_stat(5).
    pub state: char,
    /// Bytes of memory it has resident.
    pub memory_bytes: u64,
    /// CPU time it has used, in microseconds.
    pub cpu_usec: u64,
    /// Its command line, or its name in brackets when it has none.
    pub command: String,
}

/// The end of a pod: what the supervisor reports last, and what is kept of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodReport {
    /// The pod's exit code ([`crate::exit`]).
    pub code: u8,
    /// The app whose failure ended the pod, if one did.
    pub failed_app: Option<AppName>,
    /// What ended the pod when it was not its apps, as a sentence.
    pub error: Option<String>,
    /// The last state of each app.
    pub apps: Vec<AppStatus>,
}

impl PodReport {
    /// The report of a pod whose walls or supervisor failed.
    pub fn failure(code: u8, error: impl Into<String>) -> Self {
        Self { code, failed_app: None, error: Some(error.into()), apps: Vec::new() }
    }
}

/// What an app uses (cgroup v2; Linux Documentation/admin-guide/cgroup-v2.rst).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppStats {
    /// Bytes of memory in use (`memory.current`).
    pub memory_bytes: u64,
    /// Limit on memory in bytes, if there is one (`memory.max`).
    pub memory_limit_bytes: Option<u64>,
    /// CPU time used, in microseconds (`cpu.stat`, `usage_usec`).
    pub cpu_usec: u64,
    /// Processes and threads (`pids.current`).
    pub pids: u64,
    /// How many processes were killed for want of memory (`memory.events`, `oom_kill`).
    pub oom_kills: u64,
}
