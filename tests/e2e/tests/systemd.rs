//! Pods as units of systemd: the unit's main process is the pod.

use std::path::Path;
use std::time::Duration;

use podvm_e2e::{Host, Invocation, prefix, skip, stage1, wait_for};

const A_WHILE: Duration = Duration::from_secs(120);

/// `podvm run` as a unit's command line, of the stage1 that is tested.
fn run(host: &Host, words: &[&str]) -> Vec<String> {
    let podvm = prefix().join("bin/podvm").display().to_string();
    let stage1 = format!("--stage1={}", stage1());
    let own = [podvm, "--root".into(), host.root().display().to_string(), "run".into(), stage1, "--quiet".into()];
    own.into_iter().chain(words.iter().map(|word| (*word).to_owned())).collect()
}

/// A unit of the test's own. Dropped, it is stopped and forgotten, and so is the socket that may start it.
struct Unit(String);

impl Unit {
    fn socket(&self) -> String {
        format!("{}.socket", self.0)
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        // What was never started, or has ended well, needs neither.
        for verb in ["stop", "reset-failed"] {
            Invocation::new("systemctl", [verb, &self.socket(), &self.0]).run();
        }
    }
}

/// A name that no other run of the tests has.
fn unit_name() -> String {
    format!("podvm-e2e-{}", stage1())
}

fn property(unit: &str, name: &str) -> String {
    let shown = Invocation::new("systemctl", ["show", unit, "--property", name, "--value"]).run().expect_code(0);
    shown.stdout.trim().to_owned()
}

fn journal(unit: &str) -> String {
    Invocation::new("journalctl", ["--unit", unit, "--output", "cat", "--no-pager"]).run().stdout
}

#[test]
fn a_unit_is_its_pod_and_ends_it_as_a_user_would() {
    if !Path::new("/run/systemd/system").exists() {
        skip!("needs a host that systemd runs");
    }
    let host = Host::new();
    let image = host.image("busybox");
    let unit = unit_name();
    let _unit = Unit(unit.clone());
    let script = "trap 'echo told to end; exit 3' TERM; echo started; while :; do sleep 0.1; done";
    let start = ["--unit", &unit, "--property", "MemoryMax=512M"].map(str::to_owned);
    let words = start.into_iter().chain(run(&host, &["--net=none", &image, "--", "sh", "-c", script]));
    Invocation::new("systemd-run", words).run().expect_code(0);
    wait_for("the app says so in the journal", A_WHILE, || {
        journal(&unit).lines().any(|line| line == "started").then_some(())
    });
    let pod = host.pods().remove(0);
    let status = host.podvm(["status", &pod, "--output", "json"]).run().expect_code(0).json();
    let pid = property(&unit, "MainPID");
    assert_eq!(status["pid"].to_string(), pid);
    // So the unit's limits are the pod's.
    let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(cgroup.contains(&format!("{unit}.service")), "{cgroup}");

    Invocation::new("systemctl", ["stop", &unit]).run().expect_code(0);
    assert_eq!(property(&unit, "ExecMainStatus"), "3");
    assert!(journal(&unit).lines().any(|line| line == "told to end"), "{}", journal(&unit));
    let status = host.podvm(["status", &pod, "--output", "json"]).run().expect_code(0).json();
    assert_eq!(status["state"], "exited", "{status}");
}

#[test]
fn collecting_a_units_earlier_pod_leaves_its_present_one_alone() {
    if !Path::new("/run/systemd/system").exists() {
        skip!("needs a host that systemd runs");
    }
    let host = Host::new();
    let image = host.image("busybox");
    let unit = format!("{}-again", unit_name());
    let _unit = Unit(unit.clone());
    let once = host.directory("state");
    // The first life ends at once, and the second stays.
    let script = "test -e /state/once && exec sleep 1000; touch /state/once; exit 1";
    let volume = format!("state,kind=host,source={}", once.display());
    let start = ["--unit", &unit, "--property", "Restart=always", "--property", "Delegate=yes"].map(str::to_owned);
    let pod = run(&host, &["--net=none", "--memory", "64M", "--volume", &volume, &image, "--mount"]);
    let app = ["volume=state,target=/state", "--", "sh", "-c", script].map(str::to_owned);
    Invocation::new("systemd-run", start.into_iter().chain(pod).chain(app)).run().expect_code(0);
    let second = wait_for("the second pod runs", A_WHILE, || {
        let listed = host.podvm(["list", "--output", "json"]).run().expect_code(0).json();
        let pods = listed.as_array().cloned().unwrap_or_default();
        let running = pods.iter().find(|pod| pod["state"] == "running")?;
        (pods.len() == 2).then(|| running["uuid"].as_str().unwrap_or_default().to_owned())
    });
    host.gc().expect_code(0);
    assert_eq!(host.pods(), std::slice::from_ref(&second));
    let limit = host.podvm(["exec", &second, "--", "cat", "/sys/fs/cgroup/memory.max"]).run();
    limit.expect_code(0).expect_stdout("67108864\n");
    Invocation::new("systemctl", ["stop", &unit]).run().expect_code(0);
    host.gc().expect_code(0);
}

#[test]
fn the_first_connection_starts_a_pod_that_is_served_by_its_app() {
    if !Path::new("/run/systemd/system").exists() {
        skip!("needs a host that systemd runs");
    }
    let host = Host::new();
    let image = host.image("nginx");
    let site = crate::activation::site(&host, "0.0.0.0:18482");
    let unit = format!("{}-socket", unit_name());
    let started = Unit(unit.clone());
    let socket = ["--unit", &unit, "--socket-property", "ListenStream=0.0.0.0:18482"].map(str::to_owned);
    let pod = run(&host, &["--net=none", "--environment", "NGINX=3;", "--volume", &site, &image, "--mount"]);
    let words = socket.into_iter().chain(pod).chain(crate::activation::arguments().map(str::to_owned));
    Invocation::new("systemd-run", words).run().expect_code(0);
    assert_eq!(host.pods(), Vec::<String>::new());

    let page = Invocation::new("curl", ["-sf", "-m", "100", "http://127.0.0.1:18482/"]).run();
    assert_eq!(page.expect_code(0).stdout, "by a passed socket\n");
    assert_eq!(host.pods().len(), 1);
    Invocation::new("systemctl", ["stop", &started.socket(), &unit]).run().expect_code(0);
}

#[test]
fn a_units_pod_is_removed_before_systemd_kills_what_is_left() {
    if !Path::new("/run/systemd/system").exists() {
        skip!("needs a host that systemd runs");
    }
    let host = Host::new();
    let image = host.image("busybox");
    let wait = ["--wait", "--pipe", "--collect"].map(str::to_owned);
    let words =
        wait.into_iter().chain(run(&host, &["--rm", "--net=none", &image, "--", "sh", "-c", "echo here; exit 4"]));
    let unit = Invocation::new("systemd-run", words).run().expect_code(4);
    assert_eq!(unit.stdout, "here\n", "{unit}");
    assert_eq!(host.pods(), Vec::<String>::new());
}
