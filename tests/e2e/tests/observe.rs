//! Running pods looked at and held still: `stats`, `top`, `pause`, `resume`, `attach`.

use std::time::Duration;

use podvm_e2e::{Host, Invocation, skip, wait_for};

const A_WHILE: Duration = Duration::from_secs(60);

fn start(host: &Host, options: &[&str], script: &str) -> String {
    let image = host.image("busybox");
    let mut words = vec!["run", "--detach", "--quiet", "--net=none"];
    words.extend(options);
    words.extend([image.as_str(), "--", "sh", "-c", script]);
    host.podvm(words).run().expect_code(0).stdout.trim().to_owned()
}

#[test]
fn what_an_app_uses_is_told() {
    let host = Host::new();
    let pod = start(&host, &[], "trap exit TERM; while :; do :; done");
    let stats = host.podvm(["stats", &pod[..8], "--no-stream", "--output", "json"]).run().expect_code(0).json();
    let app = &stats[0];
    assert_eq!(app["app"], "busybox", "{stats}");
    assert!(app["cpu_percent"].as_f64().unwrap() > 20.0, "{stats}");
    assert!(app["memory_bytes"].as_u64().unwrap() > 0 && app["pids"].as_u64().unwrap() >= 1, "{stats}");
    host.podvm(["stats", "--no-stream"]).run().expect_code(0).expect_stdout(&pod[..8]).expect_stdout("CPU");
    let mut live = host.podvm(["stats", "--interval", "200ms", &pod[..8]]).spawn();
    wait_for("two looks", A_WHILE, || (live.stdout().matches("CPU").count() >= 2).then_some(()));
    live.signal(nix::sys::signal::Signal::SIGTERM);
    live.wait_for_stdout("busybox", A_WHILE);
}

#[test]
fn the_processes_of_an_app_are_listed_as_the_app_sees_them() {
    let host = Host::new();
    let pod = start(&host, &["--user=1234:100"], "trap exit TERM; sleep 601 & sleep 602 & wait");
    let rows = wait_for("all processes", A_WHILE, || {
        let rows = host.podvm(["top", &pod, "--output", "json"]).run().expect_code(0).json();
        (rows.as_array().map(Vec::len) == Some(3)).then_some(rows)
    });
    let first = &rows[0];
    assert_eq!((first["pid"].as_i64(), first["uid"].as_i64()), (Some(1), Some(1234)), "{rows}");
    host.podvm(["top", &pod]).run().expect_code(0).expect_stdout("sleep 601").expect_stdout("sleep 602");
    host.podvm(["top", &pod, "--app", "nosuch"]).run().expect_code(254).expect_stderr("busybox");
}

#[test]
fn a_paused_app_stands_still_until_it_goes_on_or_is_stopped() {
    if podvm_e2e::stage1() == "ns" && !host_has_cgroup2() {
        skip!("this host has no cgroup2 to hold processes still with");
    }
    let host = Host::new();
    let pod = start(&host, &[], "trap 'exit 3' TERM; n=0; while :; do n=$((n+1)); echo $n > /n; sleep 0.05; done");
    host.podvm(["pause", &pod[..8]]).run().expect_code(0);
    host.podvm(["status", &pod]).run().expect_code(0).expect_stdout("state:      paused");
    host.podvm(["list"]).run().expect_code(0).expect_stdout("paused");
    let refused = host.podvm(["exec", &pod, "--", "true"]).run().expect_code(254);
    refused.expect_stderr("paused").expect_stderr("podvm resume");
    let used = || {
        let stats = host.podvm(["stats", &pod, "--no-stream", "--output", "json"]).run().expect_code(0).json();
        stats[0]["cpu_usec"].as_u64().unwrap()
    };
    assert_eq!(used(), used(), "it has used CPU time while it was paused");
    host.podvm(["resume", &pod[..8]]).run().expect_code(0);
    host.podvm(["status", &pod]).run().expect_code(0).expect_stdout("running");
    let read = || host.podvm(["exec", &pod, "--", "cat", "/n"]).run().expect_code(0).stdout;
    let before = read();
    wait_for("the app goes on", A_WHILE, || (read() != before).then_some(()));
    host.podvm(["pause", &pod]).run().expect_code(0);
    host.podvm(["stop", &pod]).run().expect_code(0);
    host.podvm(["status", &pod]).run().expect_code(0).expect_stdout("exited (3)");
}

