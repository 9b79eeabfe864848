//! Limits, statistics and the killing of whole apps by cgroup v2 (Linux Documentation/admin-guide/cgroup-v2.rst).
//!
//! Each app has a cgroup of its name right below the pod's. Where there is no cgroup2, or a controller is missing, apps run
//! without, and what could not be applied is said.

use std::cell::LazyCell;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use podvm_pod::manifest::{AppName, CpuLimit, Isolators};
use podvm_pod::protocol::SUPERVISOR_CGROUP;
use podvm_pod::status::AppStats;

use crate::step::{Step, StepError, note};

/// The controllers that limits and statistics are from.
const USED_CONTROLLERS: [&str; 4] = ["cpu", "io", "memory", "pids"];
/// Length of the period that `cpu.max` is given for, in microseconds: the kernel's own default.
const CPU_PERIOD_USEC: u64 = 100_000;
/// How long the freezing of an app is waited for.
const FREEZE_WITHIN: Duration = Duration::from_millis(200);

/// The pod's cgroup.
#[derive(Debug)]
pub struct Cgroups {
    root: PathBuf,
}

/// An app's cgroup.
#[derive(Debug)]
pub struct AppCgroup {
    path: PathBuf,
    directory: OwnedFd,
}

impl Cgroups {
    /// The pod's cgroup at `root`, with all its controllers enabled for the apps' cgroups.
    ///
    /// # Errors
    /// When no cgroup2 is mounted there, or it cannot be changed.
    pub fn open(root: &Path) -> Result<Self, StepError> {
        let kind = statfs(root).step(|| format!("look at {}", root.display()))?.filesystem_type();
        if kind != CGROUP2_SUPER_MAGIC {
            return Err(StepError::because(format!("use {}", root.display()), "it is no cgroup2 filesystem"));
        }
        let cgroups = Self { root: root.into() };
        cgroups.enable_controllers()?;
        Ok(cgroups)
    }

    fn enable_controllers(&self) -> Result<(), StepError> {
        let available = self.root.join("cgroup.controllers");
        let available = fs::read_to_string(&available).step(|| format!("read {}", available.display()))?;
        // Only the hierarchy's own root, which has no type, may hold processes and pass controllers on.
        if self.root.join("cgroup.type").exists() {
            self.leave_root().step(|| format!("go to {}/{SUPERVISOR_CGROUP}", self.root.display()))?;
        }
        let file = self.root.join("cgroup.subtree_control");
        // The others limit nothing here, and each takes the kernel its time.
        for controller in available.split_whitespace().filter(|name| USED_CONTROLLERS.contains(name)) {
            // A controller that cannot be enabled is missed when a limit needs it.
            if let Err(error) = write(&file, format!("+{controller}")) {
                note(format_args!("the controller {controller} stays off in {}: {error}", self.root.display()));
            }
        }
        Ok(())
    }

    /// The pod's cgroup may not hold processes beside its children.
    fn leave_root(&self) -> io::Result<()> {
        let own = self.root.join(SUPERVISOR_CGROUP);
        let this = std::process::id().to_string();
        if read_small(&own.join("cgroup.procs")).is_ok_and(|processes| processes.lines().any(|line| line == this)) {
            return Ok(());
        }
        match fs::create_dir(&own) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        write(&own.join("cgroup.procs"), "0")
    }

    /// Makes an app's cgroup and sets its limits. Returns also what could not be applied, a sentence each.
    ///
    /// # Errors
    /// When the cgroup cannot be made, or a limit is refused although its controller is there.
    pub fn make(&self, app: &AppName, isolators: &Isolators) -> Result<(AppCgroup, Vec<String>), StepError> {
        let path = self.root.join(app.as_str());
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(error).step(|| format!("make {}", path.display()))?;
            }
            _ => {}
        }
        let mut missed = Vec::new();
        for Setting { file, value, needed } in settings(isolators) {
            let file_path = path.join(file);
            match write(&file_path, &value) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if needed {
                        missed.push(format!("app {app}: the limit {file} cannot be applied: no such controller here"));
                    }
                }
                other => other.step(|| format!("set {} to {value}", file_path.display()))?,
            }
        }
        let directory = File::open(&path).step(|| format!("open {}", path.display()))?.into();
        Ok((AppCgroup { path, directory }, missed))
    }
}

/// A value for a file of a cgroup.
struct Setting {
    file: &'static str,
    value: String,
    /// Whether a limit the user asked for is missing when the file is.
    needed: bool,
}

fn settings(isolators: &Isolators) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut set = |file, value, needed| settings.push(Setting { file, value, needed });
    if let Some(memory) = isolators.memory {
        set("memory.max", memory.bytes().to_string(), true);
        // A limit on memory is a limit on memory, not the start of swapping.
        set("memory.swap.max", "0".into(), false);
    }
    // An app that lost one process for want of memory is broken: it ends as a whole.
    set("memory.oom.group", "1".into(), false);
    if let Some(cpu) = isolators.cpu {
        set("cpu.max", cpu_max(cpu), true);
    }
    if let Some(shares) = isolators.cpu_shares {
        set("cpu.weight", cpu_weight(shares).to_string(), true);
    }
    if let Some(pids) = isolators.pids {
        set("pids.max", pids.to_string(), true);
    }
    settings
}

/// `cpu.max` for that much CPU time: the quota of each period. The kernel takes no quota under 1 ms.
fn cpu_max(limit: CpuLimit) -> String {
    let quota = (u64::from(limit.0) * CPU_PERIOD_USEC / 1000).max(1000);
    format!("{quota} {CPU_PERIOD_USEC}")
}

