//! Limits on apps.

use podvm_e2e::{Host, skip};

/// Whether this host limits processes by a controller of cgroup2. In a VM, the guest does.
fn host_limits(controller: &str) -> bool {
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    controllers.split_whitespace().any(|name| name == controller)
}

#[test]
fn an_app_over_its_memory_limit_is_killed_and_reported_so() {
    if podvm_e2e::stage1() == "ns" && !host_limits("memory") {
        skip!("this host has no cgroup2 with the memory controller");
    }
    let host = Host::new();
    let image = host.image("busybox");
    // tail keeps what it reads until the end, which never comes.
    let words = ["run", "--net=none", &image, "--memory", "32M", "--", "tail", "/dev/zero"];
    let finished = host.podvm(words).run().expect_code(137);
    assert!(finished.stderr.to_lowercase().contains("memory"), "{finished}");
    let uuid = &host.pods()[0];
    host.podvm(["status", uuid]).run().expect_code(0).expect_stdout("memory");
    host.podvm(["rm", uuid]).run().expect_code(0);
}
