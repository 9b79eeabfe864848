//! What the pod's tree is made of: mounts of its layers, its disk, its volumes, its cgroup, in no place yet. They are made here,
//! by the pod's process, since they take the host's privileges.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use podvm_pod::PodManifest;
use podvm_pod::manifest::{NetworkMode, Volume, VolumeKind};

use crate::handover::Part;
use crate::mount::{MountAttrFlags, bind, layer, looped, map_owners, restrict};
use crate::spec::{CGROUP, LAYERS, VOLUMES, WRITABLE, distinct_layers};

/// Devices that can be shown, but not made, where users are mapped.
const DEVICES: [&str; 6] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];

/// Why a part cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A layer.
    #[error("the image's layer {path} cannot be mounted: {source}; import the image again, and see `podvm doctor`", path = .path.display())]
    Layer {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The disk of what the apps write.
    #[error("the pod's disk {path} cannot be mounted: {source}; loop devices and ext4 are needed", path = .path.display())]
    Disk {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A volume.
    #[error("volume {name}: {path} cannot be mounted: {source}", path = .path.display())]
    Volume {
        /// Its name.
        name: String,
        /// Its directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The owners of files of a volume cannot be shown as the pod's users.
    #[error(
        "volume {name}: the owners in {path} cannot be mapped ({source}): its filesystem has no idmapped mounts; leave out --private-users", path = .path.display()
    )]
    Owners {
        /// Its name.
        name: String,
        /// Its directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something every host has.
    #[error("{path} cannot be shown in the pod: {source}", path = .path.display())]
    Host {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// All parts of a pod's tree. `disk` is the file with its writable filesystem; `users` the user namespace of a pod with users
/// of its own.
///
/// # Errors
/// [`TreeError`].
pub fn parts(
    manifest: &PodManifest,
    disk: &Path,
    cgroup: Option<&Path>,
    users: Option<BorrowedFd<'_>>,
) -> Result<Vec<Part>, TreeError> {
    let mapped = |mount: OwnedFd| match users {
        Some(users) => map_owners(mount.as_fd(), users).map(|()| mount),
        None => Ok(mount),
    };
    let mut parts = Vec::new();
    for (number, path) in distinct_layers(manifest).into_iter().enumerate() {
        let mount = layer(path).and_then(mapped).map_err(|source| TreeError::Layer { path: path.into(), source })?;
        parts.push(Part::directory(Path::new(LAYERS).join(number.to_string()), mount));
    }
    let writable = looped("ext4", disk, false).and_then(mapped);
    let writable = writable.map_err(|source| TreeError::Disk { path: disk.into(), source })?;
    parts.push(Part::directory(WRITABLE, writable));
    for volume in &manifest.volumes {
        if let VolumeKind::Host { source } = &volume.kind {
            parts.push(shared_directory(volume, source, users)?);
        }
    }
    let mut show = |path: &Path, place: &Path, is_file: bool| -> Result<(), TreeError> {
        let mount = bind(path, !is_file).map_err(|source| TreeError::Host { path: path.into(), source })?;
        parts.push(Part { place: place.into(), is_file, mount });
        Ok(())
    };
    if let Some(cgroup) = cgroup {
        show(cgroup, Path::new(CGROUP), false)?;
    }
    if users.is_some() {
        for device in DEVICES.map(Path::new) {
            show(device, device, true)?;
        }
        if manifest.network == NetworkMode::Host {
            // Of a network that is not the pod's own, it can mount none itself.
            show(Path::new("/sys"), Path::new("/sys"), false)?;
        }
    }
    Ok(parts)
}

fn shared_directory(volume: &Volume, source: &Path, users: Option<BorrowedFd<'_>>) -> Result<Part, TreeError> {
    let (name, path) = (volume.name.to_string(), source.to_owned());
    let place = Path::new(VOLUMES).join(&name);
    let failed = |source| TreeError::Volume { name: name.clone(), path: path.clone(), source };
    // Only the directory's own mount is mapped: what is mounted below may not be mappable, and is not shown then.
    let mount = bind(source, users.is_none()).map_err(failed)?;
    if volume.read_only {
        restrict(mount.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY).map_err(failed)?;
    }
    if let Some(users) = users {
        map_owners(mount.as_fd(), users).map_err(|source| TreeError::Owners { name, path, source })?;
    }
    Ok(Part::directory(place, mount))
}
