//! Many at once: pods, collections, removals, and two that want the same.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use podvm_e2e::{Host, Invocation, Running, Snapshot, is_emulated, is_nightly, on_private_host, stage1, wait_for};

use super::A_WHILE;

/// First port of the host that is published.
const FIRST_PORT: u16 = 7100;

/// How many pods run at once: fewer where each takes seconds, but in the long form.
fn many() -> u16 {
    match (stage1(), is_emulated() && !is_nightly()) {
        (_, false) => 50,
        ("ns", true) => 8,
        (_, true) => 2,
    }
}

fn get(port: u16) -> Option<String> {
    let url = format!("http://127.0.0.1:{port}/");
    let answer = Invocation::new("curl", ["-sf", "-m", "10", &url]).run();
    answer.status.success().then_some(answer.stdout)
}

#[test]
fn many_pods_start_at_once_and_answer_and_stop_and_leave_nothing() {
    if !on_private_host("crash::together::many_pods_start_at_once_and_answer_and_stop_and_leave_nothing", 10 * A_WHILE)
    {
        return;
    }
    let host = Host::empty();
    let image = host.image("busybox");
    host.podvm(["run", "--rm", "--disk", "32M", &image, "--", "true"]).run().expect_code(0);
    wait_for("the first pod is removed", A_WHILE, || host.pods().is_empty().then_some(()));
    host.gc().expect_code(0);
    std::thread::sleep(Duration::from_millis(500));
    let before = Snapshot::take(&host);

    let server = |number: u16| format!("mkdir /www; echo pod {number} > /www/index.html; exec httpd -f -p 80 -h /www");
    let starts: Vec<Running> = (0..many())
        .map(|number| {
            let (port, script) = (format!("80:{}", FIRST_PORT + number), server(number));
            let words = [
                "run", "--detach", "--disk", "32M", "--port", &port, &image, "--memory", "32M", "--", "sh", "-c",
                &script,
            ];
            host.podvm(words).spawn()
        })
        .collect();
    let mut uuids: Vec<String> =
        starts.into_iter().map(|start| start.wait(4 * A_WHILE).expect_code(0).stdout.trim().to_owned()).collect();
    for number in 0..many() {
        let answer = wait_for("the pod answers", A_WHILE, || get(FIRST_PORT + number));
        assert_eq!(answer, format!("pod {number}\n"));
    }
    uuids.sort();
    let mut listed = host.pods();
    listed.sort();
    assert_eq!(listed, uuids);

    let words = ["stop", "--timeout", "0s"].into_iter().chain(uuids.iter().map(String::as_str));
    host.podvm(words).time_limit(5 * A_WHILE).run().expect_code(0);
    let removed = host.gc().expect_code(0);
    assert_eq!(removed.stdout.lines().filter(|line| uuids.iter().any(|uuid| uuid == line)).count(), uuids.len());
    before.expect_again(&host, Duration::from_secs(30), "all pods have ended");
    assert_eq!(host.gc().expect_code(0).stdout, "");
}

#[test]
fn of_two_pods_that_want_one_port_the_second_is_refused() {
    let host = Host::empty();
    let image = host.image("busybox");
    let file = host.directory("files").join("uuid");
    let saved = format!("--uuid-file-save={}", file.display());
    let words = ["run", &saved, "--port", "80:7090", &image, "--", "sh", "-c", "echo up; exec sleep 600"];
    let mut first = host.podvm(words).spawn();
    first.wait_for_stdout("up", A_WHILE);
    let second = host.podvm(words).run().expect_code(254).expect_stderr("7090").expect_stderr("in use");
    assert_eq!(second.stderr.trim_end().lines().count(), 1, "{second}");
    assert_eq!(host.pods().len(), 1, "a half-made pod is left");
    assert_eq!(fs::read_to_string(&file).unwrap(), host.pods()[0], "the refused pod's UUID is there");
    first.signal(Signal::SIGTERM);
    first.wait(A_WHILE);
    // It is free at once.
    let mut third = host.podvm(words).spawn();
    third.wait_for_stdout("up", A_WHILE);
    third.signal(Signal::SIGTERM);
    third.wait(A_WHILE);
}

