//! Filesystems on the VM's devices.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::step::{Step, StepError};
use crate::sys::mount::{Detached, MountAttrFlags, MountOption};
use crate::walls::Source;

/// How long a device may take to appear: those of a VM are there from the start, but for their partitions' names.
const APPEARS_WITHIN: Duration = Duration::from_secs(5);

/// For kernels of the user's own; podvm's has all that it takes.
const PMEM_CURE: &str = "a guest kernel without virtio-pmem and DAX needs layers = \"disk\" in podvm's configuration";

/// Mounts `source` at the directory `at`.
///
/// # Errors
/// What could not be mounted, and why.
pub fn mount(source: Source<'_>, at: &Path) -> Result<(), StepError> {
    const READ_ONLY: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY;
    match source {
        Source::Erofs(device) => mount_device("erofs", device, at, &[("ro", None)], READ_ONLY),
        Source::Pmem(device) => mount_device("erofs", device, at, &[("ro", None), ("dax", Some("always"))], READ_ONLY)
            .map_err(|StepError { what, error }| StepError::because(what, format_args!("{error}; {PMEM_CURE}"))),
        // What is deleted is given back to the host.
        Source::Ext4(device) => mount_device("ext4", device, at, &[("discard", None)], MountAttrFlags::empty()),
        Source::VirtioFs(tag) => mount_source("virtiofs", tag, at, &[], MountAttrFlags::empty()),
    }
}

fn mount_device(
    filesystem: &str,
    device: &Path,
    at: &Path,
    options: &[MountOption<'_>],
    attributes: MountAttrFlags,
) -> Result<(), StepError> {
    let until = Instant::now() + APPEARS_WITHIN;
    while !device.exists() {
        if Instant::now() > until {
            return Err(StepError::because(format!("mount {}", device.display()), "there is no such device in the VM"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let name = device
        .to_str()
        .ok_or_else(|| StepError::because(format!("mount {}", device.display()), "its name is no plain text"))?;
    mount_source(filesystem, name, at, options, attributes)
}

fn mount_source(
    filesystem: &str,
    source: &str,
    at: &Path,
    options: &[MountOption<'_>],
    attributes: MountAttrFlags,
) -> Result<(), StepError> {
    let options: Vec<MountOption<'_>> = [("source", Some(source))].into_iter().chain(options.iter().copied()).collect();
    Detached::new(filesystem, &options, attributes)
        .and_then(|mount| mount.attach_at(at))
        .map(drop)
        .step(|| format!("mount {source} as {filesystem}"))
}
