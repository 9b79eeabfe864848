//! Health checks and restart policies.

use std::time::Duration;

use podvm_e2e::{Host, wait_for};

const A_WHILE: Duration = Duration::from_secs(90);

fn start(host: &Host, options: &[&str], script: &str) -> String {
    let image = host.image("busybox");
    let mut words = vec!["run", "--detach", "--quiet", "--net=none"];
    words.extend(options);
    words.extend([image.as_str(), "--", "sh", "-c", script]);
    host.podvm(words).run().expect_code(0).stdout.trim().to_owned()
}

#[test]
fn an_app_is_waited_for_until_it_is_healthy() {
    let host = Host::new();
    let command = "--health-cmd=ls /up || { echo it is down >&2; exit 3; }";
    let options = [command, "--health-interval=300ms", "--health-start-period=60s"];
    let pod = start(&host, &options, "sleep 2; touch /up; trap exit TERM; sleep 600 & wait");
    host.podvm(["status", &pod]).run().expect_code(0).expect_stdout("running, starting");
    host.podvm(["status", "--wait-ready", &pod]).time_limit(A_WHILE).run().expect_code(0).expect_stdout("healthy");
    host.podvm(["exec", &pod, "--", "rm", "/up"]).run().expect_code(0);
    wait_for("the app is found unhealthy", A_WHILE, || {
        host.podvm(["status", &pod]).run().stdout.contains("unhealthy").then_some(())
    });
    let refused = host.podvm(["status", "--wait-ready", &pod]).run().expect_code(254);
    refused.expect_stderr("unhealthy").expect_stderr("exited with 3").expect_stderr("it is down");
    host.podvm(["status", &pod]).run().expect_stdout("last health check of busybox: exited with 3: ls: /up");
    host.podvm(["exec", &pod, "--", "touch", "/up"]).run().expect_code(0);
    wait_for("the app is found healthy again", A_WHILE, || {
        host.podvm(["status", &pod]).run().stdout.contains(", healthy").then_some(())
    });
    let status = host.podvm(["status", &pod]).run().expect_code(0);
    assert!(!status.stdout.contains("last health check"), "{status}");
}

#[test]
fn a_check_that_takes_too_long_has_failed() {
    let host = Host::new();
    let options = ["--health-cmd=sleep 600", "--health-timeout=300ms", "--health-interval=300ms", "--health-retries=2"];
    let pod = start(&host, &options, "trap exit TERM; sleep 600 & wait");
    wait_for("the app is found unhealthy", A_WHILE, || {
        host.podvm(["status", &pod]).run().stdout.contains("unhealthy").then_some(())
    });
    let rows = host.podvm(["top", &pod, "--output", "json"]).run().expect_code(0).json();
    assert!(rows.as_array().unwrap().len() <= 3, "checks are left behind: {rows}");
}

#[test]
fn a_check_that_takes_too_long_is_ended_with_what_it_has_started() {
    let host = Host::new();
    let options = ["--health-cmd=sleep 600 | sleep 600", "--health-timeout=300ms", "--health-interval=300ms"];
    let pod = start(&host, &options, "trap exit TERM; sleep 600 & wait");
    wait_for("the app is found unhealthy", A_WHILE, || {
        host.podvm(["status", &pod]).run().stdout.contains("unhealthy").then_some(())
    });
    let rows = host.podvm(["top", &pod, "--output", "json"]).run().expect_code(0).json();
    // The app's two, and the three of a check that runs.
    assert!(rows.as_array().unwrap().len() <= 5, "checks are left behind: {rows}");
}

#[test]
fn a_pod_without_checks_is_ready_when_it_runs() {
    let host = Host::new();
    let pod = start(&host, &[], "trap exit TERM; sleep 600 & wait");
    host.podvm(["status", "--wait-ready", &pod]).time_limit(A_WHILE).run().expect_code(0).expect_stdout("running");
    host.podvm(["stop", &pod]).run().expect_code(0);
    host.podvm(["status", "--wait-ready", &pod]).run().expect_code(254).expect_stderr("has ended");
}

#[test]
fn a_failing_app_is_started_again_as_often_as_it_may() {
    let host = Host::new();
    let image = host.image("busybox");
    let words = ["run", "--net=none", "--restart=on-failure:2", &image, "--", "sh", "-c"];
    let script = "echo x >> /lives; echo life $(wc -l < /lives); exit 5";
    let finished = host.podvm(words.into_iter().chain([script])).time_limit(A_WHILE).run().expect_code(5);
    // What it has written stays from life to life.
    assert_eq!(finished.stdout, "life 1\nlife 2\nlife 3\n");
    let pod = host.pods().remove(0);
    host.podvm(["status", &pod]).run().expect_code(0).expect_stdout("exited with 5, restarts: 2");
    let logs = host.podvm(["logs", &pod]).run().expect_code(0);
    assert_eq!(logs.stdout, finished.stdout);
}

#[test]
fn an_app_that_always_runs_ends_when_its_pod_is_stopped() {
    let host = Host::new();
    let pod = start(&host, &["--restart=always"], "echo again; exit 0");
    wait_for("the app was started again", A_WHILE, || {
        let status = host.podvm(["status", &pod, "--output", "json"]).run().expect_code(0).json();
        (status["apps"][0]["restarts"].as_u64()? >= 2).then_some(())
    });
    host.podvm(["stop", &pod]).run().expect_code(0);
    host.podvm(["status", &pod]).run().expect_code(0).expect_stdout("exited (0)");
}

#[test]
fn a_program_that_is_not_there_is_not_tried_again() {
    let host = Host::new();
    let image = host.image("busybox");
    let words = ["run", "--rm", "--net=none", "--restart=always", &image, "--", "/bin/nosuch"];
    host.podvm(words).time_limit(A_WHILE).run().expect_code(127).expect_stderr("/bin/nosuch");
}
