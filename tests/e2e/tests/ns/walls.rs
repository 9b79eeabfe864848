//! What of the host is not behind the walls, and what goes when they fall.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use podvm_e2e::{Host, wait_for};

const A_WHILE: Duration = Duration::from_secs(120);

/// The children of a process.
fn children(pid: i32) -> Vec<i32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    fs::read_to_string(path).unwrap_or_default().split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// The cgroups of a pod, in each hierarchy of the host that has one.
fn cgroups_of(pod: &str) -> Vec<PathBuf> {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path());
    let parents = hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]);
    parents.map(|parent| parent.join("podvm").join(pod)).filter(|cgroup| cgroup.exists()).collect()
}

#[test]
fn nothing_of_the_host_is_seen_from_inside() {
    let host = Host::new();
    let image = host.image("busybox");
    let script = "cat /proc/self/mountinfo; echo ---; env; echo ---; ls -l /proc/self/fd | grep -c pipe; ls /proc/self/fd; \
                  echo ---; ls -d /proc/[0-9]* | wc -l; cat /proc/self/cgroup";
    let words = ["run", "--rm", "--net=none", "--interactive", &image, "--", "sh", "-c", script];
    let finished = host.podvm(words).env("SECRET", "of the host").run().expect_code(0);
    let parts: Vec<&str> = finished.stdout.split("---\n").collect();
    let roots: Vec<&str> = parts[0].lines().filter_map(|line| line.split(' ').nth(3)).collect();
    // Each mount is the root of its filesystem, or a file that was made for the pod.
    let own = ["/", "/null", "/zero", "/bus", "/fs", "/irq", "/sys", "/asound", "/sysrq-trigger"];
    for root in roots {
        assert!(own.contains(&root) || root.starts_with("/apps/busybox/etc/"), "{root} is mounted\n{finished}");
    }
    let state = host.root().to_str().unwrap();
    assert!(!parts[0].contains(state), "the host's paths are seen\n{finished}");
    let names: Vec<&str> = parts[1].lines().filter_map(|line| line.split('=').next()).collect();
    for name in names {
        assert!(["PATH", "HOME", "HOSTNAME", "PWD", "SHLVL", "TERM"].contains(&name), "{name} is set\n{finished}");
    }
    // Three streams, and the directory that ls reads.
    assert_eq!(parts[2].lines().collect::<Vec<_>>(), ["3", "0", "1", "2", "3"], "{finished}");
    // The shell, and what counts.
    assert!(parts[3].starts_with('3') || parts[3].starts_with('2'), "{finished}");
    assert!(parts[3].lines().skip(1).all(|line| line.ends_with(":/")), "{finished}");
}

