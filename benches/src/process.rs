//! A command's wall time, and the memory of all its processes.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

/// How often memory is looked at.
const INTERVAL: Duration = Duration::from_millis(20);

/// What a command cost.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Cost {
    /// From start to end.
    pub seconds: f64,
    /// Most memory that all its processes held at one time, as far as looking every 20 ms saw it.
    pub peak_kib: u64,
}

/// Runs a command that is too short to be looked at meanwhile; returns its milliseconds. It must succeed.
pub fn milliseconds(words: &[String]) -> Result<f64> {
    let (program, arguments) = words.split_first().context("a command has a program")?;
    let start = Instant::now();
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let taken = start.elapsed().as_secs_f64() * 1000.0;
    let output = output.with_context(|| format!("cannot run {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{}` failed ({}): {}", words.join(" "), output.status, said.trim());
    Ok(taken)
}

/// Runs a command to its end; it must succeed.
pub fn measure(words: &[String]) -> Result<Cost> {
    let (program, arguments) = words.split_first().context("a command has a program")?;
    let start = Instant::now();
    let mut child = Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let group = child.id();
    // Seen from a thread of its own, so that waiting is exact.
    let watcher = std::thread::spawn(move || {
        let mut peak_kib = 0;
        while let now @ 1.. = resident_kib(group) {
            peak_kib = peak_kib.max(now);
            sleep(INTERVAL);
        }
        peak_kib
    });
    let status = child.wait()?;
    let seconds = start.elapsed().as_secs_f64();
    let peak_kib = watcher.join().unwrap_or_default();
    ensure!(status.success(), "`{}` failed ({status})", words.join(" "));
    Ok(Cost { seconds, peak_kib })
}

/// Memory that the processes of a group hold together; shared pages count for each.
fn resident_kib(group: u32) -> u64 {
    let Ok(entries) = std::fs::read_dir("/proc") else { return 0 };
    let stats = entries.flatten().filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    stats.filter_map(|stat| resident_of(&stat, group)).sum()
}

/// The resident memory of a process from its `/proc/PID/stat`, if it is one of the group (proc_pid_stat(5)).
fn resident_of(stat: &str, group: u32) -> Option<u64> {
    // The name in parentheses may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let (pgrp, pages): (u32, u64) = (fields.get(2)?.parse().ok()?, fields.get(21)?.parse().ok()?);
    (pgrp == group).then_some(pages * 4)
}

/// The middle one; of an even number, the higher of the two in the middle.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        let stat = "12 (a) 9 9 (b) S 1 77 77 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 100 1000 250 18446744073709551615";
        assert_eq!(resident_of(stat, 77), Some(1000));
        assert_eq!(resident_of(stat, 78), None);
    }

    #[test]
    fn what_runs_is_measured_and_what_fails_is_told() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let cost = measure(&words("sleep 0.2")).unwrap();
        assert!(cost.seconds >= 0.2 && cost.peak_kib > 0, "{cost:?}");
        assert!(measure(&words("false")).unwrap_err().to_string().contains("false"));
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([]), 0.0);
    }
}
