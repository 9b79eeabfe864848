//! Images that go and come while pods run from them.

use std::time::Duration;

use nix::sys::signal::Signal;
use podvm_e2e::{Host, Running, is_emulated};

use super::A_WHILE;

#[test]
fn collections_beside_fetches_take_nothing_from_pods_that_run_or_are_prepared() {
    let host = Host::empty();
    let (image, other) = (host.image("busybox"), podvm_e2e::layout("etcd"));
    let mut pod = host.podvm(["run", "--net=none", &image, "--", "sh", "-c", "echo up; exec sleep 600"]).spawn();
    pod.wait_for_stdout("up\n", A_WHILE);
    let prepared = host.podvm(["prepare", "--quiet", &image, "--", "cat", "/etc/passwd"]).run().expect_code(0);
    let prepared = prepared.stdout.trim();

    let rounds = if is_emulated() { 2 } else { 10 };
    for round in 0..rounds {
        let import = || {
            let name = format!("etcd:{round}");
            host.podvm(["image", "import", "--quiet", other.to_str().unwrap(), "--name", &name]).spawn()
        };
        let mut at_once: Vec<Running> = vec![import(), import()];
        for words in [&["image", "gc", "--grace-period", "0s"][..], &["image", "prune", "--all"]] {
            at_once.push(host.podvm(words).spawn());
        }
        if round % 3 == 2 {
            // One that dies in the middle is no one's harm.
            std::thread::sleep(Duration::from_millis(20));
            at_once[0].signal(Signal::SIGKILL);
        }
        for (number, process) in at_once.into_iter().enumerate() {
            let finished = process.wait(A_WHILE);
            assert!(finished.status.success() || number == 0, "{finished}");
        }
        host.podvm(["image", "verify"]).run().expect_code(0);
    }
    let refused = host.podvm(["image", "rm", &image]).run().expect_code(254);
    assert!(refused.stderr.contains("is used by pod") && refused.stderr.contains(prepared), "{refused}");
    let running = host.podvm(["exec", pod_uuid(&host, prepared).as_str(), "--", "cat", "/etc/passwd"]).run();
    running.expect_code(0).expect_stdout("root");
    host.podvm(["run-prepared", prepared]).run().expect_code(0).expect_stdout("root");

    pod.signal(Signal::SIGTERM);
    pod.wait(A_WHILE);
    host.gc().expect_code(0);
    host.podvm(["image", "prune", "--all"]).run().expect_code(0);
    assert_eq!(host.podvm(["image", "list", "--output", "json"]).run().expect_code(0).json(), serde_json::json!([]));
    let left = std::fs::read_dir(host.root().join("images/blobs/sha256")).unwrap().count();
    assert_eq!(left, 0, "layers that nobody needs are gone");
}

/// The pod that is not the prepared one.
fn pod_uuid(host: &Host, prepared: &str) -> String {
    host.pods().into_iter().find(|uuid| uuid != prepared).expect("a pod runs")
}
