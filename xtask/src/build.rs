//! `cargo xtask build`: podvm, the supervisor and the guest kernel, put together in `target/podvm/` as they are
//! installed: `bin/podvm`, `lib/podvm/vmlinux`, `lib/podvm/initramfs.cpio`, `lib/podvm/supervisor`. With `--faults` the like in
//! `target/podvm-faults/`, of a podvm and a supervisor that can be made to die at every step (pod/src/fault.rs).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use podvm_lab::agent::{static_build, static_build_as, target_directory, workspace};
use podvm_lab::initramfs::Archive;

use crate::step::step;

/// The supervisor is carried into every VM; more than this would show in every start.
const SUPERVISOR_LIMIT: u64 = 2 << 20;

/// What adds the fault points to a build.
const FAULTS: [&str; 2] = ["--features", "fault-points"];

/// What to build.
#[derive(Clone, Copy, Default, clap::Args)]
#[group(skip)]
pub struct Arguments {
    /// Build podvm without optimization: much faster to build, for trying things
    #[arg(long)]
    pub dev: bool,
    /// Add the fault points of the tests of crashes.
    #[arg(skip)]
    pub faults: bool,
}

/// Where the parts are put together, whatever the target directory is: tests find them there.
pub fn prefix() -> PathBuf {
    workspace().join("target/podvm")
}

/// Where the podvm with fault points is.
fn faults_prefix() -> PathBuf {
    workspace().join("target/podvm-faults")
}

/// Builds everything and puts it together. Safe to repeat; what has not changed is not built again.
pub fn run(arguments: Arguments) -> anyhow::Result<()> {
    let (prefix, kind) = match arguments.faults {
        false => (prefix(), ""),
        true => (faults_prefix(), " with fault points"),
    };
    let podvm = step(&format!("build podvm{kind}"), || build_podvm(arguments))?;
    let supervisor = step(&format!("build the supervisor{kind}"), || build_supervisor(arguments))?;
    let kernel = step("build the guest kernel", kernel)?;
    step(&format!("put together {}", prefix.display()), || {
        let (binaries, library) = (prefix.join("bin"), prefix.join("lib/podvm"));
        place(&binaries.join("podvm"), &read(&podvm)?, true)?;
        place(&library.join("vmlinux"), &read(&kernel.join("vmlinux"))?, false)?;
        let supervisor = read(&supervisor)?;
        place(&library.join("initramfs.cpio"), &initramfs(&supervisor)?, false)?;
        place(&library.join("supervisor"), &supervisor, true)
    })
}

/// Runs cargo on the workspace; its progress goes to our standard error.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace());
    cargo
}

/// Runs a command whose output is meant for the user.
pub fn run_visibly(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("{command:?} cannot be run"))?;
    ensure!(status.success(), "{command:?} failed ({status})");
    Ok(())
}

fn build_podvm(arguments: Arguments) -> anyhow::Result<PathBuf> {
    let mut build = cargo();
    build.args(["build", "--package", "podvm"]);
    let dev = arguments.dev || arguments.faults;
    if !dev {
        build.arg("--release");
    }
    if arguments.faults {
        build.args(FAULTS);
    }
    run_visibly(&mut build)?;
    Ok(target_directory().join(if dev { "debug" } else { "release" }).join("podvm"))
}

fn build_supervisor(arguments: Arguments) -> anyhow::Result<PathBuf> {
    if arguments.faults {
        let (mut build, path) = static_build_as("guest-init", "dev");
        run_visibly(build.args(FAULTS))?;
        return Ok(path);
    }
    let (mut build, path) = static_build("guest-init");
    run_visibly(&mut build)?;
    let size = fs::metadata(&path).with_context(|| format!("cannot find {}", path.display()))?.len();
    ensure!(size < SUPERVISOR_LIMIT, "{} has {size} bytes; it must stay below {SUPERVISOR_LIMIT}", path.display());
    println!("    guest-init: {} KiB of at most {}", size >> 10, SUPERVISOR_LIMIT >> 10);
    Ok(path)
}

/// Builds the guest kernel, unless that was done before; returns the directory it is in. The script's progress goes to
/// standard error, and its last line names the directory.
pub fn kernel() -> anyhow::Result<PathBuf> {
    let script = workspace().join("kernel-config/build");
    let output = Command::new(&script)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("{} cannot be run", script.display()))?;
    ensure!(output.status.success(), "{} failed ({})", script.display(), output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let Some(directory) = text.lines().last().map(str::trim).filter(|line| !line.is_empty()) else {
        bail!("{} did not say where the kernel is", script.display());
    };
    Ok(workspace().join(directory))
}

/// The guest's initramfs: the supervisor, and the console that the kernel opens for it.
fn initramfs(supervisor: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.directory("dev")?;
    archive.character_device("dev/console", 5, 1)?;
    archive.file("init", 0o755, supervisor)?;
    Ok(archive.finish()?)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Puts a file in its place, whole or not at all, so that what runs from it meanwhile keeps its old content. An
/// equal file is left as it is.
fn place(path: &Path, content: &[u8], executable: bool) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if fs::read(path).is_ok_and(|present| present == content) {
        return Ok(());
    }
    let put = || -> std::io::Result<()> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory)?;
        let new = path.with_added_extension(format!("new-{}", std::process::id()));
        fs::write(&new, content)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(if executable { 0o755 } else { 0o644 }))?;
        fs::rename(&new, path)
    };
    put().with_context(|| format!("cannot write {}", path.display()))
}
