//! Tests that boot guests: built on the host, run in the lab one by one, many in one boot. Those that hold for pods behind either
//! kind of walls are run once for each; for namespaces also on the host itself.
//!
//! An emulated lab has one CPU. So when what needs systemd has been run, one thread runs what runs on the host itself, and both then take
//! of the rest, each in a lab of its own, until nothing is left.
//!
//! Every test is a call of its executable, so that each has its own output and time limit and none can take another
//! one down. A test that brings the machine down costs a new boot and nothing else.

use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::ensure;
use podvm_lab::agent::{target_directory, workspace};
use podvm_lab::cache::Cache;
use podvm_lab::{Ended, Flavour, Lab, LabCommand, LabConfig, RunError, Session};

use super::executables::{self, Executable};
use super::libtest;
use super::tally::Tally;
use crate::lab::write_through;
use crate::step::{seconds, step};

/// How to run them.
pub struct Options {
    /// Only tests whose name contains this.
    pub filter: Option<String>,
    /// How long one may take.
    pub test_limit: Duration,
    /// Whether tests run in their long forms.
    pub is_nightly: bool,
    /// The machine's memory.
    pub memory_mib: u32,
    /// Pass on what tests print, as they print it.
    pub show_output: bool,
}

/// The package whose tests are run for both stage1s, and the variable that tells them which.
const BOTH_WALLS: (&str, &str) = ("podvm-e2e/e2e", "PODVM_E2E_STAGE1");
/// The variable that asks for the long forms of tests.
const NIGHTLY: &str = "PODVM_E2E_NIGHTLY";
/// The variable that tells tests that all is slow.
const EMULATED: &str = "PODVM_E2E_EMULATED";
/// The stage1s. Tests that hold for one alone are in a module of its name.
const STAGE1S: [&str; 2] = ["kvm", "ns"];

/// What is run behind namespaces in an emulated lab, too, when it has been run on the host itself: what needs all controllers of
/// cgroup2, which the host may lack. The nightly form runs all.
const NEED_CGROUPS: [&str; 4] = ["limits::", "ns::", "observe::", "settings::"];
/// What is left to the namespaces on the host itself, and to the nightly form: it is about pod directories, not about walls.
const LEFT_TO_HOST: [&str; 2] = ["crash::directories::", "crash::together::"];

/// What needs a host that systemd runs: in an emulated lab, its full flavour.
const NEED_SYSTEMD: &str = "systemd::";

/// One test.
struct Test<'a> {
    executable: &'a Executable,
    name: String,
    /// The stage1 it is run for, if it is run for more than one.
    stage1: Option<&'static str>,
}

impl Test<'_> {
    /// Whether an emulated lab should run it when the host itself has run all it can.
    fn is_worth_emulating(&self) -> bool {
        let is_one_of = |prefixes: &[&str]| prefixes.iter().any(|prefix| self.name.starts_with(prefix));
        match self.stage1 {
            Some("ns") => is_one_of(&NEED_CGROUPS),
            Some(_) => !is_one_of(&LEFT_TO_HOST),
            None => true,
        }
    }

    /// Whether it boots guests in the lab.
    fn has_emulated_guests(&self) -> bool {
        self.stage1 != Some("ns")
    }

    fn needs_systemd(&self) -> bool {
        self.name.starts_with(NEED_SYSTEMD)
    }

    fn label(&self) -> String {
        let stage1 = self.stage1.map(|stage1| format!(" [{stage1}]")).unwrap_or_default();
        format!("{}{stage1}: {}", self.executable.name, self.name)
    }
}

/// A name, once for each stage1 it is for.
fn tests<'a>(executable: &'a Executable, name: &str) -> Vec<Test<'a>> {
    let test = |stage1| Test { executable, name: name.into(), stage1 };
    if executable.name != BOTH_WALLS.0 {
        return vec![test(None)];
    }
    let alone = STAGE1S.into_iter().find(|stage1| name.split("::").next() == Some(*stage1));
    STAGE1S
        .into_iter()
        .filter(|stage1| alone.is_none_or(|alone| alone == *stage1))
        .map(|stage1| test(Some(stage1)))
        .collect()
}

/// How one test ended.
enum Outcome {
    Passed,
    Skipped(String),
    Failed(String),
}

