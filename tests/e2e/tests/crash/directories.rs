//! State directories that are full, read-only, changed by hand, or of an older podvm.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use podvm_e2e::{Finished, Host, Invocation, Running, on_private_host, wait_for};
use podvm_pod::fault::{FaultPoint, HANG, VARIABLE};

use super::A_WHILE;

fn shell(script: &str) -> Finished {
    Invocation::new("/bin/sh", ["-c", script]).run().expect_code(0)
}

/// A pod that runs until it is asked to end, and its UUID.
fn start(host: &Host, image: &str) -> String {
    let words = ["run", "--detach", "--net=none", "--disk", "32M", image, "--", "sh", "-c"];
    let script = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    host.podvm(words).arg(script).run().expect_code(0).stdout.trim().to_owned()
}

/// A pod that has ended.
fn ended(host: &Host, image: &str) -> String {
    let before = host.pods();
    host.podvm(["run", "--net=none", "--disk", "32M", image, "--", "true"]).run().expect_code(0);
    host.pods().into_iter().find(|pod| !before.contains(pod)).expect("the pod is kept")
}

fn directory(host: &Host, uuid: &str) -> PathBuf {
    host.root().join("pods").join(uuid)
}

#[track_caller]
fn expect_one_line(finished: Finished) {
    let lines = finished.stderr.trim_end().lines().count();
    assert!(finished.status.code() == Some(254) && lines == 1, "not one clear error\n{finished}");
}

#[test]
fn a_full_disk_is_one_error_and_a_running_pod_still_tells_its_end() {
    let name = "crash::directories::a_full_disk_is_one_error_and_a_running_pod_still_tells_its_end";
    if !on_private_host(name, 5 * A_WHILE) {
        return;
    }
    let place = Host::empty();
    let root = place.directory("state");
    shell(&format!("mount -t tmpfs -o size=48m none {}", root.display()));
    let host = Host::at(&root);
    let image = host.image("busybox");
    let first = ended(&host, &image);
    let script = "echo up; until test -e /go; do sleep 0.1; done; dd if=/dev/urandom of=/big bs=1M count=30; exit 7";
    let mut writer = host.podvm(["run", "--net=none", "--disk", "64M", &image, "--", "sh", "-c", script]).spawn();
    writer.wait_for_stdout("up", A_WHILE);
    let uuid = host.pods().into_iter().find(|pod| *pod != first).unwrap();
    let fill = format!("dd if=/dev/zero of={}/filler bs=4k; true", root.display());
    shell(&fill);

    // While starting.
    let refused = host.podvm(["run", "--net=none", "--disk", "32M", &image, "--", "true"]).run();
    assert!(refused.stderr.contains("No space left on device"), "{refused}");
    expect_one_line(refused);
    assert_eq!(host.pods().len(), 2, "a half-made pod is left");
    host.podvm(["list"]).run().expect_code(0).expect_stdout("running");

    // While writing.
    host.podvm(["exec", &uuid, "--", "touch", "/go"]).run().expect_code(0);
    let written = writer.wait(A_WHILE);
    assert_eq!(written.status.code(), Some(7), "{written}");
    assert!(!written.stderr.contains("cannot be recorded"), "{written}");
    host.podvm(["status", &uuid]).run().expect_code(0).expect_stdout("exited (7)");

    // And then all is removed, and pods run again.
    host.gc().expect_code(0).expect_stdout(&uuid);
    fs::remove_file(root.join("filler")).unwrap();
    ended(&host, &image);
    host.gc().expect_code(0);
    drop(host);
    shell(&format!("umount {}", root.display()));
}

#[test]
fn a_read_only_state_is_one_error_and_can_be_looked_at() {
    let name = "crash::directories::a_read_only_state_is_one_error_and_can_be_looked_at";
    if !on_private_host(name, 5 * A_WHILE) {
        return;
    }
    let host = Host::empty();
    let image = host.image("busybox");
    let uuid = ended(&host, &image);
    let root = host.root().display();
    shell(&format!("mount --bind {root} {root} && mount -o remount,ro,bind {root}"));
    let refused = host.podvm(["run", "--net=none", &image, "--", "true"]).run();
    assert!(refused.stderr.contains("Read-only file system"), "{refused}");
    expect_one_line(refused);
    host.podvm(["list"]).run().expect_code(0).expect_stdout(&uuid[..8]);
    host.podvm(["status", &uuid]).run().expect_code(0).expect_stdout("exited (0)");
    let kept = host.podvm(["rm", &uuid]).run();
    assert!(kept.stderr.contains("Read-only file system"), "{kept}");
    expect_one_line(kept);
    shell(&format!("umount {root}"));
    host.podvm(["rm", &uuid]).run().expect_code(0);
}

