//! Health checks: a command in the app, now and then, that says by its exit code whether the app is well.
//!
//! While an app has not been found well yet, it is looked at often, so that whoever waits for it need not wait longer than it
//! takes; failures count only when the start period, and at least one interval, are over.

use std::time::{Duration, Instant};

use podvm_pod::manifest::HealthCheck;
use podvm_pod::protocol::{Event, ExecSpec, ProcessId};
use podvm_pod::status::{AppState, ExitStatus, Health};

use super::Supervisor;
use super::process::{Process, State};
use crate::app::Job;

/// Longest time between two checks of an app that was not found well yet.
const START_INTERVAL: Duration = Duration::from_secs(1);

/// What is known of an app's health.
#[derive(Debug)]
pub struct Watch {
    check: HealthCheck,
    health: Health,
    /// Failures in a row that count.
    failures: u32,
    /// When failures begin to count.
    counts_from: Instant,
    /// When the next check is due, unless one runs.
    next: Instant,
    /// How the last check failed, and what it said; none when it found the app well.
    failure: Option<String>,
    /// The check that runs, and when it has failed for taking too long.
    running: Option<(ProcessId, Instant)>,
}

impl Watch {
    /// For an app that starts now.
    pub fn new(check: HealthCheck) -> Self {
        let now = Instant::now();
        let patience = Duration::from_millis(check.start_period_ms.max(check.interval_ms));
        let mut watch = Self {
            check,
            health: Health::Starting,
            failures: 0,
            counts_from: now + patience,
            next: now,
            failure: None,
            running: None,
        };
        watch.next = now + watch.pause();
        watch
    }

    /// Whether the app is well.
    pub fn health(&self) -> Health {
        self.health
    }

    /// How the last check failed, and what it said; none when it found the app well.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// When it wants to be looked at.
    pub fn due(&self) -> Instant {
        self.running.map_or(self.next, |(_, until)| until)
    }

    /// What the app is asked.
    fn command(&self) -> &[String] {
        &self.check.exec
    }

    fn pause(&self) -> Duration {
        let interval = Duration::from_millis(self.check.interval_ms);
        if self.health == Health::Starting { interval.min(START_INTERVAL) } else { interval }
    }

    fn began(&mut self, process: ProcessId, now: Instant) {
        self.running = Some((process, now + Duration::from_millis(self.check.timeout_ms)));
    }

    /// Takes the result of a check, or how it failed; true when that is news.
    fn conclude(&mut self, result: Result<(), String>, now: Instant) -> bool {
        let before = (self.health, self.failure.take());
        self.running = None;
        self.failure = result.err();
        if self.failure.is_none() {
            (self.health, self.failures) = (Health::Healthy, 0);
        } else if self.health != Health::Starting || now >= self.counts_from {
            self.failures = self.failures.saturating_add(1);
            if self.failures >= self.check.retries {
                self.health = Health::Unhealthy;
            }
        }
        self.next = now + self.pause();
        before != (self.health, self.failure.clone())
    }
}

impl Supervisor {
    /// Starts the checks that are due, and ends those that take too long.
    pub(super) fn check_health(&mut self, now: Instant) {
        let Some(pod) = &self.pod else { return };
        let is_due = |index: &usize| {
            let app = &pod.apps[*index];
            let runs = matches!(app.state, AppState::Running { .. }) && !app.paused && !pod.is_stopping();
            let runs = runs && app.ending.is_none();
            runs && app.watch.as_ref().is_some_and(|watch| watch.due() <= now)
        };
        let due: Vec<usize> = (0..pod.apps.len()).filter(is_due).collect();
        for index in due {
            match self.watch(index).and_then(|watch| Some((watch.running?.0, watch.check.timeout_ms))) {
                Some((process, limit)) => {
                    if let Some(process) = self.processes.get(process) {
                        process.kill_session();
                    }
                    let failure = self.with_output(process, format!("not over after {} s", limit as f64 / 1000.0));
                    self.health_known(index, Err(failure));
                }
                None => self.start_check(index, now),
            }
        }
    }

