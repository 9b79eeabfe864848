//! Pods in VMs, as podvm's user runs them: how they are started, and what each costs while it runs.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::kvm_stats::KvmStats;

/// How image layers come into VMs: the values of the setting `layers`.
pub const WAYS: [&str; 2] = ["disk", "memory"];

/// podvm with a state of its own and one way for its layers.
#[derive(Debug)]
pub struct Podvm {
    program: PathBuf,
    root: PathBuf,
    config: PathBuf,
}

/// What a pod's process holds, in KiB, and what KVM counted for it.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    /// Resident memory that no other process has.
    pub private: u64,
    /// Resident memory, what is shared divided among those who share it.
    pub proportional: u64,
    /// KVM's counters.
    pub kvm: KvmStats,
}

impl Podvm {
    /// podvm with its state in `root`; a configuration for this way is written beside it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn new(program: &Path, root: &Path, way: &str) -> Result<Self> {
        let config = root.with_extension(format!("{way}.toml"));
        fs::write(&config, format!("layers = \"{way}\"\n")).with_context(|| format!("{}", config.display()))?;
        Ok(Self { program: program.into(), root: root.into(), config })
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).arg("--config").arg(&self.config).args(words);
        command
    }

    /// Runs a command to its end and gives its output.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let output = self.command(words).stdin(Stdio::null()).output().context("podvm cannot be run")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "podvm {} failed: {}", words.join(" "), said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Imports an image from an OCI layout.
    ///
    /// # Errors
    /// When that fails.
    pub fn import(&self, layout: &Path, name: &str) -> Result<()> {
        self.run(&["image", "import", &layout.display().to_string(), "--name", name]).map(drop)
    }

    /// Runs a pod that says a line at each step; gives the milliseconds from exec of podvm to each line.
    ///
    /// # Errors
    /// When the pod does not end well, or says another number of lines.
    pub fn time_lines<const N: usize>(&self, words: &[&str]) -> Result<[f64; N]> {
        let begin = Instant::now();
        let mut child = self.command(words).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().context("its output is not connected")?;
        let mut times = Vec::new();
        for line in BufReader::new(output).lines() {
            line?;
            times.push(begin.elapsed().as_secs_f64() * 1e3);
        }
        let status = child.wait()?;
        ensure!(status.success(), "podvm {} failed ({status})", words.join(" "));
        times.try_into().map_err(|times: Vec<f64>| anyhow::anyhow!("the pod said {} lines instead of {N}", times.len()))
    }

    /// What the running pods' processes hold, oldest first.
    ///
    /// # Errors
    /// When they cannot be listed or looked at.
    pub fn held(&self) -> Result<Vec<Held>> {
        let listed: Value = serde_json::from_str(&self.run(&["list", "--output", "json"])?)?;
        let pods = listed.as_array().context("podvm list gives no list")?.iter();
        let mut pods: Vec<_> = pods
            .filter(|pod| pod["state"] == "running")
            .map(|pod| Some((pod["created"].to_string(), u32::try_from(pod["pid"].as_u64()?).ok()?)))
            .collect::<Option<_>>()
            .context("a running pod has a process")?;
        pods.sort();
        pods.into_iter().map(|(_, pid)| held_by(pid)).collect()
    }

    /// Stops all pods and removes them.
    ///
    /// # Errors
    /// When that fails.
    pub fn clear(&self) -> Result<()> {
        let listed: Value = serde_json::from_str(&self.run(&["list", "--output", "json"])?)?;
        for pod in listed.as_array().into_iter().flatten() {
            let uuid = pod["uuid"].as_str().context("a pod has a UUID")?;
            self.run(&["stop", "--force", uuid])?;
        }
        self.run(&["gc", "--grace-period", "0s"]).map(drop)
    }
}

fn held_by(pid: u32) -> Result<Held> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let kvm = KvmStats::of_process(pid)?;
    let kib = |field| kib_of(&rollup, field).with_context(|| format!("smaps_rollup has no {field}"));
    Ok(Held { private: kib("Private_Clean:")? + kib("Private_Dirty:")?, proportional: kib("Pss:")?, kvm })
}

/// A field of `/proc/PID/smaps_rollup` or `/proc/meminfo`, in KiB.
fn kib_of(text: &str, field: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(field))?;
    value.trim().strip_suffix(" kB")?.parse().ok()
}

/// Memory of the host that is there for the taking, in KiB. The page cache counts as such.
///
/// # Errors
/// When /proc is not there.
pub fn available_kib() -> Result<u64> {
    kib_of(&fs::read_to_string("/proc/meminfo")?, "MemAvailable:").context("/proc/meminfo has no MemAvailable")
}

/// Waits until a server on this host answers an HTTP request.
///
/// # Errors
/// When it does not within five minutes.
pub fn await_answer(port: u16, path: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(300);
    let ask = || -> std::io::Result<usize> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        stream.read(&mut [0; 12])
    };
    while !matches!(ask(), Ok(1..)) {
        if Instant::now() > deadline {
            bail!("nobody answers at port {port}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "Rss:            100 kB\nPss_Dirty:        7 kB\nPss:             42 kB\n";
        assert_eq!(kib_of(text, "Pss:"), Some(42));
        assert_eq!(kib_of(text, "Swap:"), None);
    }
}
