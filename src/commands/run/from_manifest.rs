//! `--pod-manifest`: a pod as a file describes it, the form being that of the pod directory's `manifest.json`.
//!
//! The file is another pod's, or somebody's work in an editor: nothing in it is taken for granted. The pod gets a name, a
//! time and, where its hostname came from its name, a hostname of its own; where the images' layers are is asked of the store.

use std::path::{Component, Path};

use podvm_image::{ResolvedImage, Store};
use podvm_pod::PodManifest;
use podvm_pod::manifest::{App, AppName, DnsWord, HealthCheck, MANIFEST_VERSION, RESOURCES, is_host_name};
use podvm_pod::stage1::Stage1Kind;
use podvm_pod::timestamp::Timestamp;
use uuid::Uuid;

use super::environment::HOSTNAME;
use super::error::PrepareError;
use super::manifest::{Host, check_limits, check_sharing, checked_hostname, default_hostname, resources};
use super::{ports, volumes};

/// What is wrong with a manifest, as a sentence.
type Fault = String;

/// Reads a manifest for a new pod, and holds its images.
///
/// # Errors
/// [`PrepareError`].
pub fn read(
    path: &Path,
    store: &Store,
    host: &Host,
    stage1: Stage1Kind,
) -> Result<(PodManifest, Vec<ResolvedImage>), PrepareError> {
    let wrong = |what: Fault| PrepareError::Manifest { path: path.into(), what };
    let bytes = crate::input::read(path).map_err(|error| wrong(error.to_string()))?;
    let mut manifest = parse(&bytes).map_err(wrong)?;
    let mut images = Vec::new();
    for app in &mut manifest.apps {
        let image = store.resolve(&app.image.id).map_err(|error| wrong(format!("app {}: {error}", app.name)))?;
        app.image.layers = image.layers.iter().map(|layer| layer.path.clone()).collect();
        images.push(image);
    }
    check_shape(&manifest).map_err(wrong)?;
    check_sharing(&manifest.network, manifest.ipc, manifest.private_users, stage1)?;
    checked_hostname(&manifest.hostname)?;
    manifest.apps.iter().try_for_each(|app| check_limits(&app.name, &app.isolators))?;
    manifest.volumes = manifest.volumes.iter().map(volumes::checked).collect::<Result<_, _>>()?;
    ports::check(&manifest.ports, &manifest.network)?;
    manifest.resources = resources(&manifest.apps, manifest.resources.disk, host, stage1)?;
    Ok((manifest, images))
}

/// The manifest of a new pod that is as the old one was.
fn parse(bytes: &[u8]) -> Result<PodManifest, Fault> {
    let mut manifest: PodManifest = serde_json::from_slice(bytes)
        .map_err(|error| format!("{error}; write it as `podvm cat-manifest` prints it"))?;
    if manifest.version > MANIFEST_VERSION {
        return Err(format!("it is of version {}, made by a newer podvm; use that one", manifest.version));
    }
    for app in &mut manifest.apps {
        // By components, so that outer places come before those inside them, which they would cover.
        app.mounts.sort_by(|one, other| one.path.cmp(&other.path));
    }
    let uuid = Uuid::new_v4();
    if manifest.hostname == default_hostname(manifest.uuid) {
        let old = std::mem::replace(&mut manifest.hostname, default_hostname(uuid));
        let variables = manifest.apps.iter_mut().flat_map(|app| &mut app.environment);
        let named = variables.filter(|variable| variable.name == HOSTNAME && variable.value == old);
        named.for_each(|variable| variable.value.clone_from(&manifest.hostname));
    }
    Ok(PodManifest { version: MANIFEST_VERSION, uuid, created: Timestamp::now().seconds(), ..manifest })
}

/// What the types alone do not promise.
fn check_shape(manifest: &PodManifest) -> Result<(), Fault> {
    if manifest.apps.is_empty() {
        return Err("it has no apps; name at least one".into());
    }
    if let Some(name) = first_twice(manifest.apps.iter().map(|app| &app.name)) {
        return Err(format!("two apps are named {name}; give one another name"));
    }
    if let Some(name) = first_twice(manifest.volumes.iter().map(|volume| &volume.name)) {
        return Err(format!("two volumes are named {name}; give one another name"));
    }
    let names = manifest.hosts.iter().flat_map(|entry| &entry.names);
    if let Some(name) = names.chain(&manifest.dns.search).find(|name| !is_host_name(name)) {
        return Err(format!("{name:?} is no name of a host; use letters, digits, dashes and dots"));
    }
    manifest
        .dns
        .options
        .iter()
        .try_for_each(|option| option.parse::<DnsWord>().map(drop))
        .map_err(|error| error.to_string())?;
    let is_app = |name: &AppName| manifest.apps.iter().any(|app| app.name == *name);
    if let Some(port) = manifest.ports.iter().find(|port| port.app.as_ref().is_some_and(|app| !is_app(app))) {
        return Err(format!("port {} is of an app that the pod does not have", port.name));
    }
    manifest
        .apps
        .iter()
        .try_for_each(|app| check_app(app, manifest).map_err(|fault| format!("app {}: {fault}", app.name)))
}

