//! What `podvm doctor` looks at.

use std::fs;
use std::path::{Path, PathBuf};

use podvm_pod::manifest::ByteSize;

use super::nftables;
use super::{Check, Outcome};
use crate::config::Config;

/// Free space below which images and pods soon fail.
const LITTLE_SPACE: ByteSize = ByteSize::mib(1 << 10);
/// Free space without which nothing can be done.
const NO_SPACE: ByteSize = ByteSize::mib(64);

type Finding = (Outcome, String);

/// All checks, the most important first.
pub fn all(config: &Config) -> Vec<Check> {
    let checks: [(&'static str, Finding); 10] = [
        ("user", user()),
        ("kvm", kvm()),
        ("guest kernel", file(&config.kernel, "kernel", b"\x7fELF", "an ELF vmlinux")),
        ("initramfs", file(&config.initramfs, "initramfs", b"070701", "an uncompressed newc cpio archive")),
        ("tun", tun()),
        ("nftables", from_result(nftables::check(), "there")),
        ("mkfs.ext4", mkfs()),
        ("disk space", disk_space(&config.root)),
        ("cgroups", cgroups()),
        ("erofs", erofs()),
    ];
    checks.into_iter().map(|(name, (outcome, detail))| Check { name, outcome, detail }).collect()
}

fn from_result(result: Result<(), String>, good: &str) -> Finding {
    match result {
        Ok(()) => (Outcome::Ok, good.into()),
        Err(detail) => (Outcome::Failed, detail),
    }
}

fn user() -> Finding {
    if nix::unistd::geteuid().is_root() {
        (Outcome::Ok, "root".into())
    } else {
        (Outcome::Failed, "not root; pods of ordinary users are not built yet: use sudo".into())
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

fn tun() -> Finding {
    let path = "/dev/net/tun";
    let opened = fs::OpenOptions::new().read(true).write(true).open(path).map(drop);
    from_result(
        opened.map_err(|error| format!("{path}: {error}; load the module tun (only --net=none works without)")),
        "there",
    )
}

fn mkfs() -> Finding {
    let folders: Vec<PathBuf> =
        std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    match folders.iter().map(|folder| folder.join("mkfs.ext4")).find(|path| path.is_file()) {
        Some(path) => (Outcome::Ok, path.display().to_string()),
        None => (Outcome::Failed, "mkfs.ext4 is not in PATH; install e2fsprogs".into()),
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

/// Limits of apps are applied inside the VM; the host's own matter to what surrounds podvm.
fn cgroups() -> Finding {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        (Outcome::Ok, "version 2".into())
    } else {
        let detail =
            "no version 2 at /sys/fs/cgroup; pods run, but what this host limits them by is not podvm's to see";
        (Outcome::Warning, detail.into())
    }
}

/// The guest kernel reads EROFS itself.
fn erofs() -> Finding {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let detail = if known.lines().any(|line| line.trim_start_matches("nodev").trim() == "erofs") {
        "this kernel mounts it"
    } else {
        "this kernel has not loaded it; VMs do not need it to"
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
