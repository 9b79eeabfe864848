//! A pod's life: in the background, looked at, entered, stopped, removed.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use podvm_e2e::{Host, Invocation, wait_for};

const A_WHILE: Duration = Duration::from_secs(120);

fn start(host: &Host, script: &str) -> String {
    let image = host.image("busybox");
    let started = host.podvm(["run", "--detach", "--net=none", &image, "--", "sh", "-c", script]).run();
    started.expect_code(0).stdout.trim().to_owned()
}

#[test]
fn a_pod_in_the_background_is_listed_entered_read_and_stopped() {
    let host = Host::new();
    let uuid = start(&host, "trap 'exit 3' TERM; echo one; echo two >&2; echo $$ > /pid; while :; do sleep 1; done");
    let short = &uuid[..8];

    let listed = host.podvm(["list"]).run().expect_code(0).expect_stdout(short);
    listed.expect_stdout("running").expect_stdout(podvm_e2e::stage1());
    let status = host.podvm(["status", short, "--output", "json"]).run().expect_code(0).json();
    assert_eq!(status["uuid"].as_str(), Some(uuid.as_str()), "{status}");

    let exec = host
        .podvm([
            "exec",
            short,
            "--",
            "sh",
            "-c",
            "until test -s /pid; do sleep 0.1; done; cat /pid; echo err >&2; exit 6",
        ])
        .run()
        .expect_code(6);
    assert_eq!(exec.stdout, "1\n");
    exec.expect_stderr("err");
    host.podvm(["enter", "--interactive", short, "--", "cat"])
        .input("through")
        .run()
        .expect_code(0)
        .expect_stdout("through");
    host.podvm(["exec", short, "--", "nosuch"]).run().expect_code(127).expect_stderr("nosuch");

    let logs = host.podvm(["logs", short]).run().expect_code(0);
    assert!(logs.stdout.contains("one") && logs.stderr.contains("two"), "{logs}");
    let refused = host.podvm(["rm", short]).run().expect_code(254);
    refused.expect_stderr("is running").expect_stderr("podvm stop");

    host.podvm(["stop", short]).run().expect_code(0);
    host.podvm(["status", short]).run().expect_code(0).expect_stdout("exited (3)");
    host.podvm(["rm", short]).run().expect_code(0);
    host.podvm(["status", short]).run().expect_code(254).expect_stderr("no pod");
}

#[test]
fn waiting_for_a_pod_ends_with_it() {
    let host = Host::new();
    let uuid = start(&host, "sleep 3; exit 4");
    host.podvm(["status", "--wait", &uuid]).time_limit(A_WHILE).run().expect_stdout("exited (4)");
}

#[test]
fn an_app_that_will_not_stop_is_killed_after_the_grace_period() {
    let host = Host::new();
    let uuid = start(&host, "trap '' TERM; while :; do sleep 1; done");
    host.podvm(["stop", "--force", &uuid]).run().expect_code(0);
    host.podvm(["status", &uuid]).run().expect_stdout("exited (137)");
}

#[test]
fn a_pod_whose_process_is_killed_is_aborted_and_collected_whole() {
    let host = Host::new();
    let image = host.image("busybox");
    let mut pod = host.podvm(["run", "-p", "80:7003", &image, "--", "sh", "-c", "echo up; exec sleep 600"]).spawn();
    pod.wait_for_stdout("up", A_WHILE);
    let uuid = host.pods().remove(0);
    pod.signal(Signal::SIGKILL);
    pod.wait(A_WHILE);
    host.podvm(["status", &uuid]).run().expect_code(0).expect_stdout("aborted");
    wait_for("the kernel has removed the pod's links", A_WHILE, || {
        let links =
            fs::read_dir("/sys/class/net").unwrap().filter_map(|link| link.ok()?.file_name().into_string().ok());
        (!links.into_iter().any(|name| name.starts_with("pv-"))).then_some(())
    });
    let first = host.gc().expect_code(0);
    assert!(first.stdout.contains(&uuid), "{first}");
    assert_eq!(host.gc().expect_code(0).stdout, "", "a second gc found something to do");
    assert!(host.pods().is_empty());
    assert_eq!(
        fs::read_dir(host.root().join("leases"))
            .unwrap()
            .filter(|entry| {
                let name = entry.as_ref().unwrap().file_name();
                !name.to_string_lossy().starts_with('.')
            })
            .count(),
        0
    );
}

