//! Fault points: the recorded steps of a pod's life at which a test build can be made to die.
//!
//! The list is compiled in always, for the tests to walk along it; what a point does is there only with the cargo feature
//! `fault-points`. Without it [`reach`] is nothing. With it, the variable [`VARIABLE`] names a point, and the process that comes
//! to it says so on its standard error and then kills itself; or, when the name is followed by [`HANG`], its thread stays there
//! under the name [`HANGING`], so that somebody else can be killed at that very step.
//!
//! The variable is read here, below stage0, because stage0, both stage1s and the supervisor are all to be killed by it.

use crate::stage1::Stage1Kind;

/// The environment variable that names the point.
pub const VARIABLE: &str = "PODVM_FAULT";
/// What follows the point's name when the process is to stay there instead of dying.
pub const HANG: &str = ":hang";
/// Name of a thread that stays at its point, as in `/proc/PID/task/TID/comm`.
pub const HANGING: &str = "podvm-hangs";

/// What is under way when a point is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum During {
    /// `podvm run`, until the apps run.
    Start,
    /// The end of a running pod that was asked to stop.
    Stop,
    /// The process that removes the pod of `podvm run --rm`.
    Reap,
    /// `podvm rm` or `podvm gc`, of a pod that has ended.
    Removal,
    /// `podvm gc`, after a pod was killed.
    Collection,
}

/// Which process reaches a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Party {
    /// The command; for [`During::Start`] and [`During::Stop`] the process that becomes the pod, and with kvm is the VM.
    Host,
    /// The supervisor, or what becomes it.
    Supervisor,
    /// The process that becomes an app.
    App,
}

macro_rules! fault_points {
    ($($point:ident $name:literal $during:ident $party:ident $walls:expr;)*) => {
        /// A step at which a process can be made to die. Its place in the code tells the step.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub enum FaultPoint {
            $($point,)*
        }

        impl FaultPoint {
            /// All of them, in the order in which a pod's life comes to them.
            pub const ALL: &[Self] = &[$(Self::$point,)*];

            /// Its name in [`VARIABLE`].
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$point => $name,)*
                }
            }

            /// What is under way when it is reached.
            pub fn during(self) -> During {
                match self {
                    $(Self::$point => During::$during,)*
                }
            }

            /// Which process reaches it.
            pub fn party(self) -> Party {
                match self {
                    $(Self::$point => Party::$party,)*
                }
            }

            /// The stage1 that alone has it, if not both do.
            pub fn only_behind(self) -> Option<Stage1Kind> {
                match self {
                    $(Self::$point => $walls,)*
                }
            }
        }
    };
}

const BOTH: Option<Stage1Kind> = None;
const KVM: Option<Stage1Kind> = Some(Stage1Kind::Kvm);
const NS: Option<Stage1Kind> = Some(Stage1Kind::Ns);