#[test]
fn a_clock_that_is_set_back_keeps_pods_for_their_grace_period_and_no_longer() {
    let host = Host::empty();
    let image = host.image("busybox");
    let uuid = ended(&host, &image);
    let state = directory(&host, &uuid).join("state.json");
    // What the clock's jump amounts to: the pod ended in ten years.
    let text = fs::read_to_string(&state).unwrap();
    let finished = text.lines().find(|line| line.contains("\"finished\"")).unwrap();
    let future = format!("  \"finished\": {},", 4_000_000_000_u64);
    fs::write(&state, text.replace(finished, &future)).unwrap();
    assert_eq!(host.podvm(["gc", "--grace-period", "1s"]).run().expect_code(0).stdout, "");
    host.podvm(["status", &uuid]).run().expect_code(0).expect_stdout("exited (0)");
    std::thread::sleep(Duration::from_millis(2100));
    host.podvm(["gc", "--grace-period", "1s"]).run().expect_code(0).expect_stdout(&uuid);
}

/// What a hand can do to a pod's directory, which then is one error, and removed by force.
fn spoilings(uuid: &str) -> Vec<(&'static str, String)> {
    let spoil = |what: &'static str, script: &str| (what, script.replace("POD", uuid));
    vec![
        spoil("state.json", "echo '{\"phase\":' > POD/state.json"),
        spoil("state.json", "rm POD/state.json"),
        spoil("state.json", "head -c 4096 /dev/urandom > POD/state.json"),
        spoil("manifest.json", "echo '[]' > POD/manifest.json"),
        spoil("manifest.json", "rm POD/manifest.json"),
        spoil("newer podvm", "sed -i 's/\"version\": 1/\"version\": 99/' POD/manifest.json"),
        spoil("no directory", "mv POD ../moved && ln -s ../moved POD"),
        spoil("no directory", "rm -r POD; echo text > POD"),
    ]
}

#[test]
fn a_directory_changed_by_hand_is_one_error_and_harms_no_other_pod() {
    let host = Host::empty();
    let image = host.image("busybox");
    let running = start(&host, &image);
    let count = spoilings("").len();
    for number in 0..count {
        let uuid = ended(&host, &image);
        let (part, script) = spoilings(&uuid).swap_remove(number);
        shell(&format!("cd {}/pods && {script}", host.root().display()));
        let told = |finished: Finished| {
            assert!(finished.stderr.contains(part), "{part:?} is not in the message after `{script}`\n{finished}");
            expect_one_line(finished);
        };
        told(host.podvm(["status", &uuid]).run());
        let listed = host.podvm(["list"]).run().expect_code(0);
        assert!(listed.stdout.contains("damaged") && listed.stdout.contains("running"), "{script}\n{listed}");
        // Other pods are collected all the same.
        let other = ended(&host, &image);
        let collection = host.gc();
        assert!(collection.stdout.contains(&other), "{script}\n{collection}");
        if part != "manifest.json" && part != "newer podvm" {
            told(collection);
            told(host.podvm(["rm", &uuid]).run());
            host.podvm(["rm", "--force", &uuid]).run().expect_code(0);
        }
        assert!(fs::symlink_metadata(directory(&host, &uuid)).is_err(), "{script}: it is still there");
        host.podvm(["status", &running]).run().expect_code(0).expect_stdout("running");
        let moved = host.root().join("moved");
        if moved.exists() {
            assert!(moved.join("manifest.json").exists(), "what the link led to was emptied");
            fs::remove_dir_all(moved).unwrap();
        }
    }
    host.podvm(["stop", &running]).run().expect_code(0);
}

#[test]
fn foreign_things_among_the_pods_are_left_alone() {
    let host = Host::empty();
    let image = host.image("busybox");
    let uuid = ended(&host, &image);
    let pods = host.root().join("pods");
    fs::create_dir(pods.join("backup")).unwrap();
    fs::write(pods.join("README"), "mine").unwrap();
    symlink("/etc", pods.join("etc")).unwrap();
    // Of the form of a crash's leftover: it is taken for one, and where it leads stays as it is.
    let elsewhere = host.directory("elsewhere");
    fs::write(elsewhere.join("precious"), "x").unwrap();
    symlink(&elsewhere, pods.join(".old-x")).unwrap();
    host.podvm(["list"]).run().expect_code(0).expect_stdout(&uuid[..8]);
    host.gc().expect_code(0).expect_stdout(&uuid);
    for name in ["backup", "README", "etc"] {
        assert!(fs::symlink_metadata(pods.join(name)).is_ok(), "{name} is gone");
    }
    assert!(elsewhere.join("precious").exists() && Path::new("/etc/passwd").exists());
    assert!(fs::symlink_metadata(pods.join(".old-x")).is_err());
}