/// `cpu.weight` (1 to 10000) for shares (2 to 262144), by the OCI runtimes' conversion.
fn cpu_weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn write(path: &Path, text: impl AsRef<[u8]>) -> io::Result<()> {
    File::options().write(true).open(path)?.write_all(text.as_ref())
}

/// A number from a file that holds one; `max` and anything else is none.
fn number(path: &Path) -> Option<u64> {
    read_small(path).ok()?.trim().parse().ok()
}

/// The value of `key` in a file of `key value` lines.
fn keyed(path: &Path, key: &str) -> Option<u64> {
    let text = read_small(path).ok()?;
    let mut values = text.lines().filter_map(|line| line.split_once(' '));
    values.find(|(other, _)| *other == key).and_then(|(_, value)| value.trim().parse().ok())
}

fn read_small(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(64 << 10).read_to_string(&mut text)?;
    Ok(text)
}

impl AppCgroup {
    /// What the app uses; where a controller is missing, as it is counted in another way.
    pub fn stats(&self, count: impl FnOnce() -> AppStats) -> AppStats {
        let counted = LazyCell::new(count);
        AppStats {
            memory_bytes: number(&self.path.join("memory.current")).unwrap_or_else(|| counted.memory_bytes),
            memory_limit_bytes: number(&self.path.join("memory.max")),
            cpu_usec: keyed(&self.path.join("cpu.stat"), "usage_usec").unwrap_or_else(|| counted.cpu_usec),
            pids: number(&self.path.join("pids.current")).unwrap_or_else(|| counted.pids),
            oom_kills: self.oom_kills(),
        }
    }

    /// How many of its processes were killed for want of memory.
    pub fn oom_kills(&self) -> u64 {
        keyed(&self.path.join("memory.events"), "oom_kill").unwrap_or(0)
    }

    /// Holds every process of the app still, or lets them go on. What is asked for has come about when this returns, or will soon:
    /// a process within an uninterruptible system call is held when that ends.
    ///
    /// # Errors
    /// Those of writing `cgroup.freeze`, such as not found before Linux 5.2.
    pub fn freeze(&self, frozen: bool) -> io::Result<()> {
        write(&self.path.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
        let wanted = u64::from(frozen);
        let until = Instant::now() + FREEZE_WITHIN;
        while keyed(&self.path.join("cgroup.events"), "frozen") != Some(wanted) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Kills every process of the app at once.
    ///
    /// # Errors
    /// Those of writing `cgroup.kill`, such as not found before Linux 5.14.
    pub fn kill(&self) -> io::Result<()> {
        write(&self.path.join("cgroup.kill"), "1")
    }

    /// Removes the cgroup; it must be empty.
    ///
    /// # Errors
    /// Those of rmdir(2).
    pub fn remove(&self) -> io::Result<()> {
        // What the app made below it goes first.
        let mut inner: BTreeSet<PathBuf> = BTreeSet::new();
        let mut pending = vec![self.path.clone()];
        while let Some(next) = pending.pop() {
            let children = fs::read_dir(&next)?.flatten().filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));
            pending.extend(children.map(|entry| entry.path()));
            inner.insert(next);
        }
        inner.iter().rev().try_for_each(fs::remove_dir)
    }
}

impl AsFd for AppCgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use podvm_pod::manifest::ByteSize;

    use super::*;

    #[test]
    fn cpu_limits_become_quotas() {
        for (thousandths, text) in
            [(1000, "100000 100000"), (500, "50000 100000"), (2500, "250000 100000"), (1, "1000 100000")]
        {
            assert_eq!(cpu_max(CpuLimit(thousandths)), text);
        }
    }

    #[test]
    fn shares_become_weights_within_bounds() {
        for (shares, weight) in [(0, 1), (2, 1), (1024, 39), (262_144, 10_000), (u64::MAX, 10_000)] {
            assert_eq!(cpu_weight(shares), weight, "{shares}");
        }
    }

    #[test]
    fn only_what_is_asked_for_is_limited() {
        let files =
            |isolators: &Isolators| settings(isolators).into_iter().map(|s| (s.file, s.value)).collect::<Vec<_>>();
        assert_eq!(files(&Isolators::default()), [("memory.oom.group", "1".into())]);
        let isolators = Isolators { memory: Some(ByteSize::mib(1)), pids: Some(7), ..Default::default() };
        let expected = [
            ("memory.max", "1048576".to_owned()),
            ("memory.swap.max", "0".into()),
            ("memory.oom.group", "1".into()),
            ("pids.max", "7".into()),
        ];
        assert_eq!(files(&isolators), expected);
    }

    #[test]
    fn statistics_are_read_from_the_files() {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("cpu.stat", "usage_usec 77\nuser_usec 5\n"),
            ("pids.current", "3\n"),
            ("memory.events", "low 0\noom 2\noom_kill 1\noom_group_kill 1\n"),
        ] {
            fs::write(dir.path().join(file), text).unwrap();
        }
        let directory = File::open(dir.path()).unwrap().into();
        let cgroup = AppCgroup { path: dir.path().into(), directory };
        let stats = cgroup.stats(AppStats::default);
        let expected = AppStats { memory_bytes: 4096, memory_limit_bytes: None, cpu_usec: 77, pids: 3, oom_kills: 1 };
        assert_eq!(stats, expected);
        fs::remove_file(dir.path().join("memory.current")).unwrap();
        let counted = AppStats { memory_bytes: 9, cpu_usec: 9, pids: 9, ..AppStats::default() };
        assert_eq!(cgroup.stats(|| counted), AppStats { memory_bytes: 9, ..expected });
    }

    #[test]
    fn what_is_no_cgroup2_is_refused_by_name() {
        let message = Cgroups::open(Path::new("/proc")).unwrap_err().to_string();
        assert!(message.contains("/proc") && message.contains("cgroup2"), "{message}");
    }
}
