//! The apps' states as the supervisor tells them, held against what can be: it may be in a hostile guest's hands.

use crate::console::printable;
use crate::manifest::PodManifest;
use crate::status::{AppState, AppStatus, PodReport};

/// The last state of each app, in the manifest's order.
pub(super) struct Board {
    apps: Vec<AppStatus>,
}

impl Board {
    /// All apps waiting.
    pub fn new(manifest: &PodManifest) -> Self {
        let waiting = |name| AppStatus::new(name, AppState::Waiting);
        Self { apps: manifest.apps.iter().map(|app| waiting(app.name.clone())).collect() }
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
        match self.apps.iter_mut().find(|app| app.name == status.name && **app != status) {
            Some(app) => {
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

    /// The report of a pod that could not report itself.
    pub fn conclude_without_report(self, report: PodReport) -> PodReport {
        PodReport { apps: self.apps, ..report }
    }
}
