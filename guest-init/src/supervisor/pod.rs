//! The pod's life: all apps are prepared, then all are started; the first that fails stops the others; when all have ended
//! the pod has.

use std::time::{Duration, Instant};

use podvm_pod::exit::PODVM_ERROR;
use podvm_pod::fault::{FaultPoint, reach};
use podvm_pod::manifest::{App, AppName};
use podvm_pod::protocol::{Event, PodSpec, ProcessId};
use podvm_pod::status::{AppState, AppStats, AppStatus, ExitStatus, PodReport};

use super::ending::Ending;
use super::health::Watch;
use super::process::State;
use super::restart::Restarts;
use super::{Phase, STOP_GRACE, Supervisor, SupervisorError};
use crate::app::launch::launch;
use crate::app::socket::AppSocket;
use crate::app::{Job, Pod};
use crate::cgroup::{AppCgroup, Cgroups};
use crate::places::Places;
use crate::processes;
use crate::step::{Step, note};

/// An app of the pod.
#[derive(Debug)]
pub struct RunningApp {
    /// Its name.
    pub name: AppName,
    /// Where it is in its life.
    pub state: AppState,
    /// Its main process.
    pub process: Option<ProcessId>,
    /// Its cgroup.
    pub cgroup: Option<AppCgroup>,
    /// Whether its processes are held still.
    pub paused: bool,
    /// Its health, if it is looked at.
    pub watch: Option<Watch>,
    /// How often it was started again, and when it is next.
    pub restarts: Restarts,
    /// Processes killed for want of memory in its earlier lives.
    oom_kills: u64,
    stop_signal: i32,
    /// How its program ended, while what is run then still runs.
    pub ending: Option<Ending>,
}

impl RunningApp {
    fn new(app: &App, cgroup: Option<AppCgroup>) -> Self {
        Self {
            name: app.name.clone(),
            state: AppState::Waiting,
            process: None,
            cgroup,
            paused: false,
            watch: app.health.clone().map(Watch::new),
            restarts: Restarts::new(app.restart),
            oom_kills: 0,
            stop_signal: app.stop_signal,
            ending: None,
        }
    }

    /// Its state as it is told.
    pub fn status(&self) -> AppStatus {
        let watch = self.watch.as_ref().filter(|_| matches!(self.state, AppState::Running { .. }));
        AppStatus {
            name: self.name.clone(),
            state: self.state.clone(),
            restarts: self.restarts.count,
            paused: self.paused,
            health: watch.map(Watch::health),
            health_failure: watch.and_then(Watch::failure).map(String::from),
        }
    }

    /// Whether a process was killed for want of memory since this was last asked.
    fn has_run_out_of_memory(&mut self) -> bool {
        let kills = self.cgroup.as_ref().map_or(0, AppCgroup::oom_kills);
        std::mem::replace(&mut self.oom_kills, kills) < kills
    }

    /// Holds its processes still, or lets them go on.
    ///
    /// # Errors
    /// Why that cannot be, as a sentence.
    pub fn freeze(&mut self, frozen: bool) -> Result<(), String> {
        let refused = |why: &dyn std::fmt::Display| format!("app {} cannot be paused or resumed: {why}", self.name);
        let cgroup = self.cgroup.as_ref().ok_or_else(|| refused(&"it has no cgroup here; see `podvm doctor`"))?;
        cgroup.freeze(frozen).map_err(|error| refused(&error))?;
        self.paused = frozen;
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.state.exit_code().is_some()
    }
}

/// The pod.
#[derive(Debug)]
pub struct RunningPod {
    /// What processes are launched with.
    pub launched_with: Pod,
    /// Its apps, in the manifest's order.
    pub apps: Vec<RunningApp>,
    /// Whether apps were let go.
    released: bool,
    /// Whether [`Event::Ready`] was sent.
    ready: bool,
    /// The first app that failed.
    failed: Option<usize>,
    stopping: bool,
    kill_at: Option<Instant>,
}

impl RunningPod {
    /// When the apps that are left are killed.
    pub fn kill_at(&self) -> Option<Instant> {
        self.kill_at
    }

