//! The test executables that cargo builds, and where each of them is to run.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, ensure};
use serde::Deserialize;

use super::checks::ALL_FEATURES;
use crate::build::cargo;

/// The package whose tests all need the lab.
const LAB_PACKAGE: &str = "podvm-e2e";
/// How the name of any other package's test target begins if it needs the lab.
const LAB_PREFIX: &str = "lab_";

/// A built test executable.
#[derive(Debug)]
pub struct Executable {
    /// The package, and the target where it is not the package itself.
    pub name: String,
    /// The binary.
    pub path: PathBuf,
    /// The package's directory, where its tests expect to be.
    pub directory: PathBuf,
    /// Whether it runs in the lab.
    pub in_lab: bool,
}

/// The part of cargo's messages that matters here.
#[derive(Deserialize)]
struct Message {
    reason: String,
    target: Option<Target>,
    profile: Option<Profile>,
    manifest_path: Option<PathBuf>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// Builds the tests of `package`, or of all, and tells where they are.
pub fn build(package: Option<&str>) -> anyhow::Result<Vec<Executable>> {
    let mut build = cargo();
    build.args(["test", "--no-run", "--message-format", "json-render-diagnostics"]);
    match package {
        Some(package) => build.args(["--package", package, "--all-features"]),
        None => build.arg("--workspace").args(ALL_FEATURES),
    };
    let output = build.stderr(Stdio::inherit()).output().context("cargo cannot be run")?;
    ensure!(output.status.success(), "the tests do not build");
    let text = String::from_utf8(output.stdout).context("cargo's messages are no text")?;
    Ok(text.lines().filter_map(executable).collect())
}

/// Builds only what runs in the lab. Other packages' such targets are looked for in their `tests` directories.
pub fn build_for_lab() -> anyhow::Result<Vec<Executable>> {
    let mut all = Vec::new();
    for package in packages_for_lab()? {
        all.extend(build(Some(&package))?);
    }
    all.retain(|executable| executable.in_lab);
    Ok(all)
}

fn packages_for_lab() -> anyhow::Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        targets: Vec<Target>,
    }
    let output = cargo().args(["metadata", "--no-deps", "--format-version", "1"]).output()?;
    ensure!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("cargo metadata is not understood")?;
    let needs_lab = |package: &Package| {
        package.name == LAB_PACKAGE || package.targets.iter().any(|target| target.name.starts_with(LAB_PREFIX))
    };
    Ok(metadata.packages.into_iter().filter(needs_lab).map(|package| package.name).collect())
}

fn executable(line: &str) -> Option<Executable> {
    let message: Message = serde_json::from_str(line).ok()?;
    let is_test = message.reason == "compiler-artifact" && message.profile?.test;
    let target = message.target.filter(|_| is_test)?.name;
    let directory = message.manifest_path?.parent()?.to_owned();
    let package = std::fs::read_to_string(directory.join("Cargo.toml")).ok().and_then(|text| package_name(&text))?;
    let is_package = target.replace('-', "_") == package.replace('-', "_");
    let in_lab = target.starts_with(LAB_PREFIX) || package == LAB_PACKAGE && !is_package;
    let name = if is_package { package } else { format!("{package}/{target}") };
    Some(Executable { name, path: message.executable?, directory, in_lab })
}

/// The name in a manifest, whose form is our own.
fn package_name(manifest: &str) -> Option<String> {
    let package = manifest.split("[package]").nth(1)?;
    let line = package.lines().find(|line| line.starts_with("name = "))?;
    Some(line.trim_start_matches("name = ").trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, test: bool) -> String {
        let directory = env!("CARGO_MANIFEST_DIR");
        format!(
            r#"{{"reason":"compiler-artifact","target":{{"name":"{name}","kind":["test"]}},"profile":{{"test":{test}}},
            "manifest_path":"{directory}/Cargo.toml","executable":"/t/{name}"}}"#
        )
    }

    #[test]
    fn only_test_executables_count_and_the_prefix_sends_them_to_the_lab() {
        assert!(executable(&line("xtask", false)).is_none());
        assert!(executable("not json").is_none());
        let unit = executable(&line("xtask", true)).unwrap();
        assert_eq!((unit.name.as_str(), unit.in_lab), ("xtask", false));
        let lab = executable(&line("lab_boot", true)).unwrap();
        assert_eq!((lab.name.as_str(), lab.in_lab), ("xtask/lab_boot", true));
    }
}