fn check_app(app: &App, manifest: &PodManifest) -> Result<(), Fault> {
    if app.exec.is_empty() {
        return Err("its exec is empty; name a program".into());
    }
    let lacks = |health: &HealthCheck| {
        health.exec.is_empty() || [health.retries.into(), health.interval_ms, health.timeout_ms].contains(&0)
    };
    if app.health.as_ref().is_some_and(lacks) {
        return Err("its health check needs a command, and retries, interval_ms and timeout_ms of at least 1".into());
    }
    if !is_plain(&app.working_directory) {
        return Err(format!("its working directory {:?} must be absolute and without ..", app.working_directory));
    }
    if !(1..=nix::libc::SIGRTMAX()).contains(&app.stop_signal) {
        return Err(format!("its stop signal {} is none; see signal(7)", app.stop_signal));
    }
    if let Some(limit) = app.isolators.rlimits.iter().find(|limit| !RESOURCES.contains(&limit.name.as_str())) {
        return Err(format!("there is no resource {:?} to limit; use one of {}", limit.name, RESOURCES.join(", ")));
    }
    if let Some(limit) = app.isolators.rlimits.iter().find(|limit| limit.soft > limit.hard) {
        return Err(format!("the soft limit of {} is above the hard one; swap them", limit.name));
    }
    for mount in &app.mounts {
        if mount.path.components().eq([Component::RootDir]) {
            return Err(format!("volume {} is at /, where the image is; mount it below", mount.volume));
        }
        if volumes::is_the_systems(&mount.path) {
            let path = mount.path.display();
            return Err(format!("volume {} is at {path}, which is the system's; mount it elsewhere", mount.volume));
        }
        if manifest.volume(&mount.volume).is_none() {
            return Err(format!("it mounts volume {}, which the pod does not have", mount.volume));
        }
        if !is_plain(&mount.path) {
            return Err(format!("the place {:?} of a volume must be absolute and without ..", mount.path));
        }
    }
    match first_twice(app.mounts.iter().map(|mount| &mount.path)) {
        Some(path) => Err(format!("two volumes are at {}; mount one elsewhere", path.display())),
        None => Ok(()),
    }
}

fn is_plain(path: &Path) -> bool {
    path.is_absolute() && !path.components().any(|part| part == Component::ParentDir)
}

fn first_twice<T: PartialEq>(mut items: impl Iterator<Item = T> + Clone) -> Option<T> {
    while let Some(item) = items.next() {
        if items.clone().any(|other| other == item) {
            return Some(item);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> serde_json::Value {
        let old = Uuid::nil();
        serde_json::json!({
            "version": 1, "uuid": old, "created": 1, "hostname": default_hostname(old),
            "apps": [{
                "name": "web", "image": {"name": "nginx", "id": "sha256:0", "layers": []}, "exec": ["nginx"],
                "working_directory": "/", "stop_signal": 15, "isolators": {},
                "environment": [{"name": "HOSTNAME", "value": default_hostname(old)}],
                "mounts": [{"volume": "site", "path": "/srv"}]
            }],
            "volumes": [{"name": "site", "kind": {"kind": "empty"}}], "dns": {"options": []},
            "resources": {"memory": 1, "cpus": 1, "disk": 1}
        })
    }

    #[test]
    fn a_manifest_of_an_older_podvm_makes_a_new_pod() {
        let made = parse(manifest().to_string().as_bytes()).unwrap();
        check_shape(&made).unwrap();
        assert_ne!(made.uuid, Uuid::nil());
        assert_eq!(made.hostname, default_hostname(made.uuid));
        assert_eq!(made.apps[0].environment[0].value, made.hostname);
        assert!(made.created > 1);
    }

    #[test]
    fn outer_places_come_before_those_inside_them() {
        let mut changed = manifest();
        let mount = |path: &str| serde_json::json!({"volume": "site", "path": path});
        changed["apps"][0]["mounts"] =
            serde_json::json!([mount("/srv/a/b"), mount("/srv-x"), mount("/srv"), mount("/a")]);
        let made = parse(changed.to_string().as_bytes()).unwrap();
        let paths: Vec<_> = made.apps[0].mounts.iter().map(|mount| mount.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/a", "/srv", "/srv/a/b", "/srv-x"]);
    }

    #[test]
    fn what_the_types_do_not_promise_is_checked() {
        let message = |path: &str, value: serde_json::Value| {
            let mut changed = manifest();
            *changed.pointer_mut(path).unwrap() = value;
            parse(changed.to_string().as_bytes()).and_then(|manifest| check_shape(&manifest)).unwrap_err()
        };
        let app = manifest()["apps"][0].clone();
        let limits = |soft, hard| serde_json::json!({"rlimits": [{"name": "nofile", "soft": soft, "hard": hard}]});
        for (path, value, part) in [
            ("/version", 99.into(), "newer podvm"),
            ("/apps", serde_json::json!([]), "no apps"),
            ("/apps", serde_json::json!([app, app]), "two apps are named web"),
            ("/volumes", serde_json::json!([]), "app web: it mounts volume site"),
            ("/apps/0/exec", serde_json::json!([]), "exec is empty"),
            ("/apps/0/working_directory", "srv".into(), "must be absolute"),
            ("/apps/0/mounts/0/path", "/srv/../etc".into(), "without .."),
            ("/apps/0/stop_signal", 99.into(), "stop signal 99"),
            ("/apps/0/isolators", limits(2, 1), "soft limit of nofile is above"),
            ("/dns/options", serde_json::json!(["ndots:2\nnameserver 192.0.2.1"]), "resolv.conf(5)"),
            ("/hostname", 1.into(), "cat-manifest"),
        ] {
            let message = message(path, value);
            assert!(message.contains(part), "{path}: {message}");
        }
    }
}
