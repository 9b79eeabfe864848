//! Whatever is killed, at whatever moment: a collection brings the host back to what it was.

mod directories;
mod images;
mod moments;
mod points;
mod together;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podvm_e2e::{Finished, Host, Invocation, Running, Snapshot};

/// How long anything may take.
const A_WHILE: Duration = Duration::from_secs(120);
/// The port of the host that pods of these tests publish.
const PORT: u16 = 7050;

/// A host whose pods are killed, and what it looked like before.
struct Scene {
    host: Host,
    image: String,
    before: Snapshot,
    /// How many pods there were.
    pods: u32,
}

/// What is particular about a pod.
#[derive(Debug, Clone, Copy, Default)]
struct Particulars {
    /// It has users of its own.
    private_users: bool,
    /// Its disk has a size that none had before.
    new_disk: bool,
    /// It is removed at its end.
    remove: bool,
}

impl Scene {
    fn new() -> Self {
        let host = Host::with_faults();
        let image = host.image("busybox");
        host.directory("volume");
        host.directory("files");
        let mut scene = Self { before: Snapshot::take(&host), host, image, pods: 0 };
        // The first pods make settings and folders that stay.
        for private_users in [false, podvm_e2e::stage1() == "ns"] {
            scene.run(Particulars { private_users, ..Particulars::default() }, "true").run().expect_code(0);
        }
        scene.host.gc().expect_code(0);
        fs::remove_file(scene.uuid_file()).unwrap();
        std::thread::sleep(Duration::from_millis(500));
        scene.before = Snapshot::take(&scene.host);
        scene
    }

    fn uuid_file(&self) -> PathBuf {
        self.host.scratch().join("files/uuid")
    }

    /// A pod with all that a pod can have at the host.
    fn run(&mut self, particulars: Particulars, script: &str) -> Invocation {
        self.pods += 1;
        let disk = if particulars.new_disk { format!("{}K", (32 << 10) + 64 * self.pods) } else { "32M".into() };
        let volume = format!("v,kind=host,source={}", self.host.scratch().join("volume").display());
        let (uuid_file, port) = (self.uuid_file().display().to_string(), format!("80:{PORT}"));
        let mut words = vec!["run", "--quiet", "--port", &port, "--volume", &volume, "--disk", &disk];
        words.extend(["--uuid-file-save", &uuid_file]);
        if particulars.private_users {
            words.push("--private-users");
        }
        if particulars.remove {
            words.push("--rm");
        }
        words.extend([&self.image, "--memory", "64M", "--mount", "volume=v,target=/v", "--", "sh", "-c", script]);
        self.host.podvm(words)
    }

    /// A pod that runs until it is asked to end.
    fn run_on(&mut self, particulars: Particulars) -> Invocation {
        self.run(particulars, "trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done")
    }

    /// A pod that ran and was killed, and left what a killed pod leaves.
    fn leave_killed_pod(&mut self, particulars: Particulars) -> String {
        let mut pod = self.run_on(particulars).spawn();
        pod.wait_for_stdout("up", A_WHILE);
        pod.signal(Signal::SIGKILL);
        pod.wait(A_WHILE);
        fs::read_to_string(self.uuid_file()).unwrap()
    }

    /// Collects, and panics unless that brings the host back, and leaves a second collection nothing to do.
    #[track_caller]
    fn expect_host_again(&self, when: &str) {
        let first = self.gc();
        assert!(first.status.success(), "{when}: the collection failed\n{first}");
        // The user's own file.
        let _ = fs::remove_file(self.uuid_file());
        self.before.expect_again(&self.host, Duration::from_secs(20), when);
        let second = self.gc();
        assert!(
            second.status.success() && second.stdout.is_empty(),
            "{when}: a second collection found work\n{second}"
        );
        self.before.expect_again(&self.host, Duration::from_secs(20), when);
    }

    fn gc(&self) -> Finished {
        self.host.gc()
    }
}

/// The direct children of a process.
fn children(pid: i32) -> Vec<i32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    fs::read_to_string(path).unwrap_or_default().split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// The pod's supervisor, while there is one.
fn supervisor(pod: &Running) -> Option<i32> {
    children(pod.pid()).into_iter().next()
}

fn kill_process(pid: i32) {
    // One that has ended needs no killing.
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}
