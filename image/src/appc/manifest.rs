//! The image manifest of appc (App Container specification, aci.md, "Image Manifest Schema").
//!
//! What the specification demands is demanded; fields it does not know are passed over, since later versions of it add some.

use std::path::{Component, Path};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::id::ImageId;
use super::name::{AppcName, Labels, VERSION, is_identifier, is_name};

/// Largest manifest, in bytes. Long ones have long whitelists.
pub const MAX_MANIFEST: u64 = 8 << 20;
/// Most ports of a range.
const MAX_PORTS: u32 = 65_535;

/// What a manifest says it is.
const KIND: &str = "ImageManifest";

/// Why a manifest is none.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or a field of another type.
    #[error("manifest: {0}")]
    Json(#[from] serde_json::Error),
    /// Another kind of document.
    #[error("manifest: acKind is {0:?}; an image's is {KIND:?}")]
    Kind(String),
    /// A version of the specification that is not this one.
    #[error("manifest: acVersion {0:?} is not one of 0.x, which podvm understands")]
    Version(String),
    /// A field with a value it must not have.
    #[error("manifest: {field} is {value:?}; {expected}")]
    Field {
        /// Which.
        field: String,
        /// Its value.
        value: String,
        /// What it must be.
        expected: &'static str,
    },
    /// A name that is given twice in one list.
    #[error("manifest: {list} has {name:?} twice")]
    Twice {
        /// Which list.
        list: &'static str,
        /// The name.
        name: String,
    },
}

/// An image manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageManifest {
    /// `ImageManifest`.
    pub ac_kind: String,
    /// Version of the specification.
    pub ac_version: String,
    /// The image's name.
    pub name: String,
    /// Labels, each once.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<Pair>,
    /// How it is run; images without serve as dependencies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<App>,
    /// Images that are placed down before this one, in this order.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub dependencies: Vec<Dependency>,
    /// The only paths that exist after rendering, unless it is empty.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub path_whitelist: Vec<String>,
    /// What else its maker says.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub annotations: Vec<Pair>,
}

/// A name and a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// The name.
    pub name: String,
    /// The text.
    pub value: String,
}

/// How an image is run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct App {
    /// The program and its arguments.
    #[serde(default, deserialize_with = "or_default")]
    pub exec: Vec<String>,
    /// User: a name, a number, or the path of a file whose owner it is.
    pub user: String,
    /// Group, likewise.
    pub group: String,
    /// Groups besides.
    #[serde(
        default,
        rename = "supplementaryGIDs",
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub supplementary_gids: Vec<u32>,
    /// What is run before and after the app.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub event_handlers: Vec<EventHandler>,
    /// Where it starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_directory: Option<String>,
    /// Its environment.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub environment: Vec<Pair>,
    /// Limits and privileges.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub isolators: Vec<Isolator>,
    /// Where it expects volumes.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub mount_points: Vec<MountPoint>,
    /// Where it listens.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// What users have noted.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub user_annotations: std::collections::BTreeMap<String, String>,
    /// Labels of users.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub user_labels: std::collections::BTreeMap<String, String>,
}

/// When a handler is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventName {
    /// Before the app, which starts only if it succeeds.
    PreStart,
    /// After the app.
    PostStop,
}

/// A program that is run on an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventHandler {
    /// Which event.
    pub name: EventName,
    /// The program and its arguments.
    pub exec: Vec<String>,
}

/// A limit or privilege.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isolator {
    /// Which.
    pub name: String,
    /// Whatever belongs to it.
    #[serde(default)]
    pub value: Value,
}

/// A place for a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MountPoint {
    /// Its name.
    pub name: String,
    /// Absolute path.
    pub path: String,
    /// Whether the app only reads it.
    #[serde(default)]
    pub read_only: bool,
}

/// A port, or a range of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Such as `tcp`.
    pub protocol: String,
    /// The first.
    pub port: u32,
    /// How many.
    #[serde(default = "one")]
    pub count: u32,
    /// Whether the app expects to be given the listening socket.
    #[serde(default)]
    pub socket_activated: bool,
}

/// An image that another is placed upon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Dependency {
    /// Its name.
    pub image_name: String,
    /// The one image that it must be.
    #[serde(default, rename = "imageID", skip_serializing_if = "Option::is_none")]
    pub image_id: Option<ImageId>,
    /// Labels that it must have.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<Pair>,
    /// Bytes of its file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

fn one() -> u32 {
    1
}

/// `null` is as good as absent.
fn or_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(de: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(de).map(Option::unwrap_or_default)
}

