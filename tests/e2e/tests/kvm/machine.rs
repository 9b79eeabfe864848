//! The VM's process and its size, and hosts that cannot have one.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use podvm_e2e::{Finished, Host, Invocation, prefix};

const A_WHILE: Duration = Duration::from_secs(120);

#[test]
fn the_command_is_the_pods_process_and_nothing_is_below_it() {
    let host = Host::new();
    let image = host.image("busybox");
    let script = "trap 'exit 3' TERM; echo up; while :; do sleep 1; done";
    let mut pod = host.podvm(["run", "--net=none", &image, "--", "sh", "-c", script]).spawn();
    pod.wait_for_stdout("up", A_WHILE);
    let listed = host.podvm(["list", "--output", "json"]).run().json();
    assert_eq!(listed[0]["pid"].as_i64(), Some(pod.pid().into()), "{listed}");
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", pod.pid())).unwrap();
    assert_eq!(children, "", "the VMM has child processes");
    // It sees nothing of the host's files, and has no capability.
    assert_eq!(fs::read_dir(format!("/proc/{}/root", pod.pid())).unwrap().count(), 0);
    let status = fs::read_to_string(format!("/proc/{}/status", pod.pid())).unwrap();
    for line in ["CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line} is not in\n{status}");
    }
    pod.signal(Signal::SIGTERM);
    pod.wait(A_WHILE).expect_code(3);
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

/// Runs podvm where `hide` has hidden the device from this one call, and what the probe remembers.
fn run_hidden(host: &Host, hide: &str, stage1: &str) -> Finished {
    let (podvm, image) = (prefix().join("bin/podvm"), host.image("busybox"));
    let call = format!("{} --root {} run --rm --net=none", podvm.display(), host.root().display());
    let script = format!("{hide} && mount -t tmpfs none /run && exec {call} {stage1} {image} -- echo it runs");
    Invocation::new("unshare", ["--mount", "sh", "-c", &script]).run()
}

#[test]
fn a_host_without_kvm_is_told_what_helps() {
    let host = Host::new();
    let covered = "mount --bind /dev/null /dev/kvm";
    run_hidden(&host, covered, "--stage1=kvm").expect_code(254).expect_stderr("/dev/kvm");
    let removed = "mount --bind /dev /mnt && mount -t tmpfs none /dev && for d in null zero full random urandom tty \
                   loop-control loop0 loop1 loop2 loop3; do cp -a /mnt/$d /dev/; done";
    let finished = run_hidden(&host, removed, "--stage1=kvm").expect_code(254);
    finished.expect_stderr("there is no /dev/kvm").expect_stderr("enable virtualization").expect_stderr("--stage1=ns");
    assert!(host.pods().is_empty(), "a pod is left behind");
    // Left to itself, podvm takes what there is, and says so once.
    let finished = run_hidden(&host, removed, "").expect_code(0).expect_stdout("it runs");
    assert_eq!(finished.stderr.matches("behind namespaces").count(), 1, "{finished}");
    finished.expect_stderr("there is no /dev/kvm").expect_stderr("enable virtualization");
}

#[test]
fn the_hosts_network_is_not_a_vms_to_share() {
    let host = Host::new();
    let image = host.image("busybox");
    host.podvm(["run", "--net=host", &image]).run().expect_code(254).expect_stderr("--stage1=ns");
}