fault_points! {
    ImagesHeld "images-held" Start Host BOTH;
    ReaperForked "reaper-forked" Start Host BOTH;
    PrepareMade "prepare-made" Start Host BOTH;
    PrepareLocked "prepare-locked" Start Host BOTH;
    PrepareManifestWritten "prepare-manifest-written" Start Host BOTH;
    PrepareStateWritten "prepare-state-written" Start Host BOTH;
    PrepareRenamed "prepare-renamed" Start Host BOTH;
    ImagesLetGo "images-let-go" Start Host BOTH;
    UuidFileSaved "uuid-file-saved" Start Host BOTH;
    StartRecorded "start-recorded" Start Host BOTH;
    UsersLeased "users-leased" Start Host NS;
    PortsClaimed "ports-claimed" Start Host BOTH;
    LeaseMade "lease-made" Start Host BOTH;
    LeaseNamed "lease-named" Start Host BOTH;
    Leased "leased" Start Host BOTH;
    RulesMade "rules-made" Start Host BOTH;
    NamespaceMade "namespace-made" Start Host BOTH;
    VethMade "veth-made" Start Host BOTH;
    HostSideMade "host-side-made" Start Host BOTH;
    PodSideMade "pod-side-made" Start Host BOTH;
    NetworkMade "network-made" Start Host BOTH;
    CgroupRecorded "cgroup-recorded" Start Host NS;
    CgroupFolderMade "cgroup-folder-made" Start Host NS;
    CgroupMade "cgroup-made" Start Host NS;
    TemplateMaking "template-making" Start Host BOTH;
    TemplateMade "template-made" Start Host BOTH;
    WritableCreated "writable-created" Start Host BOTH;
    WritableMade "writable-made" Start Host BOTH;
    TapAttached "tap-attached" Start Host KVM;
    SocketBound "socket-bound" Start Host BOTH;
    SupervisorCloned "supervisor-cloned" Start Host NS;
    InsideBegun "inside-begun" Start Supervisor NS;
    InsideMountsMade "inside-mounts-made" Start Supervisor NS;
    InsideMountsPlaced "inside-mounts-placed" Start Supervisor NS;
    InsideRootChanged "inside-root-changed" Start Supervisor NS;
    InsideExecuting "inside-executing" Start Supervisor NS;
    MachineMade "machine-made" Start Host KVM;
    MachineBuilt "machine-built" Start Host KVM;
    RootLeft "root-left" Start Host KVM;
    MachineStarted "machine-started" Start Host KVM;
    PrivilegesDropped "privileges-dropped" Start Host NS;
    SupervisorBegun "supervisor-begun" Start Supervisor BOTH;
    SupervisorGreeted "supervisor-greeted" Start Supervisor BOTH;
    RunnerGreeted "runner-greeted" Start Host BOTH;
    RunnerTold "runner-told" Start Host BOTH;
    SupervisorTold "supervisor-told" Start Supervisor BOTH;
    PlacesPrepared "places-prepared" Start Supervisor BOTH;
    AppCgroupsMade "app-cgroups-made" Start Supervisor BOTH;
    AppCloned "app-cloned" Start App BOTH;
    AppsLaunched "apps-launched" Start Supervisor BOTH;
    AppsReleased "apps-released" Start Supervisor BOTH;
    StreamsAttached "streams-attached" Start Host BOTH;
    AppsRun "apps-run" Start Supervisor BOTH;
    RunnerReady "runner-ready" Start Host BOTH;
    RunningRecorded "running-recorded" Start Host BOTH;
    SupervisorStopping "supervisor-stopping" Stop Supervisor BOTH;
    AppsEnded "apps-ended" Stop Supervisor BOTH;
    PlacesCleaned "places-cleaned" Stop Supervisor BOTH;
    EndReported "end-reported" Stop Supervisor BOTH;
    EndHeard "end-heard" Stop Host BOTH;
    FarewellSaid "farewell-said" Stop Host BOTH;
    EndRecorded "end-recorded" Stop Host BOTH;
    WallsTornDown "walls-torn-down" Stop Host BOTH;
    LeaseReleased "lease-released" Stop Host NS;
    RulesDeleted "rules-deleted" Stop Host NS;
    NetworkEnded "network-ended" Stop Host NS;
    UsersReleased "users-released" Stop Host NS;
    CgroupRemoved "cgroup-removed" Stop Host NS;
    ReaperWaits "reaper-waits" Reap Host BOTH;
    ReaperRemoves "reaper-removes" Reap Host BOTH;
    RemovalLocked "removal-locked" Removal Host BOTH;
    RemovalUndone "removal-undone" Removal Host BOTH;
    RemovalRenamed "removal-renamed" Removal Host BOTH;
    RemovalDone "removal-done" Removal Host BOTH;
    PodsCollected "pods-collected" Collection Host BOTH;
    DirectoriesSwept "directories-swept" Collection Host BOTH;
    LeaseUndone "lease-undone" Collection Host BOTH;
    LeasesCollected "leases-collected" Collection Host BOTH;
    StoreCollected "store-collected" Collection Host BOTH;
}

/// Comes to a step. Does nothing but in a test build whose environment names it.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub fn reach(_: FaultPoint) {}

/// Comes to a step. Dies or stays there, when the environment names it.
#[cfg(feature = "fault-points")]
pub fn reach(point: FaultPoint) {
    let Ok(wanted) = std::env::var(VARIABLE) else { return };
    if wanted == point.name() {
        eprintln!("podvm: fault point {wanted}");
        let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGKILL);
        // The first process of a PID namespace does not die by its own hand, but can go.
        // SAFETY: ends the process without running anything more of it.
        unsafe { nix::libc::_exit(137) }
    }
    if wanted.strip_suffix(HANG) == Some(point.name()) {
        eprintln!("podvm: fault point {wanted}");
        let name = std::ffi::CString::new(HANGING).unwrap_or_default();
        let _ = nix::sys::prctl::set_name(&name);
        loop {
            std::thread::park();
        }
    }
}

/// What a supervisor is to be given of this process's environment, which it does not inherit: nothing but in a test build.
pub fn inherited() -> Option<String> {
    #[cfg(feature = "fault-points")]
    return std::env::var(VARIABLE).ok().map(|point| format!("{VARIABLE}={point}"));
    #[cfg(not(feature = "fault-points"))]
    None
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_point_has_a_name_of_its_own() {
        let names: HashSet<_> = FaultPoint::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), FaultPoint::ALL.len());
        assert!(names.iter().all(|name| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')));
    }
}
