//! Each recorded step of a pod's life: the process that comes to it dies there, or another one does meanwhile.

use std::fs;
use std::time::Instant;

use podvm_e2e::{Finished, Running, Snapshot, is_emulated, is_nightly, on_private_host, stage1, wait_for};
use podvm_pod::fault::{During, FaultPoint, HANG, HANGING, Party, VARIABLE};

use super::{A_WHILE, Particulars, Scene, children, kill_process, supervisor};

/// Fewest kills of a run for namespaces, and of the long form.
const FEWEST: usize = 40;
const FEWEST_NIGHTLY: usize = 200;
/// Under emulation a pod takes seconds: there only every so many points are killed at, but for the long form.
const EMULATED_STEP: usize = 10;

/// Who dies at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    /// The process that comes to it.
    Self_,
    /// The other end of the pod's primary connection; the process that came to the point then, too, should it still be there.
    Other,
    /// All of the pod's processes at once.
    All,
}

#[test]
fn nothing_leaks_wherever_a_process_dies() {
    if !on_private_host("crash::points::nothing_leaks_wherever_a_process_dies", 20 * A_WHILE) {
        return;
    }
    let mut scene = Scene::new();
    let start = Instant::now();
    let mut kills = 0;
    for (index, point) in FaultPoint::ALL.iter().enumerate() {
        if point.only_behind().is_some_and(|walls| walls.to_string() != stage1()) {
            continue;
        }
        if is_selection() && index % EMULATED_STEP != 0 {
            continue;
        }
        for victim in victims(*point) {
            for private_users in users(*point, index) {
                die_at(&mut scene, *point, victim, private_users);
                kills += 1;
            }
        }
    }
    println!("{kills} kills in {:.1} s", start.elapsed().as_secs_f64());
    let fewest = if is_nightly() { FEWEST_NIGHTLY } else { FEWEST };
    assert!(is_selection() || stage1() == "kvm" || kills >= fewest, "only {kills} kills");
}

fn is_selection() -> bool {
    is_emulated() && !is_nightly()
}

/// Behind namespaces host and supervisor are processes of their own, and can be killed one at the other's step.
fn victims(point: FaultPoint) -> Vec<Victim> {
    let both_are_there = matches!(point.during(), During::Start | During::Stop) && point.party() != Party::App;
    if stage1() == "ns" && both_are_there && !is_selection() {
        vec![Victim::Self_, Victim::Other, Victim::All]
    } else {
        vec![Victim::Self_]
    }
}

/// Pods with and without users of their own; in the short form by turns, where both come to the point.
fn users(point: FaultPoint, index: usize) -> Vec<bool> {
    match point {
        _ if stage1() == "kvm" => vec![false],
        FaultPoint::UsersReleased => vec![true],
        _ if is_nightly() => vec![false, true],
        _ => vec![index.is_multiple_of(2)],
    }
}

fn die_at(scene: &mut Scene, point: FaultPoint, victim: Victim, private_users: bool) {
    let when = format!("{point:?}, {victim:?} died, private users: {private_users}");
    let particulars = Particulars {
        private_users,
        new_disk: matches!(point, FaultPoint::TemplateMaking | FaultPoint::TemplateMade),
        remove: point == FaultPoint::ReaperForked || point.during() == During::Reap,
    };
    let fault = match victim {
        Victim::Self_ => point.name().to_owned(),
        Victim::Other | Victim::All => format!("{}{HANG}", point.name()),
    };
    match point.during() {
        During::Start => {
            let pod = scene.run_on(particulars).env(VARIABLE, &fault).spawn();
            expect_death(scene, pod, &fault, victim, &when);
        }
        During::Stop => {
            let mut pod = scene.run_on(particulars).env(VARIABLE, &fault).spawn();
            pod.wait_for_stdout("up", A_WHILE);
            let uuid = wait_for("the UUID", A_WHILE, || fs::read_to_string(scene.uuid_file()).ok());
            let stop = scene.host.podvm(["stop", &uuid]).spawn();
            expect_death(scene, pod, &fault, victim, &when);
            // It finds the pod gone, or not as it should be; both are well.
            stop.wait(A_WHILE);
        }
        During::Reap => {
            scene.run(particulars, "true").env(VARIABLE, &fault).run().expect_code(0);
            wait_for("the reaper has died", A_WHILE, || (children(1).len() == 1).then_some(()));
            assert_eq!(scene.host.pods().len(), 1, "{when}: the reaper did not die");
        }
        During::Removal => {
            let uuid = scene.leave_killed_pod(particulars);
            let removal = scene.host.podvm(["rm", &uuid]).env(VARIABLE, &fault).run();
            assert!(said(&removal.stderr, &fault), "{when}: it was not reached\n{removal}");
        }
        During::Collection => {
            scene.leave_killed_pod(particulars);
            let words = ["gc", "--grace-period", "0s"];
            let collection = scene.host.podvm(words).env(VARIABLE, &fault).run();
            assert!(said(&collection.stderr, &fault), "{when}: it was not reached\n{collection}");
        }
    }
    scene.expect_host_again(&when);
}

