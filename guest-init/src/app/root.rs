//! An app's root filesystem: an overlay of the image's layers and the app's own writable layer.
//!
//! A read-only root is read-only but for `/run`, `/tmp` and `/var/tmp`, which stay writable with the image's content in
//! them, as podman's `--read-only` has them.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use podvm_pod::manifest::Capability;
use rustix::fs::Mode;

use super::Pod;
use super::path::Root;
use crate::step::{Step, StepError};
use crate::sys::mount::{Detached, MountAttrFlags, mount_with_text, restrict};

/// Directories that stay writable under a read-only root, with the mode they get when the image lacks them.
const ALWAYS_WRITABLE: [(&str, u32); 3] = [("/run", 0o755), ("/tmp", 0o1777), ("/var/tmp", 0o1777)];

/// Puts together the root of the pod's app number `index` in the calling process's mount namespace.
///
/// # Errors
/// What could not be made or mounted.
pub fn assemble(pod: &Pod, index: usize) -> Result<Root, StepError> {
    let name = &pod.spec.apps[index].app.name;
    let (at, writable) = (pod.places.app(name).join("root"), pod.places.writable_of(name));
    // Overlayfs lists the uppermost layer first. The names are short and relative, so that even the most layers it takes
    // (500) fit into one page.
    let layers: Vec<&str> = pod.places.layers_of(index).iter().rev().map(String::as_str).collect();
    for directory in [&at, &writable.join("work")] {
        fs::create_dir_all(directory).step(|| format!("make {}", directory.display()))?;
    }
    let own = writable.join("upper");
    if let (false, Some(uppermost)) = (own.exists(), layers.first()) {
        make_like(&own, &pod.places.layers().join(uppermost)).step(|| format!("make {}", own.display()))?;
    }
    let upper = format!("../writable/apps/{name}");
    // The attributes that overlayfs usually keeps its marks in are not for the root of a user namespace to see.
    let marks = if pod.has_mapped_users { ",userxattr" } else { "" };
    let options = format!("lowerdir={},upperdir={upper}/upper,workdir={upper}/work{marks}", layers.join(":"));
    nix::unistd::chdir(&pod.places.layers()).step(|| "enter the directory of the layers")?;
    mount_with_text("overlay", &at, &options).step(|| format!("mount an overlay of {} layers", layers.len()))?;
    Root::open(&at).step(|| format!("open {}", at.display()))
}

/// Makes a directory with another's mode and owner: the app's own layer is what it sees its root as.
fn make_like(directory: &Path, other: &Path) -> std::io::Result<()> {
    let metadata = fs::metadata(other)?;
    fs::create_dir_all(directory)?;
    // An owner that this pod's users do not have shows as nobody, and nobody else's it cannot be made.
    let _ = std::os::unix::fs::chown(directory, Some(metadata.uid()), Some(metadata.gid()));
    fs::set_permissions(directory, metadata.permissions())
}

/// Takes away what the root is not to allow: writing where it is read-only, and device files, which only an app that
/// may make some has a use for, and only where the devices are not the host's. To be called when all else is in place.
///
/// # Errors
/// What could not be restricted.
pub fn restrict_root(root: &Root, pod: &Pod, index: usize) -> Result<(), StepError> {
    let app = &pod.spec.apps[index].app;
    let mut attributes = MountAttrFlags::empty();
    if !(pod.has_own_devices && app.isolators.capabilities.contains(&Capability::Mknod)) {
        attributes |= MountAttrFlags::MOUNT_ATTR_NODEV;
    }
    if app.read_only_root {
        for (path, mode) in ALWAYS_WRITABLE {
            keep_writable(root, Path::new(path), mode)?;
        }
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    restrict_mount_of(root, attributes).step(|| "restrict the root filesystem")
}

fn restrict_mount_of(root: &Root, attributes: MountAttrFlags) -> std::io::Result<()> {
    restrict(root.as_fd(), attributes, false)
}

/// Mounts a directory on itself, so that it keeps its own attributes.
fn keep_writable(root: &Root, path: &Path, mode: u32) -> Result<(), StepError> {
    let what = || format!("keep {} writable", path.display());
    let place = root.mount_point(path).step(what)?;
    if place.made {
        let directory = rustix::fs::openat(
            &place.fd,
            ".",
            rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
            Mode::empty(),
        )
        .step(what)?;
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode)).step(what)?;
    }
    let mount = || {
        // What is mounted below, such as a volume, comes along with its own attributes.
        let mount = Detached::bind(place.fd.as_fd(), true)?;
        mount.restrict(MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID, false)?;
        mount.attach(place.fd.as_fd())
    };
    mount().map(drop).step(what)
}

/// Makes `root` the root of the calling process's mount namespace; nothing of what was there before can be reached any more.
///
/// # Errors
/// Those of pivot_root(2) and umount(2).
pub fn enter(root: &Root) -> Result<(), StepError> {
    nix::unistd::fchdir(root).step(|| "enter the root")?;
    // With both paths alike the old root lies on top of the new one, and is what "." unmounts.
    nix::unistd::pivot_root(".", ".").step(|| "change the root")?;
    nix::mount::umount2(".", nix::mount::MntFlags::MNT_DETACH).step(|| "let go of the old root")?;
    nix::unistd::chdir("/").step(|| "enter the new root")
}
