//! Where everything of a pod is: its layers, writable layers and volumes, each under a short path in the supervisor's scratch
//! directory, so that an overlay of many layers still fits into the one page that mount(2) takes.
//!
//! | path in the scratch directory | what |
//! |---|---|
//! | `layers/N` | a read-only layer: a mount, or a link to a directory |
//! | `writable` | what holds the apps' writable layers (`apps/NAME`) and the empty volumes (`volumes/NAME`) |
//! | `volumes/NAME` | a volume: a mount, or a link to a directory |
//! | `shm` | `/dev/shm`, which the pod's apps share as they share System V memory |
//! | `apps/NAME` | where an app's root is put together |

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use podvm_pod::manifest::{AppName, ByteSize, VolumeName};
use podvm_pod::protocol::{LayerSource, PodSpec, VolumeSource, WritableSource};

use crate::step::{Step, StepError};
use crate::sys::mount::{Detached, MountAttrFlags};
use crate::walls::{Source, Walls};

/// Size of the pod's `/dev/shm`: docker's and podman's default.
const SHM_SIZE: ByteSize = ByteSize::mib(64);

/// Where everything of a pod is.
#[derive(Debug)]
pub struct Places {
    scratch: PathBuf,
    layers: Vec<Vec<String>>,
    volumes: BTreeMap<VolumeName, VolumePlace>,
    mounts: Vec<PathBuf>,
    shm: PathBuf,
}

/// Where a volume's content is.
#[derive(Debug, Clone)]
pub struct VolumePlace {
    /// Its directory.
    pub path: PathBuf,
    /// Whether nobody may write to it.
    pub read_only: bool,
    /// The app, by index, whose image's content goes into a volume that has just been made, until it is in use.
    pub filled_by: Option<usize>,
}

impl Places {
    /// Mounts and makes everything that `spec` names.
    ///
    /// # Errors
    /// What could not be mounted or made.
    pub fn prepare(walls: &mut dyn Walls, spec: &PodSpec) -> Result<Self, StepError> {
        let scratch = walls.scratch().to_owned();
        let shm = scratch.join("shm");
        let mut places = Self { scratch, layers: Vec::new(), volumes: BTreeMap::new(), mounts: Vec::new(), shm };
        for directory in ["layers", "volumes", "apps", "shm"] {
            make_directory(&places.scratch.join(directory))?;
        }
        places.mount_layers(walls, spec)?;
        places.mount_writable(walls, &spec.writable)?;
        places.mount_volumes(walls, spec)?;
        match &spec.shm {
            Some(shm) => places.shm.clone_from(shm),
            None => places.mount_tmpfs("shm", SHM_SIZE, "1777")?,
        }
        Ok(places)
    }

    /// Directory of an app's own, in memory.
    pub fn app(&self, app: &AppName) -> PathBuf {
        self.scratch.join("apps").join(app.as_str())
    }

    /// Directory that the names of [`Self::layers_of`] are in.
    pub fn layers(&self) -> PathBuf {
        self.scratch.join("layers")
    }

    /// Names of an app's layers, lowest first.
    pub fn layers_of(&self, app: usize) -> &[String] {
        &self.layers[app]
    }

    /// Directory of an app's writable layer.
    pub fn writable_of(&self, app: &AppName) -> PathBuf {
        self.scratch.join("writable/apps").join(app.as_str())
    }

    /// A volume's place.
    pub fn volume(&self, name: &VolumeName) -> Option<&VolumePlace> {
        self.volumes.get(name)
    }

    /// The volumes are in use: what is in them is from now on what the apps make of it.
    pub fn end_filling(&mut self) {
        self.volumes.values_mut().for_each(|volume| volume.filled_by = None);
    }

    /// The pod's `/dev/shm`.
    pub fn shm(&self) -> PathBuf {
        self.shm.clone()
    }

    /// Unmounts everything that is not in use.
    pub fn unmount(&mut self) {
        while let Some(mount) = self.mounts.pop() {
            if let Err(error) = nix::mount::umount2(&mount, nix::mount::MntFlags::MNT_DETACH) {
                crate::step::note(format_args!("unmount {}: {error}", mount.display()));
            }
        }
    }

