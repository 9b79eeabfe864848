//! `-v SOURCE:TARGET[:ro]`: a directory of the host in an app, short for a volume and its mount.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use podvm_pod::manifest::{AppName, Mount, Volume, VolumeKind, VolumeName};

/// A directory of the host and its place in an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    source: PathBuf,
    target: PathBuf,
    read_only: bool,
}

/// Why a text is no bind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not SOURCE:TARGET or SOURCE:TARGET:ro, SOURCE being a directory of the host and TARGET an absolute path in the app"
)]
pub struct BindError(String);

impl FromStr for Bind {
    type Err = BindError;

    fn from_str(text: &str) -> Result<Self, BindError> {
        let bad = || BindError(text.into());
        let mut parts = text.split(':');
        let (source, target) = parts.next().zip(parts.next()).ok_or_else(bad)?;
        let read_only = match (parts.next(), parts.next()) {
            (None | Some("rw"), None) => false,
            (Some("ro"), None) => true,
            _ => return Err(bad()),
        };
        // A name would be a volume's to podman, and here it would be a directory that the user did not mean.
        let is_path = ["/", "./", "../"].iter().any(|start| source.starts_with(start)) || matches!(source, "." | "..");
        if !is_path || !Path::new(target).is_absolute() {
            return Err(bad());
        }
        Ok(Self { source: source.into(), target: target.into(), read_only })
    }
}

/// The mounts of an app's binds. Their volumes are added to the pod's; those of one directory are one.
pub fn mounts(binds: &[Bind], volumes: &mut Vec<Volume>) -> std::io::Result<Vec<Mount>> {
    let mount = |bind: &Bind| {
        let source = std::path::absolute(&bind.source)?;
        let kind = VolumeKind::Host { source };
        let known = volumes.iter().find(|volume| volume.kind == kind && !volume.read_only);
        let volume = match known {
            Some(volume) => volume.name.clone(),
            None => {
                let name = free_name(&bind.target, volumes);
                volumes.push(Volume { name: name.clone(), kind, read_only: false });
                name
            }
        };
        Ok(Mount { volume, path: bind.target.clone(), read_only: bind.read_only })
    };
    binds.iter().map(mount).collect()
}

/// A name that tells the place.
fn free_name(target: &Path, volumes: &[Volume]) -> VolumeName {
    let wish = target.to_string_lossy();
    let numbered = (0_u32..).map(|number| if number == 0 { wish.to_string() } else { format!("{number}{wish}") });
    let mut names = numbered.filter_map(|name| AppName::from_lossy(&name).as_str().parse::<VolumeName>().ok());
    let is_free = |name: &VolumeName| !volumes.iter().any(|volume| volume.name == *name);
    names.find(is_free).unwrap_or_else(|| unreachable!("there are more numbers than volumes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bind_is_two_paths_and_perhaps_a_mode() {
        let bind = |text: &str| text.parse::<Bind>();
        let expected = Bind { source: "/a".into(), target: "/b".into(), read_only: false };
        assert_eq!(bind("/a:/b"), Ok(expected.clone()));
        assert_eq!(bind("/a:/b:rw"), Ok(expected.clone()));
        assert_eq!(bind("/a:/b:ro"), Ok(Bind { read_only: true, ..expected }));
        assert!(bind("./a:/b").is_ok() && bind(".:/b").is_ok());
        for text in ["/a", "/a:", "/a:b", "a:/b", ":/b", "/a:/b:z", "/a:/b:ro:x", ""] {
            assert!(bind(text).unwrap_err().to_string().contains("SOURCE:TARGET"), "{text}");
        }
    }

    #[test]
    fn binds_of_one_directory_share_a_volume_and_places_name_the_others() {
        let binds = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<Bind>>();
        let mut volumes = Vec::new();
        let first = mounts(&binds(&["/a:/srv/x", "/b:/srv/x/", "/a:/y:ro"]), &mut volumes).unwrap();
        let names: Vec<&str> = first.iter().map(|mount| mount.volume.as_str()).collect();
        assert_eq!(names, ["srv-x", "1-srv-x", "srv-x"]);
        assert!(first[2].read_only && !volumes[0].read_only);
        assert_eq!(mounts(&binds(&["/a:/z"]), &mut volumes).unwrap()[0].volume.as_str(), "srv-x");
        assert_eq!(volumes.len(), 2);
    }
}