/// Builds and runs all of them.
pub fn run(options: &Options, tally: &mut Tally) {
    let built = step("build the lab's tests", executables::build_for_lab);
    let executables = match built {
        Ok(executables) => executables,
        Err(error) => return tally.fail("build the lab's tests", &format!("{error:#}")),
    };
    let mut all = Vec::new();
    for executable in &executables {
        match list(executable, options.filter.as_deref(), tally) {
            Ok(names) => all.extend(names.iter().flat_map(|name| tests(executable, name))),
            Err(error) => tally.fail(&executable.name, &format!("its tests cannot be listed: {error}")),
        }
    }
    if all.is_empty() {
        return;
    }
    let config = LabConfig { memory_mib: options.memory_mib, ..LabConfig::default() };
    let lab = Lab::select(config.clone());
    let shared = Mutex::new(std::mem::take(tally));
    if matches!(lab, Lab::Direct) {
        run_all(&lab, all.iter(), options, &shared);
    } else {
        let full = Lab::select(LabConfig { flavour: Flavour::Full, ..config });
        let (with_systemd, mut rest): (Vec<&Test>, Vec<&Test>) = all.iter().partition(|test| test.needs_systemd());
        let mut behind_namespaces: Vec<&Test> = rest.iter().copied().filter(|test| test.stage1 == Some("ns")).collect();
        if nix::unistd::geteuid().is_root() {
            rest.retain(|test| options.is_nightly || options.filter.is_some() || test.is_worth_emulating());
        } else {
            behind_namespaces.clear();
            lock(&shared).skip("pods behind namespaces on this host itself", "not root; they were run in the lab");
        }
        let rest = Mutex::new(rest.into_iter());
        let what_is_left = || std::iter::from_fn(|| lock(&rest).next());
        run_all(&full, with_systemd.iter().copied(), options, &shared);
        std::thread::scope(|scope| {
            scope.spawn(|| run_all(&lab, what_is_left(), options, &shared));
            run_all(&Lab::Direct, behind_namespaces.iter().copied(), options, &shared);
            run_all(&lab, what_is_left(), options, &shared);
        });
    }
    *tally = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
}

/// What a thread that panicked has left is as good as it was.
fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run_all<'a>(lab: &Lab, tests: impl Iterator<Item = &'a Test<'a>>, options: &Options, tally: &Mutex<Tally>) {
    let mut session = None;
    let is_emulated = matches!(lab, Lab::Emulated(_));
    for test in tests {
        let start = Instant::now();
        let place = if matches!(lab, Lab::Direct) { "on this host: " } else { "" };
        let label = format!("{place}{}", test.label());
        if session.is_none() {
            match boot(lab) {
                Ok(booted) => session = Some(booted),
                Err(error) => {
                    println!("{label} ... FAILED\n{error:#}");
                    lock(tally).fail(&label, &format!("{error:#}"));
                    continue;
                }
            }
        }
        let Some(running) = &mut session else { continue };
        let (mut outcome, alive) = run_one(running, test, options, is_emulated);
        if is_emulated && (!alive || test.has_emulated_guests() && matches!(outcome, Outcome::Failed(_))) {
            let why = if alive { "FAILED" } else { "the lab's machine died" };
            println!("{label} ... {why}; once more, in a lab that was just booted");
            drop(session.take());
            session = boot(lab).ok();
            // The emulator is known to hang, and its guests to lose their clock's first interrupt (tests/lab/README.md). What fails by
            // itself does so again, and the count tells of what did not.
            if let Some(running) = &mut session {
                let (second, alive) = run_one(running, test, options, is_emulated);
                if let (Outcome::Failed(reason), Outcome::Passed) = (&outcome, &second) {
                    lock(tally).note_second_try(&label, reason);
                }
                outcome = second;
                session = session.filter(|_| alive);
            }
        }
        let time = seconds(start.elapsed());
        match outcome {
            Outcome::Passed => {
                println!("{label} ... ok ({time})");
                lock(tally).pass();
            }
            Outcome::Skipped(reason) => {
                println!("{label} ... skipped: {reason}");
                lock(tally).skip(&label, &reason);
            }
            Outcome::Failed(reason) => {
                println!("{label} ... FAILED ({time}): {reason}");
                lock(tally).fail(&label, &reason);
            }
        }
    }
}

fn boot(lab: &Lab) -> anyhow::Result<Session> {
    match lab {
        Lab::Direct => step("run tests on this host itself", || Ok(lab.session()?)),
        Lab::Emulated(LabConfig { flavour: Flavour::Full, .. }) => step("boot the lab with systemd", || {
            let mut session = lab.session()?;
            show_at_their_own_places(&mut session)?;
            Ok(session)
        }),
        Lab::Emulated(_) => step("boot the lab", || Ok(lab.session()?)),
    }
}

/// Has the full lab, where the host's tree is elsewhere, show what tests need of it at the place where they expect it.
fn show_at_their_own_places(session: &mut Session) -> anyhow::Result<()> {
    let cache = Cache::open()?;
    for path in [workspace(), target_directory().as_path(), cache.root()] {
        let script = format!("mkdir -p '{0}' && mount --bind '/host{0}' '{0}'", path.display());
        let (ended, _, said) = session.capture(LabCommand::new(["sh", "-c", &script]))?;
        ensure!(
            ended == Ended::Code(0),
            "{} is not seen in the lab: {}",
            path.display(),
            String::from_utf8_lossy(&said)
        );
    }
    Ok(())
}

