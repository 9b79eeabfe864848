use super::*;
use crate::manifest::{ByteSize, NetworkMode, PodResources};
use crate::status::PodReport;

fn manifest() -> PodManifest {
    PodManifest {
        version: MANIFEST_VERSION,
        uuid: Uuid::new_v4(),
        created: 1,
        hostname: "pod".into(),
        apps: Vec::new(),
        volumes: Vec::new(),
        ports: Vec::new(),
        network: NetworkMode::None,
        dns: Default::default(),
        hosts: Vec::new(),
        ipc: Default::default(),
        private_users: false,
        resources: PodResources { memory: ByteSize::mib(64), cpus: 1, disk: Some(ByteSize::mib(64)) },
    }
}

#[test]
fn a_pod_is_alive_exactly_while_its_lock_is_held() {
    let root = tempfile::tempdir().unwrap();
    let pods = PodsRoot::new(root.path());
    let prepared = pods.prepare(manifest()).unwrap();
    let dir = prepared.dir().clone();
    assert_eq!(dir.state().unwrap().0, PodState::Starting);
    let running = prepared.start(Stage1Kind::Kvm).unwrap();
    running.record_running(2, &[], &[]).unwrap();
    assert_eq!(dir.state().unwrap().0, PodState::Running);
    assert!(matches!(dir.remove(), Err(DirectoryError::Alive(_))));
    drop(running);
    assert_eq!(dir.state().unwrap().0, PodState::Aborted);
}

#[test]
fn the_supervisors_socket_is_bound_at_any_path_length_and_tells_no_path() {
    let root = tempfile::tempdir().unwrap();
    let deep = root.path().join("a".repeat(80)).join("b".repeat(80));
    fs::create_dir_all(&deep).unwrap();
    let pod = PodsRoot::new(&deep).prepare(manifest()).unwrap();
    let listener = pod.dir().bind_supervisor_socket().unwrap();
    assert!(pod.dir().supervisor_socket().exists());
    let address = listener.local_addr().unwrap();
    assert!(!address.as_pathname().unwrap().to_str().unwrap().contains(&pod.dir().uuid().to_string()));
}

#[test]
fn a_recorded_exit_outlives_the_process() {
    let root = tempfile::tempdir().unwrap();
    let pods = PodsRoot::new(root.path());
    let running = pods.prepare(manifest()).unwrap().start(Stage1Kind::Ns).unwrap();
    let report = PodReport { code: 3, failed_app: None, error: None, apps: Vec::new() };
    running.record_exit(9, &report).unwrap();
    let dir = running.dir().clone();
    drop(running);
    let (state, phase) = dir.state().unwrap();
    assert_eq!(state, PodState::Exited);
    let pid = Some(std::process::id() as i32);
    assert_eq!(phase, Phase::Exited { pid, stage1: Some(Stage1Kind::Ns), finished: 9, report });
    dir.remove().unwrap();
    dir.remove().unwrap();
    assert!(pods.list().unwrap().is_empty());
}

#[test]
fn an_end_of_an_older_podvm_is_read() {
    let json =
        r#"{"phase": "exited", "finished": 9, "report": {"code": 3, "failed_app": null, "error": null, "apps": []}}"#;
    let phase: Phase = serde_json::from_str(json).unwrap();
    assert_eq!(phase.pid(), None);
}

#[test]
fn a_wait_for_the_end_has_a_limit() {
    let root = tempfile::tempdir().unwrap();
    let pod = PodsRoot::new(root.path()).prepare(manifest()).unwrap();
    let dir = pod.dir().clone();
    let soon = || std::time::Instant::now() + std::time::Duration::from_millis(50);
    assert!(!dir.is_dead_by(soon()).unwrap());
    drop(pod);
    assert!(dir.is_dead_by(soon()).unwrap());
}

#[test]
fn a_prefix_finds_the_one_pod_it_fits() {
    let root = tempfile::tempdir().unwrap();
    let pods = PodsRoot::new(root.path());
    let first = pods.prepare(manifest()).unwrap();
    let _second = pods.prepare(manifest()).unwrap();
    let uuid = first.dir().uuid().to_string();
    assert_eq!(pods.find(&uuid[..8]).unwrap().uuid().to_string(), uuid);
    assert!(matches!(pods.find("zz"), Err(DirectoryError::NotFound(_))));
    assert!(matches!(pods.find(""), Err(DirectoryError::NotFound(_))));
}

#[test]
fn sweeping_takes_what_a_crash_left_and_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    let pods = PodsRoot::new(root.path());
    let _pod = pods.prepare(manifest()).unwrap();
    fs::create_dir_all(pods.pods().join(".new-x/logs")).unwrap();
    fs::create_dir(pods.pods().join("keep")).unwrap();
    assert_eq!(pods.sweep().unwrap(), 1);
    assert_eq!(pods.sweep().unwrap(), 0);
    assert!(pods.pods().join("keep").exists());
    assert_eq!(pods.list().unwrap().len(), 1);
}

#[test]
fn a_damaged_state_says_how_to_be_rid_of_it() {
    let root = tempfile::tempdir().unwrap();
    let pods = PodsRoot::new(root.path());
    let pod = pods.prepare(manifest()).unwrap();
    fs::write(pod.dir().path().join("state.json"), "{").unwrap();
    let message = pod.dir().state().unwrap_err().to_string();
    assert!(message.contains("state.json") && message.contains("podvm rm"), "{message}");
}

