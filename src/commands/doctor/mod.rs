//! `podvm doctor`: what this host can do, and what would make it do more.

mod checks;
mod nftables;

use anyhow::Result;
use serde::Serialize;

use crate::config::Config;
use crate::output::{OutputArgs, print, table};

/// Options of `podvm doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = "The exit code is 0 when pods can run here, 1 when not.")]
pub struct DoctorArgs {
    /// Form of the output.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// Something works less well, or not at all, but pods run.
    Warning,
    /// The pods that need it cannot run.
    Failed,
}

/// Which pods need what is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Needed {
    /// All.
    Everywhere,
    /// Pods in VMs.
    ForVms,
    /// Pods behind namespaces.
    ForNamespaces,
}

/// One check.
#[derive(Debug, Serialize)]
pub struct Check {
    /// What was looked at.
    name: &'static str,
    /// Who needs it.
    needed: Needed,
    /// How it came out.
    outcome: Outcome,
    /// What was found; when that is not as it should be, why and what helps.
    detail: String,
}

#[derive(Debug, Serialize)]
struct Diagnosis {
    /// Whether pods run in VMs.
    vms: bool,
    /// Whether pods run behind namespaces.
    namespaces: bool,
    checks: Vec<Check>,
}

impl Diagnosis {
    fn of(checks: Vec<Check>) -> Self {
        let works = |kind: Needed| {
            let concerns = |check: &&Check| check.needed == Needed::Everywhere || check.needed == kind;
            checks.iter().filter(concerns).all(|check| check.outcome != Outcome::Failed)
        };
        Self { vms: works(Needed::ForVms), namespaces: works(Needed::ForNamespaces), checks }
    }

    fn verdict(&self) -> &'static str {
        match (self.vms, self.namespaces) {
            (true, true) => "Pods run here in VMs, and behind namespaces.",
            (true, false) => "Pods run here in VMs, but not behind namespaces.",
            (false, true) => "Pods run here behind namespaces, but not in VMs.",
            (false, false) => "Pods cannot run here.",
        }
    }
}

/// Checks this host.
pub fn run(args: &DoctorArgs, config: &Config) -> Result<u8> {
    let checks = checks::all(config);
    let diagnosis = Diagnosis::of(checks);
    print(args.output, &diagnosis, as_text)?;
    Ok(u8::from(!diagnosis.vms && !diagnosis.namespaces))
}

fn as_text(diagnosis: &Diagnosis) -> String {
    let rows = diagnosis.checks.iter().map(|check| {
        let outcome = match check.outcome {
            Outcome::Ok => "ok",
            Outcome::Warning => "warning",
            Outcome::Failed => "FAILED",
        };
        [check.name.to_owned(), outcome.to_owned(), check.detail.clone()]
    });
    format!("{}\n{}\n", table(["check", "result", "detail"], rows), diagnosis.verdict())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_check_counts_for_who_needs_it_and_a_warning_for_nobody() {
        let check = |needed, outcome| Check { name: "kvm", needed, outcome, detail: "why; cure".into() };
        let of = |checks| Diagnosis::of(checks);
        let no_vms = of(vec![check(Needed::ForVms, Outcome::Failed), check(Needed::ForNamespaces, Outcome::Warning)]);
        assert_eq!((no_vms.vms, no_vms.namespaces), (false, true));
        let text = as_text(&no_vms);
        assert!(text.contains("kvm    FAILED   why; cure") && text.contains("but not in VMs"), "{text}");
        let nothing = of(vec![check(Needed::Everywhere, Outcome::Failed)]);
        assert_eq!(nothing.verdict(), "Pods cannot run here.");
    }
}