    fn mount_layers(&mut self, walls: &mut dyn Walls, spec: &PodSpec) -> Result<(), StepError> {
        // Apps of one image, and images of one base, share layers.
        let mut known: Vec<&LayerSource> = Vec::new();
        for app in &spec.apps {
            let mut names = Vec::new();
            for layer in &app.layers {
                let position = known.iter().position(|other| *other == layer);
                let name = position.unwrap_or(known.len()).to_string();
                if position.is_none() {
                    let at = self.layers().join(&name);
                    match layer {
                        LayerSource::Pmem(device) => self.mount(walls, Source::Pmem(device), &at)?,
                        LayerSource::Erofs(device) => self.mount(walls, Source::Erofs(device), &at)?,
                        LayerSource::Directory(path) => link(path, &at)?,
                    }
                    known.push(layer);
                }
                // Overlayfs takes none twice; of the same content at two heights, the upper one counts.
                names.retain(|other| *other != name);
                names.push(name);
            }
            if names.is_empty() {
                make_directory(&self.layers().join("none"))?;
                names.push("none".into());
            }
            self.layers.push(names);
        }
        Ok(())
    }

    fn mount_writable(&mut self, walls: &mut dyn Walls, writable: &WritableSource) -> Result<(), StepError> {
        let at = self.scratch.join("writable");
        match writable {
            WritableSource::Ext4(device) => self.mount(walls, Source::Ext4(device), &at)?,
            WritableSource::Directory(path) => link(path, &at)?,
            WritableSource::Tmpfs(size) => {
                make_directory(&at)?;
                self.mount_tmpfs("writable", *size, "0755")?;
            }
        }
        make_directory(&at.join("apps"))?;
        make_directory(&at.join("volumes"))
    }

    fn mount_volumes(&mut self, walls: &mut dyn Walls, spec: &PodSpec) -> Result<(), StepError> {
        for volume in &spec.volumes {
            let mut path = self.scratch.join("volumes").join(volume.name.as_str());
            let mut filled_by = None;
            match &volume.source {
                VolumeSource::VirtioFs(tag) => self.mount(walls, Source::VirtioFs(tag), &path)?,
                VolumeSource::Directory(directory) => path.clone_from(directory),
                VolumeSource::Empty => {
                    path = self.scratch.join("writable/volumes").join(volume.name.as_str());
                    if !path.exists() {
                        make_directory(&path)?;
                        let mounts_it = |app: &podvm_pod::protocol::AppSpec| {
                            app.app.mounts.iter().any(|mount| mount.volume == volume.name)
                        };
                        filled_by = spec.apps.iter().position(mounts_it);
                    }
                }
            }
            let place = VolumePlace { path, read_only: volume.read_only, filled_by };
            self.volumes.insert(volume.name.clone(), place);
        }
        Ok(())
    }

    fn mount(&mut self, walls: &mut dyn Walls, source: Source<'_>, at: &Path) -> Result<(), StepError> {
        make_directory(at)?;
        walls.mount(source, at)?;
        self.mounts.push(at.into());
        Ok(())
    }

    fn mount_tmpfs(&mut self, name: &str, size: ByteSize, mode: &str) -> Result<(), StepError> {
        let at = self.scratch.join(name);
        let size = size.bytes().to_string();
        let attributes = MountAttrFlags::MOUNT_ATTR_NODEV;
        let options = [("size", Some(size.as_str())), ("mode", Some(mode))];
        Detached::new("tmpfs", &options, attributes)
            .and_then(|mount| mount.attach_at(&at))
            .step(|| format!("mount a tmpfs at {}", at.display()))?;
        self.mounts.push(at);
        Ok(())
    }
}

fn make_directory(path: &Path) -> Result<(), StepError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.step(|| format!("make {}", path.display())),
    }
}

fn link(target: &Path, at: &Path) -> Result<(), StepError> {
    if !target.is_dir() {
        return Err(StepError::because(
            format!("use {}", target.display()),
            "it is no directory inside the pod's walls",
        ));
    }
    symlink(target, at).step(|| format!("link {} to {}", at.display(), target.display()))
}