#[test]
fn a_running_pod_whose_records_are_spoilt_can_be_stopped_and_removed() {
    let host = Host::empty();
    let image = host.image("busybox");
    for last in [["stop"].as_slice(), &["rm", "--force"]] {
        let uuid = start(&host, &image);
        fs::write(directory(&host, &uuid).join("state.json"), "{").unwrap();
        let words = last.iter().copied().chain([uuid.as_str()]);
        host.podvm(words).run().expect_code(0);
        host.podvm(["rm", "--force", &uuid]).run();
        assert!(!directory(&host, &uuid).exists());
    }
}

/// Pod directories as older versions of podvm wrote them.
fn old_pods() -> Vec<PathBuf> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/pods");
    let mut found: Vec<_> = fs::read_dir(fixtures).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

#[test]
fn a_pod_of_an_older_podvm_is_listed_and_stopped_and_collected() {
    let host = Host::empty();
    host.image("busybox");
    let pods = host.root().join("pods");
    fs::create_dir_all(&pods).unwrap();
    let mut uuids = Vec::new();
    for fixture in old_pods() {
        let uuid = fixture.file_name().unwrap().to_str().unwrap().to_owned();
        fs::create_dir_all(pods.join(&uuid).join("logs")).unwrap();
        for file in ["manifest.json", "state.json"] {
            fs::copy(fixture.join(file), pods.join(&uuid).join(file)).unwrap();
        }
        uuids.push(uuid);
    }
    assert!(uuids.len() >= 3, "there are fixtures of each version");
    let listed = host.podvm(["list"]).run().expect_code(0);
    assert!(!listed.stdout.contains("damaged"), "{listed}");
    for uuid in &uuids {
        assert!(listed.stdout.contains(&uuid[..8]), "{listed}");
        let status = host.podvm(["status", uuid, "--output", "json"]).run().expect_code(0).json();
        assert!(["exited", "aborted"].contains(&status["state"].as_str().unwrap()), "{status}");
        host.podvm(["stop", uuid]).run().expect_code(0);
    }
    let collected = host.gc().expect_code(0);
    assert!(uuids.iter().all(|uuid| collected.stdout.contains(uuid)), "{collected}");
}

#[test]
fn a_prepared_pod_runs_once_and_keeps_its_image_until_it_expires() {
    let host = Host::empty();
    let image = host.image("busybox");
    let prepare = |script: &str| {
        let words = ["--net=none", "--disk", "32M", &image, "--", "sh", "-c", script];
        let stage1 = format!("--stage1={}", podvm_e2e::stage1());
        let words = ["prepare", &stage1].into_iter().chain(words);
        host.podvm(words).run().expect_code(0).stdout.trim().to_owned()
    };
    let uuid = prepare("echo ran; exit 5");
    host.podvm(["list"]).run().expect_code(0).expect_stdout("prepared").expect_stdout(podvm_e2e::stage1());
    host.podvm(["image", "rm", &image]).run().expect_code(254).expect_stderr(&uuid[..8]);
    assert_eq!(host.gc().expect_code(0).stdout, "", "a prepared pod was collected");
    host.podvm(["run-prepared", &uuid]).run().expect_code(5).expect_stdout("ran");
    host.podvm(["status", &uuid]).run().expect_code(0).expect_stdout("exited (5)");
    let again = host.podvm(["run-prepared", &uuid]).run();
    assert!(again.stderr.contains("was started before"), "{again}");
    expect_one_line(again);

    let detached = prepare("echo up; trap 'exit 0' TERM; while :; do sleep 0.1; done");
    host.podvm(["run-prepared", "--detach", "--rm", &detached]).run().expect_code(0).expect_stdout(&detached);
    let twice = host.podvm(["run-prepared", &detached]).run();
    assert!(twice.stderr.contains("is running"), "{twice}");
    expect_one_line(twice);
    host.podvm(["stop", "--timeout", "5s", &detached]).run().expect_code(0);
    wait_for("the pod is removed", A_WHILE, || (!host.pods().contains(&detached)).then_some(()));

    let expired = prepare("true");
    let collected = host.podvm(["gc", "--grace-period", "0s", "--expire-prepared", "0s"]).run().expect_code(0);
    assert!(collected.stdout.contains(&expired) && host.pods().is_empty(), "{collected}");
    host.podvm(["prepare", "--detach", &image]).run().expect_code(254).expect_stderr("run-prepared");
}

