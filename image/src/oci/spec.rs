//! The JSON documents of images: OCI image-spec 1.1 and Docker's manifest schema 2, whose forms agree.
//!
//! Read leniently, as both kinds of files are in use: unknown fields are passed over, `null` means absent.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Largest manifest or index, in bytes, as registries have it.
pub const MAX_MANIFEST: u64 = 4 << 20;
/// Largest configuration, in bytes.
pub const MAX_CONFIG: u64 = 8 << 20;
/// Most layers of an image: overlayfs stacks no more.
pub const MAX_LAYERS: usize = 500;

/// `null` and absence are the default.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(de: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(de).map(Option::unwrap_or_default)
}

/// The names of `{"80/tcp": {}, …}`.
fn keys<'de, D: Deserializer<'de>>(de: D) -> Result<Vec<String>, D::Error> {
    let map = Option::<BTreeMap<String, serde::de::IgnoredAny>>::deserialize(de)?;
    Ok(map.unwrap_or_default().into_keys().collect())
}

/// Writes names as [`keys`] reads them.
fn as_keys<S: Serializer>(names: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(names.iter().map(|name| (name, serde_json::json!({}))))
}

/// Points to content by digest and size.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default, deserialize_with = "or_default")]
    pub media_type: String,
    /// As written; checked when the content is opened, since an index may point to what does not matter here.
    pub digest: String,
    pub size: u64,
    /// Where else the content is, for layers that registries may not hand on.
    #[serde(default, deserialize_with = "or_default")]
    pub urls: Vec<String>,
    #[serde(default)]
    pub platform: Option<Platform>,
    #[serde(default, deserialize_with = "or_default")]
    pub annotations: BTreeMap<String, String>,
}

/// What an image runs on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Platform {
    #[serde(default, deserialize_with = "or_default")]
    pub os: String,
    #[serde(default, deserialize_with = "or_default")]
    pub architecture: String,
    #[serde(default, deserialize_with = "or_default")]
    pub variant: String,
}

/// An index (or Docker's manifest list) or a manifest: told apart by what they hold.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// What manifests of Docker's schema 1 have instead of all below.
    #[serde(default)]
    pub fs_layers: Option<serde::de::IgnoredAny>,
    /// What it says that it is.
    #[serde(default, deserialize_with = "or_default")]
    pub media_type: String,
    /// What it is when it is no image.
    #[serde(default, deserialize_with = "or_default")]
    pub artifact_type: String,
    #[serde(default)]
    pub manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    pub config: Option<Descriptor>,
    #[serde(default)]
    pub layers: Option<Vec<Descriptor>>,
}

/// One image of a Docker archive's `manifest.json`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DockerImage {
    pub config: String,
    #[serde(default, deserialize_with = "or_default")]
    pub repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub layers: Vec<String>,
}

/// An image's configuration file, as far as it matters here.
#[derive(Debug, Clone, Deserialize)]
pub struct ConfigFile {
    #[serde(flatten)]
    pub platform: Platform,
    #[serde(default)]
    pub created: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub config: ImageConfig,
    pub rootfs: RootFs,
    #[serde(default, deserialize_with = "or_default")]
    pub history: Vec<HistoryEntry>,
}

/// A step by which an image was built (image-spec, config.md, "history").
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct HistoryEntry {
    pub created: Option<String>,
    #[serde(deserialize_with = "or_default")]
    pub created_by: String,
    #[serde(deserialize_with = "or_default")]
    pub comment: String,
    #[serde(deserialize_with = "or_default")]
    pub empty_layer: bool,
}

/// The layers by the digests of their uncompressed form, lowest first.
#[derive(Debug, Clone, Deserialize)]
pub struct RootFs {
    #[serde(default, deserialize_with = "or_default")]
    pub diff_ids: Vec<String>,
}

