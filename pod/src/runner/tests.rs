//! The runner against a scripted supervisor: a pair of sockets, with no walls between.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::*;
use crate::directory::{Phase, PodDir, PodState, PodsRoot};
use crate::exit::NO_REPORT;
use crate::manifest::{
    App, AppImage, AppName, ByteSize, Isolators, MANIFEST_VERSION, NetworkMode, PodManifest, PodResources,
    RestartPolicy, UserSpec,
};
use crate::protocol::{
    Command, Envelope, Event, NetworkSpec, PROTOCOL_VERSION, ProcessId, Request, Response, StreamKind, WritableSource,
    read_frame, write_frame,
};
use crate::stage1::Stage1Kind;
use crate::status::{AppState, AppStatus, ExitStatus};

fn name(text: &str) -> AppName {
    text.parse().unwrap()
}

fn app(app: &str) -> App {
    App {
        name: name(app),
        image: AppImage { name: app.into(), id: "sha256:0".into(), layers: Vec::new() },
        exec: vec!["/app".into()],
        user: UserSpec::default(),
        supplementary_gids: Vec::new(),
        working_directory: "/".into(),
        environment: Vec::new(),
        mounts: Vec::new(),
        isolators: Isolators::default(),
        read_only_root: false,
        terminal: false,
        stdin: false,
        health: None,
        restart: Default::default(),
        pre_start: Vec::new(),
        post_stop: Vec::new(),
        stop_signal: 15,
    }
}

fn manifest() -> PodManifest {
    PodManifest {
        version: MANIFEST_VERSION,
        uuid: Uuid::new_v4(),
        created: 1,
        hostname: "pod".into(),
        apps: vec![app("web"), App { restart: RestartPolicy::Always, ..app("db") }],
        volumes: Vec::new(),
        ports: Vec::new(),
        network: NetworkMode::None,
        private_users: false,
        dns: Default::default(),
        hosts: Vec::new(),
        ipc: Default::default(),
        resources: PodResources { memory: ByteSize::mib(64), cpus: 1, disk: Some(ByteSize::mib(64)) },
    }
}

fn spec(manifest: &PodManifest) -> PodSpec {
    PodSpec {
        uuid: manifest.uuid,
        hostname: manifest.hostname.clone(),
        apps: Vec::new(),
        volumes: Vec::new(),
        writable: WritableSource::Tmpfs(ByteSize::mib(1)),
        shm: None,
        network: NetworkSpec::default(),
    }
}

fn exited(app: &str, code: u8) -> AppStatus {
    AppStatus::new(name(app), AppState::Exited { status: ExitStatus::Exited(code), oom_killed: false })
}

fn report(code: u8) -> PodReport {
    PodReport { code, failed_app: None, error: None, apps: vec![exited("web", code), exited("db", 0)] }
}

fn running(app: &str) -> Event {
    Event::App(AppStatus::new(name(app), AppState::Running { pid: 7 }))
}

/// What a scripted supervisor has in its hands.
struct Supervisor {
    primary: UnixStream,
    signals: Sender<i32>,
    dir: PodDir,
}

impl Supervisor {
    fn say(&mut self, event: Event) {
        write_frame(&mut self.primary, &event).unwrap();
    }

    fn hear(&mut self) -> Command {
        read_frame(&mut self.primary).unwrap()
    }

    fn start_apps(&mut self) {
        self.say(Event::Hello { protocol: PROTOCOL_VERSION });
        assert!(matches!(self.hear(), Command::Run(_)));
        for (number, app) in ["web", "db"].into_iter().enumerate() {
            self.say(Event::Prepared { app: name(app), process: ProcessId(number as u32) });
        }
        self.say(running("web"));
        self.say(Event::Ready);
    }

    fn finish(&mut self, code: u8) {
        self.say(Event::Finished(report(code)));
        assert_eq!(self.hear(), Command::Farewell);
    }
}

