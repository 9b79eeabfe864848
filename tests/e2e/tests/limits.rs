//! Limits on apps.

use podvm_e2e::Host;

#[test]
fn an_app_over_its_memory_limit_is_killed_and_reported_so() {
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

#[test]
fn the_vm_is_as_large_as_its_apps_may_be() {
    let host = Host::new();
    let image = host.image("busybox");
    let script = "nproc; awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo; cat /sys/fs/cgroup/memory.max";
    let words = ["run", "--rm", "--net=none", &image, "--memory", "128M", "--cpu", "2", "--", "sh", "-c", script];
    let finished = host.podvm(words).run().expect_code(0);
    let lines: Vec<u64> = finished.stdout.lines().map(|line| line.parse().unwrap()).collect();
    // A VM has no more CPUs than its host, and the lab has one.
    let cpus = std::thread::available_parallelism().unwrap().get().min(2) as u64;
    assert_eq!((lines[0], lines[2]), (cpus, 128 << 20), "{finished}");
    assert!((128..=192).contains(&lines[1]), "{finished}");
}