    /// When something is to be done next: a kill, a restart, a health check.
    pub fn next_deadline(&self) -> Option<Instant> {
        let of_app = |app: &RunningApp| {
            let runs =
                matches!(app.state, AppState::Running { .. }) && !app.paused && !self.stopping && app.ending.is_none();
            let check = app.watch.as_ref().filter(|_| runs).map(Watch::due);
            app.restarts.at.into_iter().chain(check).min()
        };
        self.kill_at.into_iter().chain(self.apps.iter().filter_map(of_app)).min()
    }

    /// Kills what still runs at this time, unless it is to be killed earlier.
    pub fn kill_by(&mut self, at: Instant) {
        self.kill_at = Some(self.kill_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Whether its apps were asked to end.
    pub fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// The app of that name, by index.
    pub fn app(&self, name: &AppName) -> Option<usize> {
        self.apps.iter().position(|app| &app.name == name)
    }

    /// The state of every app.
    pub fn statuses(&self) -> Vec<AppStatus> {
        self.apps.iter().map(RunningApp::status).collect()
    }

    /// What every app uses.
    pub fn stats(&self) -> Vec<(AppName, AppStats)> {
        let stats = |app: &RunningApp| {
            let counted = || match app.state {
                AppState::Running { pid } => processes::usage(pid),
                _ => AppStats::default(),
            };
            app.cgroup.as_ref().map_or_else(counted, |cgroup| cgroup.stats(counted))
        };
        self.apps.iter().map(|app| (app.name.clone(), stats(app))).collect()
    }

    /// How the pod ended.
    pub fn report(&self) -> PodReport {
        let failed = self.failed.map(|index| &self.apps[index]);
        PodReport {
            code: failed.and_then(|app| app.state.exit_code()).unwrap_or(0),
            failed_app: failed.map(|app| app.name.clone()),
            error: None,
            apps: self.statuses(),
        }
    }

    /// Unmounts, and removes the apps' cgroups.
    pub fn clean_up(&mut self) {
        self.launched_with.places.unmount();
        for app in &mut self.apps {
            if let Some(Err(error)) = app.cgroup.take().map(|cgroup| cgroup.remove()) {
                note(format_args!("app {}: its cgroup cannot be removed: {error}", app.name));
            }
        }
    }
}

impl Supervisor {
    /// Sets the pod up and has its apps prepare themselves.
    pub(super) fn start(&mut self, spec: PodSpec) -> Result<(), SupervisorError> {
        if !matches!(self.phase, Phase::Idle) {
            return Err(SupervisorError::SecondPod);
        }
        self.phase = Phase::Running;
        reach(FaultPoint::SupervisorTold);
        nix::unistd::sethostname(&spec.hostname).step(|| format!("set the hostname {:?}", spec.hostname))?;
        self.walls.configure_network(&spec.network)?;
        let sockets = spec.apps.iter().map(AppSocket::open_all).collect::<Result<_, _>>()?;
        let places = Places::prepare(self.walls.as_mut(), &spec)?;
        reach(FaultPoint::PlacesPrepared);
        let cgroups = self.open_cgroups();
        let mut apps = Vec::new();
        for app in spec.apps.iter().map(|app| &app.app) {
            let cgroup = match &cgroups {
                Some(cgroups) => {
                    let (cgroup, missed) = cgroups.make(&app.name, &app.isolators)?;
                    missed.iter().for_each(note);
                    Some(cgroup)
                }
                None => None,
            };
            apps.push(RunningApp::new(app, cgroup));
        }
        let (has_own_devices, has_mapped_users) = (self.walls.has_own_devices(), self.walls.has_mapped_users());
        let launched_with =
            Pod { spec, places, sockets, cgroups: cgroups.is_some(), has_own_devices, has_mapped_users };
        let (released, ready, failed, stopping, kill_at) = (false, false, None, false, None);
        self.pod = Some(RunningPod { launched_with, apps, released, ready, failed, stopping, kill_at });
        reach(FaultPoint::AppCgroupsMade);
        self.launch_apps();
        reach(FaultPoint::AppsLaunched);
        Ok(())
    }

    fn open_cgroups(&self) -> Option<Cgroups> {
        let opened = self.walls.cgroup_root().map(Cgroups::open);
        match opened {
            Some(Ok(cgroups)) => Some(cgroups),
            Some(Err(error)) => {
                note(format_args!("apps run without limits and statistics: {error}"));
                None
            }
            None => {
                note("apps run without limits and statistics: there is no cgroup2 here");
                None
            }
        }
    }

    fn launch_apps(&mut self) {
        let Some(pod) = &mut self.pod else { return };
        let mut changed = Vec::new();
        for (index, app) in pod.apps.iter_mut().enumerate() {
            // SAFETY: the supervisor is a single thread.
            match unsafe { launch(&pod.launched_with, index, &Job::Main, None, app.cgroup.as_ref()) } {
                Ok(launched) => app.process = Some(self.processes.add(index, true, launched)),
                Err(error) => changed.push((index, AppState::Failed { message: error.to_string(), code: PODVM_ERROR })),
            }
        }
        // The apps' processes have copies of their own of what they were launched with.
        pod.launched_with.places.end_filling();
        changed.into_iter().for_each(|(index, state)| self.app_changed(index, state));
    }

    /// A process's state has changed: its app's may have, and some client may wait for it.
    pub(super) fn process_changed(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get(id) else { return };
        if process.main {
            let (index, state, pid) = (process.app, process.state.clone(), process.pid());
            self.main_changed(id, index, state, pid);
        } else {
            self.check_changed(id);
        }
        self.answer_waiting();
    }

    fn main_changed(&mut self, id: ProcessId, index: usize, state: State, pid: i32) {
        let Some(pod) = &mut self.pod else { return };
        let app = &mut pod.apps[index];
        if app.is_over() {
            // It was killed on its way to its program.
            return;
        }
        if app.ending.is_some() {
            return self.post_stop_changed(id, index, state);
        }
        let is_again = app.restarts.count > 0;
        let next = match state {
            // It is told as waiting for its next start until it runs.
            State::SettingUp | State::Starting if is_again => return,
            State::Prepared if is_again => return self.release_again(index, id),
            State::SettingUp | State::Prepared | State::Starting => AppState::Waiting,
            State::Running => {
                app.restarts.started();
                AppState::Running { pid }
            }
            State::Ended(status) => {
                let oom_killed = app.has_run_out_of_memory();
                if self.post_stop(index, Ending { status, oom_killed }) {
                    return;
                }
                self.after_end(index, status, oom_killed)
            }
            State::Failed { message, code } => AppState::Failed { message, code },
        };
        let app = self.pod.as_ref().map(|pod| &pod.apps[index]);
        // Another life that ended as the one before is news, too.
        let is_news = |app: &RunningApp| next != app.state || matches!(next, AppState::Restarting { .. });
        if app.is_some_and(is_news) {
            self.app_changed(index, next);
        }
    }

    pub(super) fn app_changed(&mut self, index: usize, state: AppState) {
        let Some(pod) = &mut self.pod else { return };
        let app = &mut pod.apps[index];
        app.state = state;
        if !matches!(app.state, AppState::Running { .. }) {
            app.paused = false;
        }
        let (status, code) = (app.status(), app.state.exit_code());
        let stop_now = match (&app.state, pod.stopping) {
            // It was not there yet to be asked.
            (AppState::Running { .. }, true) => Some(app.stop_signal),
            _ => None,
        };
        let process = app.process;
        let has_failed = code.is_some_and(|code| code != 0);
        // A pod that is asked to end has its grace already.
        let is_end = has_failed && !pod.stopping;
        if has_failed {
            pod.failed.get_or_insert(index);
        }
        self.tell(&Event::App(status));
        if let (Some(signal), Some(process)) = (stop_now, process.and_then(|id| self.processes.get(id))) {
            let _ = process.signal(signal);
        }
        if is_end {
            self.stop(STOP_GRACE);
        }
    }

    /// Takes the pod a step further when all its apps are as far.
    pub(super) fn advance_pod(&mut self) {
        if !matches!(self.phase, Phase::Running) {
            return;
        }
        let Some(pod) = &self.pod else {
            // It could not be set up.
            return self.finish();
        };
        let states: Vec<Option<State>> = pod
            .apps
            .iter()
            .map(|app| app.process.and_then(|id| self.processes.get(id)).map(|process| process.state.clone()))
            .collect();
        let all = |wanted: fn(&State) -> bool| states.iter().all(|state| state.as_ref().is_some_and(wanted));
        if !pod.released && !pod.stopping && all(|state| *state == State::Prepared) {
            self.release();
        } else if pod.released && !pod.ready && all(|state| matches!(state, State::Running | State::Ended(_))) {
            if let Some(pod) = &mut self.pod {
                pod.ready = true;
            }
            reach(FaultPoint::AppsRun);
            self.tell(&Event::Ready);
        }
        self.check_end();
    }

    fn check_end(&mut self) {
        let Some(pod) = &self.pod else { return };
        let reaped = |app: &RunningApp| {
            app.process.and_then(|id| self.processes.get(id)).is_none_or(|process| process.is_reaped())
        };
        if pod.apps.iter().all(|app| app.is_over() && reaped(app)) {
            self.finish();
        }
    }

    fn release(&mut self) {
        let Some(pod) = &mut self.pod else { return };
        pod.released = true;
        let prepared: Vec<(AppName, ProcessId)> =
            pod.apps.iter().filter_map(|app| Some((app.name.clone(), app.process?))).collect();
        for (app, process) in &prepared {
            self.tell(&Event::Prepared { app: app.clone(), process: *process });
        }
        for (_, id) in prepared {
            if let Some(process) = self.processes.get_mut(id) {
                process.go();
            }
        }
        reach(FaultPoint::AppsReleased);
    }

    /// Asks every app to stop, and kills after `grace` what is left then. A second call can only shorten the grace.
    pub(super) fn stop(&mut self, grace: Duration) {
        let kill_at = Instant::now().checked_add(grace);
        let Some(pod) = &mut self.pod else {
            if matches!(self.phase, Phase::Idle) {
                self.finish();
            }
            return;
        };
        if let Some(kill_at) = kill_at {
            pod.kill_by(kill_at);
        }
        if std::mem::replace(&mut pod.stopping, true) {
            return;
        }
        self.forget_restarts();
        self.end_unstarted();
        self.let_apps_go_on();
        let Some(pod) = &self.pod else { return };
        reach(FaultPoint::SupervisorStopping);
        // What is run after an app ends by itself.
        for app in pod.apps.iter().filter(|app| app.ending.is_none()) {
            let Some(process) = app.process.and_then(|id| self.processes.get(id)) else { continue };
            match process.state {
                // Killed above.
                State::SettingUp | State::Prepared => {}
                // Asked as soon as it runs.
                State::Starting => {}
                State::Running => {
                    if let Err(error) = process.signal(app.stop_signal) {
                        note(format_args!("app {}: signal {} cannot be sent: {error}", app.name, app.stop_signal));
                    }
                }
                State::Ended(_) | State::Failed { .. } => {}
            }
        }
    }

    /// Apps that are on the way to their program have nobody to ask, and end at once: as their last life did, or, with none
    /// before, by the signal that asks an app to end.
    fn end_unstarted(&mut self) {
        let Some(pod) = &self.pod else { return };
        let mut ended = Vec::new();
        for (index, app) in pod.apps.iter().enumerate().filter(|(_, app)| !app.is_over() && app.ending.is_none()) {
            let Some(process) = app.process.and_then(|id| self.processes.get(id)) else { continue };
            if matches!(process.state, State::SettingUp | State::Prepared) {
                process.kill();
                let status = match app.state {
                    AppState::Restarting { status } => status,
                    _ => ExitStatus::Signaled(app.stop_signal),
                };
                ended.push((index, AppState::Exited { status, oom_killed: false }));
            }
        }
        ended.into_iter().for_each(|(index, state)| self.app_changed(index, state));
    }

    /// Apps that are held still could not end.
    fn let_apps_go_on(&mut self) {
        for app in self.pod.iter_mut().flat_map(|pod| &mut pod.apps).filter(|app| app.paused) {
            if let Err(message) = app.freeze(false) {
                note(message);
            }
        }
    }

    /// Kills whatever runs.
    pub(super) fn kill_apps(&mut self) {
        let Some(pod) = &mut self.pod else { return };
        pod.stopping = true;
        pod.kill_at = None;
        self.forget_restarts();
        self.end_unstarted();
        self.let_apps_go_on();
        let Some(pod) = &self.pod else { return };
        for app in pod.apps.iter().filter(|app| !app.is_over()) {
            if let Some(cgroup) = &app.cgroup {
                // Without cgroup.kill the main process's end takes its PID namespace along.
                let _ = cgroup.kill();
            }
            if let Some(process) = app.process.and_then(|id| self.processes.get(id)) {
                process.kill();
            }
        }
    }
}
