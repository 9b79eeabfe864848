//! What is run when an app has ended: appc's post-stop handler, in a process with walls like the app's, whose files are the app's.
//!
//! Until it has ended, the app counts as running. When the pod's grace is over it is killed, too; after an app that itself had to
//! be killed it has [`GRACE`].

use std::time::{Duration, Instant};

use podvm_pod::protocol::ProcessId;
use podvm_pod::status::ExitStatus;

use super::Supervisor;
use super::process::State;
use crate::app::Job;
use crate::app::launch::launch;
use crate::step::note;

/// Time for it when there is none left of the pod's.
const GRACE: Duration = Duration::from_secs(2);

/// How an app's program ended.
#[derive(Debug, Clone, Copy)]
pub struct Ending {
    /// Its exit.
    pub status: ExitStatus,
    /// Whether it was killed for want of memory.
    pub oom_killed: bool,
}

impl Supervisor {
    /// Runs what is to be run when this app has ended; whether there is such.
    pub(super) fn post_stop(&mut self, index: usize, ending: Ending) -> bool {
        let Some(pod) = &mut self.pod else { return false };
        if pod.launched_with.spec.apps[index].app.post_stop.is_empty() {
            return false;
        }
        if pod.is_stopping() && pod.kill_at().is_none() {
            pod.kill_by(Instant::now() + GRACE);
        }
        let app = &mut pod.apps[index];
        // SAFETY: the supervisor is a single thread.
        match unsafe { launch(&pod.launched_with, index, &Job::PostStop, None, app.cgroup.as_ref()) } {
            Ok(launched) => {
                app.ending = Some(ending);
                let old = app.process.replace(self.processes.add(index, true, launched));
                old.into_iter().for_each(|old| self.processes.retire(old));
                true
            }
            Err(error) => {
                note(format_args!("app {}: its post-stop handler cannot be run: {error}", app.name));
                false
            }
        }
    }

    /// A post-stop handler's process has changed; with its end, its app has ended.
    pub(super) fn post_stop_changed(&mut self, id: ProcessId, index: usize, state: State) {
        match state {
            State::Prepared => return self.release_again(index, id),
            State::SettingUp | State::Starting | State::Running => return,
            State::Ended(status) if status.is_success() => {}
            State::Ended(status) => self.note_of_handler(index, format_args!("{status}")),
            State::Failed { message, .. } => self.note_of_handler(index, format_args!("cannot be run: {message}")),
        }
        let Some(ending) = self.pod.as_mut().and_then(|pod| pod.apps[index].ending.take()) else { return };
        let next = self.after_end(index, ending.status, ending.oom_killed);
        self.app_changed(index, next);
    }

    fn note_of_handler(&self, index: usize, what: std::fmt::Arguments<'_>) {
        if let Some(pod) = &self.pod {
            note(format_args!("app {}: its post-stop handler {what}", pod.apps[index].name));
        }
    }
}