fn field(field: impl Into<String>, value: impl Into<String>, expected: &'static str) -> ManifestError {
    ManifestError::Field { field: field.into(), value: value.into(), expected }
}

const IDENTIFIER: &str = "use lower-case letters and digits, with single . - _ ~ / between them";
const NAME: &str = "use lower-case letters and digits, with single dashes between them";
const PLAIN_PATH: &str = "use an absolute path without ..";

fn identifier(what: impl Into<String>, value: &str) -> Result<(), ManifestError> {
    if is_identifier(value) { Ok(()) } else { Err(field(what, value, IDENTIFIER)) }
}

fn name(what: impl Into<String>, value: &str) -> Result<(), ManifestError> {
    if is_name(value) { Ok(()) } else { Err(field(what, value, NAME)) }
}

fn path(what: impl Into<String>, value: &str) -> Result<(), ManifestError> {
    let given = Path::new(value);
    let is_plain = given.is_absolute() && !given.components().any(|part| part == Component::ParentDir);
    if is_plain && !value.contains('\0') { Ok(()) } else { Err(field(what, value, PLAIN_PATH)) }
}

/// Each name once.
fn once<'a>(list: &'static str, names: impl Iterator<Item = &'a str>) -> Result<(), ManifestError> {
    let mut seen = std::collections::BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(ManifestError::Twice { list, name: name.to_owned() });
        }
    }
    Ok(())
}

fn check_labels(list: &'static str, labels: &[Pair]) -> Result<(), ManifestError> {
    for label in labels {
        identifier(format!("a name in {list}"), &label.name)?;
        if label.name == "name" {
            return Err(field(format!("a name in {list}"), "name", "that is the image's own; use another"));
        }
    }
    once(list, labels.iter().map(|label| label.name.as_str()))
}

fn to_labels(pairs: &[Pair]) -> Labels {
    pairs.iter().map(|pair| (pair.name.clone(), pair.value.clone())).collect()
}

impl ImageManifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// [`ManifestError`], which names the field.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        // What it is comes first: the fields of another kind would be missed otherwise.
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Kind {
            ac_kind: String,
            ac_version: String,
        }
        let Kind { ac_kind, ac_version } = serde_json::from_slice(bytes)?;
        if ac_kind != KIND {
            return Err(ManifestError::Kind(ac_kind));
        }
        if !is_version(&ac_version) {
            return Err(ManifestError::Version(ac_version));
        }
        let manifest: Self = serde_json::from_slice(bytes)?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), ManifestError> {
        identifier("name", &self.name)?;
        check_labels("labels", &self.labels)?;
        for dependency in &self.dependencies {
            identifier("a dependency's imageName", &dependency.image_name)?;
            check_labels("a dependency's labels", &dependency.labels)?;
        }
        self.path_whitelist.iter().try_for_each(|listed| path("a path in pathWhitelist", listed))?;
        self.annotations.iter().try_for_each(|pair| identifier("an annotation's name", &pair.name))?;
        once("annotations", self.annotations.iter().map(|pair| pair.name.as_str()))?;
        self.app.as_ref().map_or(Ok(()), App::check)
    }

    /// Its labels.
    pub fn labels(&self) -> Labels {
        to_labels(&self.labels)
    }

    /// Its name with its labels.
    pub fn full_name(&self) -> AppcName {
        AppcName { name: self.name.clone(), labels: self.labels() }
    }

    /// The value of one of its labels.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|pair| pair.name == name).map(|pair| pair.value.as_str())
    }

    /// Its version.
    pub fn version(&self) -> Option<&str> {
        self.label(VERSION)
    }

    /// What its maker says by this name.
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.iter().find(|pair| pair.name == name).map(|pair| pair.value.as_str())
    }
}

/// Whether this is a version of the specification that is understood: semantic, of series 0.
fn is_version(text: &str) -> bool {
    let core = text.split(['-', '+']).next().unwrap_or_default();
    let mut numbers = core.split('.');
    let is_number = |part: &str| !part.is_empty() && part.len() < 10 && part.bytes().all(|byte| byte.is_ascii_digit());
    numbers.next() == Some("0") && numbers.clone().count() == 2 && numbers.all(is_number)
}

