//! From a clone of the supervisor to an app's program.
//!
//! [`launch`] makes the process: in new mount and PID namespaces and the app's cgroup for an app's main process, in the
//! app's own for one that joins it. The new process builds or enters the walls itself, says over its control socket that it
//! is prepared, waits for the word to go, gives up its privileges and executes the program. What goes wrong on the way comes
//! over the same socket, which closes by itself when the program is executed.
//!
//! | module | subject |
//! |---|---|
//! | [`control`] | what is said over the control socket |
//! | [`child`] | the steps in order |
//! | [`root`] | the app's root filesystem |
//! | [`system`] | `/dev`, `/proc`, `/sys` and what of them is hidden |
//! | [`volume`] | volumes at their places |
//! | [`fill`] | the image's content in volumes that are new |
//! | [`etc`] | `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf` |
//! | [`files`] | files into the app and out of it |
//! | [`path`] | paths that cannot lead out of the root |
//! | [`socket`] | sockets that the app is started with |
//! | [`user`] | users and groups of the image |
//! | [`terminal`] | pseudo-terminals |
//! | [`privileges`] | limits, user, capabilities, system calls |
//! | [`program`] | looking the program up and executing it |

pub mod child;
pub mod control;
pub mod etc;
pub mod files;
pub mod fill;
pub mod launch;
pub mod path;
pub mod privileges;
pub mod program;
pub mod root;
pub mod socket;
pub mod system;
pub mod terminal;
pub mod user;
pub mod volume;

use podvm_pod::archive::Archived;
use podvm_pod::exit::PODVM_ERROR;
use podvm_pod::protocol::{ExecSpec, PodSpec};

use crate::places::Places;
use crate::seccomp::UnknownSyscall;
use crate::step::StepError;

/// Exit code for a program that is not there, as in a shell.
pub const NOT_FOUND: u8 = 127;
/// Exit code for a program that cannot be executed, as in a shell.
pub const NOT_EXECUTABLE: u8 = 126;

/// What all processes of a pod are launched with.
#[derive(Debug)]
pub struct Pod {
    /// The pod as it was told.
    pub spec: PodSpec,
    /// Where its parts are.
    pub places: Places,
    /// The sockets of each app.
    pub sockets: Vec<Vec<socket::AppSocket>>,
    /// Whether apps have cgroups.
    pub cgroups: bool,
    /// Whether the devices of the pod's kernel are the pod's own.
    pub has_own_devices: bool,
    /// Whether the pod's users are others at the host (user_namespaces(7)).
    pub has_mapped_users: bool,
}

/// What a process is for.
#[derive(Debug)]
pub enum Job {
    /// An app's main process.
    Main,
    /// The program that is run when an app has ended, in walls like the app's.
    PostStop,
    /// Another process in an app.
    Exec(Box<ExecSpec>),
    /// A process in an app that packs or unpacks files.
    Archive(Archived),
}

/// Why a process could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A step of the system.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The user.
    #[error(transparent)]
    User(#[from] user::UserError),
    /// The list of system calls.
    #[error(transparent)]
    Seccomp(#[from] UnknownSyscall),
    /// A resource limit of a name that does not exist.
    #[error("there is no resource limit {0:?}; see getrlimit(2), and write the name in lower case without RLIMIT_")]
    UnknownRlimit(String),
    /// The program that must succeed before the app has not.
    #[error("its pre-start handler {program:?} {how}; the app was not started")]
    PreStart {
        /// The handler.
        program: String,
        /// What became of it.
        how: String,
        /// The exit code this counts as.
        code: u8,
    },
    /// A word with a NUL byte.
    #[error("{0:?} holds a NUL byte, which no argument or variable can have")]
    Nul(String),
    /// No program.
    #[error("there is no program to execute; give one after --, or with --exec")]
    NoProgram,
    /// The program is not there.
    #[error("the program {program:?} is not found{place}", place = .searched.as_ref().map_or(String::new(), |path| format!(" in PATH {path:?} of the image")))]
    NotFound {
        /// As it was given.
        program: String,
        /// Where it was looked for.
        searched: Option<String>,
    },
    /// The program is there but cannot be executed.
    #[error("the program {program:?} cannot be executed: {reason}")]
    NotExecutable {
        /// Its path.
        program: String,
        /// Why.
        reason: String,
    },
}

impl LaunchError {
    /// The exit code this counts as.
    pub fn code(&self) -> u8 {
        match self {
            Self::NotFound { .. } => NOT_FOUND,
            Self::NotExecutable { .. } => NOT_EXECUTABLE,
            Self::PreStart { code, .. } => *code,
            _ => PODVM_ERROR,
        }
    }
}
