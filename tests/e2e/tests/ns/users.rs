//! `--private-users`: right owners inside, nobody's outside.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::time::Duration;

use nix::sys::signal::Signal;
use podvm_e2e::Host;

const A_WHILE: Duration = Duration::from_secs(120);

#[test]
fn owners_are_right_inside_and_processes_are_nobody_outside() {
    let host = Host::new();
    let image = host.image("busybox");
    let data = host.directory("data");
    fs::set_permissions(&data, PermissionsExt::from_mode(0o777)).unwrap();
    fs::write(data.join("of-root"), "").unwrap();
    fs::write(data.join("of-user"), "").unwrap();
    chown(data.join("of-user"), Some(1000), Some(1001)).unwrap();
    let volume = format!("data,kind=host,source={}", data.display());
    let script = "stat -c '%u %g' /data/of-root /data/of-user /bin/busybox; id -u; echo $(cat /proc/self/uid_map); \
                  touch /data/by-root; su -s /bin/sh nobody -c 'touch /data/by-nobody' || touch /data/by-nobody; \
                  mount -t tmpfs x /tmp 2>/dev/null && echo mounted; echo up; exec sleep 600";
    let words = ["run", "--private-users", "--volume", &volume, &image, "--mount", "volume=data,target=/data"];
    let mut pod = host.podvm(words).arg("--").arg("sh").arg("-c").arg(script).spawn();
    pod.wait_for_stdout("up\n", A_WHILE);
    let said: Vec<String> = pod.stdout().lines().map(str::to_owned).collect();
    assert_eq!(said[..4], ["0 0", "1000 1001", "0 0", "0"], "{said:?}");
    let first: u32 = said[4].split(' ').nth(1).unwrap().parse().unwrap();
    assert!(first >= 1 << 16, "the pod's root is the host's user {first}");
    assert!(!said.contains(&"mounted".to_owned()), "{said:?}");
    assert_eq!(fs::metadata(data.join("by-root")).unwrap().uid(), 0);
    // The supervisor, and the apps below it.
    let supervisor = children(pod.pid())[0];
    for pid in children(supervisor).into_iter().chain([supervisor]) {
        let owner = fs::metadata(format!("/proc/{pid}")).unwrap().uid();
        assert_eq!(owner, first, "process {pid} is the host's user {owner}");
    }
    pod.signal(Signal::SIGKILL);
    pod.wait(A_WHILE);
    host.gc();
    let leases = fs::read_dir(host.root().join("users")).unwrap().count();
    assert_eq!(leases, 0, "a range of users is still leased");
}

#[test]
fn two_pods_share_no_user() {
    let host = Host::new();
    let image = host.image("busybox");
    let script = "cat /proc/self/uid_map; echo up; exec sleep 600";
    let start = || {
        let words = ["run", "--private-users", "--net=none", &image, "--", "sh", "-c", script];
        let mut pod = host.podvm(words).spawn();
        pod.wait_for_stdout("up\n", A_WHILE);
        (pod.stdout(), pod)
    };
    let ((one, first), (other, second)) = (start(), start());
    assert_ne!(one, other);
    drop((first, second));
}

#[test]
fn limits_hold_for_mapped_users_too() {
    let host = Host::new();
    let image = host.image("busybox");
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    if !controllers.contains("pids") {
        podvm_e2e::skip!("this host has no cgroup2 with the memory controller");
    }
    let script = "cat /sys/fs/cgroup/memory.max";
    let words = ["run", "--rm", "--private-users", "--net=none", &image, "--memory", "64M", "--", "sh", "-c", script];
    assert_eq!(host.podvm(words).run().expect_code(0).stdout.trim(), "67108864");
}

/// The children of a process.
fn children(pid: i32) -> Vec<i32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    fs::read_to_string(path).unwrap_or_default().split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}