/// Every stream of the scripted supervisor holds one line that names it.
fn open_stream() -> std::io::Result<UnixStream> {
    let (here, mut there) = UnixStream::pair()?;
    thread::spawn(move || {
        let envelope: Envelope = read_frame(&mut there).unwrap();
        let Request::Stream { process, stream } = envelope.request else { panic!("{envelope:?}") };
        write_frame(&mut there, &Response::Stream).unwrap();
        let stream = if stream == StreamKind::Stdout { "out" } else { "err" };
        there.write_all(format!("{stream} of {}\n", process.0).as_bytes()).unwrap();
    });
    Ok(here)
}

struct Ended {
    _root: tempfile::TempDir,
    report: PodReport,
    dir: PodDir,
    took: Duration,
}

/// Runs a pod against a supervisor that does as the script says and then closes its connection.
fn run_against(walls: Option<Walls>, script: impl FnOnce(&mut Supervisor) + Send + 'static) -> Ended {
    let root = tempfile::tempdir().unwrap();
    let prepared = PodsRoot::new(root.path()).prepare(manifest()).unwrap();
    let pod = prepared.start(Stage1Kind::Ns).unwrap();
    let (primary, there) = UnixStream::pair().unwrap();
    let (signals, sent) = channel();
    let dir = pod.dir().clone();
    let mut supervisor = Supervisor { primary: there, signals, dir: dir.clone() };
    let begun = Instant::now();
    let scripted = thread::spawn(move || script(&mut supervisor));
    let runner = Runner {
        pod: &pod,
        primary,
        supervisor: SupervisorClient::new(open_stream),
        io: PodIo::default(),
        signals: Signals::from_source(move || sent.recv().ok()),
        addresses: Vec::new(),
        walls,
        relayed: Vec::new(),
    };
    let report = runner.run(spec(pod.manifest()));
    scripted.join().unwrap();
    Ended { _root: root, report, dir, took: begun.elapsed() }
}

#[test]
fn a_pod_runs_and_its_end_and_logs_are_kept() {
    let ended = run_against(None, |supervisor| {
        supervisor.start_apps();
        let latest = Instant::now() + Duration::from_secs(10);
        while supervisor.dir.state().unwrap().0 != PodState::Running {
            assert!(Instant::now() < latest, "the pod was not recorded as running");
            thread::sleep(Duration::from_millis(5));
        }
        supervisor.finish(3);
    });
    assert_eq!(ended.report, report(3));
    assert!(matches!(ended.dir.state().unwrap().1, Phase::Exited { report, .. } if report.code == 3));
    let log = std::fs::read_to_string(ended.dir.logs().join("db.log")).unwrap();
    assert!(log.contains(" stdout F out of 1\n") && log.contains(" stderr F err of 1\n"), "{log}");
}

#[test]
fn changes_of_an_apps_state_are_recorded_while_the_pod_runs() {
    run_against(None, |supervisor| {
        supervisor.start_apps();
        supervisor.say(Event::App(exited("db", 0)));
        let latest = Instant::now() + Duration::from_secs(10);
        let is_recorded = |phase| matches!(phase, Phase::Running { apps, .. } if apps[1] == exited("db", 0));
        while !is_recorded(supervisor.dir.state().unwrap().1) {
            assert!(Instant::now() < latest, "the app's end was not recorded");
            thread::sleep(Duration::from_millis(5));
        }
        supervisor.finish(0);
    });
}

#[test]
fn an_app_that_is_started_again_is_logged_again_and_no_other_is() {
    let ended = run_against(None, |supervisor| {
        supervisor.start_apps();
        supervisor.say(Event::Prepared { app: name("web"), process: ProcessId(7) });
        supervisor.say(Event::Prepared { app: name("db"), process: ProcessId(8) });
        supervisor.finish(0);
    });
    let log = |app: &str| std::fs::read_to_string(ended.dir.logs().join(format!("{app}.log"))).unwrap();
    assert!(log("db").contains("out of 1\n") && log("db").contains("out of 8\n"), "{}", log("db"));
    assert!(!log("web").contains("out of 7"), "{}", log("web"));
}

