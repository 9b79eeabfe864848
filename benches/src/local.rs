//! Copies in memory of all that a monitor reads when it starts.
//!
//! The lab gets its files from a file server on the host. Its answers take as long as the host makes them wait, and a
//! monitor with many libraries would pay for each of them: a figure of the lab, not of the monitor.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

/// A directory in memory, gone when dropped.
#[derive(Debug)]
pub struct LocalCopies {
    directory: TempDir,
}

impl LocalCopies {
    /// Makes an empty one.
    ///
    /// # Errors
    /// When `/dev/shm` is not there.
    pub fn new() -> Result<Self> {
        let directory = tempfile::tempdir_in("/dev/shm").context("no directory can be made in /dev/shm")?;
        Ok(Self { directory })
    }

    /// Where the copies are.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Copies a file, and gives the copy's path.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn file(&self, path: &Path) -> Result<PathBuf> {
        let name = path.file_name().with_context(|| format!("{} is no file", path.display()))?;
        let copy = self.path().join(name);
        fs::copy(path, &copy).with_context(|| format!("cannot copy {}", path.display()))?;
        Ok(copy)
    }

    /// Copies a program and the libraries it is linked with, and gives the copy's path. It finds its libraries when
    /// `LD_LIBRARY_PATH` is [`LocalCopies::path`].
    ///
    /// # Errors
    /// When the program is not there, or ldd(1) does not know it.
    pub fn program(&self, path: &Path) -> Result<PathBuf> {
        let copy = self.file(path)?;
        let listed = Command::new("ldd").arg(path).output().context("ldd cannot be run")?;
        ensure!(listed.status.success(), "ldd {}: {}", path.display(), String::from_utf8_lossy(&listed.stderr));
        for library in libraries(&String::from_utf8_lossy(&listed.stdout)) {
            self.file(library)?;
        }
        Ok(copy)
    }
}

/// The files in ldd's answer, lines such as `libc.so.6 => /lib/libc.so.6 (0x7f…)`.
fn libraries(answer: &str) -> impl Iterator<Item = &Path> {
    let files = answer.lines().filter_map(|line| line.split_once(" => "));
    files.map(|(_, file)| Path::new(file.split_once(" (").map_or(file, |(path, _)| path)))
}

/// The file that a shell would run for this name.
///
/// # Errors
/// When there is none.
pub fn in_search_path(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates = std::env::split_paths(&path).map(|directory| directory.join(program));
    candidates.find(|file| file.is_file()).with_context(|| format!("{program} is not installed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_libraries_with_a_file_are_copied() {
        let answer =
            "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x00007f)\n\t/lib64/ld.so.2 (0x7f)\n";
        assert_eq!(libraries(answer).collect::<Vec<_>>(), [Path::new("/lib/x/libc.so.6")]);
    }

    #[test]
    fn a_program_runs_from_its_copy() {
        let copies = LocalCopies::new().unwrap();
        let copy = copies.program(&in_search_path("env").unwrap()).unwrap();
        let output = Command::new(&copy).env("LD_LIBRARY_PATH", copies.path()).output().unwrap();
        assert!(output.status.success());
        assert!(copies.path().join("libc.so.6").is_file());
    }
}
