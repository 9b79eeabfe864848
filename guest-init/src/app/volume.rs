//! Volumes at their places in an app's root.

use std::os::fd::AsFd;

use podvm_pod::manifest::{App, Mount};

use super::Pod;
use super::path::{Root, ownership, set_ownership};
use crate::step::{Step, StepError};
use crate::sys::mount::{Detached, MountAttrFlags};

/// Mounts the volumes of the pod's app number `index` into its root, outer ones first, as the manifest has them. Places that
/// are missing are made; a volume that was just made gets owner and mode of the directory it covers.
///
/// # Errors
/// Which volume could not be mounted.
pub fn mount_all(root: &Root, pod: &Pod, index: usize) -> Result<(), StepError> {
    let app: &App = &pod.spec.apps[index].app;
    app.mounts.iter().try_for_each(|mount| mount_one(root, pod, index, mount))
}

fn mount_one(root: &Root, pod: &Pod, index: usize, wanted: &Mount) -> Result<(), StepError> {
    let what = || format!("mount volume {} at {}", wanted.volume, wanted.path.display());
    let volume =
        pod.places.volume(&wanted.volume).ok_or_else(|| StepError::because(what(), "the pod has no such volume"))?;
    let place = root.mount_point(&wanted.path).step(what)?;
    if volume.owned_as_in == Some(index) && !place.made {
        ownership(place.fd.as_fd()).and_then(|owner| set_ownership(&volume.path, owner)).step(what)?;
    }
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    if volume.read_only || wanted.read_only {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    let mount = || {
        let mount = Detached::bind_path(&volume.path, true)?;
        mount.restrict(attributes, true)?;
        mount.attach(place.fd.as_fd())
    };
    mount().map(drop).step(what)
}