/// How an image wants to be found well (docker's image specification 1.2; not in OCI's). Times are in nanoseconds; 0, less
/// and absence mean the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageHealthcheck {
    /// `NONE`, `CMD` and words, or `CMD-SHELL` and a text for a shell.
    #[serde(deserialize_with = "or_default")]
    pub test: Vec<String>,
    /// Time between two checks.
    pub interval: Option<i64>,
    /// Longest time of a check.
    pub timeout: Option<i64>,
    /// Time from the start in which failures do not count.
    pub start_period: Option<i64>,
    /// Failures in a row that count.
    pub retries: Option<i64>,
}

/// How an image wants to be run (image-spec, config.md, "config").
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// How it is found well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<ImageHealthcheck>,
    /// `user`, `uid`, `user:group` or `uid:gid`; empty for root.
    #[serde(deserialize_with = "or_default")]
    pub user: String,
    /// The start of the command line.
    #[serde(deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// The rest of the command line, unless the user gives another.
    #[serde(deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// `NAME=VALUE` each.
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// Absolute; empty for `/`.
    #[serde(deserialize_with = "or_default")]
    pub working_dir: String,
    /// `80/tcp` each.
    #[serde(deserialize_with = "keys", serialize_with = "as_keys")]
    pub exposed_ports: Vec<String>,
    /// Paths that are meant to be volumes.
    #[serde(deserialize_with = "keys", serialize_with = "as_keys")]
    pub volumes: Vec<String>,
    /// The signal that asks the app to end, by name or number; empty for SIGTERM.
    #[serde(deserialize_with = "or_default")]
    pub stop_signal: String,
    /// What texts of commands are given to, docker's `SHELL`; empty for `/bin/sh -c`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
    /// Free text.
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
}

/// This machine's architecture in the names of Go, which images use.
pub fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Platform {
    /// Whether it runs here. What says nothing is not excluded.
    pub fn runs_here(&self) -> bool {
        let os = self.os.is_empty() || self.os == "linux";
        os && (self.architecture.is_empty() || self.architecture == host_architecture())
    }

    /// For choosing among those that run here: lower is better. Baseline code runs everywhere.
    pub fn rank(&self) -> u8 {
        match self.variant.as_str() {
            "" => 0,
            "v1" | "v8" => 1,
            _ => 2,
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let known = |text: &str| if text.is_empty() { "unknown".to_owned() } else { text.to_owned() };
        write!(f, "{}/{}", known(&self.os), known(&self.architecture))?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nulls_and_absent_fields_of_dockers_files_are_defaults() {
        let json = r#"{"architecture":"amd64","os":"linux","variant":null,
            "config":{"Cmd":null,"Entrypoint":["/e"],"ExposedPorts":{"80/tcp":{},"53/udp":{}},
            "Volumes":null,"Labels":null,"User":null,"OnBuild":null,"Healthcheck":{"Test":["x"]}},
            "rootfs":{"type":"layers","diff_ids":null},"history":[{"created_by":"x"}]}"#;
        let file: ConfigFile = serde_json::from_str(json).unwrap();
        assert!(file.platform.runs_here() || host_architecture() != "amd64");
        assert_eq!(file.config.exposed_ports, ["53/udp", "80/tcp"]);
        assert_eq!(file.config.entrypoint, ["/e"]);
        let again = serde_json::to_string(&file.config).unwrap();
        assert_eq!(serde_json::from_str::<ImageConfig>(&again).unwrap(), file.config);
        assert_eq!((file.config.user.as_str(), file.config.labels.len()), ("", 0));
        let none: ConfigFile = serde_json::from_str(r#"{"config":null,"rootfs":{}}"#).unwrap();
        assert_eq!(none.config, ImageConfig::default());
    }

    proptest! {
        #[test]
        fn any_text_is_answered_without_panic(text in "[\\[\\]{}:,\"a-z0-9]{0,80}") {
            let _ = serde_json::from_str::<ConfigFile>(&text);
            let _ = serde_json::from_str::<Manifest>(&text);
            let _ = serde_json::from_str::<Vec<DockerImage>>(&text);
        }
    }
}
