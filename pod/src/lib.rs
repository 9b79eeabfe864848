//! The pod model: what a pod is, where it is kept, how it lives, and how the parts of podvm speak of it.
//!
//! | module | subject |
//! |---|---|
//! | [`manifest`] | what the user asked for: apps, volumes, ports, isolators |
//! | [`directory`] | the pod directory, its lock, and the state that both tell |
//! | [`fault`] | where a test build can be made to die |
//! | [`status`] | what is known of a pod and its apps while it runs and after |
//! | [`protocol`] | what stage0 and stage1 say to the supervisor inside the walls, and hear from it |
//! | [`stage1`] | what a stage1 must do |
//! | [`runner`] | the pod's own process: the host's end of the primary connection |
//! | [`sockets`] | sockets that podvm was started with, and whose they are |
//! | [`relay`] | two connections tied to each other |
//! | [`archive`] | files on their way into an app and out of it |
//! | [`client`] | requests to a running pod's supervisor |
//! | [`console`] | the user's terminal, standard streams and signals |
//! | [`timestamp`] | points in time as text |
//! | [`draft`] | files that appear whole or not at all |
//! | [`writable`] | the disk of what a pod writes |
//! | [`exit`] | exit codes |

pub mod archive;
pub mod client;
pub mod console;
pub mod directory;
pub mod draft;
pub mod exit;
pub mod fault;
pub mod manifest;
pub mod protocol;
pub mod relay;
pub mod runner;
pub mod sockets;
pub mod stage1;
pub mod status;
pub mod timestamp;
pub mod writable;

pub use directory::{PodDir, PodsRoot};
pub use manifest::{App, AppName, PodManifest, Volume, VolumeName};
pub use stage1::{Stage1, Stage1Kind};
pub use uuid::Uuid;
