//! The full flavour's disk: a Debian with systemd, made once by mmdebstrap and cached as an ext4 image.
//!
//! The image has the lab's kernel modules but no kernel or initramfs package, since L1 boots the lab's own. Its
//! agent is a systemd service; the binary itself comes with every boot ([`podvm_lab_agent::plan::AGENT_PATH`]).

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use podvm_lab_agent::plan::AGENT_PATH;

use crate::cache::Cache;
use crate::kernel::Kernel;
use crate::{LabError, program};

/// The release that the image is made of.
const SUITE: &str = "bookworm";
/// What is in it: a host as a user of podvm has it. All of it with its dependencies, but no recommendations.
const PACKAGES: &[&str] = &[
    "ca-certificates",
    "curl",
    "dbus",
    "e2fsprogs",
    "iproute2",
    "iputils-ping",
    "kmod",
    "libpam-systemd",
    "nftables",
    "procps",
    "systemd",
    "systemd-container",
    "systemd-sysv",
    "udev",
    "util-linux",
];
/// What no test reads.
const LEFT_OUT: [&str; 4] = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"];
/// Units that cost boot time and do nothing in a machine that is forgotten. The trigger makes udev look for a
/// driver for every emulated device; the lab has loaded those that it needs. The consoles' logins would wait for it.
const MASKED_UNITS: [&str; 9] = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "systemd-udev-trigger.service",
    "getty@tty1.service",
    "serial-getty@ttyS0.service",
];
/// The image's size. The file is sparse.
const IMAGE_SIZE: &str = "16G";
/// Counted up when this file builds differently.
const RECIPE: &str = "1";

/// The agent's service.
fn agent_unit() -> String {
    format!(
        "[Unit]\nDescription=Runs the commands of podvm's lab\n\
         [Service]\nExecStart={AGENT_PATH} serve\nKillMode=process\nTasksMax=infinity\nLimitNOFILE=1024:524288\n\
         [Install]\nWantedBy=multi-user.target\n"
    )
}

/// The cached image; built, in minutes, if there is none.
pub fn image(cache: &Cache, kernel: &Kernel) -> Result<PathBuf, LabError> {
    let packages = PACKAGES.join(",");
    let unit = agent_unit();
    let masked = MASKED_UNITS.join(",");
    let recipe = [RECIPE, SUITE, &packages, &kernel.release, &unit, &masked];
    let place = cache.entry("full", &recipe, |place| {
        eprintln!("lab: making a Debian with systemd (once, minutes)");
        let root = place.join("root");
        bootstrap(&root, &packages)?;
        configure(&root, kernel, &unit).map_err(LabError::io(format!("configure {}", root.display())))?;
        copy_modules(&root, kernel)?;
        pack(&root, &place.join("disk.ext4"))?;
        fs::remove_dir_all(&root).map_err(LabError::io(format!("remove {}", root.display())))
    })?;
    Ok(place.join("disk.ext4"))
}

fn bootstrap(root: &Path, packages: &str) -> Result<(), LabError> {
    if !nix::unistd::geteuid().is_root() {
        let source =
            std::io::Error::new(std::io::ErrorKind::PermissionDenied, "run it once as root; it is cached then");
        return Err(LabError::Io { what: "make the full lab's image".into(), source });
    }
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--variant=minbase", "--format=directory", &format!("--include={packages}")]);
    command.args(LEFT_OUT.map(|path| format!("--dpkgopt=path-exclude={path}")));
    program::output(command.arg(SUITE).arg(root)).map(drop)
}

fn configure(root: &Path, kernel: &Kernel, unit: &str) -> std::io::Result<()> {
    let units = root.join("etc/systemd/system");
    for masked in MASKED_UNITS {
        symlink("/dev/null", units.join(masked))?;
    }
    let wanted = units.join("multi-user.target.wants");
    fs::create_dir_all(&wanted)?;
    fs::write(units.join("podvm-lab-agent.service"), unit)?;
    symlink("../podvm-lab-agent.service", wanted.join("podvm-lab-agent.service"))?;
    fs::write(root.join("etc/hostname"), "podvm-lab\n")?;
    fs::write(root.join("etc/hosts"), "127.0.0.1 localhost podvm-lab\n::1 localhost\n")?;
    // A machine that has an identity does not go through a first boot.
    fs::write(root.join("etc/machine-id"), "6c61620000004000800000000000706f\n")?;
    for place in ["etc", "var"] {
        File::create(root.join(place).join(".updated"))?;
    }
    fs::create_dir_all(root.join("host"))?;
    fs::create_dir_all(root.join("usr/lib/modules").join(&kernel.release))
}

fn copy_modules(root: &Path, kernel: &Kernel) -> Result<(), LabError> {
    let to = root.join("usr/lib/modules").join(&kernel.release);
    program::output(Command::new("cp").arg("-rT").arg(&kernel.modules).arg(to)).map(drop)
}

fn pack(root: &Path, image: &Path) -> Result<(), LabError> {
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d"]);
    program::output(command.arg(root).arg(image).arg(IMAGE_SIZE)).map(drop)
}
