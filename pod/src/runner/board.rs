//! The apps' states as the supervisor tells them, held against what can be: it may be in a hostile guest's hands.

use crate::console::printable;
use crate::exit::NO_REPORT;
use crate::manifest::{AppName, PodManifest};
use crate::status::{AppState, AppStatus, PodReport};

/// The last state of each app, in the manifest's order.
pub(super) struct Board {
    apps: Vec<AppStatus>,
    /// The first that was told to have failed.
    failed: Option<AppName>,
}

impl Board {
    /// All apps waiting.
    pub fn new(manifest: &PodManifest) -> Self {
        let waiting = |name| AppStatus::new(name, AppState::Waiting);
        Self { apps: manifest.apps.iter().map(|app| waiting(app.name.clone())).collect(), failed: None }
    }

    /// The states.
    pub fn apps(&self) -> &[AppStatus] {
        &self.apps
    }

    /// Takes an app's new state; returns whether anything changed. A state of an app that is not there is passed over.
    pub fn update(&mut self, mut status: AppStatus) -> bool {
        if let AppState::Failed { message, .. } = &mut status.state {
            *message = printable(message);
        }
        status.health_failure = status.health_failure.as_deref().map(printable);
        match self.apps.iter_mut().find(|app| app.name == status.name && **app != status) {
            Some(app) => {
                if status.state.exit_code().is_some_and(|code| code != 0) {
                    self.failed.get_or_insert_with(|| status.name.clone());
                }
                *app = status;
                true
            }
            None => false,
        }
    }

    /// The supervisor's report, told of this pod's apps only.
    pub fn conclude(mut self, report: PodReport) -> PodReport {
        for status in report.apps {
            self.update(status);
        }
        let failed_app = report.failed_app.filter(|name| self.apps.iter().any(|app| app.name == *name));
        PodReport { code: report.code, failed_app, error: report.error.as_deref().map(printable), apps: self.apps }
    }

    /// The report of a pod that could not report itself. When all its apps are known to have ended, the exit code is that of the first
    /// that failed. If none did, the pod has not ended well for all that: what they wrote may not have come to rest.
    pub fn conclude_without_report(self, report: PodReport) -> PodReport {
        let Self { apps, failed } = self;
        let are_over = apps.iter().all(|app| app.state.exit_code().is_some());
        let of_failed = apps.iter().find(|app| Some(&app.name) == failed.as_ref());
        match of_failed.and_then(|app| app.state.exit_code()) {
            Some(code) if are_over && report.code == NO_REPORT => {
                PodReport { code, failed_app: failed, apps, ..report }
            }
            _ => PodReport { apps, ..report },
        }
    }
}
