//! Apps that are started again when they end: by their policy, and each time after a longer pause, until one has run for a while.

use std::time::{Duration, Instant};

use podvm_pod::exit::PODVM_ERROR;
use podvm_pod::manifest::RestartPolicy;
use podvm_pod::protocol::{Event, ProcessId};
use podvm_pod::status::{AppState, ExitStatus};

use super::Supervisor;
use super::health::Watch;
use crate::app::Job;
use crate::app::launch::launch;

/// First pause, longest pause, and how long an app must have run for its next pause to be the first again: docker's.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const RAN_WELL: Duration = Duration::from_secs(10);

/// How often an app was started again, and when it is next.
#[derive(Debug)]
pub struct Restarts {
    policy: RestartPolicy,
    /// How often it was.
    pub count: u32,
    pause: Duration,
    started: Instant,
    /// When it is next, when it is to be.
    pub at: Option<Instant>,
}

impl Restarts {
    /// For an app that was not started yet.
    pub fn new(policy: RestartPolicy) -> Self {
        Self { policy, count: 0, pause: FIRST_PAUSE, started: Instant::now(), at: None }
    }

    /// The app has been started.
    pub fn started(&mut self) {
        self.started = Instant::now();
    }

    /// The app has ended: whether it is to be started again, and then when.
    fn plan(&mut self, status: ExitStatus, now: Instant) -> bool {
        let wanted = match self.policy {
            RestartPolicy::No => false,
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure { most } => !status.is_success() && most.is_none_or(|most| self.count < most),
        };
        if wanted {
            if now.saturating_duration_since(self.started) >= RAN_WELL {
                self.pause = FIRST_PAUSE;
            }
            self.at = Some(now + self.pause);
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
        wanted
    }
}

impl Supervisor {
    /// What an app that has ended is from now on: ended, or about to be started again.
    pub(super) fn after_end(&mut self, index: usize, status: ExitStatus, oom_killed: bool) -> AppState {
        let ended = AppState::Exited { status, oom_killed };
        let Some(pod) = self.pod.as_mut().filter(|pod| !pod.is_stopping()) else { return ended };
        if pod.apps[index].restarts.plan(status, Instant::now()) { AppState::Restarting { status } } else { ended }
    }

    /// Starts the apps again whose pause is over.
    pub(super) fn restart_apps(&mut self, now: Instant) {
        let Some(pod) = &self.pod else { return };
        let due = |index: &usize| pod.apps[*index].restarts.at.is_some_and(|at| at <= now);
        let due: Vec<usize> = (0..pod.apps.len()).filter(due).collect();
        due.into_iter().for_each(|index| self.restart(index));
    }

    fn restart(&mut self, index: usize) {
        let Some(pod) = &mut self.pod else { return };
        let app = &mut pod.apps[index];
        app.restarts.at = None;
        app.restarts.count += 1;
        app.watch = pod.launched_with.spec.apps[index].app.health.clone().map(Watch::new);
        // SAFETY: the supervisor is a single thread.
        let launched = unsafe { launch(&pod.launched_with, index, &Job::Main, None, app.cgroup.as_ref()) };
        match launched {
            Ok(launched) => {
                let old = app.process.replace(self.processes.add(index, true, launched));
                old.into_iter().for_each(|old| self.processes.retire(old));
            }
            Err(error) => self.app_changed(index, AppState::Failed { message: error.to_string(), code: PODVM_ERROR }),
        }
    }

    /// The new process of an app that is started again waits for the word to go.
    pub(super) fn release_again(&mut self, index: usize, process: ProcessId) {
        let Some(pod) = &self.pod else { return };
        let app = pod.apps[index].name.clone();
        self.tell(&Event::Prepared { app, process });
        if let Some(process) = self.processes.get_mut(process) {
            process.go();
        }
    }

    /// Apps that would be started again stay ended as they are.
    pub(super) fn forget_restarts(&mut self) {
        let Some(pod) = &mut self.pod else { return };
        let mut ended = Vec::new();
        for (index, app) in pod.apps.iter_mut().enumerate() {
            if let (AppState::Restarting { status }, Some(_)) = (&app.state, app.restarts.at.take()) {
                ended.push((index, AppState::Exited { status: *status, oom_killed: false }));
            }
        }
        ended.into_iter().for_each(|(index, state)| self.app_changed(index, state));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILED: ExitStatus = ExitStatus::Exited(1);

    #[test]
    fn a_policy_says_who_is_started_again() {
        let now = Instant::now();
        let plan = |policy, status| Restarts::new(policy).plan(status, now);
        assert!(!plan(RestartPolicy::No, FAILED));
        assert!(plan(RestartPolicy::Always, ExitStatus::Exited(0)));
        assert!(plan(RestartPolicy::OnFailure { most: None }, FAILED));
        assert!(!plan(RestartPolicy::OnFailure { most: None }, ExitStatus::Exited(0)));
        let mut twice = Restarts::new(RestartPolicy::OnFailure { most: Some(1) });
        assert!(twice.plan(FAILED, now));
        twice.count = 1;
        assert!(!twice.plan(FAILED, now));
    }

    #[test]
    fn pauses_grow_to_a_limit_and_shrink_when_the_app_ran_well() {
        let now = Instant::now();
        let mut restarts = Restarts::new(RestartPolicy::Always);
        let pause = |restarts: &mut Restarts, now: Instant| {
            restarts.plan(FAILED, now);
            restarts.at.unwrap() - now
        };
        assert_eq!(pause(&mut restarts, now), FIRST_PAUSE);
        assert_eq!(pause(&mut restarts, now), 2 * FIRST_PAUSE);
        for _ in 0..20 {
            assert!(pause(&mut restarts, now) <= LONGEST_PAUSE);
        }
        assert_eq!(pause(&mut restarts, now + RAN_WELL * 2), FIRST_PAUSE);
    }
}
