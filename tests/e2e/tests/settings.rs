//! Settings of pods and apps: names, environment, users, limits, system calls; and manifests that carry them all.

use std::fs;

use podvm_e2e::{Finished, Host, skip};

/// Runs a shell script in a pod of the busybox image, without a network.
fn shell(host: &Host, options: &[&str], script: &str) -> Finished {
    let image = host.image("busybox");
    let mut words = vec!["run", "--rm", "--quiet", "--net=none"];
    words.extend(options);
    words.extend([image.as_str(), "--", "sh", "-c", script]);
    host.podvm(words).run()
}

#[test]
fn an_app_finds_others_by_the_names_it_was_given() {
    let host = Host::new();
    let options = ["--dns=192.0.2.53", "--dns=2001:db8::53", "--dns-search=a.example", "--dns-opt=ndots:2"];
    let finished = shell(&host, &options, "cat /etc/resolv.conf").expect_code(0);
    assert_eq!(finished.stdout, "search a.example\nnameserver 192.0.2.53\nnameserver 2001:db8::53\noptions ndots:2\n");
    let options = ["--hosts-entry=10.9.8.7=db,db.local", "--hosts-entry", "fd00::7=six"];
    let finished = shell(&host, &options, "cat /etc/hosts").expect_code(0);
    finished.expect_stdout("10.9.8.7\tdb db.local\n").expect_stdout("fd00::7\tsix\n");
    let finished = shell(&host, &["--dns=host"], "cat /etc/resolv.conf").expect_code(0);
    let own = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    for server in own.lines().filter(|line| line.starts_with("nameserver ") && !line.contains('%')) {
        assert!(finished.stdout.contains(server.trim_end()), "{server}\n{finished}");
    }
    let finished = shell(&host, &["--dns=none"], "grep -c nameserver /etc/resolv.conf; true").expect_code(0);
    assert!(matches!(finished.stdout.as_str(), "0\n" | ""), "{finished}");
}

#[test]
fn the_environment_comes_from_files_and_this_process_and_options() {
    let host = Host::new();
    let image = host.image("busybox");
    let file = host.scratch().join("variables");
    fs::write(&file, "# comment\nONE=file\nTWO=file\n").unwrap();
    let file = file.to_str().unwrap();
    let words = ["run", "--rm", "--net=none", "--inherit-env", "--set-env-file", file, "-e", "TWO=option", &image];
    let script = "echo $ONE $TWO $THREE $FOUR";
    let run = host.podvm(words).arg("--").arg("sh").arg("-c").arg(script);
    let run = run.env("ONE", "inherited").env("THREE", "inherited");
    assert_eq!(run.run().expect_code(0).stdout, "file option inherited\n");
    let finished = host.podvm(["run", "--rm", "--net=none", &image, "--", "env"]).env("THREE", "leaked").run();
    assert!(!finished.stdout.contains("THREE"), "{finished}");
}

#[test]
fn users_and_groups_are_those_of_the_image() {
    let host = Host::new();
    let finished = shell(&host, &["--user=nobody", "--supplementary-gids=27,100"], "id -u; id -G").expect_code(0);
    let mut lines = finished.stdout.lines();
    assert_eq!(lines.next(), Some("65534"), "{finished}");
    let groups: Vec<&str> = lines.next().unwrap().split(' ').collect();
    assert!(groups.contains(&"27") && groups.contains(&"100"), "{finished}");
    shell(&host, &["--user=nosuch"], "id").expect_code(254).expect_stderr("nosuch").expect_stderr("/etc/passwd");
}

#[test]
fn limits_of_processes_are_applied() {
    let host = Host::new();
    let options = ["--rlimit=nofile=100:200", "--rlimit=core=0", "--oom-score-adj=123"];
    let script = "ulimit -n; ulimit -Hn; ulimit -c; cat /proc/self/oom_score_adj";
    assert_eq!(shell(&host, &options, script).expect_code(0).stdout, "100\n200\n0\n123\n");
}