fn said(stderr: &str, fault: &str) -> bool {
    stderr.contains(&format!("fault point {fault}"))
}

/// Waits for the pod's end, which comes by the fault, or is brought about at it.
fn expect_death(scene: &Scene, pod: Running, fault: &str, victim: Victim, when: &str) {
    if victim != Victim::Self_ {
        let hanging =
            wait_for("a process hangs at its point", A_WHILE, || hanging().filter(|_| reached(scene, &pod, fault)));
        let (host, supervisor) = (pod.pid(), supervisor(&pod));
        let is_host = hanging == host;
        match (victim, is_host) {
            (Victim::Other, true) => supervisor.into_iter().for_each(kill_process),
            (Victim::Other, false) => kill_process(host),
            _ => [Some(host), supervisor].into_iter().flatten().for_each(kill_process),
        }
        if is_host {
            // It would hang on.
            kill_process(host);
        }
    } else {
        wait_for("the point is reached", A_WHILE, || reached(scene, &pod, fault).then_some(()));
    }
    let finished: Finished = pod.wait(A_WHILE);
    let died_late = fault.starts_with("end-reported");
    assert!(died_late || !finished.status.success(), "{when}: the pod ended well\n{finished}");
}

/// A process with a thread that stays at its point.
fn hanging() -> Option<i32> {
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut pids = processes.filter_map(|process| process.file_name().to_str()?.parse::<i32>().ok());
    pids.find(|pid| {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let mut names = threads.filter_map(|thread| fs::read_to_string(thread.path().join("comm")).ok());
        names.any(|name| name.trim() == HANGING)
    })
}

/// Whether a process has said that it is at the point: the host on its own standard error, the supervisor in the pod's notes.
fn reached(scene: &Scene, pod: &Running, fault: &str) -> bool {
    let pods = fs::read_dir(scene.host.root().join("pods")).into_iter().flatten().flatten();
    let notes = pods.filter_map(|pod| fs::read(pod.path().join("console.log")).ok());
    said(&pod.stderr(), fault) || notes.into_iter().any(|notes| said(&String::from_utf8_lossy(&notes), fault))
}

#[test]
fn a_host_that_is_changed_is_noticed() {
    if !on_private_host("crash::points::a_host_that_is_changed_is_noticed", A_WHILE) {
        return;
    }
    let host = podvm_e2e::Host::empty();
    let before = Snapshot::take(&host);
    assert_eq!(Snapshot::take(&host), before);
    let root = host.root().display();
    let cgroup = "for c in /sys/fs/cgroup /sys/fs/cgroup/unified; do test ! -e $c/cgroup.procs ||";
    let changes = [
        ("ip link add pv-x type veth peer name pv-y".to_owned(), "ip link delete pv-x".to_owned()),
        ("ip route add unreachable 192.0.2.0/24".into(), "ip route delete 192.0.2.0/24".into()),
        ("nft add table ip x".into(), "nft delete table ip x".into()),
        (format!("mkdir -p {root}/pods/x"), format!("rm -r {root}/pods")),
        (format!("mount -t tmpfs none {root}"), format!("umount {root}")),
        (format!("{cgroup} mkdir $c/x; done"), format!("{cgroup} rmdir $c/x; done")),
        (
            format!("truncate -s 1M {root}/x && losetup --find --nooverlap {root}/x && rm {root}/x"),
            format!("losetup -n -O NAME,BACK-FILE | grep {root}/x | while read n f; do losetup -d $n; done"),
        ),
        ("unshare --net sleep 600 >&- 2>&- & sleep 0.2".into(), "pkill -x sleep".into()),
    ];
    for (change, undo) in changes {
        let shell = |script: &str| podvm_e2e::Invocation::new("/bin/sh", ["-c", script]).run().expect_code(0);
        shell(&change);
        assert_ne!(Snapshot::take(&host), before, "{change}");
        shell(&undo);
        before.expect_again(&host, A_WHILE, &undo);
    }
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    assert_ne!(Snapshot::take(&host), before);
    drop(socket);
}