#[test]
fn the_supervisor_holds_nothing_of_the_host() {
    let host = Host::new();
    let image = host.image("busybox");
    let mut pod = host.podvm(["run", "--net=none", &image, "--", "sh", "-c", "echo up; exec sleep 600"]).spawn();
    pod.wait_for_stdout("up", A_WHILE);
    let supervisor = children(pod.pid())[0];
    let mut seen: Vec<String> = fs::read_dir(format!("/proc/{supervisor}/root"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    seen.retain(|name| name != "cgroup");
    seen.sort();
    assert_eq!(seen, ["layers", "proc", "scratch", "writable"]);
    assert_eq!(fs::read(format!("/proc/{supervisor}/environ")).unwrap(), b"");
    // The pod's own process keeps what taking the network down takes, and can gain nothing.
    let status = fs::read_to_string(format!("/proc/{}/status", pod.pid())).unwrap();
    for line in ["CapEff:\t0000000000001000", "NoNewPrivs:\t1"] {
        assert!(status.contains(line), "{line} is not in\n{status}");
    }
    pod.signal(Signal::SIGTERM);
    pod.wait(A_WHILE);
}

#[test]
fn all_of_a_pod_dies_with_its_process() {
    let host = Host::empty();
    let image = host.image("busybox");
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mounts();
    let mut pod = host.podvm(["run", &image, "--", "sh", "-c", "sleep 600 & echo up; exec sleep 600"]).spawn();
    pod.wait_for_stdout("up", A_WHILE);
    assert_eq!(mounts(), before, "the pod's mounts are seen on the host");
    let supervisor = children(pod.pid())[0];
    let apps = children(supervisor);
    let cgroups = cgroups_of(&host.pods()[0]);
    pod.signal(Signal::SIGKILL);
    pod.wait(A_WHILE);
    wait_for("all of the pod's processes are gone", A_WHILE, || {
        let gone = |pid: &i32| !fs::exists(format!("/proc/{pid}")).unwrap();
        apps.iter().chain([&supervisor]).all(gone).then_some(())
    });
    host.podvm(["gc"]).run().expect_code(0);
    let left: Vec<_> = cgroups.iter().filter(|cgroup| cgroup.exists()).collect();
    assert!(left.is_empty() && host.pods().len() == 1, "{left:?} is left, while the pod is kept to be looked at");
    assert!(!host.gc().expect_code(0).stdout.is_empty());
    assert_eq!(host.gc().expect_code(0).stdout, "", "a second gc found something to do");
}

#[test]
fn a_supervisor_that_is_killed_is_reported() {
    let host = Host::new();
    let image = host.image("busybox");
    let mut pod = host.podvm(["run", "--net=none", &image, "--", "sh", "-c", "echo up; exec sleep 600"]).spawn();
    pod.wait_for_stdout("up", A_WHILE);
    let supervisor = nix::unistd::Pid::from_raw(children(pod.pid())[0]);
    nix::sys::signal::kill(supervisor, Signal::SIGKILL).unwrap();
    pod.wait(A_WHILE).expect_code(244).expect_stderr("supervisor was killed by SIGKILL");
}

#[test]
fn the_hosts_network_can_be_shared() {
    let host = Host::new();
    let image = host.image("busybox");
    let words = ["run", "--rm", "--net=host", &image, "--", "ls", "/sys/class/net"];
    let finished = host.podvm(words).run().expect_code(0);
    let mut own: Vec<String> =
        fs::read_dir("/sys/class/net").unwrap().map(|link| link.unwrap().file_name().into_string().unwrap()).collect();
    own.sort();
    let mut seen: Vec<&str> = finished.stdout.lines().collect();
    seen.sort();
    assert_eq!(seen, own);
}

#[test]
fn a_limit_that_this_host_cannot_apply_is_said() {
    let host = Host::new();
    let image = host.image("busybox");
    // A cgroup hierarchy that nobody may write to, as in a container.
    let podvm = podvm_e2e::prefix().join("bin/podvm");
    let call = format!("{} --root {} run --stage1=ns --rm --net=none", podvm.display(), host.root().display());
    let script =
        format!("mount -t tmpfs none /sys/fs/cgroup && exec {call} {image} --memory 64M --cpu 0.5 -- echo it runs");
    let finished = podvm_e2e::Invocation::new("unshare", ["--mount", "sh", "-c", &script]).run();
    let finished = finished.expect_code(0).expect_stdout("it runs");
    finished.expect_stderr("app busybox").expect_stderr("--memory").expect_stderr("--cpu").expect_stderr("cgroup");
}

#[test]
fn a_log_that_may_not_grow_further_ends_and_the_pod_does_not() {
    let host = Host::new();
    let image = host.image("busybox");
    let podvm = podvm_e2e::prefix().join("bin/podvm");
    let call = format!("{} --root {} run --stage1=ns -q --rm --net=none", podvm.display(), host.root().display());
    // In blocks of 512 bytes, or of 1024.
    let line = format!("ulimit -f 150; {call} {image} -- sh -c 'yes | head -c 300000' | wc -c");
    let finished = podvm_e2e::Invocation::new("/bin/sh", ["-c", &line]).run().expect_code(0);
    assert_eq!(finished.stdout.trim(), "300000", "{finished}");
    finished.expect_stderr("the log of app busybox ends here");
}
