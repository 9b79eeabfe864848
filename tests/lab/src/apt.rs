//! Debian packages as files: looked up, downloaded and unpacked, with nothing installed.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::process::Command;

use crate::{LabError, program};

/// The packages that `package` depends on, by name, alternatives included.
pub fn depends(package: &str) -> Result<Vec<String>, LabError> {
    let text = program::text(Command::new("apt-cache").args(["depends", "--no-recommends", "--no-suggests", package]))?;
    let names = text.lines().filter_map(|line| line.trim().trim_start_matches('|').strip_prefix("Depends: "));
    Ok(names.map(str::to_owned).collect())
}

/// Whether the package lists know a version of `package` that can be downloaded.
pub fn exists(package: &str) -> Result<bool, LabError> {
    let text = program::text(Command::new("apt-cache").args(["policy", package]))?;
    Ok(text.lines().any(|line| line.trim().strip_prefix("Candidate: ").is_some_and(|version| version != "(none)")))
}

/// The versions of the packages that would be downloaded, as one text that changes when one of them does.
pub fn versions(packages: &[String]) -> Result<String, LabError> {
    let text = program::text(Command::new("apt-cache").arg("policy").args(packages).env("LC_ALL", "C"))?;
    let told = |line: &&str| !line.starts_with(' ') || line.trim_start().starts_with("Candidate: ");
    Ok(text.lines().filter(told).collect::<Vec<_>>().join("\n"))
}

/// How the names of packages begin that hold libraries.
const LIBRARY_PREFIXES: [&str; 2] = ["lib", "zlib"];

/// The library packages that the packages need, through however many other libraries.
pub fn library_closure(packages: &[String]) -> Result<Vec<String>, LabError> {
    let mut command = Command::new("apt-cache");
    command.args(["depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks"]);
    command.args(["--no-replaces", "--no-enhances"]).args(packages).env("LC_ALL", "C");
    if packages.is_empty() {
        return Ok(Vec::new());
    }
    Ok(libraries_among(&program::text(&mut command)?, packages))
}

/// Walks apt-cache's listing, in which an unindented name is followed by what it depends on.
fn libraries_among(listing: &str, packages: &[String]) -> Vec<String> {
    let (mut needs, mut current) = (HashMap::<&str, Vec<&str>>::new(), "");
    for line in listing.lines() {
        match line.trim().trim_start_matches('|').split_once("epends: ") {
            Some((_, name)) => needs.entry(current).or_default().push(name.trim()),
            None if !line.starts_with(' ') => current = line.trim(),
            None => {}
        }
    }
    let (mut libraries, mut open) = (BTreeSet::new(), packages.iter().map(String::as_str).collect::<Vec<_>>());
    while let Some(package) = open.pop() {
        for name in needs.get(package).into_iter().flatten() {
            let is_library = LIBRARY_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
            // `libc-dev:i386` and the like are for other machines.
            if is_library && !name.contains(':') && libraries.insert((*name).to_owned()) {
                open.push(name);
            }
        }
    }
    libraries.into_iter().collect()
}

/// Refreshes the package lists, which only root can.
pub fn update() -> Result<(), LabError> {
    program::output(Command::new("apt-get").args(["-qq", "update"])).map(drop)
}

/// Downloads the packages' files into `directory`.
pub fn download(packages: &[String], directory: &Path) -> Result<(), LabError> {
    let get = || {
        let mut command = Command::new("apt-get");
        command.args(["-qq", "-o", "APT::Sandbox::User=root", "download"]);
        program::output(command.args(packages).current_dir(directory)).map(drop)
    };
    if packages.is_empty() {
        return Ok(());
    }
    // Old lists name files that the mirror has replaced since.
    get().or_else(|error| if update().is_ok() { get() } else { Err(error) })
}

/// Unpacks every package file of `directory` into `root`, and removes the files.
pub fn unpack_all(directory: &Path, root: &Path) -> Result<(), LabError> {
    let entries = std::fs::read_dir(directory).map_err(LabError::io(format!("list {}", directory.display())))?;
    for file in entries.flatten().map(|entry| entry.path()) {
        if file.extension().is_some_and(|extension| extension == "deb") {
            program::output(Command::new("dpkg").arg("-x").arg(&file).arg(root))?;
            std::fs::remove_file(&file).map_err(LabError::io(format!("remove {}", file.display())))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_libraries_are_followed() {
        let listing = "server\n  Depends: adduser\n |Depends: libone\n  PreDepends: init\nadduser\n  Depends: libperl\n\
                       libone\n  Depends: libtwo\n  Depends: libother:i386\nlibtwo\n  Depends: libone\n";
        assert_eq!(libraries_among(listing, &["server".into()]), ["libone", "libtwo"]);
    }
}
