//! The ground the other tests stand on.

use std::fs::{self, File};
use std::path::Path;

#[test]
fn the_lab_has_a_kvm_that_runs_guests() {
    File::options().read(true).write(true).open("/dev/kvm").expect("/dev/kvm opens");
    let module = |name: &str| Path::new("/sys/module").join(name).exists();
    assert!(module("kvm_amd") || module("kvm_intel"), "no hardware module runs /dev/kvm");
    assert!(!module("kvm_pvm"), "kvm_pvm interprets its guests' kernels");
}

#[test]
fn every_cgroup_controller_is_there_for_the_taking() {
    let enabled = fs::read_to_string("/sys/fs/cgroup/cgroup.subtree_control").unwrap();
    for controller in ["cpu", "io", "memory", "pids"] {
        assert!(enabled.split_whitespace().any(|name| name == controller), "{controller} is not among {enabled}");
    }
}
