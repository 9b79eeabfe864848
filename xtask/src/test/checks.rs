//! Checks of the source itself: formatting, lints, licences. Each counts as one test.

use std::process::Command;

use super::tally::Tally;
use crate::build::{cargo, run_visibly};
use crate::step::step;

/// Every feature that a test target hides behind, so that lints see all code.
pub const ALL_FEATURES: [&str; 2] = ["--features", "podvm-e2e/lab,podvm-lab/boots"];

/// Runs all checks.
pub fn run(tally: &mut Tally) {
    check(tally, "format", cargo().args(["fmt", "--all", "--check"]));
    let mut clippy = cargo();
    clippy.args(["clippy", "--quiet", "--workspace", "--all-targets"]).args(ALL_FEATURES);
    check(tally, "lints", clippy.args(["--", "-D", "warnings"]));
    let has_deny = cargo().args(["deny", "--version"]).output().is_ok_and(|output| output.status.success());
    if has_deny {
        check(tally, "licences and advisories", cargo().args(["deny", "check"]));
    } else {
        tally.skip("licences and advisories", "cargo-deny is not installed; `cargo install cargo-deny` brings it");
    }
}

fn check(tally: &mut Tally, name: &str, command: &mut Command) {
    match step(name, || run_visibly(command)) {
        Ok(()) => tally.pass(),
        Err(error) => tally.fail(name, &error.to_string()),
    }
}
