//! What an image says of the app it makes: program, environment, user, ports and volumes (OCI image-spec, config.md).
//!
//! OCI's ports are numbers and its volumes paths. Two labels give them names, which `--port` and `--volume` take:
//! `io.podvm.port.NAME=PORT[/tcp|/udp]` and `io.podvm.volume.NAME=PATH`. A port without a label goes by its number (`80`,
//! `80/tcp`, and docker2aci's `80-tcp`), a volume without a label by the last part of its path, or all of it with dashes.

use std::path::{Path, PathBuf};

use podvm_image::{ImageConfig, ImageHealthcheck};
use podvm_pod::manifest::{
    AppImage, AppName, EnvironmentVariable, Isolators, Mount, PodManifest, Protocol, UserSpec, VolumeName,
};

use super::arguments::RunArgs;
use super::error::PrepareError;
use super::volumes::is_the_systems;

const PORT_LABEL: &str = "io.podvm.port.";
const VOLUME_LABEL: &str = "io.podvm.volume.";
/// Most texts of an image that a remark lists.
const MAX_LISTED: usize = 5;

/// A port of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredPort {
    /// Its name; none when the image only numbers it.
    pub name: Option<String>,
    /// Number.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// How many ports it is, this one being the first.
    pub count: u16,
    /// Whether the app expects it as an open socket that it is started with.
    pub socket_activated: bool,
}

impl DeclaredPort {
    /// A single port, where the app listens itself.
    pub fn new(name: Option<&str>, port: u16, protocol: Protocol) -> Self {
        Self { name: name.map(Into::into), port, protocol, count: 1, socket_activated: false }
    }
}

/// A place in an image that wants a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredVolume {
    /// Names of volumes that belong there, the best first.
    pub names: Vec<VolumeName>,
    /// The place.
    pub path: PathBuf,
    /// Whether the app only reads there.
    pub read_only: bool,
}

/// What `podvm run` takes from an image.
#[derive(Debug, Clone)]
pub struct ImageSettings {
    /// Which image.
    pub image: AppImage,
    /// The program, with arguments that are always given.
    pub entrypoint: Vec<String>,
    /// Arguments that are given unless the user gives others; the program, if there is no entry point.
    pub command: Vec<String>,
    /// Environment.
    pub environment: Vec<EnvironmentVariable>,
    /// Directory to start in.
    pub working_directory: Option<PathBuf>,
    /// User to run as.
    pub user: UserSpec,
    /// Signal that asks it to stop.
    pub stop_signal: Option<String>,
    /// How it is found well.
    pub health: Option<ImageHealthcheck>,
    /// What texts of commands are given to, if not `/bin/sh -c`.
    pub shell: Vec<String>,
    /// Ports.
    pub ports: Vec<DeclaredPort>,
    /// Volumes.
    pub volumes: Vec<DeclaredVolume>,
    /// Groups to be in besides.
    pub supplementary_gids: Vec<u32>,
    /// Limits and privileges.
    pub isolators: Isolators,
    /// What is run before the app.
    pub pre_start: Vec<String>,
    /// What is run after the app.
    pub post_stop: Vec<String>,
    /// Whether it is one of appc, whose users expect to be told of volumes that nobody gave.
    pub is_appc: bool,
    /// What is otherwise than the image may mean.
    pub remarks: Vec<String>,
}

impl ImageSettings {
    /// An image that says nothing.
    pub(super) fn plain(image: AppImage) -> Self {
        Self {
            image,
            entrypoint: Vec::new(),
            command: Vec::new(),
            environment: Vec::new(),
            working_directory: None,
            user: UserSpec::default(),
            stop_signal: None,
            health: None,
            shell: Vec::new(),
            ports: Vec::new(),
            volumes: Vec::new(),
            supplementary_gids: Vec::new(),
            isolators: Isolators::default(),
            pre_start: Vec::new(),
            post_stop: Vec::new(),
            is_appc: false,
            remarks: Vec::new(),
        }
    }

