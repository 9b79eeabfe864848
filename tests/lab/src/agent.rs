//! Building the agent, which goes into L1's initramfs.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{LabError, program};

/// The target of binaries that run without the libraries of the system around them.
pub const STATIC_TARGET: &str = "x86_64-unknown-linux-gnu";
/// What makes a binary of that target static.
pub const STATIC_FLAGS: &str = "-C target-feature=+crt-static";

/// The checkout this crate was built in.
pub fn workspace() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().and_then(Path::parent).unwrap_or(here)
}

/// Where cargo puts what it builds.
pub fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), |dir| workspace().join(dir))
}

/// A cargo call that builds `package` as a static binary, and the path of that binary.
pub fn static_build(package: &str) -> (Command, PathBuf) {
    static_build_as(package, "supervisor")
}

/// As [`static_build`], by another of cargo's profiles.
pub fn static_build_as(package: &str, profile: &str) -> (Command, PathBuf) {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace()).env("RUSTFLAGS", STATIC_FLAGS);
    cargo.args(["build", "--quiet", "--package", package, "--target", STATIC_TARGET, "--profile", profile]);
    let folder = if profile == "dev" { "debug" } else { profile };
    (cargo, target_directory().join(STATIC_TARGET).join(folder).join(package))
}

/// The agent's binary, freshly built where its source has changed.
pub fn build() -> Result<PathBuf, LabError> {
    let (mut cargo, path) = static_build("podvm-lab-agent");
    program::output(&mut cargo)?;
    Ok(path)
}
