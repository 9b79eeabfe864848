//! What differs between the walls of a VM and those of namespaces, as the supervisor sees it from inside.

use std::os::fd::OwnedFd;
use std::path::Path;

use podvm_pod::protocol::NetworkSpec;

use crate::step::StepError;

/// The two ends the supervisor talks through.
#[derive(Debug)]
pub struct Connections {
    /// The primary connection, open.
    pub primary: OwnedFd,
    /// A listening socket for request connections.
    pub listener: OwnedFd,
}

/// What is mounted before apps start.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// A block device with an EROFS filesystem.
    Erofs(&'a Path),
    /// The same on persistent memory, whose files are to be used where they are.
    Pmem(&'a Path),
    /// A block device with an ext4 filesystem.
    Ext4(&'a Path),
    /// A virtio-fs device by its tag.
    VirtioFs(&'a str),
}

/// The walls around the supervisor.
pub trait Walls {
    /// An empty directory in memory that is the supervisor's own and seen by no app.
    fn scratch(&self) -> &Path;

    /// Whether clients of the listening socket begin with the line `CONNECT PORT` and expect `OK PORT`, as at the VMM's
    /// socket, where the VMM answers it.
    fn is_greeted(&self) -> bool;

    /// Where the pod's cgroup is to be found, if there may be one.
    fn cgroup_root(&self) -> Option<&Path>;

    /// Whether the devices of the pod's kernel are the pod's own, for its apps to open if they may make device files.
    fn has_own_devices(&self) -> bool;

    /// Whether the pod's users are others at the host (user_namespaces(7)).
    fn has_mapped_users(&self) -> bool;

    /// Sets the network up as the pod is to see it, unless that was done from outside.
    ///
    /// # Errors
    /// What could not be set.
    fn configure_network(&mut self, network: &NetworkSpec) -> Result<(), StepError>;

    /// Mounts something only these walls have, at a directory that exists.
    ///
    /// # Errors
    /// What could not be mounted, or that these walls have no such thing.
    fn mount(&mut self, source: Source<'_>, at: &Path) -> Result<(), StepError>;

    /// Puts on disk what would be lost with the walls.
    fn settle(&self);

    /// The end: nothing is left to do but to leave. In a VM this powers off and does not return.
    fn leave(&mut self);
}