#[test]
fn a_prepared_pod_whose_port_is_in_use_is_started_when_it_is_free() {
    let host = Host::empty();
    let image = host.image("busybox");
    let run = ["run", "--port", "80:7091", &image, "--", "sh", "-c", "echo up; exec sleep 600"];
    let mut first = host.podvm(run).spawn();
    first.wait_for_stdout("up", A_WHILE);
    let stage1 = format!("--stage1={}", podvm_e2e::stage1());
    let words = ["prepare", &stage1, "--port", "80:7091", &image, "--", "sh", "-c", "echo ran; exit 6"];
    let uuid = host.podvm(words).run().expect_code(0).stdout.trim().to_owned();
    for option in ["--quiet", "--rm", "--detach"] {
        let refused = host.podvm(["run-prepared", option, &uuid]).run().expect_code(254);
        let refused = refused.expect_stderr("7091").expect_stderr("in use");
        assert_eq!(refused.stderr.trim_end().lines().count(), 1, "{refused}");
        // What is to remove the pod has had its chance.
        std::thread::sleep(Duration::from_secs(1));
        host.podvm(["status", &uuid]).run().expect_code(0).expect_stdout("prepared");
    }
    first.signal(Signal::SIGTERM);
    first.wait(A_WHILE);
    host.podvm(["run-prepared", "--rm", &uuid]).run().expect_code(6).expect_stdout("ran");
    assert!(!host.pods().contains(&uuid));
}

#[test]
fn a_start_that_comes_too_late_removes_nothing() {
    let host = Host::empty();
    let image = host.image("busybox");
    let stage1 = format!("--stage1={}", podvm_e2e::stage1());
    let words = ["prepare", &stage1, "--net=none", "--disk", "32M", &image, "--", "sh", "-c", "echo ran; sleep 1"];
    let uuid = host.podvm(words).run().expect_code(0).stdout.trim().to_owned();
    let winner = host.podvm(["run-prepared", &uuid]).spawn();
    let losers: Vec<_> = (0..4).map(|_| host.podvm(["run-prepared", "--rm", &uuid]).spawn()).collect();
    let won = winner.wait(A_WHILE);
    losers.into_iter().for_each(|loser| drop(loser.wait(A_WHILE)));
    std::thread::sleep(Duration::from_secs(1));
    // Any of them may have been the first.
    assert_eq!(host.pods().contains(&uuid), won.stdout.contains("ran"), "{won}");
}

#[test]
fn two_pods_share_a_volume_and_a_uuid_file_names_the_later() {
    let host = Host::empty();
    let image = host.image("busybox");
    let (volume, file) = (host.directory("volume"), host.directory("files").join("uuid"));
    let source = format!("v,kind=host,source={}", volume.display());
    let run = |script: &str| {
        let words = ["run", "--net=none", "--volume", &source, "--uuid-file-save", file.to_str().unwrap(), &image];
        host.podvm(words).arg("--mount").arg("volume=v,target=/v").arg("--").arg("sh").arg("-c").arg(script).spawn()
    };
    let one = run("echo one > /v/one; until test -e /v/other; do sleep 0.1; done");
    let other = run("echo other > /v/other; until test -e /v/one; do sleep 0.1; done");
    one.wait(A_WHILE).expect_code(0);
    other.wait(A_WHILE).expect_code(0);
    let named = fs::read_to_string(&file).unwrap();
    assert!(host.pods().contains(&named), "{named:?} is no pod");
    assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "something is left beside the file");
}