#[test]
fn an_app_has_no_more_processes_than_it_may() {
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    if podvm_e2e::stage1() == "ns" && !controllers.contains("pids") {
        skip!("this host has no cgroup2 with the pids controller");
    }
    let host = Host::new();
    let script = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 5 & done 2>&1; wait";
    let finished = shell(&host, &["--pids=5", "--cpu-shares=512"], script);
    assert!(finished.stdout.contains("fork"), "{finished}");
}

#[test]
fn system_calls_are_retained_and_removed() {
    let host = Host::new();
    let script = "mkdir /tmp/x 2>&1 && echo made";
    shell(&host, &[], script).expect_stdout("made");
    shell(&host, &["--seccomp=mode=remove,errno=ENOSYS,mkdir,mkdirat"], script).expect_stdout("not implemented");
    // Without an errno the call kills: 128 + SIGSYS.
    shell(&host, &["--seccomp=mode=remove,mkdir,mkdirat"], "mkdir /tmp/x; exit $?").expect_code(159);
    let filter = "grep Seccomp: /proc/self/status";
    shell(&host, &["--seccomp=mode=unconfined"], filter).expect_stdout("Seccomp:\t0");
    shell(&host, &["--seccomp=mode=default"], filter).expect_stdout("Seccomp:\t2");
    let denied = "unshare -U true 2>&1; mount -t proc x /mnt 2>&1";
    let finished = shell(&host, &["--caps-retain=CAP_SYS_CHROOT"], denied);
    assert_eq!(
        finished.stdout.matches("ermitted").count() + finished.stdout.matches("denied").count(),
        2,
        "{finished}"
    );
    shell(&host, &["--seccomp=mode=retain,fly"], "true").expect_code(254).expect_stderr("fly");
}

#[test]
fn the_hosts_shared_memory_is_the_hosts_or_refused() {
    let host = Host::new();
    let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    let path = file.path().to_str().unwrap();
    shell(&host, &[], &format!("test ! -e {path}")).expect_code(0);
    let finished = shell(&host, &["--ipc=host"], &format!("test -e {path}"));
    if podvm_e2e::stage1() == "kvm" {
        finished.expect_code(254).expect_stderr("--ipc=host").expect_stderr("--stage1=ns");
    } else {
        finished.expect_code(0);
    }
}

#[test]
fn a_manifest_makes_another_pod_like_the_first() {
    let host = Host::new();
    let image = host.image("busybox");
    let script = "echo $COLOUR; ulimit -n; hostname; cat /data/x; echo y > /data/x";
    let data = host.directory("data");
    let volume = format!("data,kind=host,source={}", data.display());
    fs::write(data.join("x"), "x\n").unwrap();
    let words = ["run", "--net=none", "-e", "COLOUR=red", "--rlimit", "nofile=77", "--volume", &volume, &image];
    let words = words.into_iter().chain(["--mount", "volume=data,target=/data", "--", "sh", "-c", script]);
    let first = host.podvm(words).run().expect_code(0);
    let uuid = host.pods().remove(0);
    let printed = host.podvm(["cat-manifest", &uuid[..8]]).run().expect_code(0);
    assert_eq!(printed.json()["uuid"].as_str(), Some(uuid.as_str()));
    let file = host.scratch().join("pod.json");
    fs::write(&file, &printed.stdout).unwrap();
    host.podvm(["rm", &uuid]).run().expect_code(0);

    let second = host.podvm(["run", "--rm", "--pod-manifest", file.to_str().unwrap()]).run().expect_code(0);
    let mut lines = second.stdout.lines();
    assert_eq!((lines.next(), lines.next()), (Some("red"), Some("77")), "{second}");
    let hostname = lines.next().unwrap();
    assert!(hostname.starts_with("podvm-") && !first.stdout.contains(hostname), "{second}");
    assert_eq!(lines.next(), Some("y"), "{second}");

    fs::write(&file, printed.stdout.replace("sha256:", "sha256:0")).unwrap();
    let refused = host.podvm(["run", "--pod-manifest", file.to_str().unwrap()]).run().expect_code(254);
    refused.expect_stderr("pod.json").expect_stderr("app busybox");
}