impl App {
    fn check(&self) -> Result<(), ManifestError> {
        for (what, value) in [("app.user", &self.user), ("app.group", &self.group)] {
            if value.is_empty() {
                return Err(field(what, "", "give a name, a number, or an absolute path"));
            }
            if value.starts_with('/') {
                path(what, value)?;
            }
        }
        if self.exec.first().is_some_and(String::is_empty) {
            return Err(field("app.exec[0]", "", "name a program"));
        }
        if let Some(directory) = self.working_directory.as_ref().filter(|directory| !directory.is_empty()) {
            path("app.workingDirectory", directory)?;
        }
        for variable in &self.environment {
            if variable.name.is_empty() || variable.name.contains(['=', '\0']) {
                return Err(field("a name in app.environment", &variable.name, "use letters, digits and _"));
            }
        }
        once("app.environment", self.environment.iter().map(|variable| variable.name.as_str()))?;
        self.isolators.iter().try_for_each(|isolator| identifier("an isolator's name", &isolator.name))?;
        for mount in &self.mount_points {
            name("a mount point's name", &mount.name)?;
            path(format!("the path of mount point {}", mount.name), &mount.path)?;
        }
        once("app.mountPoints", self.mount_points.iter().map(|mount| mount.name.as_str()))?;
        self.ports.iter().try_for_each(Port::check)?;
        once("app.ports", self.ports.iter().map(|port| port.name.as_str()))?;
        if self.event_handlers.iter().any(|handler| handler.exec.first().is_none_or(String::is_empty)) {
            return Err(field("the exec of an event handler", "", "name a program"));
        }
        let is_twice = |event| self.event_handlers.iter().filter(|handler| handler.name == event).count() > 1;
        for (event, text) in [(EventName::PreStart, "pre-start"), (EventName::PostStop, "post-stop")] {
            if is_twice(event) {
                return Err(ManifestError::Twice { list: "app.eventHandlers", name: text.to_owned() });
            }
        }
        Ok(())
    }

    /// The handler of an event.
    pub fn handler(&self, event: EventName) -> Option<&[String]> {
        self.event_handlers.iter().find(|handler| handler.name == event).map(|handler| handler.exec.as_slice())
    }
}

impl Port {
    fn check(&self) -> Result<(), ManifestError> {
        name("a port's name", &self.name)?;
        let last = self.port.checked_add(self.count).and_then(|end| end.checked_sub(1));
        if self.port == 0 || self.count == 0 || last.is_none_or(|last| last > MAX_PORTS) {
            let value = format!("{} (count {})", self.port, self.count);
            return Err(field(
                format!("the number of port {}", self.name),
                value,
                "ports are 1 to 65535, at least one",
            ));
        }
        Ok(())
    }
}