#[test]
fn nonsense_from_the_supervisor_is_passed_over() {
    let ended = run_against(None, |supervisor| {
        supervisor.say(Event::Ready);
        supervisor.start_apps();
        supervisor.say(Event::Hello { protocol: PROTOCOL_VERSION });
        supervisor.say(Event::Ready);
        for number in 0..500 {
            supervisor.say(Event::Prepared { app: name(&format!("app{number}")), process: ProcessId(number) });
            supervisor.say(Event::Prepared { app: name("web"), process: ProcessId(number) });
            supervisor.say(exited(&format!("app{number}"), 1).into());
        }
        let mut report = report(1);
        report.apps.extend((0..100).map(|number| exited(&format!("x{number}"), 9)));
        report.failed_app = Some(name("ghost"));
        report.error = Some("\u{1b}[2Jgone".into());
        supervisor.say(Event::Finished(report));
        assert_eq!(supervisor.hear(), Command::Farewell);
    });
    assert_eq!(ended.report.apps, [exited("web", 1), exited("db", 0)]);
    assert_eq!((ended.report.failed_app, ended.report.error.as_deref()), (None, Some(" [2Jgone")));
}

impl From<AppStatus> for Event {
    fn from(status: AppStatus) -> Self {
        Self::App(status)
    }
}

#[test]
fn bytes_that_are_no_messages_end_the_pod() {
    let ended = run_against(None, |supervisor| {
        supervisor.start_apps();
        supervisor.primary.write_all(&[0xff; 64]).unwrap();
        let _: Result<Command, _> = read_frame(&mut supervisor.primary);
    });
    assert_eq!(ended.report.code, NO_REPORT);
    assert!(ended.report.error.unwrap().contains("over the limit"));
}

#[test]
fn a_supervisor_of_another_version_is_refused_by_name() {
    let ended = run_against(None, |supervisor| supervisor.say(Event::Hello { protocol: 99 }));
    assert!(ended.report.error.unwrap().contains("version 99"));
}

#[test]
fn a_supervisor_that_leaves_is_no_clean_end() {
    let ended = run_against(None, Supervisor::start_apps);
    assert_eq!(ended.report.code, NO_REPORT);
    assert_eq!(ended.report.apps[0].state, AppState::Running { pid: 7 });
    assert!(ended.took < LONG, "{:?}", ended.took);
}

/// Longer than any of these conversations takes, shorter than the limits they must not run into.
const LONG: Duration = Duration::from_secs(8);

#[test]
fn fallen_walls_tell_what_the_lost_supervisor_cannot() {
    let (fall, fallen) = channel();
    let walls: Walls = Box::new(move || {
        fallen.recv().unwrap();
        PodReport::failure(crate::exit::GUEST_PANIC, "the guest kernel panicked")
    });
    let ended = run_against(Some(walls), move |supervisor| {
        supervisor.start_apps();
        supervisor.primary.shutdown(std::net::Shutdown::Both).unwrap();
        fall.send(()).unwrap();
    });
    assert_eq!(ended.report.code, crate::exit::GUEST_PANIC);
    assert!(ended.took < LONG, "{:?}", ended.took);
}

/// The supervisor's words and the walls' reach the pod's process by different ways, and may overtake each other.
#[test]
fn what_was_under_way_when_the_walls_fell_does_not_hide_how() {
    let (say, said) = channel();
    let walls: Walls = Box::new(move || {
        say.send(()).unwrap();
        PodReport::failure(crate::exit::GUEST_PANIC, "the guest kernel panicked")
    });
    let ended = run_against(Some(walls), move |supervisor| {
        said.recv().unwrap();
        thread::sleep(Duration::from_millis(50));
        supervisor.start_apps();
    });
    assert_eq!(ended.report.code, crate::exit::GUEST_PANIC);
    assert!(ended.took < LONG, "{:?}", ended.took);
}

