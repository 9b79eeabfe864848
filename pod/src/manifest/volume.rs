//! Volumes of a pod, and where apps mount them.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::name::{NameError, VolumeName};

/// A volume: a named place that outlives an app, and is shared by the apps that mount it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Name that mounts refer to.
    pub name: VolumeName,
    /// What it is made of.
    pub kind: VolumeKind,
    /// Whether nobody may write to it, whatever a mount says.
    #[serde(default)]
    pub read_only: bool,
}

/// What a volume is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum VolumeKind {
    /// A directory of the host.
    Host {
        /// Absolute path at the host.
        source: PathBuf,
    },
    /// A new, empty directory that ends with the pod.
    Empty,
}

/// A volume's place in an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Which volume.
    pub volume: VolumeName,
    /// Absolute path in the app.
    pub path: PathBuf,
    /// Whether this app may not write to it.
    #[serde(default)]
    pub read_only: bool,
}

/// Why a text is no volume or mount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    /// The name is missing or malformed.
    #[error("volume {text:?}: {source}")]
    Name {
        /// The whole text.
        text: String,
        /// What is wrong with it.
        source: NameError,
    },
    /// A key that is not known.
    #[error("{text:?}: {key:?} is not known here; use {known}")]
    UnknownKey {
        /// The whole text.
        text: String,
        /// The key.
        key: String,
        /// What may stand there.
        known: &'static str,
    },
    /// A value that is missing or not one of those allowed.
    #[error("{text:?}: {key} must be {expected}")]
    BadValue {
        /// The whole text.
        text: String,
        /// The key.
        key: &'static str,
        /// What it must be.
        expected: &'static str,
    },
}

/// The words of a comma-separated list, `key=value` each, but for a first one that may stand alone.
fn pairs(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split(',').map(|word| word.split_once('=').unwrap_or((word, "")))
}

fn parse_bool(text: &str, key: &'static str, value: &str) -> Result<bool, VolumeError> {
    match value {
        "true" | "1" | "" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(VolumeError::BadValue { text: text.into(), key, expected: "true or false" }),
    }
}

/// `NAME,kind=host,source=PATH[,readOnly=true]` or `NAME,kind=empty`, as rkt has it.
impl FromStr for Volume {
    type Err = VolumeError;

    fn from_str(text: &str) -> Result<Self, VolumeError> {
        let bad = |key, expected| VolumeError::BadValue { text: text.into(), key, expected };
        let (name, rest) = text.split_once(',').unwrap_or((text, ""));
        let name = name.parse().map_err(|source| VolumeError::Name { text: text.into(), source })?;
        let (mut kind, mut source, mut read_only) = (None, None, false);
        for (key, value) in pairs(rest).filter(|(key, _)| !key.is_empty()) {
            match key {
                "kind" => kind = Some(value),
                "source" => source = Some(PathBuf::from(value)),
                "readOnly" | "readonly" | "read-only" | "ro" => read_only = parse_bool(text, "readOnly", value)?,
                _ => {
                    let known = "kind=host|empty, source=PATH, readOnly=true|false";
                    return Err(VolumeError::UnknownKey { text: text.into(), key: key.into(), known });
                }
            }
        }
        let kind = match (kind, source) {
            (Some("host"), Some(source)) if source.is_absolute() => VolumeKind::Host { source },
            (Some("host"), _) => return Err(bad("source", "an absolute path of the host")),
            (Some("empty"), None) => VolumeKind::Empty,
            (Some("empty"), Some(_)) => return Err(bad("source", "left out for kind=empty")),
            _ => return Err(bad("kind", "host or empty")),
        };
        Ok(Self { name, kind, read_only })
    }
}

/// `volume=NAME,target=PATH[,readOnly=true]`, as rkt has it.
impl FromStr for Mount {
    type Err = VolumeError;

    fn from_str(text: &str) -> Result<Self, VolumeError> {
        let bad = |key, expected| VolumeError::BadValue { text: text.into(), key, expected };
        let (mut volume, mut path, mut read_only) = (None, None, false);
        for (key, value) in pairs(text) {
            match key {
                "volume" => {
                    let name = value.parse().map_err(|source| VolumeError::Name { text: text.into(), source })?;
                    volume = Some(name);
                }
                "target" => path = Some(PathBuf::from(value)),
                "readOnly" | "readonly" | "read-only" | "ro" => read_only = parse_bool(text, "readOnly", value)?,
                _ => {
                    let known = "volume=NAME, target=PATH, readOnly=true|false";
                    return Err(VolumeError::UnknownKey { text: text.into(), key: key.into(), known });
                }
            }
        }
        let volume = volume.ok_or_else(|| bad("volume", "the name of a --volume"))?;
        let path =
            path.filter(|path| path.is_absolute()).ok_or_else(|| bad("target", "an absolute path in the app"))?;
        Ok(Self { volume, path, read_only })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_empty_volumes_are_read() {
        let volume: Volume = "data-dir,kind=host,source=/tmp/etcd,readOnly=true".parse().unwrap();
        assert_eq!(volume.kind, VolumeKind::Host { source: "/tmp/etcd".into() });
        assert!(volume.read_only);
        assert_eq!("x,kind=empty".parse::<Volume>().unwrap().kind, VolumeKind::Empty);
        let mount: Mount = "volume=x,target=/data".parse().unwrap();
        assert_eq!(mount.path, PathBuf::from("/data"));
    }

    #[test]
    fn what_is_no_volume_names_the_wrong_part() {
        for (text, part) in [
            ("data", "kind"),
            ("data,kind=host", "source"),
            ("data,kind=host,source=rel", "source"),
            ("data,kind=tape", "kind"),
            ("data,kind=empty,colour=red", "colour"),
            ("Data,kind=empty", "Data"),
            ("data,kind=empty,readOnly=maybe", "readOnly"),
        ] {
            let message = text.parse::<Volume>().unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
        assert!("volume=x".parse::<Mount>().unwrap_err().to_string().contains("target"));
    }
}