fn host_has_cgroup2() -> bool {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(2) == Some("cgroup2"))
}

#[test]
fn an_attached_user_sees_what_comes_and_types() {
    let host = Host::new();
    let script = "echo before; while read line; do echo \"got $line\"; done; exit 7";
    let pod = start(&host, &["--interactive"], script);
    wait_for("the app has spoken", A_WHILE, || {
        host.podvm(["logs", &pod]).run().stdout.contains("before").then_some(())
    });
    let attached = host.podvm(["attach", &pod[..8]]).input("one\ntwo\n").run().expect_code(7);
    assert_eq!(attached.stdout, "got one\ngot two\n");
}

#[test]
fn what_is_typed_reaches_the_terminal_of_an_app_in_the_background() {
    let host = Host::new();
    let pod = start(&host, &["--interactive", "--tty"], "exec sh");
    let attached = host.podvm(["attach", &pod]).input("echo is $((40 + 2))\nexit 9\n").run().expect_code(9);
    attached.expect_stdout("is 42");
}

#[test]
fn leaving_an_app_leaves_it_running() {
    let host = Host::new();
    let pod = start(&host, &[], "trap exit TERM; n=0; while :; do n=$((n+1)); echo line $n; sleep 0.2; done");
    let mut attached = host.podvm(["attach", &pod]).spawn();
    attached.wait_for_stdout("line", A_WHILE);
    // Not SIGINT, which what a shell starts in the background ignores.
    attached.signal(nix::sys::signal::Signal::SIGTERM);
    attached.wait(A_WHILE).expect_code(0);
    host.podvm(["status", &pod]).run().expect_code(0).expect_stdout("running");
    host.podvm(["stop", &pod]).run().expect_code(0);
    host.podvm(["attach", &pod]).run().expect_code(254).expect_stderr("running");
}

#[test]
fn an_attached_user_is_let_go_when_one_of_several_apps_ends() {
    let host = Host::new();
    let image = host.image("busybox");
    let words =
        ["run", "--detach", "--quiet", "--net=none", &image, "--name", "one", "--interactive", "--", "sh", "-c"];
    let words = words.into_iter().chain(["read line; echo got $line", "---", &image, "--name", "other", "--"]);
    let words = words.chain(["sh", "-c", "trap exit TERM; while :; do sleep 0.2; done"]);
    let started = host.podvm(words).run().expect_code(0);
    let pod = started.stdout.trim();
    let attached = host.podvm(["attach", pod, "--app", "one"]).input("it\n").time_limit(A_WHILE).run().expect_code(0);
    assert_eq!(attached.stdout, "got it\n");
    host.podvm(["status", pod]).run().expect_code(0).expect_stdout("running");
}

#[test]
fn what_is_typed_reaches_an_app_that_was_started_again() {
    let host = Host::new();
    let pod = start(&host, &["--tty", "--restart", "always"], "read line; echo got $line");
    let podvm = podvm_e2e::prefix().join("bin/podvm");
    let attach = format!("{} --root {} attach {pod}", podvm.display(), host.root().display());
    let typist = format!("n=0; while :; do n=$((n+1)); echo $n; sleep 1; done | {attach}");
    let attached = Invocation::new("/bin/sh", ["-c", &typist]).spawn();
    wait_for("three lives have read a line", 2 * A_WHILE, || {
        (attached.stdout().matches("got ").count() >= 3).then_some(())
    });
    host.podvm(["stop", "--force", &pod]).run().expect_code(0);
    attached.wait(A_WHILE);
}
