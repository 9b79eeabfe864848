//! `podvm status`: one pod and its apps.

use std::fmt::Write;

use anyhow::{Result, bail};
use podvm_pod::PodDir;
use podvm_pod::directory::{Phase, PodState};
use podvm_pod::status::Health;

use super::summary::{PodSummary, app_state_text, port_text};
use crate::config::Config;
use crate::output::{OutputArgs, print, table};

/// How often a pod that is waited for is looked at.
const READY_INTERVAL: std::time::Duration = std::time::Duration::from_millis(50);

/// Options of `podvm status`.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// The pod: its UUID, or enough of its beginning
    #[arg(value_name = "POD")]
    pub pod: String,
    /// Wait until the pod has ended; one that is prepared must be run first
    #[arg(long)]
    pub wait: bool,
    /// Wait until all apps run and those with a health check are healthy; fails when the pod ends or an app is unhealthy
    #[arg(long, conflicts_with = "wait")]
    pub wait_ready: bool,
    /// Form of the output.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Shows a pod.
pub fn run(args: &StatusArgs, config: &Config) -> Result<u8> {
    let dir = config.pods().find(&args.pod)?;
    if args.wait {
        // What is prepared may be run yet.
        while dir.state()?.0 == PodState::Prepared {
            std::thread::sleep(READY_INTERVAL);
        }
        dir.wait_until_dead()?;
    }
    if args.wait_ready {
        wait_until_ready(&dir)?;
    }
    print(args.output, &PodSummary::of(&dir)?, as_text)?;
    Ok(0)
}

/// Waits until a pod does its work, as far as can be told from outside.
fn wait_until_ready(dir: &PodDir) -> Result<()> {
    loop {
        let uuid = dir.uuid();
        match dir.state()? {
            (PodState::Running, Phase::Running { apps, .. }) => {
                if let Some(app) = apps.iter().find(|app| app.health == Some(Health::Unhealthy)) {
                    let failure = app.health_failure.as_deref().unwrap_or("no check has found it well");
                    bail!(
                        "pod {uuid}: app {} is unhealthy ({failure}); `podvm logs {uuid}` shows what it says",
                        app.name
                    );
                }
                if apps.iter().all(|app| app.is_ready()) {
                    return Ok(());
                }
                // What has ended well will not run again.
                if let Some(app) = apps.iter().find(|app| app.state.exit_code().is_some()) {
                    bail!("pod {uuid}: app {} has ended", app.name);
                }
            }
            (PodState::Exited | PodState::Aborted, _) => bail!("pod {uuid} has ended"),
            // What is prepared may be run yet.
            _ => {}
        }
        std::thread::sleep(READY_INTERVAL);
    }
}

fn as_text(pod: &PodSummary) -> String {
    let lines = |values: Vec<String>| (!values.is_empty()).then(|| values.join(", "));
    let fields = [
        ("pod", Some(pod.uuid.to_string())),
        ("state", Some(pod.state_text())),
        ("error", pod.error.clone()),
        ("created", Some(pod.created.clone())),
        ("started", pod.started.clone()),
        ("finished", pod.finished.clone()),
        ("garbage", pod.garbage_since.as_ref().map(|since| format!("since {since}"))),
        ("stage1", pod.stage1.map(|stage1| stage1.to_string())),
        ("pid", pod.pid.map(|pid| pid.to_string())),
        ("hostname", Some(pod.hostname.clone())),
        ("addresses", lines(pod.addresses.iter().map(ToString::to_string).collect())),
        ("ports", lines(pod.ports.iter().map(port_text).collect())),
    ];
    let mut text = String::new();
    for (name, value) in fields {
        if let Some(value) = value {
            let _ = writeln!(text, "{:<11} {value}", format!("{name}:"));
        }
    }
    let apps = pod.apps.iter().map(|app| [app.name.to_string(), app.image.clone(), app_state_text(app)]);
    text = text + "\n" + &table(["app", "image", "state"], apps);
    for app in &pod.apps {
        if let Some(failure) = &app.health_failure {
            let _ = writeln!(text, "\nlast health check of {}: {}", app.name, failure);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use podvm_pod::Uuid;
    use podvm_pod::status::{AppState, ExitStatus};

    use super::super::summary::AppSummary;
    use super::*;

    #[test]
    fn an_ended_pod_tells_its_exit_and_each_apps() {
        let pod = PodSummary {
            uuid: Uuid::nil(),
            state: PodState::Exited,
            created: "1970-01-01T00:00:00Z".into(),
            started: None,
            finished: Some("1970-01-01T00:00:09Z".into()),
            garbage_since: None,
            stage1: None,
            pid: None,
            exit_code: Some(3),
            error: None,
            hostname: "h".into(),
            addresses: Vec::new(),
            ports: Vec::new(),
            apps: vec![AppSummary {
                name: "web".parse().unwrap(),
                image: "nginx".into(),
                state: AppState::Exited { status: ExitStatus::Exited(3), oom_killed: false },
                exit_code: Some(3),
                restarts: 0,
                paused: false,
                health: None,
                health_failure: None,
            }],
        };
        let text = as_text(&pod);
        for part in ["state:      exited (3)\n", "APP  IMAGE  STATE\n", "web  nginx  exited with 3\n"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("pid:"), "{text}");
        let json: serde_json::Value = serde_json::to_value(&pod).unwrap();
        assert_eq!(json["apps"][0]["state"], "exited");
        assert_eq!(json["exit_code"], 3);
    }
}