#[test]
fn two_starts_of_one_prepared_pod_run_it_once() {
    let host = Host::empty();
    let image = host.image("busybox");
    let stage1 = format!("--stage1={}", podvm_e2e::stage1());
    let words = ["prepare", &stage1, "--net=none", "--disk", "32M", &image, "--", "sh", "-c", "echo ran; sleep 1"];
    let uuid = host.podvm(words).run().expect_code(0).stdout.trim().to_owned();
    let starts: Vec<Running> = (0..5).map(|_| host.podvm(["run-prepared", &uuid]).spawn()).collect();
    let finished: Vec<Finished> = starts.into_iter().map(|start| start.wait(A_WHILE)).collect();
    assert_eq!(finished.iter().filter(|start| start.stdout.contains("ran")).count(), 1);
    for refused in finished.into_iter().filter(|start| !start.stdout.contains("ran")) {
        expect_one_line(refused);
    }
}

#[test]
fn marked_pods_are_kept_for_the_grace_period_after_their_mark() {
    let host = Host::empty();
    let image = host.image("busybox");
    let uuid = ended(&host, &image);
    // Longer than the three commands take that are to come within it.
    let grace = Duration::from_secs(if podvm_e2e::is_emulated() { 20 } else { 2 });
    let collect = || host.podvm(["gc", "--grace-period", &format!("{}s", grace.as_secs())]).run().expect_code(0);
    // The end is told in whole seconds.
    let rest = || std::thread::sleep(grace + Duration::from_millis(1100));
    rest();
    host.podvm(["gc", "--mark-only"]).run().expect_code(0).expect_stdout(&uuid);
    assert_eq!(host.podvm(["gc", "--mark-only"]).run().expect_code(0).stdout, "", "it was marked twice");
    host.podvm(["status", &uuid]).run().expect_code(0).expect_stdout("garbage:    since ");
    assert_eq!(collect().stdout, "");
    rest();
    collect().expect_stdout(&uuid);
}

#[test]
fn a_pod_that_has_ended_and_hangs_is_killed_by_force() {
    let host = Host::with_faults();
    let image = host.image("busybox");
    let fault = format!("{}{HANG}", FaultPoint::EndRecorded.name());
    let ended = || {
        let words = ["run", "--net=none", "--disk", "32M", &image, "--", "true"];
        let pod = host.podvm(words).env(VARIABLE, &fault).spawn();
        let uuid = wait_for("the pod has said its end", A_WHILE, || {
            let listed = host.podvm(["list", "--output", "json"]).run().expect_code(0).json();
            Some(listed.as_array()?.iter().find(|pod| pod["state"] == "exited")?["uuid"].as_str()?.to_owned())
        });
        (pod, uuid)
    };
    let (pod, uuid) = ended();
    host.podvm(["stop", &uuid]).run().expect_code(254).expect_stderr("podvm stop --force");
    host.podvm(["stop", "--force", &uuid]).run().expect_code(0);
    pod.wait(A_WHILE);
    host.podvm(["rm", &uuid]).run().expect_code(0);
    let (pod, uuid) = ended();
    host.podvm(["rm", "--force", &uuid]).run().expect_code(0);
    pod.wait(A_WHILE);
    assert!(host.pods().is_empty());
}

#[test]
fn a_pod_that_will_not_end_is_killed_after_the_time_out_by_force_only() {
    let host = Host::empty();
    let image = host.image("busybox");
    let uuid = start(&host, &image);
    let status = host.podvm(["status", &uuid, "--output", "json"]).run().expect_code(0).json();
    let process = nix::unistd::Pid::from_raw(status["pid"].as_i64().unwrap().try_into().unwrap());
    // Its process does nothing any more: whatever it is asked.
    nix::sys::signal::kill(process, Signal::SIGSTOP).unwrap();
    let waiter = host.podvm(["status", "--wait", &uuid]).spawn();
    host.podvm(["stop", "--timeout", "1s", "--force", &uuid]).run().expect_code(0);
    waiter.wait(A_WHILE).expect_code(0).expect_stdout("aborted");
    host.gc().expect_code(0).expect_stdout(&uuid);
}
