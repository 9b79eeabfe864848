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
    /// Pods cannot run.
    Failed,
}

/// One check.
#[derive(Debug, Serialize)]
pub struct Check {
    /// What was looked at.
    name: &'static str,
    /// How it came out.
    outcome: Outcome,
    /// What was found; when that is not as it should be, why and what helps.
    detail: String,
}

#[derive(Debug, Serialize)]
struct Diagnosis {
    can_run_pods: bool,
    checks: Vec<Check>,
}

/// Checks this host.
pub fn run(args: &DoctorArgs, config: &Config) -> Result<u8> {
    let checks = checks::all(config);
    let can_run_pods = checks.iter().all(|check| check.outcome != Outcome::Failed);
    print(args.output, &Diagnosis { can_run_pods, checks }, as_text)?;
    Ok(u8::from(!can_run_pods))
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
    let verdict = if diagnosis.can_run_pods { "Pods can run here." } else { "Pods cannot run here." };
    format!("{}\n{verdict}\n", table(["check", "result", "detail"], rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failed_check_is_enough_and_a_warning_is_not() {
        let check = |outcome| Check { name: "kvm", outcome, detail: "why; cure".into() };
        let text = as_text(&Diagnosis { can_run_pods: false, checks: vec![check(Outcome::Failed)] });
        assert!(text.contains("kvm    FAILED  why; cure") && text.contains("cannot run"), "{text}");
    }
}
