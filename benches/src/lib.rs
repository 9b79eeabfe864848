//! The benchmark harness: podvm beside its peers, as ratios and as counts that do not depend on a machine's speed.
//!
//! | module | subject |
//! |---|---|
//! | [`init_marker`] | the guest that is measured |
//! | [`local`] | what is measured, copied to where no file server is in the measure |
//! | [`monitor`] | how each virtual machine monitor is started and measured |
//! | [`smaps`] | what a monitor holds of memory beside its guest's |
//! | [`kvm_stats`] | what KVM counted for a guest |
//! | [`promise`] | the limits that podvm keeps |
//! | [`images`] | what fetching is measured with: images, and a registry |
//! | [`pods`] | pods in VMs, and what they hold |
//! | [`process`] | a command's wall time and memory |
//! | [`report`] | the figures as tables |

pub mod images;
pub mod init_marker;
pub mod kvm_stats;
pub mod local;
pub mod monitor;
pub mod pods;
pub mod process;
pub mod promise;
pub mod report;
pub mod smaps;