#[test]
fn a_report_that_is_on_its_way_outlives_the_walls() {
    let walls: Walls = Box::new(|| PodReport::failure(NO_REPORT, "the guest shut down"));
    let ended = run_against(Some(walls), |supervisor| {
        supervisor.start_apps();
        supervisor.finish(5);
    });
    assert_eq!(ended.report, report(5));
}

#[test]
fn walls_that_fall_early_end_the_pod_though_the_supervisor_is_silent() {
    let walls: Walls = Box::new(|| PodReport::failure(crate::exit::KVM_INTERNAL_ERROR, "emulation failure"));
    let ended = run_against(Some(walls), |supervisor| {
        let _: Result<Command, _> = read_frame(&mut supervisor.primary);
    });
    assert_eq!(ended.report.code, crate::exit::KVM_INTERNAL_ERROR);
    assert!(ended.took < LONG, "{:?}", ended.took);
}

#[test]
fn the_first_signal_asks_the_second_kills_the_third_leaves() {
    let ended = run_against(None, |supervisor| {
        supervisor.start_apps();
        let grace = session::STOP_GRACE.as_millis() as u64;
        for grace_ms in [grace, 0] {
            supervisor.signals.send(15).unwrap();
            assert_eq!(supervisor.hear(), Command::Stop { grace_ms });
        }
        supervisor.signals.send(15).unwrap();
        let _: Result<Command, _> = read_frame(&mut supervisor.primary);
    });
    assert_eq!(ended.report.code, 128 + 15);
}

#[test]
fn a_stopped_pod_has_its_apps_exit_code() {
    let ended = run_against(None, |supervisor| {
        supervisor.start_apps();
        supervisor.signals.send(2).unwrap();
        assert!(matches!(supervisor.hear(), Command::Stop { .. }));
        supervisor.finish(0);
    });
    assert_eq!(ended.report, report(0));
}

#[test]
fn a_signal_before_the_supervisor_is_up_ends_the_pod_at_once() {
    let ended = run_against(None, |supervisor| {
        supervisor.signals.send(15).unwrap();
        let _: Result<Command, _> = read_frame(&mut supervisor.primary);
    });
    assert_eq!(ended.report.code, 128 + 15);
    assert!(ended.took < LONG, "{:?}", ended.took);
}

#[test]
fn the_starter_is_told_when_the_apps_run() {
    let (sender, receiver) = ready_pipe().unwrap();
    let root = tempfile::tempdir().unwrap();
    let pod = PodsRoot::new(root.path()).prepare(manifest()).unwrap().start(Stage1Kind::Ns).unwrap();
    let (primary, there) = UnixStream::pair().unwrap();
    let mut supervisor = Supervisor { primary: there, signals: channel().0, dir: pod.dir().clone() };
    let scripted = thread::spawn(move || {
        supervisor.start_apps();
        receiver.wait().unwrap();
        supervisor.finish(0);
    });
    let runner = Runner {
        pod: &pod,
        primary,
        supervisor: SupervisorClient::new(open_stream),
        io: PodIo { ready: Some(sender), ..PodIo::default() },
        signals: Signals::from_source(|| None),
        addresses: Vec::new(),
        walls: None,
        relayed: Vec::new(),
    };
    assert_eq!(runner.run(spec(pod.manifest())), report(0));
    scripted.join().unwrap();
}

#[test]
fn how_all_apps_ended_is_not_lost_with_the_supervisor() {
    let ended = run_against(None, |supervisor| {
        supervisor.start_apps();
        supervisor.say(exited("db", 5).into());
        supervisor.say(exited("web", 3).into());
        supervisor.primary.shutdown(std::net::Shutdown::Both).unwrap();
    });
    assert_eq!((ended.report.code, ended.report.failed_app), (5, Some(name("db"))));
    assert!(ended.report.error.unwrap().contains("the supervisor was lost"));
}