#[test]
fn a_pod_whose_processes_are_all_told_to_end_is_removed_all_the_same() {
    let host = Host::empty();
    let image = host.image("busybox");
    let script = "trap 'exit 3' TERM; echo up; while :; do sleep 0.1; done";
    let mut pod = host.podvm(["run", "--rm", "--net=none", &image, "--", "sh", "-c", script]).spawn();
    pod.wait_for_stdout("up", A_WHILE);
    // As a service manager does that stops a unit: also the process that is to remove the pod.
    let all = format!("podvm --root {} run", host.root().display());
    Invocation::new("pkill", ["-TERM", "--full", &all]).run().expect_code(0);
    let finished = pod.wait(A_WHILE).expect_code(3);
    assert!(!finished.stderr.contains("removed"), "{finished}");
    assert_eq!(host.pods(), Vec::<String>::new());
}

#[test]
fn a_stranger_with_the_number_on_record_is_not_signalled() {
    let host = Host::empty();
    let image = host.image("busybox");
    let words =
        ["run", "--detach", "--quiet", "--net=none", &image, "--", "sh", "-c", "trap exit TERM; sleep 600 & wait"];
    let pod = host.podvm(words).run().expect_code(0).stdout.trim().to_owned();
    let stranger = Invocation::new("sleep", ["600"]).spawn();
    let record = host.root().join("pods").join(&pod).join("state.json");
    let kept = fs::read(&record).unwrap();
    let mut state: serde_json::Value = serde_json::from_slice(&kept).unwrap();
    assert!(state["pid"].is_number(), "{state}");
    state["pid"] = stranger.pid().into();
    fs::write(&record, state.to_string()).unwrap();
    host.podvm(["stop", "--force", &pod]).time_limit(A_WHILE).run();
    let words = fs::read(format!("/proc/{}/cmdline", stranger.pid())).unwrap();
    assert!(!words.is_empty(), "it was taken for the pod, and killed");
    stranger.signal(Signal::SIGKILL);
    stranger.wait(A_WHILE);
    if fs::exists(&record).unwrap() {
        fs::write(&record, kept).unwrap();
    }
    host.podvm(["rm", "--force", &pod]).run().expect_code(0);
    assert_eq!(host.pods(), Vec::<String>::new());
}

#[test]
fn the_uuid_is_saved_where_it_is_asked_for() {
    let host = Host::new();
    let image = host.image("busybox");
    let file = host.scratch().join("uuid");
    let words = ["run", "--net=none", "--uuid-file-save", file.to_str().unwrap(), &image, "--", "true"];
    host.podvm(words).run().expect_code(0);
    assert_eq!(fs::read_to_string(&file).unwrap().trim(), host.pods()[0]);
}

#[test]
fn who_waited_for_a_pod_that_is_to_be_removed_finds_none() {
    let host = Host::new();
    let image = host.image("busybox");
    for _ in 0..3 {
        host.podvm(["run", "--rm", "--net=none", &image, "--", "sh", "-c", "exit 7"]).run().expect_code(7);
        assert_eq!(host.pods(), Vec::<String>::new());
    }
}

#[test]
fn a_pod_runs_and_is_entered_whatever_the_length_of_its_roots_path() {
    let own = Host::empty();
    let deep = own.directory(&format!("{}/{}", "a".repeat(100), "b".repeat(100)));
    let host = Host::at(&deep);
    let image = host.image("busybox");
    let words =
        ["run", "--detach", "--quiet", "--net=none", &image, "--", "sh", "-c", "trap exit TERM; sleep 600 & wait"];
    let pod = host.podvm(words).run().expect_code(0).stdout.trim().to_owned();
    let seen = host.podvm(["exec", &pod, "--", "cat", "/proc/net/unix"]).run().expect_code(0);
    assert!(!seen.stdout.contains(&pod) && !seen.stdout.contains(deep.to_str().unwrap()), "{seen}");
    host.podvm(["stop", &pod]).run().expect_code(0);
}
