//! `cargo xtask setup`: the Debian packages that everything else needs.

use std::collections::HashSet;
use std::process::Command;

use anyhow::{Context, bail};
use podvm_lab::agent::workspace;

use crate::step::step;

/// The lists of packages, in the checkout.
const LISTS: [&str; 2] = ["xtask/packages.txt", "kernel-config/packages.txt"];

/// Installs what is missing. Without root it prints the command that does, and fails.
pub fn run() -> anyhow::Result<()> {
    step("packages", || {
        let missing = missing(&needed()?)?;
        if missing.is_empty() {
            println!("    all packages are installed");
            return Ok(());
        }
        let install = ["apt-get", "install", "--yes", "--no-install-recommends"];
        if !nix::unistd::geteuid().is_root() {
            let line = format!("sudo {} {}", install.join(" "), missing.join(" "));
            bail!(
                "{} packages are missing, and only root can install them; run this, then try again:\n\n    {line}\n",
                missing.len()
            );
        }
        println!("    installing {}", missing.join(" "));
        apt(&["apt-get", "update", "--quiet"], &[])?;
        apt(&install, &missing)
    })
}

fn apt(command: &[&str], packages: &[String]) -> anyhow::Result<()> {
    let status = Command::new(command[0])
        .args(&command[1..])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .status()
        .context("apt-get cannot be run; podvm is developed on Debian or Ubuntu")?;
    if !status.success() {
        bail!("`{} {}` failed ({status})", command.join(" "), packages.join(" "));
    }
    Ok(())
}

fn needed() -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for list in LISTS {
        let path = workspace().join(list);
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        names.extend(parse(&text));
    }
    names.sort();
    names.dedup();
    Ok(names)
}

fn parse(list: &str) -> impl Iterator<Item = String> {
    let lines = list.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).map(str::to_owned)
}

fn missing(needed: &[String]) -> anyhow::Result<Vec<String>> {
    // Fails when it knows nothing of one of the names, but still prints all the others.
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${Package} ${db:Status-Status}\n"])
        .args(needed)
        .output()
        .context("dpkg-query cannot be run; podvm is developed on Debian or Ubuntu")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let installed: HashSet<&str> = text.lines().filter_map(|line| line.strip_suffix(" installed")).collect();
    Ok(needed.iter().filter(|name| !installed.contains(name.as_str())).cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_blank_lines_name_no_package() {
        let names: Vec<String> = parse("# one\n\ngcc  # the compiler\n kmod\n").collect();
        assert_eq!(names, ["gcc", "kmod"]);
    }

    #[test]
    fn a_package_that_does_not_exist_is_missing_and_dpkg_is_not() {
        let names = ["dpkg".to_owned(), "no-such-package".to_owned()];
        assert_eq!(missing(&names).unwrap(), ["no-such-package"]);
    }
}