    fn start_check(&mut self, index: usize, now: Instant) {
        let Some(pod) = &self.pod else { return };
        let app = &pod.apps[index];
        let Some(watch) = &app.watch else { return };
        let spec = ExecSpec {
            app: app.name.clone(),
            exec: watch.command().to_vec(),
            user: None,
            environment: Vec::new(),
            working_directory: None,
            terminal: false,
            stdin: false,
        };
        match self.launch_beside(index, &Job::Exec(Box::new(spec))) {
            Ok(id) => {
                if let Some(process) = self.processes.get_mut(id) {
                    process.keep_output();
                }
                if let Some(watch) = self.watch(index) {
                    watch.began(id, now);
                }
            }
            Err(error) => self.health_known(index, Err(error.to_string())),
        }
    }

    /// A process has changed that may be a check.
    pub(super) fn check_changed(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get(id) else { return };
        let (index, state) = (process.app, process.state.clone());
        if self.watch(index).and_then(|watch| watch.running).is_none_or(|(running, _)| running != id) {
            return;
        }
        match state {
            State::Prepared => {
                if let Some(process) = self.processes.get_mut(id) {
                    process.go();
                }
            }
            State::Ended(ExitStatus::Exited(0)) => self.health_known(index, Ok(())),
            State::Ended(status) => {
                let failure = self.with_output(id, status.to_string());
                self.health_known(index, Err(failure));
            }
            State::Failed { message, .. } => self.health_known(index, Err(message)),
            State::SettingUp | State::Starting | State::Running => {}
        }
    }

    /// How a check failed, with the last of what it said.
    fn with_output(&mut self, check: ProcessId, failure: String) -> String {
        match self.processes.get_mut(check).map(Process::kept_output).unwrap_or_default() {
            output if output.is_empty() => failure,
            output => format!("{failure}: {output}"),
        }
    }

    fn watch(&mut self, index: usize) -> Option<&mut Watch> {
        self.pod.as_mut().and_then(|pod| pod.apps[index].watch.as_mut())
    }

    fn health_known(&mut self, index: usize, result: Result<(), String>) {
        if self.watch(index).is_some_and(|watch| watch.conclude(result, Instant::now()))
            && let Some(pod) = &self.pod
        {
            let status = pod.apps[index].status();
            self.tell(&Event::App(status));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILED: fn() -> Result<(), String> = || Err("exited with 1".into());

    fn watch(start_period_ms: u64) -> Watch {
        let (interval_ms, timeout_ms, retries) = (1000, 1000, 2);
        Watch::new(HealthCheck { exec: vec!["true".into()], interval_ms, timeout_ms, start_period_ms, retries })
    }

    #[test]
    fn failures_count_when_the_start_is_over_and_success_forgives_them() {
        let mut watch = watch(5000);
        let (early, late) = (Instant::now() + Duration::from_secs(1), Instant::now() + Duration::from_secs(6));
        assert!(watch.conclude(FAILED(), early), "how it failed is news");
        for _ in 0..5 {
            assert!(!watch.conclude(FAILED(), early));
        }
        assert_eq!((watch.health(), watch.failure()), (Health::Starting, Some("exited with 1")));
        assert!(!watch.conclude(FAILED(), late));
        assert!(watch.conclude(FAILED(), late));
        assert_eq!(watch.health(), Health::Unhealthy);
        assert!(watch.conclude(Err("killed by signal 9".into()), late));
        assert!(watch.conclude(Ok(()), late));
        assert_eq!((watch.health(), watch.failure()), (Health::Healthy, None));
        assert!(watch.conclude(FAILED(), late));
        assert_eq!(watch.health(), Health::Healthy);
        assert!(watch.conclude(FAILED(), late));
        assert_eq!(watch.health(), Health::Unhealthy);
    }

    #[test]
    fn an_app_that_was_well_once_has_no_start_period_any_more() {
        let mut watch = watch(60_000);
        let now = Instant::now();
        assert!(watch.conclude(Ok(()), now));
        watch.conclude(FAILED(), now);
        assert!(watch.conclude(FAILED(), now));
        assert_eq!(watch.health(), Health::Unhealthy);
    }
}
