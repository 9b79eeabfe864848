//! Limits, statistics and killing by cgroup v2, where its controllers are: pods behind namespaces, in cgroups of their own.

mod pods;

use std::path::PathBuf;
use std::time::Duration;

use podvm_pod::manifest::{ByteSize, CpuLimit};
use podvm_pod::protocol::{Command, ProcessId, SignalTarget};
use podvm_pod::status::{AppState, ExitStatus};

use pods::{Outcome, Pod, PodBuilder, app, cannot_run, exec_spec};

const ROOT: &str = "/sys/fs/cgroup";

/// A pod's cgroup, removed with all below it.
struct PodCgroup(PathBuf);

impl PodCgroup {
    /// None, after saying so, where there are no controllers.
    fn make(name: &str) -> Option<Self> {
        let controllers = std::fs::read_to_string(format!("{ROOT}/cgroup.controllers")).unwrap_or_default();
        if cannot_run() {
            return None;
        }
        if !["cpu", "memory", "pids"].iter().all(|wanted| controllers.split_whitespace().any(|one| one == *wanted)) {
            println!("skipped: needs cgroup v2 with the controllers cpu, memory and pids at {ROOT}");
            return None;
        }
        for controller in controllers.split_whitespace() {
            let _ = std::fs::write(format!("{ROOT}/cgroup.subtree_control"), format!("+{controller}"));
        }
        let path = PathBuf::from(format!("{ROOT}/podvm-test-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Some(Self(path))
    }

    fn start(&self, pod: &PodBuilder) -> Pod {
        let mut running = Pod::begin_in(Some(&self.0));
        running.tell(&Command::Run(Box::new(pod.spec.clone())));
        running
    }

    fn outcome(&self, pod: &PodBuilder) -> Outcome {
        self.start(pod).outcome()
    }

    fn children(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).unwrap().flatten().filter(|entry| entry.path().is_dir());
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
    }
}

impl Drop for PodCgroup {
    fn drop(&mut self) {
        for child in self.children() {
            let _ = std::fs::remove_dir(self.0.join(child));
        }
        std::fs::remove_dir(&self.0).unwrap();
    }
}

#[test]
fn an_app_over_its_memory_limit_is_reported_as_killed_for_it() {
    let Some(cgroup) = PodCgroup::make("memory") else { return };
    let pod = PodBuilder::script("dd if=/dev/zero of=/dev/null bs=64M count=1; echo survived")
        .app(|app| app.isolators.memory = Some(ByteSize::mib(16)));
    let outcome = cgroup.outcome(&pod);
    let killed = AppState::Exited { status: ExitStatus::Signaled(libc::SIGKILL), oom_killed: true };
    assert_eq!((outcome.state("main"), outcome.report.code), (&killed, 137), "{outcome:?}");
    assert_eq!(cgroup.children(), ["_supervisor"]);
}

#[test]
fn an_app_sees_its_own_limits_and_no_other_cgroup() {
    let Some(cgroup) = PodCgroup::make("view") else { return };
    let script = "cat /proc/self/cgroup; cd /sys/fs/cgroup; cat memory.max memory.swap.max cpu.max cpu.weight pids.max
        echo 1 2>/dev/null >pids.max && echo wrote; true";
    let pod = PodBuilder::script(script).app(|app| {
        app.isolators.memory = Some(ByteSize::mib(32));
        app.isolators.cpu = Some(CpuLimit(1500));
        app.isolators.cpu_shares = Some(2048);
        app.isolators.pids = Some(50);
    });
    let outcome = cgroup.outcome(&pod);
    let expected = "0::/\n33554432\n0\n150000 100000\n79\n50";
    let without_swap = expected.replace("\n0\n", "\n");
    assert!([expected, &without_swap].contains(&outcome.ok()), "{outcome:?}");
}

#[test]
fn processes_beyond_the_limit_are_not_made() {
    let Some(cgroup) = PodCgroup::make("pids") else { return };
    let pod = PodBuilder::script("for i in 1 2 3 4 5 6 7 8; do sleep 60 & done; echo all")
        .app(|app| app.isolators.pids = Some(4));
    let outcome = cgroup.outcome(&pod);
    assert!(outcome.stderr["main"].contains("fork"), "{outcome:?}");
}

#[test]
fn statistics_tell_of_each_app_and_of_what_was_executed_in_it() {
    let Some(cgroup) = PodCgroup::make("stats") else { return };
    let pod = PodBuilder::script("while true; do :; done").with(app("idle", "sleep 1000"));
    let pod = pod.app(|app| app.isolators.memory = Some(ByteSize::mib(64)));
    let running = cgroup.start(&pod).ready();
    std::thread::sleep(Duration::from_millis(500));
    let stats = running.client.stats().unwrap();
    assert!(stats[0].1.cpu_usec > 100_000 && stats[0].1.memory_bytes > 0, "{stats:?}");
    assert_eq!((stats[0].1.pids, stats[1].1.pids), (1, 1));
    assert_eq!((stats[0].1.memory_limit_bytes, stats[1].1.memory_limit_bytes), (None, Some(64 << 20)));
    let process: ProcessId = running.client.prepare(exec_spec(&["sleep", "1000"])).unwrap();
    running.client.start(process).unwrap();
    assert_eq!(running.client.stats().unwrap()[0].1.pids, 2);
    assert_eq!(running.exec(&["cat", "/proc/self/cgroup"]).1, "0::/\n");
    running.client.signal(SignalTarget::Process(process), libc::SIGKILL).unwrap();
    assert_eq!(running.client.wait(process).unwrap(), ExitStatus::Signaled(libc::SIGKILL));
    let mut running = running;
    running.client.stop(Duration::ZERO).unwrap();
    assert_eq!(running.report().code, 137);
    running.farewell();
    assert_eq!(cgroup.children(), ["_supervisor"]);
}