impl Dependency {
    /// What it is looked for by.
    pub fn wanted(&self) -> AppcName {
        AppcName { name: self.image_name.clone(), labels: to_labels(&self.labels) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn example() -> Value {
        json!({
            "acKind": "ImageManifest", "acVersion": "0.8.11", "name": "example.com/reduce-worker",
            "labels": [{"name": "version", "value": "1.0.0"}, {"name": "arch", "value": "amd64"}, {"name": "os", "value": "linux"}],
            "app": {
                "exec": ["/usr/bin/reduce-worker", "--quiet"], "user": "100", "group": "300", "supplementaryGIDs": [400],
                "eventHandlers": [
                    {"name": "pre-start", "exec": ["/usr/bin/data-downloader"]},
                    {"name": "post-stop", "exec": ["/usr/bin/deregister-worker", "--verbose"]}
                ],
                "workingDirectory": "/opt/work", "environment": [{"name": "REDUCE_WORKER_DEBUG", "value": "true"}],
                "isolators": [{"name": "resource/cpu", "value": {"request": "250m", "limit": "500m"}}],
                "mountPoints": [{"name": "work", "path": "/var/lib/work"}],
                "ports": [
                    {"name": "health", "port": 4000, "protocol": "tcp", "socketActivated": true},
                    {"name": "ftp-data", "port": 20000, "count": 1000, "protocol": "tcp"}
                ],
                "userAnnotations": {"from": "us"}
            },
            "dependencies": [{
                "imageName": "example.com/base", "imageID": ImageId::of(b"base"),
                "labels": [{"name": "os", "value": "linux"}], "size": 22017258
            }],
            "pathWhitelist": ["/etc/ca", "/etc/systemd/system/"],
            "annotations": [{"name": "created", "value": "2014-10-27T19:32:27.67021798Z"}],
            "somethingNew": 1
        })
    }

    fn parse(value: &Value) -> Result<ImageManifest, ManifestError> {
        ImageManifest::parse(value.to_string().as_bytes())
    }

    #[test]
    fn the_specifications_example_is_read_whole() {
        let manifest = parse(&example()).unwrap();
        assert_eq!(manifest.full_name().to_string(), "example.com/reduce-worker,version=1.0.0,arch=amd64,os=linux");
        let app = manifest.app.as_ref().unwrap();
        assert_eq!(app.handler(EventName::PostStop).unwrap(), ["/usr/bin/deregister-worker", "--verbose"]);
        assert_eq!((app.ports[0].count, app.ports[0].socket_activated, app.ports[1].count), (1, true, 1000));
        assert_eq!((app.supplementary_gids.as_slice(), app.mount_points[0].read_only), (&[400][..], false));
        assert_eq!(manifest.dependencies[0].wanted().to_string(), "example.com/base,os=linux");
        assert_eq!(manifest.dependencies[0].image_id, Some(ImageId::of(b"base")));
        assert_eq!(manifest.annotation("created"), Some("2014-10-27T19:32:27.67021798Z"));
        let again = serde_json::to_vec(&manifest).unwrap();
        assert_eq!(ImageManifest::parse(&again).unwrap(), manifest);
        let plain = parse(
            &json!({"acKind": "ImageManifest", "acVersion": "0.5.1+git", "name": "a", "app": null, "labels": null}),
        );
        assert!(plain.unwrap().app.is_none());
    }

    #[test]
    fn what_the_specification_forbids_is_named() {
        for (pointer, value, part) in [
            ("/acKind", json!("PodManifest"), "acKind is \"PodManifest\""),
            ("/acVersion", json!("1.0.0"), "acVersion \"1.0.0\""),
            ("/acVersion", json!("0.8"), "acVersion \"0.8\""),
            ("/name", json!("Example.com"), "name is \"Example.com\""),
            ("/name", json!(1), "invalid type"),
            ("/labels/0/name", json!("os"), "labels has \"os\" twice"),
            ("/labels/0/name", json!("name"), "image's own"),
            ("/app/user", json!(""), "app.user"),
            ("/app/user", json!("/../x"), "without .."),
            ("/app/exec", json!([""]), "app.exec[0]"),
            ("/app/workingDirectory", json!("opt"), "app.workingDirectory"),
            ("/app/environment/0/name", json!("A=B"), "app.environment"),
            ("/app/isolators/0/name", json!("resource//cpu"), "isolator"),
            ("/app/mountPoints/0/path", json!("work"), "mount point work"),
            ("/app/mountPoints/0/name", json!("a/b"), "a mount point's name"),
            ("/app/ports/0/port", json!(0), "port health"),
            ("/app/ports/0/port", json!(65536), "port health"),
            ("/app/ports/1/count", json!(60000), "port ftp-data"),
            ("/app/ports/1/name", json!("health"), "app.ports has \"health\" twice"),
            ("/app/eventHandlers/0/name", json!("pre-stop"), "pre-stop"),
            ("/app/eventHandlers/0/name", json!("post-stop"), "twice"),
            ("/app/eventHandlers/0/exec", json!([]), "event handler"),
            ("/dependencies/0/imageID", json!("sha256-00"), "no image ID"),
            ("/dependencies/0/imageName", json!(""), "imageName"),
            ("/pathWhitelist/0", json!("etc"), "pathWhitelist"),
        ] {
            let mut changed = example();
            *changed.pointer_mut(pointer).unwrap() = value;
            let message = parse(&changed).unwrap_err().to_string();
            assert!(message.contains(part), "{pointer}: {message}");
        }
        let mut without_user = example();
        without_user["app"].as_object_mut().unwrap().remove("user");
        assert!(parse(&without_user).unwrap_err().to_string().contains("`user`"));
    }

    proptest! {
        #[test]
        fn any_text_is_answered_without_panic(text in "[\\[\\]{}:,\"a-zA-Z0-9./-]{0,80}") {
            let _ = ImageManifest::parse(text.as_bytes());
        }

        #[test]
        fn any_value_anywhere_is_answered_without_panic(at in 0..30usize, value in "(null|1|-1|\"\"|\"/\"|\"a\"|\\[\\]|\\{\\}|\\[1\\]|99999999999|\"é\"|true)") {
            let mut pointers = Vec::new();
            fn walk(value: &Value, path: String, all: &mut Vec<String>) {
                let children: Vec<(String, &Value)> = match value {
                    Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), value)).collect(),
                    Value::Array(list) => list.iter().enumerate().map(|(at, value)| (at.to_string(), value)).collect(),
                    _ => Vec::new(),
                };
                all.push(path.clone());
                children.iter().for_each(|(key, value)| walk(value, format!("{path}/{key}"), all));
            }
            let mut changed = example();
            walk(&changed, String::new(), &mut pointers);
            *changed.pointer_mut(&pointers[at * pointers.len() / 30]).unwrap() = serde_json::from_str(&value).unwrap();
            let _ = parse(&changed);
        }
    }
}
