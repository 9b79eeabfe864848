//! Volumes at their places in an app's root.

use std::os::fd::AsFd;

use podvm_pod::manifest::{App, Mount};

use super::Pod;
use super::fill::fill;
use super::path::Root;
use crate::places::VolumePlace;
use crate::step::{Step, StepError};
use crate::sys::mount::{Detached, MountAttrFlags};

/// Mounts the volumes of the pod's app number `index` into its root, outer ones first, as the manifest has them. Places that
/// are missing are made; a volume that was just made gets what the image has at the place that it covers, with owner and mode.
///
/// # Errors
/// Which volume could not be filled or mounted.
pub fn mount_all(root: &Root, pod: &Pod, index: usize) -> Result<(), StepError> {
    let app: &App = &pod.spec.apps[index].app;
    // Before anything covers the image's content.
    for (position, mount) in app.mounts.iter().enumerate() {
        let is_first = app.mounts[..position].iter().all(|other| other.volume != mount.volume);
        if is_first && volume_of(pod, mount)?.filled_by == Some(index) {
            fill_one(root, pod, mount)?;
        }
    }
    app.mounts.iter().try_for_each(|mount| mount_one(root, pod, mount))
}

fn volume_of<'a>(pod: &'a Pod, wanted: &Mount) -> Result<&'a VolumePlace, StepError> {
    pod.places
        .volume(&wanted.volume)
        .ok_or_else(|| StepError::because(mount_what(wanted), "the pod has no such volume"))
}

fn mount_what(wanted: &Mount) -> String {
    format!("mount volume {} at {}", wanted.volume, wanted.path.display())
}

/// Fills a volume from the image's directory at its place, if the image has one there.
fn fill_one(root: &Root, pod: &Pod, wanted: &Mount) -> Result<(), StepError> {
    let volume = volume_of(pod, wanted)?;
    match root.content(&wanted.path).step(|| mount_what(wanted))? {
        Some(image) => fill(image.as_fd(), &volume.path).step(|| mount_what(wanted)),
        None => Ok(()),
    }
}

fn mount_one(root: &Root, pod: &Pod, wanted: &Mount) -> Result<(), StepError> {
    let what = || mount_what(wanted);
    let volume = volume_of(pod, wanted)?;
    let place = root.mount_point(&wanted.path).step(what)?;
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
