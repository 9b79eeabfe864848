//! All of a host that pods change, as lines to be compared. For a host that nobody else changes meanwhile
//! ([`crate::on_private_host`]).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::{Host, Invocation};

/// What a host has, a line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Takes it.
    pub fn take(host: &Host) -> Self {
        let mut lines = BTreeSet::new();
        let mut add = |kind: &str, found: Vec<String>| lines.extend(found.iter().map(|line| format!("{kind}: {line}")));
        add("link", output("ip", &["-br", "link"]));
        add("route", output("ip", &["route", "show", "table", "all"]));
        add("IPv6 route", output("ip", &["-6", "route", "show", "table", "all"]));
        add("neighbour", output("ip", &["neighbour"]));
        add("rule", output("nft", &["list", "ruleset"]));
        add("socket", sockets(host));
        add("mount", lines_of("/proc/self/mountinfo"));
        add("loop device", loop_devices(host));
        for mount in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
            if Path::new(mount).join("cgroup.procs").exists() {
                add("cgroup", tree(Path::new(mount), |entry| entry.is_dir()));
            }
        }
        add("file", tree(host.root(), |path| !is_kept(path)));
        add("file", tree(host.scratch(), |_| true));
        add("file", tree(Path::new("/run/podvm"), |_| true));
        let (processes, namespaces) = processes();
        add("process", processes);
        add("network namespace", namespaces);
        Self(lines)
    }

    /// Waits until the host is as it was when this was taken: the kernel takes its time for some of it. Panics, naming the
    /// differences, if that does not come to be.
    #[track_caller]
    pub fn expect_again(&self, host: &Host, limit: Duration, when: &str) {
        let start = Instant::now();
        loop {
            let now = Self::take(host);
            if now == *self {
                return;
            }
            if start.elapsed() > limit {
                let left: Vec<_> = now.0.difference(&self.0).map(|line| format!("  left: {line}")).collect();
                let lost: Vec<_> = self.0.difference(&now.0).map(|line| format!("  lost: {line}")).collect();
                panic!("{when}: the host is not as it was\n{}\n{}", left.join("\n"), lost.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn output(program: &str, words: &[&str]) -> Vec<String> {
    Invocation::new(program, words).run().expect_code(0).stdout.lines().map(str::to_owned).collect()
}

fn lines_of(path: &str) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// Templates of disks are made once for each size and kept.
fn is_kept(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ext4-"))
}

/// All below a directory that is wanted.
fn tree(root: &Path, is_wanted: impl Fn(&Path) -> bool + Copy) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for path in fs::read_dir(&directory).into_iter().flatten().flatten().map(|entry| entry.path()) {
            let is_directory = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir());
            if is_wanted(&path) {
                found.push(path.display().to_string());
            }
            if is_directory {
                pending.push(path);
            }
        }
    }
    found
}

/// Ports that are listened on, and Unix sockets in podvm's state.
fn sockets(host: &Host) -> Vec<String> {
    let mut found = Vec::new();
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        for line in lines_of(&format!("/proc/self/net/{table}")).iter().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // Listening, or unconnected.
            if let [_, local, _, "0A" | "07", ..] = fields.as_slice() {
                found.push(format!("{table} {local}"));
            }
        }
    }
    let root = host.root().display().to_string();
    found.extend(lines_of("/proc/self/net/unix").into_iter().filter(|line| line.contains(&root)));
    found
}

/// Those of files in podvm's state.
fn loop_devices(host: &Host) -> Vec<String> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten().map(|entry| entry.path());
    let backing = devices.filter_map(|device| fs::read_to_string(device.join("loop/backing_file")).ok());
    let root = host.root().display().to_string();
    backing.filter(|file| file.starts_with(&root)).collect()
}

/// Every process but the host's first and this one, and the network namespaces that there are.
fn processes() -> (Vec<String>, Vec<String>) {
    let (mut found, mut namespaces) = (Vec::new(), Vec::new());
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        namespaces.extend(fs::read_link(process.path().join("ns/net")).map(|link| link.display().to_string()));
        if pid != 1 && pid != std::process::id() {
            let line = fs::read_to_string(process.path().join("stat")).unwrap_or_default();
            found.extend((!line.is_empty()).then(|| line.split(' ').take(3).collect::<Vec<_>>().join(" ")));
        }
    }
    (found, namespaces)
}
