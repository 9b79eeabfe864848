//! From `--volume`, `--mount` and what images declare to the pod's volumes and each app's mounts.

use std::io;
use std::path::{Component, Path, PathBuf};

use podvm_pod::manifest::{AppName, Mount, Volume, VolumeKind, VolumeName};

use super::error::PrepareError;
use super::image::DeclaredVolume;

/// Where no volume can be.
const ROOT: &str = "/";

/// Whether the place is the system's: `/dev`, `/proc`, `/sys`, and what is below the latter two, where there is nothing that a
/// volume could be put on. Below `/dev` there can be volumes.
pub fn is_the_systems(path: &Path) -> bool {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::ParentDir => drop(names.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    match names.first().and_then(|name| name.to_str()) {
        Some("proc" | "sys") => true,
        Some("dev") => names.len() == 1,
        _ => false,
    }
}

/// What an app wants of the pod's volumes.
#[derive(Debug, Clone, Copy)]
pub struct AppVolumes<'a> {
    /// The app.
    pub app: &'a AppName,
    /// What `--mount` asks for.
    pub mounts: &'a [Mount],
    /// What its image declares.
    pub declared: &'a [DeclaredVolume],
}

/// Settles the pod's volumes, and the mounts of each app in the order of `apps`.
///
/// A place that an image declares gets the volume whose name fits, else an empty volume of its own.
///
/// # Errors
/// [`PrepareError`] for names that are given twice or lead nowhere, and for sources that are no directories.
pub fn resolve(given: &[Volume], apps: &[AppVolumes<'_>]) -> Result<(Vec<Volume>, Vec<Vec<Mount>>), PrepareError> {
    let mut volumes: Vec<Volume> = Vec::new();
    for volume in given {
        if volumes.iter().any(|known| known.name == volume.name) {
            return Err(PrepareError::VolumeTwice(volume.name.clone()));
        }
        volumes.push(checked(volume)?);
    }
    let mut mounts = Vec::new();
    for app in apps {
        mounts.push(mounts_of(app, given, &mut volumes)?);
    }
    let unused = given.iter().find(|volume| !mounts.iter().flatten().any(|mount| mount.volume == volume.name));
    match unused {
        None => Ok((volumes, mounts)),
        Some(volume) => {
            let declared = apps.iter().flat_map(|app| app.declared).filter_map(|declared| declared.names.first());
            let mut declared = declared.map(VolumeName::as_str).collect::<Vec<_>>().join(", ");
            if declared.is_empty() {
                declared = "the images here declare none".into();
            }
            Err(PrepareError::VolumeUnused { name: volume.name.clone(), declared })
        }
    }
}

fn mounts_of(app: &AppVolumes<'_>, given: &[Volume], volumes: &mut Vec<Volume>) -> Result<Vec<Mount>, PrepareError> {
    let mut mounts: Vec<Mount> = Vec::new();
    for mount in app.mounts {
        if !given.iter().any(|volume| volume.name == mount.volume) {
            return Err(PrepareError::MountWithoutVolume { app: app.app.clone(), volume: mount.volume.clone() });
        }
        let mount = Mount { path: mount.path.components().collect(), ..mount.clone() };
        if mount.path == Path::new(ROOT) {
            return Err(PrepareError::MountAtRoot { app: app.app.clone(), volume: mount.volume });
        }
        if is_the_systems(&mount.path) {
            return Err(PrepareError::MountAtSystem { app: app.app.clone(), volume: mount.volume, path: mount.path });
        }
        if mounts.iter().any(|other| other.path == mount.path) {
            return Err(PrepareError::MountTwice { app: app.app.clone(), path: mount.path });
        }
        mounts.push(mount);
    }
    for declared in app.declared {
        // An image that wants its whole root kept asks for what no volume can be.
        let is_no_place = declared.path == Path::new(ROOT) || is_the_systems(&declared.path);
        if is_no_place || mounts.iter().any(|mount| mount.path == declared.path) {
            continue;
        }
        let fitting = declared.names.iter().find(|name| given.iter().any(|volume| volume.name == **name));
        let volume = match fitting {
            Some(name) => name.clone(),
            None => {
                let name = free_name(app.app, declared, volumes);
                volumes.push(Volume { name: name.clone(), kind: VolumeKind::Empty, read_only: false });
                name
            }
        };
        mounts.push(Mount { volume, path: declared.path.clone(), read_only: declared.read_only });
    }
    // By components, so that outer places come before those inside them.
    mounts.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(mounts)
}

/// A name for an empty volume that nobody named.
fn free_name(app: &AppName, declared: &DeclaredVolume, volumes: &[Volume]) -> VolumeName {
    let wish = declared.names.first().map_or("volume", VolumeName::as_str);
    let numbered = (0_u32..).map(|number| match number {
        0 => format!("{app}-{wish}"),
        // In front, where it is not cut off.
        number => format!("{number}-{app}-{wish}"),
    });
    let mut names = numbered.filter_map(|name| AppName::from_lossy(&name).as_str().parse::<VolumeName>().ok());
    let is_free = |name: &VolumeName| !volumes.iter().any(|volume| volume.name == *name);
    names.find(is_free).unwrap_or_else(|| unreachable!("there are more numbers than volumes"))
}

/// The volume with its source as it really is.
pub fn checked(volume: &Volume) -> Result<Volume, PrepareError> {
    let VolumeKind::Host { source } = &volume.kind else { return Ok(volume.clone()) };
    let name = volume.name.clone();
    let source = real_directory(source).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => PrepareError::VolumeSourceMissing { name, path: source.clone() },
        io::ErrorKind::NotADirectory => PrepareError::VolumeSourceNoDirectory { name, path: source.clone() },
        _ => PrepareError::VolumeSource { name, path: source.clone(), source: error },
    })?;
    Ok(Volume { kind: VolumeKind::Host { source }, ..volume.clone() })
}

