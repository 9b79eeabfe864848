//! The supervisor: starts and watches a pod's apps inside its walls.
//!
//! One program for both stage1s. It is PID 1 of the VM, or of the pod's PID namespace, and a single thread: one
//! [`supervisor`] loop owns everything, and each app's walls are built in the app's own first process ([`app`]).
//!
//! | module | subject |
//! |---|---|
//! | [`supervisor`] | the main loop: connections, processes, streams, the pod's life |
//! | [`app`] | from a clone of the supervisor to the app's program: root, mounts, user, privileges |
//! | [`seccomp`] | which system calls an app may make |
//! | [`cgroup`] | limits and statistics by cgroup v2 |
//! | [`processes`] | what /proc tells of an app's processes |
//! | [`places`] | where layers, writable layers and volumes are |
//! | [`walls`] | what differs between the VM and the namespaces |
//! | [`vm`] | everything only a VM needs: early mounts, vsock, network, block devices, power-off |
//! | [`namespaces`] | what the pod's namespaces need |

#![deny(unsafe_op_in_unsafe_fn)]

pub mod app;
pub mod cgroup;
pub mod namespaces;
pub mod places;
pub mod processes;
pub mod seccomp;
pub mod step;
pub mod supervisor;
mod sys;
pub mod vm;
pub mod walls;
