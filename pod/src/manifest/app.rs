//! An app: one process tree from one image.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::health::{HealthCheck, RestartPolicy};
use super::isolator::Isolators;
use super::name::AppName;
use super::volume::Mount;

/// One app of a pod, with everything resolved that stage0 can know; users are resolved inside, from the image's own files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    /// Name, unique within the pod.
    pub name: AppName,
    /// The image it comes from.
    pub image: AppImage,
    /// The program and its arguments; never empty. A program without a slash is looked up in the app's `PATH`.
    pub exec: Vec<String>,
    /// User and group it runs as.
    #[serde(default)]
    pub user: UserSpec,
    /// Groups it is in besides.
    #[serde(default)]
    pub supplementary_gids: Vec<u32>,
    /// Directory it starts in; made when missing.
    pub working_directory: PathBuf,
    /// Its environment, whole.
    #[serde(default)]
    pub environment: Vec<EnvironmentVariable>,
    /// Volumes and their places, outer paths before inner ones.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Limits and privileges.
    #[serde(default)]
    pub isolators: Isolators,
    /// Whether the app's root filesystem cannot be written to.
    #[serde(default)]
    pub read_only_root: bool,
    /// Whether it has a terminal instead of pipes.
    #[serde(default)]
    pub terminal: bool,
    /// Whether its standard input is connected; `/dev/null` otherwise.
    #[serde(default)]
    pub stdin: bool,
    /// How it is found well; not looked at when none.
    #[serde(default)]
    pub health: Option<HealthCheck>,
    /// What is done when it ends by itself.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// A program and its arguments that must succeed before the app is started, run as the app is; none when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pre_start: Vec<String>,
    /// A program and its arguments that are run when the app has ended, as the app was; none when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub post_stop: Vec<String>,
    /// Signal number that asks it to stop.
    pub stop_signal: i32,
}

/// The image of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppImage {
    /// Name it was asked for by.
    pub name: String,
    /// Digest of the image's configuration, `sha256:…`.
    pub id: String,
    /// Its layers as EROFS blobs at the host, lowest first.
    pub layers: Vec<PathBuf>,
}

/// A variable of an app's environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentVariable {
    /// Name.
    pub name: String,
    /// Value.
    pub value: String,
}

/// `NAME=VALUE`.
impl FromStr for EnvironmentVariable {
    type Err = EnvironmentError;

    fn from_str(text: &str) -> Result<Self, EnvironmentError> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() && !text.contains('\0') => {
                Ok(Self { name: name.into(), value: value.into() })
            }
            _ => Err(EnvironmentError(text.into())),
        }
    }
}

/// Not a variable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no variable: write NAME=VALUE")]
pub struct EnvironmentError(pub String);

/// User and group as an image or a user names them: names or numbers, looked up in the image's own `/etc/passwd` and `/etc/group`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserSpec {
    /// User; root when none.
    pub user: Option<String>,
    /// Group; the user's own when none.
    pub group: Option<String>,
}

/// `USER[:GROUP]`, as in an OCI image's `User`.
impl From<&str> for UserSpec {
    fn from(text: &str) -> Self {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let (user, group) = text.split_once(':').unwrap_or((text, ""));
        Self { user: some(user), group: some(group) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_read_with_and_without_a_group() {
        assert_eq!(UserSpec::from(""), UserSpec::default());
        assert_eq!(UserSpec::from("redis").user.as_deref(), Some("redis"));
        assert_eq!(UserSpec::from("1000:100").group.as_deref(), Some("100"));
    }

    #[test]
    fn a_variable_keeps_every_later_equals_sign() {
        let variable: EnvironmentVariable = "A=b=c".parse().unwrap();
        assert_eq!((variable.name.as_str(), variable.value.as_str()), ("A", "b=c"));
        assert!("A".parse::<EnvironmentVariable>().is_err());
        assert!("=b".parse::<EnvironmentVariable>().is_err());
    }
}