fn real_directory(path: &Path) -> io::Result<PathBuf> {
    let path = path.canonicalize()?;
    if path.metadata()?.is_dir() { Ok(path) } else { Err(io::ErrorKind::NotADirectory.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(names: &[&str], path: &str) -> DeclaredVolume {
        DeclaredVolume {
            names: names.iter().map(|name| name.parse().unwrap()).collect(),
            path: path.into(),
            read_only: false,
        }
    }

    fn resolve_one(volumes: &[&str], mounts: &[&str]) -> Result<(Vec<Volume>, Vec<Mount>), PrepareError> {
        let app = "etcd".parse().unwrap();
        let volumes: Vec<Volume> = volumes.iter().map(|text| text.parse().unwrap()).collect();
        let mounts: Vec<Mount> = mounts.iter().map(|text| text.parse().unwrap()).collect();
        let places = [declared(&["data-dir", "etcd", "var-lib-etcd"], "/var/lib/etcd"), declared(&["x"], "/x")];
        let apps = [AppVolumes { app: &app, mounts: &mounts, declared: &places }];
        resolve(&volumes, &apps).map(|(volumes, mut mounts)| (volumes, mounts.remove(0)))
    }

    fn shown(mounts: &[Mount]) -> Vec<String> {
        mounts.iter().map(|mount| format!("{}={}", mount.volume, mount.path.display())).collect()
    }

    #[test]
    fn a_declared_place_gets_the_volume_that_any_of_its_names_fits() {
        for name in ["data-dir", "etcd", "var-lib-etcd"] {
            let (volumes, mounts) = resolve_one(&[&format!("{name},kind=empty")], &[]).unwrap();
            assert_eq!(shown(&mounts), [format!("{name}=/var/lib/etcd"), "etcd-x=/x".into()]);
            assert_eq!(volumes.len(), 2);
        }
    }

    #[test]
    fn a_declared_place_without_a_volume_gets_an_empty_one() {
        let (volumes, mounts) = resolve_one(&[], &[]).unwrap();
        assert_eq!(shown(&mounts), ["etcd-data-dir=/var/lib/etcd", "etcd-x=/x"]);
        assert!(volumes.iter().all(|volume| volume.kind == VolumeKind::Empty));
    }

    #[test]
    fn a_mount_comes_before_what_the_image_declares() {
        let mounts = ["volume=a,target=/x/", "volume=a,target=/a"];
        let (_, mounts) = resolve_one(&["a,kind=empty"], &mounts).unwrap();
        assert_eq!(shown(&mounts), ["a=/a", "etcd-data-dir=/var/lib/etcd", "a=/x"]);
    }

    #[test]
    fn what_does_not_fit_together_is_named() {
        for (volumes, mounts, part) in [
            (&["a,kind=empty", "a,kind=empty"][..], &[][..], "volume a is given twice"),
            (&["a,kind=empty"], &[], "used by no app; name it as an image does (data-dir, x)"),
            (&[], &["volume=b,target=/b"], "mounts volume b, which the pod does not have"),
            (&["a,kind=empty"], &["volume=a,target=/b", "volume=a,target=/b/"], "two volumes at /b"),
            (&["a,kind=empty"], &["volume=a,target=//"], "volume a cannot be mounted at /"),
            (
                &["a,kind=empty"],
                &["volume=a,target=/x/../sys/fs"],
                "cannot be mounted at /x/../sys/fs, which is the system's",
            ),
            (
                &["x,kind=host,source=/nonexistent/d"],
                &[],
                "/nonexistent/d does not exist; create it, or use kind=empty",
            ),
            (&["x,kind=host,source=/etc/passwd"], &[], "/etc/passwd is not a directory"),
        ] {
            let message = resolve_one(volumes, mounts).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn what_is_the_systems_is_no_place_for_a_volume() {
        for path in ["/dev", "/dev/", "/proc", "/proc/sys", "/sys/fs/cgroup", "/x/../proc/1", "/../dev"] {
            assert!(is_the_systems(Path::new(path)), "{path}");
        }
        for path in ["/", "/dev/shm", "/devices", "/srv/proc", "/proc/../data"] {
            assert!(!is_the_systems(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn two_apps_share_a_named_volume_and_not_an_unnamed_one() {
        let (one, other) = ("one".parse().unwrap(), "other".parse().unwrap());
        let places = [declared(&["shared"], "/shared"), declared(&["own"], "/own")];
        let given: Volume = "shared,kind=empty".parse().unwrap();
        let app = |app| AppVolumes { app, mounts: &[], declared: &places };
        let (volumes, mounts) = resolve(&[given], &[app(&one), app(&other)]).unwrap();
        assert_eq!(volumes.len(), 3);
        assert_eq!(mounts[0][1].volume, mounts[1][1].volume);
        assert_ne!(mounts[0][0].volume, mounts[1][0].volume);
    }
}