#[test]
fn preparations_and_sweeps_at_once_lose_nothing() {
    let root = tempfile::tempdir().unwrap();
    let pods = PodsRoot::new(root.path());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..20).for_each(|_| drop(pods.prepare(manifest()).unwrap())));
            scope.spawn(|| (0..100).for_each(|_| assert!(pods.sweep().unwrap() <= 4)));
        }
    });
    assert_eq!(pods.list().unwrap().len(), 80);
    assert_eq!(pods.sweep().unwrap(), 0);
}

#[test]
fn who_only_looks_keeps_nobody_from_a_pod() {
    let root = tempfile::tempdir().unwrap();
    let pods = PodsRoot::new(root.path());
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                pods.list().unwrap().iter().for_each(|dir| drop(dir.is_alive()));
            }
        });
        for _ in 0..20 {
            let dir = pods.prepare(manifest()).unwrap().leave(Stage1Kind::Ns).unwrap();
            drop(dir.claim().unwrap());
            dir.remove().unwrap();
        }
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn a_prepared_pod_is_claimed_by_one_and_once() {
    let root = tempfile::tempdir().unwrap();
    let pods = PodsRoot::new(root.path());
    let dir = pods.prepare(manifest()).unwrap().leave(Stage1Kind::Ns).unwrap();
    assert_eq!(dir.state().unwrap().0, PodState::Prepared);
    let (pod, stage1) = dir.claim().unwrap();
    assert_eq!(stage1, Stage1Kind::Ns);
    assert!(matches!(dir.claim(), Err(DirectoryError::Alive(_))));
    drop(pod.start(stage1).unwrap());
    assert!(matches!(dir.claim(), Err(DirectoryError::NotPrepared(_))));
    dir.remove().unwrap();
    assert!(matches!(dir.claim(), Err(DirectoryError::NotFound(_))));
}

#[test]
fn a_pod_whose_start_failed_is_as_it_was_prepared() {
    let root = tempfile::tempdir().unwrap();
    let pods = PodsRoot::new(root.path());
    let dir = pods.prepare(manifest()).unwrap().leave(Stage1Kind::Ns).unwrap();
    let restore = || dir.restore_prepared(Stage1Kind::Ns, |_| Ok::<_, DirectoryError>(()));
    let (pod, stage1) = dir.claim().unwrap();
    let running = pod.start(stage1).unwrap();
    for file in ["writable.img", "supervisor.sock", "cgroup"] {
        fs::write(dir.path().join(file), "left").unwrap();
    }
    fs::create_dir(dir.path().join("writable")).unwrap();
    assert!(matches!(restore(), Err(DirectoryError::Alive(_))));
    drop(running);
    restore().unwrap();
    assert_eq!(dir.state().unwrap().0, PodState::Prepared);
    let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["logs", "manifest.json", "state.json"]);
    drop(dir.claim().unwrap().0.start(stage1).unwrap());
}

#[test]
fn only_a_start_of_this_process_is_taken_back() {
    let root = tempfile::tempdir().unwrap();
    let pods = PodsRoot::new(root.path());
    let dir = pods.prepare(manifest()).unwrap().leave(Stage1Kind::Ns).unwrap();
    let restore = || dir.restore_prepared(Stage1Kind::Ns, |_| Ok::<_, DirectoryError>(()));
    dir.write_json("state.json", &Phase::Starting { pid: 1, stage1: Stage1Kind::Ns }).unwrap();
    restore().unwrap();
    assert_eq!(dir.state().unwrap().0, PodState::Aborted);
    dir.remove().unwrap();
    restore().unwrap();
    assert!(pods.list().unwrap().is_empty());
}

#[test]
fn a_preparation_that_was_cut_short_is_aborted() {
    let root = tempfile::tempdir().unwrap();
    let dir = PodsRoot::new(root.path()).prepare(manifest()).unwrap().dir().clone();
    assert_eq!(dir.state().unwrap().0, PodState::Aborted);
    assert!(matches!(dir.claim(), Err(DirectoryError::NotPrepared(_))));
}

#[test]
fn a_state_that_a_crash_of_the_host_emptied_is_aborted() {
    let root = tempfile::tempdir().unwrap();
    let dir = PodsRoot::new(root.path()).prepare(manifest()).unwrap().leave(Stage1Kind::Ns).unwrap();
    fs::write(dir.path().join("state.json"), "").unwrap();
    assert_eq!(dir.state().unwrap().0, PodState::Aborted);
}

#[test]
fn of_a_link_in_a_pods_place_only_the_link_is_removed() {
    let root = tempfile::tempdir().unwrap();
    let pods = PodsRoot::new(root.path());
    let dir = pods.prepare(manifest()).unwrap().dir().clone();
    let moved = root.path().join("moved");
    fs::rename(dir.path(), &moved).unwrap();
    std::os::unix::fs::symlink(&moved, dir.path()).unwrap();
    assert!(matches!(dir.state(), Err(DirectoryError::NoDirectory { .. })));
    dir.remove().unwrap();
    assert!(moved.join("manifest.json").exists() && fs::symlink_metadata(dir.path()).is_err());
}

#[test]
fn a_mark_as_garbage_replaces_the_one_before() {
    let root = tempfile::tempdir().unwrap();
    let pod = PodsRoot::new(root.path()).prepare(manifest()).unwrap();
    let dir = pod.dir().clone();
    assert!(matches!(dir.mark_garbage(1), Err(DirectoryError::Alive(_))));
    drop(pod);
    assert_eq!(dir.garbage_since(), None);
    for since in [7, 5] {
        dir.mark_garbage(since).unwrap();
        assert_eq!(dir.garbage_since(), Some(since));
    }
}
