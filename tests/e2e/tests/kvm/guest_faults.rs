//! A guest that fails as a machine: one clear message, an exit code of its own.

use std::fs;

use podvm_e2e::{Host, prefix};

/// Runs a pod with an initramfs and a kernel of the test's choice.
fn run_with(host: &Host, kernel: &str, initramfs: &str) -> podvm_e2e::Finished {
    let image = host.image("busybox");
    let config = host.scratch().join("config.toml");
    let text = format!("kernel = {kernel:?}\ninitramfs = {initramfs:?}\n");
    fs::write(&config, text).unwrap();
    host.podvm(["--config", config.to_str().unwrap(), "run", "--net=none", &image, "--", "true"]).run()
}

#[test]
fn a_kernel_that_panics_says_so() {
    let host = Host::new();
    let kernel = prefix().join("lib/podvm/vmlinux");
    let initramfs = host.scratch().join("initramfs");
    fs::write(&initramfs, vec![0; 4096]).unwrap();
    let finished = run_with(&host, kernel.to_str().unwrap(), initramfs.to_str().unwrap()).expect_code(240);
    finished.expect_stderr("kernel panicked").expect_stderr("VFS: Unable to mount root fs");
}

#[test]
fn a_kernel_that_is_none_is_named() {
    let host = Host::new();
    let kernel = host.scratch().join("vmlinux");
    fs::write(&kernel, "not a kernel").unwrap();
    let initramfs = prefix().join("lib/podvm/initramfs.cpio");
    let finished = run_with(&host, kernel.to_str().unwrap(), initramfs.to_str().unwrap()).expect_code(254);
    finished.expect_stderr(kernel.to_str().unwrap());
    assert!(host.pods().is_empty(), "a pod that never started is left behind");
}

#[test]
fn a_kernel_that_is_missing_is_named() {
    let host = Host::new();
    let initramfs = prefix().join("lib/podvm/initramfs.cpio");
    run_with(&host, "/no/such/vmlinux", initramfs.to_str().unwrap()).expect_code(254).expect_stderr("/no/such/vmlinux");
    assert!(host.pods().is_empty(), "a pod that never started is left behind");
}