    /// Reads an image's configuration.
    ///
    /// # Errors
    /// [`PrepareError::Image`] when it contradicts itself.
    pub fn read(image: AppImage, config: &ImageConfig) -> Result<Self, PrepareError> {
        let name = image.name.clone();
        let wrong = |what: String| PrepareError::Image { image: name.clone(), what };
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        // A path would be read as appc has it, as the owner of that file.
        if config.user.split(':').any(|part| part.starts_with('/')) {
            return Err(wrong(format!("its user {:?} is neither a name nor a number", config.user)));
        }
        let mut remarks = Vec::new();
        let mut settings = Self {
            entrypoint: config.entrypoint.clone(),
            command: config.cmd.clone(),
            environment: understood(&name, &config.env, "NAME=VALUE", &mut remarks, |text| text.parse().ok()),
            working_directory: given(&config.working_dir).map(PathBuf::from),
            user: UserSpec::from(config.user.as_str()),
            stop_signal: given(&config.stop_signal),
            health: config.healthcheck.clone(),
            shell: config.shell.clone(),
            ..Self::plain(image)
        };
        for (label, value) in &config.labels {
            if let Some(name) = label.strip_prefix(PORT_LABEL) {
                let (port, protocol) =
                    parse_port(value).ok_or_else(|| wrong(format!("label {label}={value} names no port")))?;
                settings.ports.push(DeclaredPort::new(Some(name), port, protocol));
            } else if let Some(name) = label.strip_prefix(VOLUME_LABEL) {
                let name = name.parse().map_err(|error| wrong(format!("label {label}: {error}")))?;
                settings.declare_volume(Some(name), Path::new(value), false);
            }
        }
        for exposed in understood(&name, &config.exposed_ports, "a port of TCP or UDP", &mut remarks, parse_exposed) {
            let key = |port: &DeclaredPort| (port.port, port.protocol, port.count);
            if !settings.ports.iter().any(|known| key(known) == key(&exposed)) {
                settings.ports.push(exposed);
            }
        }
        for path in &config.volumes {
            settings.declare_volume(None, Path::new(path), false);
        }
        settings.ports.sort_by_key(|port| (port.port, port.protocol));
        settings.volumes.sort_by(|one, other| one.path.cmp(&other.path));
        settings.remarks = remarks;
        Ok(settings)
    }

    /// What is to be said of volumes that are declared where the system's own is.
    fn misplaced_volumes(&self) -> Option<String> {
        let misplaced = self.volumes.iter().filter(|volume| is_the_systems(&volume.path));
        let listed: Vec<String> = misplaced.map(|volume| format!("{:?}", volume.path)).collect();
        let name = &self.image.name;
        (!listed.is_empty()).then(|| format!("image {name}: {}", passed_over("a place for a volume", listed)))
    }

    /// Notes a volume, under a given name or those that its path gives.
    pub(super) fn declare_volume(&mut self, name: Option<VolumeName>, path: &Path, read_only: bool) {
        // `Volumes` may say `/data/`; compared and mounted, it is `/data`.
        let path: PathBuf = path.components().collect();
        let whole = path.to_string_lossy().replace('/', "-");
        let last = path.file_name().unwrap_or_default().to_string_lossy();
        let derived = [last.as_ref(), whole.as_str()].map(volume_name_from);
        let position = self.volumes.iter().position(|known| known.path == path).unwrap_or_else(|| {
            self.volumes.push(DeclaredVolume { names: Vec::new(), path, read_only });
            self.volumes.len() - 1
        });
        let names = &mut self.volumes[position].names;
        if let Some(name) = name {
            names.retain(|known| *known != name);
            names.insert(0, name);
        }
        for name in derived.into_iter().flatten() {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
}

/// What is otherwise than images may mean, and what of appc images the user may have forgotten.
pub fn remarks(args: &RunArgs, images: &[ImageSettings], manifest: &PodManifest) -> Vec<String> {
    let mut lines: Vec<String> = images.iter().flat_map(|image| image.remarks.clone()).collect();
    lines.extend(images.iter().filter_map(ImageSettings::misplaced_volumes));
    for (app, image) in manifest.apps.iter().zip(images).filter(|(_, image)| image.is_appc) {
        for declared in &image.volumes {
            let mount = app.mounts.iter().find(|mount| mount.path == declared.path);
            let is_given = |mount: &Mount| args.volumes.iter().any(|volume| volume.name == mount.volume);
            if let (Some(mount), Some(name)) = (mount, declared.names.first())
                && !is_given(mount)
            {
                let path = declared.path.display();
                lines.push(format!(
                    "app {}: no --volume is given for {name} ({path}); it gets an empty one, which ends with the pod",
                    app.name
                ));
            }
        }
    }
    lines
}

/// What can be read of an image's texts. The image runs without the others, which is said: they only inform.
fn understood<T>(
    image: &str,
    texts: &[String],
    expected: &str,
    remarks: &mut Vec<String>,
    read: impl Fn(&str) -> Option<T>,
) -> Vec<T> {
    let (mut values, mut odd) = (Vec::new(), Vec::new());
    for text in texts {
        match read(text) {
            Some(value) => values.push(value),
            None => odd.push(format!("{text:?}")),
        }
    }
    if !odd.is_empty() {
        remarks.push(format!("image {image}: {}", passed_over(expected, odd)));
    }
    values
}

fn passed_over(expected: &str, mut odd: Vec<String>) -> String {
    let more = if odd.len() > MAX_LISTED { ", …" } else { "" };
    odd.truncate(MAX_LISTED);
    format!("not {expected}, and passed over: {}{more}", odd.join(", "))
}

/// A volume's name made from a part of a path; none when nothing of it can be in a name.
fn volume_name_from(text: &str) -> Option<VolumeName> {
    text.contains(|c: char| c.is_ascii_alphanumeric()).then(|| AppName::from_lossy(text).as_str().parse().ok())?
}

/// What an image exposes: a port, or a range such as `8000-8010/tcp`.
fn parse_exposed(text: &str) -> Option<DeclaredPort> {
    if let Some((port, protocol)) = parse_port(text) {
        return Some(DeclaredPort::new(None, port, protocol));
    }
    let (first, rest) = text.split_once('-')?;
    let (first, (last, protocol)) = (first.parse::<u16>().ok()?, parse_port(rest)?);
    let count = last.checked_sub(first)?.checked_add(1)?;
    (first != 0).then(|| DeclaredPort { count, ..DeclaredPort::new(None, first, protocol) })
}

/// `2379`, `2379/tcp` or docker2aci's `2379-tcp`; in capitals, too, as builders pass them on.
pub fn parse_port(text: &str) -> Option<(u16, Protocol)> {
    let (port, protocol) = text.split_once(['/', '-']).unwrap_or((text, "tcp"));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return None,
    };
    port.parse().ok().filter(|port| *port != 0).map(|port| (port, protocol))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An image with this `config` object.
    pub fn image(name: &str, config: &str) -> Result<ImageSettings, PrepareError> {
        let config = serde_json::from_str(config).unwrap();
        ImageSettings::read(AppImage { name: name.into(), id: "sha256:0".into(), layers: Vec::new() }, &config)
    }

    fn names(volume: &DeclaredVolume) -> Vec<&str> {
        volume.names.iter().map(VolumeName::as_str).collect()
    }

    #[test]
    fn labels_name_what_oci_only_numbers() {
        let etcd = image(
            "etcd",
            r#"{"Labels":{"io.podvm.port.client":"2379/tcp","io.podvm.volume.data-dir":"/var/lib/etcd"},
                "ExposedPorts":{"2379/tcp":{},"53/udp":{}},"Volumes":{"/var/lib/etcd/":{},"/x":{}}}"#,
        )
        .unwrap();
        let port = DeclaredPort::new;
        assert_eq!(etcd.ports, [port(None, 53, Protocol::Udp), port(Some("client"), 2379, Protocol::Tcp)]);
        assert_eq!(names(&etcd.volumes[0]), ["data-dir", "etcd", "var-lib-etcd"]);
        assert_eq!(names(&etcd.volumes[1]), ["x"]);
        assert_eq!(etcd.volumes.len(), 2);
    }

