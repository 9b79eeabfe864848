//! What `list` and `status` tell of a pod: its manifest, its recorded phase and its lock, brought together.

use std::net::IpAddr;

use podvm_pod::directory::{DirectoryError, Phase, PodState};
use podvm_pod::manifest::{AppName, PublishedPort};
use podvm_pod::status::{AppState, AppStatus, Health};
use podvm_pod::timestamp::Timestamp;
use podvm_pod::{PodDir, Stage1Kind, Uuid};
use serde::Serialize;

/// How many characters of a UUID a list shows.
pub const SHORT_UUID: usize = 8;

/// A pod as it stands.
#[derive(Debug, Serialize)]
pub struct PodSummary {
    /// Name.
    pub uuid: Uuid,
    /// State.
    pub state: PodState,
    /// When it was made, RFC 3339.
    pub created: String,
    /// When its apps were started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<String>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished: Option<String>,
    /// Its walls, as far as it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage1: Option<Stage1Kind>,
    /// Its process at the host, while it lives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// Since when it is marked as garbage, if it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub garbage_since: Option<String>,
    /// Its exit code, when it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// What ended it, when it was not its apps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Hostname inside.
    pub hostname: String,
    /// Addresses, while it lives.
    pub addresses: Vec<IpAddr>,
    /// Ports of the host that lead to it.
    pub ports: Vec<PublishedPort>,
    /// Its apps.
    pub apps: Vec<AppSummary>,
}

/// An app as it stands.
#[derive(Debug, Serialize)]
pub struct AppSummary {
    /// Name.
    pub name: AppName,
    /// Image it was started from.
    pub image: String,
    /// State.
    #[serde(flatten)]
    pub state: AppState,
    /// Exit code, when it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// How often it was started again.
    pub restarts: u32,
    /// Whether its processes are held still.
    pub paused: bool,
    /// Whether it is well, while it is looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// How its last health check failed, and the last of what that said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_failure: Option<String>,
}

impl PodSummary {
    /// Looks at a pod.
    ///
    /// # Errors
    /// Those of its directory.
    pub fn of(dir: &PodDir) -> Result<Self, DirectoryError> {
        let manifest = dir.manifest()?;
        let (state, phase) = dir.state()?;
        let mut summary = Self {
            uuid: dir.uuid(),
            state,
            created: Timestamp::from_seconds(manifest.created).to_string(),
            started: None,
            finished: None,
            garbage_since: dir.garbage_since().map(|since| Timestamp::from_seconds(since).to_string()),
            stage1: None,
            pid: None,
            exit_code: None,
            error: None,
            hostname: manifest.hostname,
            addresses: Vec::new(),
            ports: manifest.ports,
            apps: Vec::new(),
        };
        let mut states: Vec<AppStatus> = Vec::new();
        match phase {
            Phase::Prepared { stage1 } => summary.stage1 = stage1,
            Phase::Starting { pid, stage1 } => {
                summary.stage1 = Some(stage1);
                summary.pid = (state != PodState::Aborted).then_some(pid);
            }
            Phase::Running { pid, stage1, started, addresses, apps } => {
                summary.stage1 = Some(stage1);
                summary.started = Some(Timestamp::from_seconds(started).to_string());
                states = apps;
                if state != PodState::Aborted {
                    summary.pid = Some(pid);
                    summary.addresses = addresses;
                }
            }
            Phase::Exited { stage1, finished, report, .. } => {
                summary.stage1 = stage1;
                summary.finished = Some(Timestamp::from_seconds(finished).to_string());
                summary.exit_code = Some(report.code);
                summary.error = report.error;
                states = report.apps;
            }
        }
        summary.apps = manifest
            .apps
            .into_iter()
            .map(|app| {
                let status = states.iter().find(|status| status.name == app.name);
                let status = status.cloned().unwrap_or_else(|| AppStatus::new(app.name.clone(), AppState::Waiting));
                let AppStatus { name, state, restarts, paused, health, health_failure } = status;
                let exit_code = state.exit_code();
                let image = app.image.name;
                AppSummary { name, image, exit_code, state, restarts, paused, health, health_failure }
            })
            .collect();
        Ok(summary)
    }

    /// Its state, with its exit code when it has one.
    pub fn state_text(&self) -> String {
        match self.exit_code {
            Some(code) => format!("{} ({code})", self.state),
            None if self.is_paused() => "paused".into(),
            None => self.state.to_string(),
        }
    }

    fn is_paused(&self) -> bool {
        let mut running = self.apps.iter().filter(|app| matches!(app.state, AppState::Running { .. })).peekable();
        self.state == PodState::Running && running.peek().is_some() && running.all(|app| app.paused)
    }

    /// The first characters of the UUID, enough to tell pods apart.
    pub fn short_uuid(&self) -> String {
        self.uuid.to_string()[..SHORT_UUID].to_owned()
    }
}

/// How `--port` would be written to mean this.
pub fn port_text(port: &PublishedPort) -> String {
    let host = match port.host_ip {
        Some(IpAddr::V6(ip)) => format!("[{ip}]:{}", port.host_port),
        Some(ip) => format!("{ip}:{}", port.host_port),
        None => port.host_port.to_string(),
    };
    format!("{host}->{}/{}", port.pod_port, port.protocol)
}

/// An app's state for a table's cell.
pub fn app_state_text(app: &AppSummary) -> String {
    let mut text = match &app.state {
        AppState::Running { .. } if app.paused => "paused".into(),
        AppState::Waiting => "waiting".into(),
        AppState::Running { .. } => "running".into(),
        AppState::Exited { status, oom_killed: true } => format!("{status}, out of memory"),
        AppState::Exited { status, .. } => status.to_string(),
        AppState::Restarting { status } => format!("{status}, about to be started again"),
        AppState::Failed { message, .. } => format!("not started: {message}"),
    };
    if let Some(health) = app.health {
        text = format!("{text}, {health}");
    }
    if app.restarts > 0 {
        text = format!("{text}, restarts: {}", app.restarts);
    }
    text
}

#[cfg(test)]
mod tests {
    use podvm_pod::manifest::Protocol;
    use podvm_pod::status::ExitStatus;

    use super::*;

    #[test]
    fn ports_and_states_are_told_briefly() {
        let port = |host_ip: Option<&str>| PublishedPort {
            name: "client".into(),
            protocol: Protocol::Tcp,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            host_port: 1,
            pod_port: 2379,
            app: None,
            socket_activated: false,
        };
        assert_eq!(port_text(&port(None)), "1->2379/tcp");
        assert_eq!(port_text(&port(Some("127.0.0.1"))), "127.0.0.1:1->2379/tcp");
        assert_eq!(port_text(&port(Some("::1"))), "[::1]:1->2379/tcp");
        let app = |state, restarts, paused, health| AppSummary {
            name: "web".parse().unwrap(),
            image: "nginx".into(),
            exit_code: None,
            state,
            restarts,
            paused,
            health,
            health_failure: None,
        };
        let killed = AppState::Exited { status: ExitStatus::Signaled(9), oom_killed: true };
        assert_eq!(app_state_text(&app(killed, 0, false, None)), "killed by signal 9, out of memory");
        let running = || AppState::Running { pid: 7 };
        let well = app(running(), 2, false, Some(Health::Healthy));
        assert_eq!(app_state_text(&well), "running, healthy, restarts: 2");
        assert_eq!(app_state_text(&app(running(), 0, true, None)), "paused");
    }
}
