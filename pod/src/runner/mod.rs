//! The host's end of the supervisor protocol: runs a pod whose walls stand, from the supervisor's hello to the pod's end.
//!
//! Called by both stage1s as the last thing the pod's process does. The main thread takes in, one by one, what the
//! supervisor says, what signals come and what becomes of the walls, each read by a thread of its own; further threads
//! carry the apps' streams. Files are opened through the pod directory's own descriptor only, for the process may have
//! left the host's root.
//!
//! System calls it makes, for the stage1's filter: those of threads and of the allocator, read, write, poll, openat (only
//! for files of the pod directory), renameat, renameat2, unlinkat, fstat, lseek, dup by fcntl, ioctl TCGETS, TCSETSW,
//! TIOCGWINSZ, sendto, recvfrom, accept4, shutdown, setsockopt and whatever the function given to [`SupervisorClient::new`] makes.
//!
//! The supervisor may be in a hostile guest's hands: what it says is bounded in size, is taken only when it fits, and every
//! wait for it has a limit once the user asked the pod to end.

mod attach;
mod board;
pub mod log;
mod ready;
mod session;
mod shown;
mod sockets;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::os::unix::net::UnixStream;

pub use ready::{ReadyReceiver, ReadySender, StartFailure, ready_pipe};

use crate::client::SupervisorClient;
use crate::console::Signals;
use crate::directory::RunningPod;
use crate::fault::{FaultPoint, reach};
use crate::protocol::PodSpec;
use crate::sockets::AppSocket;
use crate::status::PodReport;
use crate::timestamp::Timestamp;

/// How a pod is connected to the process that runs it.
#[derive(Debug, Clone, Default)]
pub struct PodIo {
    /// Whether the apps' output is shown on this process's own streams, and the first app with a standard input gets this
    /// process's.
    pub attached: bool,
    /// Who is told when the apps run.
    pub ready: Option<ReadySender>,
    /// Sockets that the apps are started with.
    pub sockets: Vec<AppSocket>,
}

/// Waits until the walls fall, and tells how. Called in a thread of its own; what it returns counts only when the supervisor
/// did not report the pod's end itself.
pub type Walls = Box<dyn FnOnce() -> PodReport + Send>;

/// A pod whose walls stand and whose supervisor is coming up.
pub struct Runner<'a> {
    /// The pod. The lock is the caller's: it is to be held until all that the pod has at the host is given back.
    pub pod: &'a RunningPod,
    /// The supervisor's primary connection; its next message is [`crate::protocol::Event::Hello`].
    pub primary: UnixStream,
    /// The way to the supervisor's requests.
    pub supervisor: SupervisorClient,
    /// How the pod is connected to this process.
    pub io: PodIo,
    /// Signals, blocked before the process's first thread was made.
    pub signals: Signals,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// The walls, if they can fall by themselves.
    pub walls: Option<Walls>,
    /// Sockets of the host, whose connections are to be tied to those that the supervisor has made for the apps.
    pub relayed: Vec<AppSocket>,
}

impl Runner<'_> {
    /// Runs the pod to its end and records it.
    pub fn run(self, spec: PodSpec) -> PodReport {
        let pod = self.pod;
        let report = session::run(self, spec);
        if let Err(error) = pod.record_exit(Timestamp::now().seconds(), &report) {
            eprintln!("podvm: the pod's end cannot be recorded: {error}");
        }
        reach(FaultPoint::EndRecorded);
        report
    }
}
