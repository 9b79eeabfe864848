//! What the pod's tree is made of: mounts of its layers, its disk, its volumes, its cgroup, in no place yet. They are made here,
//! by the pod's process, since they take the host's privileges.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use podvm_pod::PodManifest;
use podvm_pod::manifest::{IpcMode, NetworkMode, Volume, VolumeKind};

use crate::handover::Part;
use crate::mount::{MountAttrFlags, bind, bind_resolved, layer, looped, map_owners, restrict};
use crate::spec::{CGROUP, LAYERS, SHM, VOLUMES, WRITABLE};

/// Devices that can be shown, but not made, where users are mapped.
const DEVICES: [&str; 6] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];

/// Where POSIX shared memory is (shm_overview(7)).
const HOST_SHM: &str = "/dev/shm";

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
    /// A link has taken the place of a volume's directory, or of one above it.
    #[error(
        "volume {name}: a symbolic link is now on the way to {path}, and is not followed; prepare the pod anew if it is to be", path = .path.display()
    )]
    VolumeMoved {
        /// Its name.
        name: String,
        /// Its directory.
        path: PathBuf,
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

/// What the parts of a pod's tree are made from.
#[derive(Debug)]
pub struct TreeSource<'a> {
    /// The pod.
    pub manifest: &'a PodManifest,
    /// The file with its writable filesystem, or a directory.
    pub writable: &'a Path,
    /// Its cgroup.
    pub cgroup: Option<&'a Path>,
    /// The user namespace that the owners of files are mapped to.
    pub users: Option<BorrowedFd<'a>>,
    /// Whether devices can only be shown to the pod, not made in it.
    pub has_no_devices: bool,
}

impl TreeSource<'_> {
    /// All parts.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn parts(&self) -> Result<Vec<Part>, TreeError> {
        let mut parts = Vec::new();
        for (number, path) in self.manifest.distinct_layers().into_iter().enumerate() {
            let failed = |source| TreeError::Layer { path: path.into(), source };
            let mount = layer(path).and_then(|mount| self.mapped(mount)).map_err(failed)?;
            parts.push(Part::directory(Path::new(LAYERS).join(number.to_string()), mount));
        }
        parts.push(self.writable()?);
        for volume in &self.manifest.volumes {
            if let VolumeKind::Host { source } = &volume.kind {
                parts.push(shared_directory(volume, source, self.users)?);
            }
        }
        if let Some(cgroup) = self.cgroup {
            parts.push(shown(cgroup, Path::new(CGROUP), false)?);
        }
        if self.manifest.ipc == IpcMode::Host {
            parts.push(shown(Path::new(HOST_SHM), Path::new(SHM), false)?);
        }
        if self.has_no_devices {
            for device in DEVICES.map(Path::new) {
                parts.push(shown(device, device, true)?);
            }
            if self.manifest.network == NetworkMode::Host {
                // Of a network that is not the pod's own, it can mount none itself.
                parts.push(shown(Path::new("/sys"), Path::new("/sys"), false)?);
            }
        }
        Ok(parts)
    }

    fn writable(&self) -> Result<Part, TreeError> {
        let path = self.writable;
        let mount = if path.is_dir() { bind(path, false) } else { looped("ext4", path, false) };
        let mount = mount.and_then(|mount| self.mapped(mount));
        Ok(Part::directory(WRITABLE, mount.map_err(|source| TreeError::Disk { path: path.into(), source })?))
    }

    fn mapped(&self, mount: OwnedFd) -> io::Result<OwnedFd> {
        match self.users {
            Some(users) => map_owners(mount.as_fd(), users).map(|()| mount),
            None => Ok(mount),
        }
    }
}

/// Something of the host, as it is.
fn shown(path: &Path, place: &Path, is_file: bool) -> Result<Part, TreeError> {
    let mount = bind(path, !is_file).map_err(|source| TreeError::Host { path: path.into(), source })?;
    Ok(Part { place: place.into(), is_file, mount })
}

fn shared_directory(volume: &Volume, source: &Path, users: Option<BorrowedFd<'_>>) -> Result<Part, TreeError> {
    let (name, path) = (volume.name.to_string(), source.to_owned());
    let place = Path::new(VOLUMES).join(&name);
    let failed = |source: io::Error| match source.raw_os_error() {
        Some(libc::ELOOP) => TreeError::VolumeMoved { name: name.clone(), path: path.clone() },
        _ => TreeError::Volume { name: name.clone(), path: path.clone(), source },
    };
    // Only the directory's own mount is mapped: what is mounted below may not be mappable, and is not shown then.
    let mount = bind_resolved(source, users.is_none()).map_err(failed)?;
    if volume.read_only {
        restrict(mount.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY).map_err(failed)?;
    }
    if let Some(users) = users {
        map_owners(mount.as_fd(), users).map_err(|source| TreeError::Owners { name, path, source })?;
    }
    Ok(Part::directory(place, mount))
}
