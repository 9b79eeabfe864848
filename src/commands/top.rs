//! `podvm top`: the processes of a pod's apps.

use anyhow::Result;
use podvm_pod::client::ClientError;
use podvm_pod::console::printable;
use podvm_pod::manifest::{AppName, ByteSize};
use podvm_pod::status::ProcessInfo;
use serde::Serialize;

use super::target::RunningPod;
use crate::config::Config;
use crate::output::{OutputArgs, print, table};

/// Options of `podvm top`.
#[derive(Debug, clap::Args)]
pub struct TopArgs {
    /// The pod: its UUID, or enough of its beginning
    #[arg(value_name = "POD")]
    pub pod: String,
    /// Only this app [default: all]
    #[arg(long, value_name = "APP")]
    pub app: Option<AppName>,
    /// Form of the output.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// A process and whose it is.
#[derive(Debug, Serialize)]
struct Row {
    app: AppName,
    #[serde(flatten)]
    process: ProcessInfo,
}

/// Lists processes. PIDs and users are those inside.
pub fn run(args: &TopArgs, config: &Config) -> Result<u8> {
    let pod = RunningPod::find(config, &args.pod)?;
    let apps = match &args.app {
        Some(app) => vec![pod.app(Some(app))?],
        None => pod.manifest.apps.iter().map(|app| app.name.clone()).collect(),
    };
    let mut rows = Vec::new();
    for app in apps {
        match pod.client().processes(app.clone()) {
            Ok(processes) => rows.extend(processes.into_iter().map(|process| Row { app: app.clone(), process })),
            // Of all apps, one that has ended has none.
            Err(ClientError::Refused { .. }) if args.app.is_none() => {}
            Err(error) => return Err(error.into()),
        }
    }
    print(args.output, &rows, |rows| {
        table(["app", "pid", "uid", "state", "memory", "cpu time", "command"], rows.iter().map(cells))
    })?;
    Ok(0)
}

fn cells(row: &Row) -> [String; 7] {
    let process = &row.process;
    [
        row.app.to_string(),
        process.pid.to_string(),
        process.uid.to_string(),
        printable(&process.state.to_string()),
        ByteSize(process.memory_bytes).to_string(),
        cpu_time(process.cpu_usec),
        printable(&process.command),
    ]
}

/// Minutes, seconds and hundredths.
fn cpu_time(usec: u64) -> String {
    let hundredths = usec / 10_000;
    format!("{}:{:02}.{:02}", hundredths / 6_000, hundredths / 100 % 60, hundredths % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_minutes_and_seconds() {
        assert_eq!(cpu_time(0), "0:00.00");
        assert_eq!(cpu_time(61_230_000), "1:01.23");
    }
}
