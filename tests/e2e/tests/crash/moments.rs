//! Any moment at all: processes are killed after a random while.

use std::time::{Duration, SystemTime};

use podvm_e2e::{is_emulated, is_nightly, on_private_host, stage1};

use super::{A_WHILE, Particulars, Scene, kill_process, supervisor};

/// A small generator of numbers, for which any seed will do: the seed is told when a test fails.
struct Chance(u64);

impl Chance {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seed = now.as_nanos() as u64 | 1;
        println!("seed {seed}");
        Self(seed)
    }

    /// A number below `end` (xorshift64).
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

#[test]
fn nothing_leaks_whenever_a_process_dies() {
    if !on_private_host("crash::moments::nothing_leaks_whenever_a_process_dies", 20 * A_WHILE) {
        return;
    }
    let longest = match (stage1(), is_emulated()) {
        ("ns", false) => 300,
        ("ns", true) => 5_000,
        (_, false) => 1_000,
        (_, true) => 12_000,
    };
    let count = match (is_emulated(), is_nightly()) {
        (false, true) => 200,
        (false, false) => 15,
        (true, true) => 40,
        (true, false) => 2,
    };
    let mut scene = Scene::new();
    let mut chance = Chance::new();
    for round in 0..count {
        let private_users = stage1() == "ns" && chance.below(2) == 0;
        let pod = scene.run_on(Particulars { private_users, ..Particulars::default() }).spawn();
        let wait = Duration::from_millis(chance.below(longest));
        std::thread::sleep(wait);
        let stop = (chance.below(2) == 0).then(|| {
            let uuid = std::fs::read_to_string(scene.uuid_file()).unwrap_or_default();
            let stop = scene.host.podvm(["stop", &uuid]).spawn();
            std::thread::sleep(Duration::from_millis(chance.below(longest / 4)));
            stop
        });
        let victim = chance.below(3);
        let supervisor = supervisor(&pod);
        if victim != 0 {
            supervisor.into_iter().for_each(kill_process);
        }
        if victim != 1 || supervisor.is_none() {
            kill_process(pod.pid());
        }
        pod.wait(A_WHILE);
        stop.into_iter().for_each(|stop| drop(stop.wait(A_WHILE)));
        let when = format!("round {round}, after {wait:?}, victim {victim}, stopped: private users: {private_users}");
        scene.expect_host_again(&when);
    }
}