/// Runs one test; tells also whether the session can go on.
fn run_one(session: &mut Session, test: &Test<'_>, options: &Options, is_emulated: bool) -> (Outcome, bool) {
    let path = test.executable.path.display().to_string();
    let command = LabCommand::new([path.as_str(), "--exact", &test.name, "--nocapture", "--test-threads=1"])
        .directory(&test.executable.directory)
        .env("CARGO_MANIFEST_DIR", test.executable.directory.display().to_string())
        .time_limit(options.test_limit);
    let command = match test.stage1 {
        Some(stage1) => command.env(BOTH_WALLS.1, stage1),
        None => command,
    };
    let command = if is_emulated { command.env(EMULATED, "1") } else { command };
    let command = if options.is_nightly { command.env(NIGHTLY, "1") } else { command };
    let mut all = Vec::new();
    let ended = session.run(command, &mut |stream, bytes| {
        all.extend_from_slice(bytes);
        if options.show_output {
            write_through(stream, bytes);
        }
    });
    let text = String::from_utf8_lossy(&all);
    let outcome = match &ended {
        Ok(Ended::Code(0)) => match libtest::skip_reason(&text) {
            Some(reason) => Outcome::Skipped(reason.to_owned()),
            None if text.contains("test result: ok. 1 passed") => Outcome::Passed,
            None => Outcome::Failed("its executable did not run it".into()),
        },
        Ok(ended) => {
            Outcome::Failed(libtest::failure_reason(&text).map_or_else(|| format!("{ended:?}"), str::to_owned))
        }
        Err(error) => Outcome::Failed(error.to_string()),
    };
    if matches!(outcome, Outcome::Failed(_)) && !options.show_output {
        println!("---- what {} printed ----\n{}\n----", test.name, text.trim_end());
        if let Err(error) = &ended {
            println!("{error}\n----");
        }
    }
    (outcome, !matches!(ended, Err(RunError::MachineDied { .. })))
}

/// The names of an executable's tests that are to run. What is ignored goes into the tally, with its reason.
fn list(executable: &Executable, filter: Option<&str>, tally: &mut Tally) -> std::io::Result<Vec<String>> {
    let ask = |arguments: &[&str]| -> std::io::Result<String> {
        let output = Command::new(&executable.path).args(arguments).current_dir(&executable.directory).output()?;
        if !output.status.success() {
            return Err(std::io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let wanted = |name: &&str| filter.is_none_or(|filter| name.contains(filter));
    let all = ask(&["--list", "--format", "terse"])?;
    let ignored_list = ask(&["--list", "--format", "terse", "--ignored"])?;
    let ignored: Vec<&str> = libtest::listed(&ignored_list).filter(wanted).collect();
    if !ignored.is_empty() {
        // Asked to run just these, the harness runs none of them and tells why.
        let reasons = ask(&[&["--exact"], ignored.as_slice()].concat())?;
        libtest::enter(&reasons, &format!("{}: ", executable.name), tally);
    }
    let names = libtest::listed(&all).filter(wanted).filter(|name| !ignored.contains(name));
    Ok(names.map(str::to_owned).collect())
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn a_test_is_run_for_each_stage1_it_is_for() {
        let executable =
            |name: &str| Executable { name: name.into(), path: "/t".into(), directory: "/".into(), in_lab: true };
        let (both, other) = (executable(BOTH_WALLS.0), executable("podvm-vmm/lab_machine"));
        let labels = |executable, name| tests(executable, name).iter().map(Test::label).collect::<Vec<_>>();
        assert_eq!(labels(&both, "run::x"), ["podvm-e2e/e2e [kvm]: run::x", "podvm-e2e/e2e [ns]: run::x"]);
        assert_eq!(labels(&both, "ns::walls::x"), ["podvm-e2e/e2e [ns]: ns::walls::x"]);
        assert_eq!(labels(&other, "x"), ["podvm-vmm/lab_machine: x"]);
        let emulated =
            |name| tests(&both, name).iter().map(|test| (test.stage1, test.is_worth_emulating())).collect::<Vec<_>>();
        assert_eq!(emulated("run::x"), [(Some("kvm"), true), (Some("ns"), false)]);
        assert_eq!(emulated("limits::x"), [(Some("kvm"), true), (Some("ns"), true)]);
        assert_eq!(emulated("crash::together::x"), [(Some("kvm"), false), (Some("ns"), false)]);
    }
}
