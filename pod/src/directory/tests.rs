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
    assert_eq!(phase, Phase::Exited { stage1: Some(Stage1Kind::Ns), finished: 9, report });
    dir.remove().unwrap();
    dir.remove().unwrap();
    assert!(pods.list().unwrap().is_empty());
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
