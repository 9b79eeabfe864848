//! What `podvm doctor` looks at.

use std::fs;
use std::path::{Path, PathBuf};

use podvm_pod::manifest::ByteSize;

use super::nftables;
use super::{Check, Needed, Outcome};
use crate::config::Config;
use crate::rootless;

/// Free space below which images and pods soon fail.
const LITTLE_SPACE: ByteSize = ByteSize::mib(1 << 10);
/// Free space without which nothing can be done.
const NO_SPACE: ByteSize = ByteSize::mib(64);

type Finding = (Outcome, String);

/// All checks, the most important first, with what they are for.
pub fn all(config: &Config) -> Vec<Check> {
    use Needed::{Everywhere, ForNamespaces, ForVms};
    let mut checks = vec![
        (Everywhere, "user", user(config)),
        (ForVms, "kvm", kvm()),
        (ForVms, "guest kernel", file(&config.kernel, "kernel", b"\x7fELF", "an ELF vmlinux")),
        (ForVms, "initramfs", file(&config.initramfs, "initramfs", b"070701", "an uncompressed newc cpio archive")),
        (ForNamespaces, "supervisor", file(&config.supervisor, "supervisor", b"\x7fELF", "a static program")),
        (ForNamespaces, "user namespaces", user_namespaces(config)),
        // An ordinary user's pods behind namespaces have a directory instead of a disk.
        (if config.is_unprivileged { ForVms } else { Everywhere }, "mkfs.ext4", mkfs()),
        (Everywhere, "disk space", disk_space(&config.root)),
        (ForNamespaces, "cgroups", cgroups()),
        (ForNamespaces, "erofs", erofs(config)),
    ];
    if config.is_unprivileged {
        checks.push((ForVms, "passt", user_mode("passt")));
        checks.push((ForNamespaces, "pasta", user_mode("pasta")));
        checks.push((ForNamespaces, "tun", tun("pods have no network but --net=none and --net=host")));
    } else {
        checks.push((ForVms, "tun", tun("only --net=none works in VMs")));
        checks.push((Everywhere, "nftables", nftables_there()));
        checks.push((ForNamespaces, "loop devices", loop_devices()));
    }
    checks.into_iter().map(|(needed, name, (outcome, detail))| Check { name, needed, outcome, detail }).collect()
}

fn from_result(result: Result<(), String>, good: &str) -> Finding {
    match result {
        Ok(()) => (Outcome::Ok, good.into()),
        Err(detail) => (Outcome::Failed, detail),
    }
}

fn user(config: &Config) -> Finding {
    if !config.is_unprivileged {
        return (Outcome::Ok, "root".into());
    }
    match rootless::map_of_this_user() {
        Ok(detail) => (Outcome::Ok, detail),
        Err(detail) => (Outcome::Warning, detail),
    }
}

fn user_namespaces(config: &Config) -> Finding {
    let most = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    match (most.trim(), config.is_unprivileged) {
        ("" | "0", true) => {
            (Outcome::Failed, "this kernel lets nobody have any; set user.max_user_namespaces by sysctl, or be root".into())
        }
        ("" | "0", false) => {
            (Outcome::Warning, "this kernel lets nobody have any, so --private-users does not work; set user.max_user_namespaces by sysctl".into())
        }
        _ => (Outcome::Ok, "there".into()),
    }
}

fn program(name: &str) -> Option<PathBuf> {
    let folders: Vec<PathBuf> =
        std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file())
}

fn user_mode(name: &str) -> Finding {
    match program(name) {
        Some(path) => (Outcome::Ok, path.display().to_string()),
        None => (
            Outcome::Warning,
            format!("{name} is not in PATH, so pods have no network but --net=none and --net=host; install passt"),
        ),
    }
}

fn nftables_there() -> Finding {
    match nftables::check() {
        Ok(()) => (Outcome::Ok, "there".into()),
        Err(detail) => (Outcome::Warning, format!("{detail}; only --net=none works, and --net=host behind namespaces")),
    }
}