    #[test]
    fn an_image_that_contradicts_itself_is_named() {
        for config in [
            r#"{"Labels":{"io.podvm.port.a":"x"}}"#,
            r#"{"Labels":{"io.podvm.volume./":"/x"}}"#,
            r#"{"User":"/etc"}"#,
            r#"{"User":"0:/etc"}"#,
        ] {
            let message = image("odd", config).unwrap_err().to_string();
            assert!(message.contains("odd"), "{message}");
        }
    }

    #[test]
    fn what_only_informs_is_passed_over_when_it_is_not_understood() {
        let odd = image(
            "odd",
            r#"{"Env":["NOVALUE","A=b","=x"],
                "ExposedPorts":{"132/sctp":{},"0/tcp":{},"80/TCP":{},"8000-8010/tcp":{},"9-8":{},"0-2":{},"0-65535":{},"x":{}}}"#,
        )
        .unwrap();
        assert_eq!(odd.environment, ["A=b".parse().unwrap()]);
        let range = DeclaredPort { count: 11, ..DeclaredPort::new(None, 8000, Protocol::Tcp) };
        assert_eq!(odd.ports, [DeclaredPort::new(None, 80, Protocol::Tcp), range]);
        assert_eq!(
            odd.remarks,
            [
                r#"image odd: not NAME=VALUE, and passed over: "NOVALUE", "=x""#,
                r#"image odd: not a port of TCP or UDP, and passed over: "0-2", "0-65535", "0/tcp", "132/sctp", "9-8", …"#
            ]
        );
    }

    #[test]
    fn volumes_in_the_systems_places_are_told_of() {
        let odd = image("odd", r#"{"Volumes":{"/dev":{},"/data":{},"/proc/sys/":{}}}"#).unwrap();
        let line = odd.misplaced_volumes().unwrap();
        assert_eq!(line, r#"image odd: not a place for a volume, and passed over: "/dev", "/proc/sys""#);
        assert!(image("even", r#"{"Volumes":{"/data":{}}}"#).unwrap().misplaced_volumes().is_none());
    }

    #[test]
    fn ports_are_read_in_every_spelling() {
        assert_eq!(parse_port("80"), Some((80, Protocol::Tcp)));
        assert_eq!(parse_port("53/udp"), Some((53, Protocol::Udp)));
        assert_eq!(parse_port("80-tcp"), Some((80, Protocol::Tcp)));
        assert_eq!(parse_port("80/sctp"), None);
    }
}
