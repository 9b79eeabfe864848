//! `podvm stats`: what running pods' apps use, once or again and again.

use std::io::IsTerminal;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use podvm_pod::client::{ClientError, SupervisorClient};
use podvm_pod::directory::PodState;
use podvm_pod::manifest::{AppName, ByteSize};
use podvm_pod::status::AppStats;
use podvm_pod::{PodDir, Uuid};
use serde::Serialize;

use super::summary::SHORT_UUID;
use super::target::RunningPod;
use crate::config::Config;
use crate::duration::Wait;
use crate::output::Format;
use crate::output::{OutputArgs, print, print_text, table};
use crate::report;

const EXAMPLES: &str = "\
Examples:
  podvm stats                                   all running pods, every second, until Ctrl-C
  podvm stats 8d3f --no-stream --output json    one pod, once, for a program: bytes, microseconds, percent of one CPU";
/// How long a pod may take to tell what it uses.
const PATIENCE: Duration = Duration::from_secs(5);
/// From one look to the next, for the share of CPU time, when there is to be one line only.
const SHORT_LOOK: Duration = Duration::from_millis(500);
/// Cursor to the top left, and everything from there cleared.
const CLEAR: &str = "\u{1b}[H\u{1b}[J";

/// Options of `podvm stats`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct StatsArgs {
    /// The pods: their UUIDs, or enough of their beginnings [default: all that run]
    #[arg(value_name = "POD")]
    pub pods: Vec<String>,
    /// Look once
    #[arg(long)]
    pub no_stream: bool,
    /// Time from one look to the next, such as 1s or 500ms
    #[arg(long, value_name = "TIME", default_value = "1s")]
    pub interval: Wait,
    /// Form of the output.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What an app uses.
#[derive(Debug, Clone, Serialize)]
struct Row {
    pod: Uuid,
    app: AppName,
    /// Percent of one CPU since the look before.
    cpu_percent: f64,
    #[serde(flatten)]
    stats: AppStats,
}

/// One look at pods.
struct Look {
    at: Instant,
    rows: Vec<Row>,
}

/// Shows what apps use.
pub fn run(args: &StatsArgs, config: &Config) -> Result<u8> {
    // What is named wrongly is said at once.
    for pod in &args.pods {
        RunningPod::find(config, pod)?;
    }
    let interval = if args.no_stream { SHORT_LOOK } else { args.interval.0.max(Duration::from_millis(100)) };
    let is_live = !args.no_stream && args.output.output == Format::Table && std::io::stdout().is_terminal();
    let mut before = look(args, config)?;
    loop {
        sleep(interval);
        let now = look(args, config)?;
        let rows = with_shares(now.rows.clone(), &before, now.at);
        if is_live {
            print_text(CLEAR)?;
        }
        print(args.output, &rows, |rows| as_table(rows))?;
        if args.no_stream || (!args.pods.is_empty() && rows.is_empty()) {
            return Ok(0);
        }
        before = now;
    }
}

fn look(args: &StatsArgs, config: &Config) -> Result<Look> {
    let pods = config.pods();
    let dirs: Vec<PodDir> = if args.pods.is_empty() {
        pods.list()?
    } else {
        // One that has been removed meanwhile is as one that has ended.
        args.pods.iter().filter_map(|pod| pods.find(pod).ok()).collect()
    };
    let at = Instant::now();
    let mut rows = Vec::new();
    for dir in dirs.into_iter().filter(|dir| matches!(dir.state(), Ok((PodState::Running, _)))) {
        let client = SupervisorClient::of_pod(&dir).with_patience(PATIENCE);
        // A pod that is on its way to its end does not keep the others from being seen, nor does one that hangs, which is said.
        let stats = client.stats().unwrap_or_else(|error| {
            if matches!(error, ClientError::Silent) {
                report(&format!("pod {}: {error}", dir.uuid()));
            }
            Vec::new()
        });
        rows.extend(stats.into_iter().map(|(app, stats)| Row { pod: dir.uuid(), app, cpu_percent: 0.0, stats }));
    }
    Ok(Look { at, rows })
}

fn with_shares(mut rows: Vec<Row>, before: &Look, now: Instant) -> Vec<Row> {
    let passed = now.saturating_duration_since(before.at).as_micros().max(1) as f64;
    for row in &mut rows {
        let earlier = before.rows.iter().find(|other| (other.pod, &other.app) == (row.pod, &row.app));
        let used = earlier.map_or(0, |earlier| row.stats.cpu_usec.saturating_sub(earlier.stats.cpu_usec));
        row.cpu_percent = (used as f64 / passed * 1_000.0).round() / 10.0;
    }
    rows
}

fn as_table(rows: &[Row]) -> String {
    let cells = |row: &Row| {
        let limit = row.stats.memory_limit_bytes.map_or_else(|| "-".into(), |limit| ByteSize(limit).to_string());
        [
            row.pod.to_string()[..SHORT_UUID].to_owned(),
            row.app.to_string(),
            format!("{:.1}%", row.cpu_percent),
            ByteSize(row.stats.memory_bytes).to_string(),
            limit,
            row.stats.pids.to_string(),
            row.stats.oom_kills.to_string(),
        ]
    };
    table(["pod", "app", "cpu", "memory", "limit", "processes", "oom kills"], rows.iter().map(cells))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_one_cpu_between_two_looks() {
        let row = |cpu_usec| Row {
            pod: Uuid::nil(),
            app: "web".parse().unwrap(),
            cpu_percent: 0.0,
            stats: AppStats { cpu_usec, memory_bytes: 3 << 20, ..AppStats::default() },
        };
        let before = Look { at: Instant::now(), rows: vec![row(1_000_000)] };
        let rows = with_shares(vec![row(2_500_000)], &before, before.at + Duration::from_secs(1));
        assert_eq!(rows[0].cpu_percent, 150.0);
        assert!(as_table(&rows).contains("150.0%  3 MiB   -"), "{}", as_table(&rows));
    }
}
