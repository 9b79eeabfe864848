//! Debian packages as files: looked up, downloaded and unpacked, with nothing installed.

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