fn loop_devices() -> Finding {
    if Path::new("/dev/loop-control").exists() {
        (Outcome::Ok, "there".into())
    } else {
        (
            Outcome::Failed,
            "there is no /dev/loop-control, and pods' disks are mounted by loop devices; load the module loop".into(),
        )
    }
}

fn kvm() -> Finding {
    from_result(podvm_stage1_kvm::probe().map_err(|error| error.to_string()), "runs guests")
}

fn file(path: &Path, setting: &str, magic: &[u8], what: &str) -> Finding {
    let shown = path.display();
    let mut beginning = vec![0; magic.len()];
    let read = fs::File::open(path).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut beginning));
    match read {
        Ok(()) if beginning == magic => (Outcome::Ok, shown.to_string()),
        Ok(()) => (Outcome::Failed, format!("{shown} is not {what}; set {setting} in the configuration to one")),
        Err(error) => {
            (Outcome::Failed, format!("{shown}: {error}; install it there, or set {setting} in the configuration"))
        }
    }
}

fn tun(without: &str) -> Finding {
    let path = "/dev/net/tun";
    match fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => (Outcome::Ok, "there".into()),
        Err(error) => {
            (Outcome::Warning, format!("{path}: {error}, so {without}; load the module tun, and let users open it"))
        }
    }
}

fn mkfs() -> Finding {
    match podvm_pod::writable::mkfs() {
        Some(path) => (Outcome::Ok, path.display().to_string()),
        None => (Outcome::Failed, "mkfs.ext4 is neither in PATH nor in /usr/sbin; install e2fsprogs".into()),
    }
}

fn disk_space(root: &Path) -> Finding {
    let existing = root.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
    let space = match nix::sys::statvfs::statvfs(existing) {
        Ok(space) => ByteSize(space.blocks_available().saturating_mul(space.fragment_size())),
        Err(errno) => return (Outcome::Failed, format!("{}: {errno}", existing.display())),
    };
    let detail = format!("{space} free for {}", root.display());
    match space {
        space if space < NO_SPACE => (Outcome::Failed, format!("{detail}; make room, or use another --root")),
        space if space < LITTLE_SPACE => (Outcome::Warning, format!("{detail}; that is little")),
        _ => (Outcome::Ok, detail),
    }
}

/// Limits of apps in a VM are applied inside; behind namespaces the host does it.
fn cgroups() -> Finding {
    const NEEDED: [&str; 3] = ["memory", "cpu", "pids"];
    let controllers = match podvm_stage1_ns::cgroup::available_controllers() {
        Ok(controllers) => controllers,
        Err(_) => {
            let detail = "this user has none to divide, so apps have no limits; start podvm by systemd-run --user --scope -p Delegate=yes";
            return (Outcome::Warning, detail.into());
        }
    };
    let missing: Vec<&str> =
        NEEDED.into_iter().filter(|name| !controllers.split_whitespace().any(|there| there == *name)).collect();
    if missing.is_empty() {
        (Outcome::Ok, "version 2 with its controllers".into())
    } else {
        let detail = format!(
            "cgroup2 has no controllers {} here, so apps have no such limits; boot with systemd.unified_cgroup_hierarchy=1",
            missing.join(", ")
        );
        (Outcome::Warning, detail)
    }
}

/// The guest kernel reads EROFS itself.
fn erofs(config: &Config) -> Finding {
    let detail = if config.is_unprivileged {
        "layers are unpacked, for only root mounts them"
    } else if podvm_stage1_ns::mount::host_mounts_erofs() {
        "this kernel mounts it"
    } else {
        "layers are unpacked, for this kernel does not mount them; load the module erofs"
    };
    (Outcome::Ok, detail.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_its_beginning() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vmlinux");
        let check = || file(&path, "kernel", b"\x7fELF", "an ELF vmlinux");
        assert!(check().1.contains("set kernel in the configuration"));
        fs::write(&path, "hello").unwrap();
        assert!(check().1.contains("is not an ELF vmlinux"));
        fs::write(&path, b"\x7fELF...").unwrap();
        assert_eq!(check().0, Outcome::Ok);
    }
}