#[test]
fn collections_and_starts_at_once_disturb_nobody() {
    let host = Host::empty();
    let image = host.image("busybox");
    let rounds = if is_emulated() { 1 } else { 10 };
    for _ in 0..rounds {
        let pods: Vec<Running> = (0..4)
            .map(|_| host.podvm(["run", "--disk", "32M", &image, "--", "sh", "-c", "echo fine"]).spawn())
            .collect();
        let collections: Vec<Running> =
            (0..4).map(|_| host.podvm(["gc", "--grace-period", "0s", "--expire-prepared", "0s"]).spawn()).collect();
        let lists: Vec<Running> = (0..4).map(|_| host.podvm(["list"]).spawn()).collect();
        for pod in pods {
            pod.wait(A_WHILE).expect_code(0).expect_stdout("fine");
        }
        for call in collections.into_iter().chain(lists) {
            let finished = call.wait(A_WHILE).expect_code(0);
            assert_eq!(finished.stderr, "", "{finished}");
        }
    }
    host.gc().expect_code(0);
    assert!(host.pods().is_empty());
}

#[test]
fn a_running_pod_is_removed_only_by_force_and_once() {
    let host = Host::empty();
    let image = host.image("busybox");
    let words = ["run", "--detach", &image, "--", "sleep", "600"];
    let uuid = host.podvm(words).run().expect_code(0).stdout.trim().to_owned();
    host.podvm(["rm", &uuid]).run().expect_code(254).expect_stderr("is running").expect_stderr("podvm stop");
    assert_eq!(host.pods(), [uuid.as_str()]);
    let removals: Vec<Running> = (0..3).map(|_| host.podvm(["rm", "--force", &uuid]).spawn()).collect();
    let codes: Vec<_> = removals.into_iter().map(|removal| removal.wait(A_WHILE).status.code()).collect();
    // Who comes when it is gone finds no pod of that name.
    assert!(codes.contains(&Some(0)), "{codes:?}");
    assert!(host.pods().is_empty());
    assert!(!Path::new(host.root()).join("pods").join(&uuid).exists());
}

#[test]
fn a_pod_that_is_alone_in_its_cgroup_leaves_it_as_it_was() {
    if stage1() != "ns" {
        podvm_e2e::skip!("a VM makes no cgroups");
    }
    let name = "crash::together::a_pod_that_is_alone_in_its_cgroup_leaves_it_as_it_was";
    if !on_private_host(name, 2 * A_WHILE) {
        return;
    }
    let mut mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].into_iter().map(Path::new);
    let Some(mount) = mounts.find(|mount| mount.join("cgroup.procs").exists()) else {
        podvm_e2e::skip!("this host has no cgroup2");
    };
    let host = Host::empty();
    let image = host.image("busybox");
    host.podvm(["run", "--rm", "--net=none", &image, "--", "true"]).run().expect_code(0);
    wait_for("the first pod is removed", A_WHILE, || host.pods().is_empty().then_some(()));
    host.gc().expect_code(0);
    // As a service manager makes one.
    let service = mount.join("service");
    fs::create_dir(&service).unwrap();
    let passed_on = || fs::read_to_string(service.join("cgroup.subtree_control")).unwrap();
    let (before, passed_before) = (Snapshot::take(&host), passed_on());
    let podvm = podvm_e2e::prefix().join("bin/podvm");
    let call = format!("{} --root {} run --stage1=ns --net=none {image} --", podvm.display(), host.root().display());
    let start = |script: &str| {
        let script = format!("echo $$ > {}/cgroup.procs; exec {call} {script}", service.display());
        Invocation::new("/bin/sh", ["-c", &script]).spawn()
    };
    let mut pod = start("sh -c 'echo up; exec sleep 600'");
    pod.wait_for_stdout("up", A_WHILE);
    assert!(service.join(&host.pods()[0]).is_dir(), "the pod is not below its service's cgroup");
    pod.signal(Signal::SIGKILL);
    pod.wait(A_WHILE);
    host.gc().expect_code(0);
    before.expect_again(&host, Duration::from_secs(20), "the pod was killed");
    assert_eq!(passed_on(), passed_before);

    start("true").wait(A_WHILE).expect_code(0);
    host.gc().expect_code(0);
    before.expect_again(&host, Duration::from_secs(20), "the pod ended");
    assert_eq!(passed_on(), passed_before);
}
