//! From the command line and the images to the pod's manifest. Nothing is made here; all that can be wrong is found.

use std::collections::BTreeSet;
use std::path::Path;
use std::str::FromStr;

use nix::sys::signal::Signal;
use podvm_pod::manifest::{
    App, AppName, ByteSize, Capability, EnvironmentVariable, Isolators, MANIFEST_VERSION, NetworkMode, PodManifest,
    PodResources, UserSpec,
};
use podvm_pod::stage1::Stage1Kind;
use podvm_pod::timestamp::Timestamp;
use uuid::Uuid;

use super::arguments::{AppArgs, RunArgs};
use super::error::PrepareError;
use super::image::{DeclaredPort, ImageSettings};
use super::{ports, volumes};

/// Memory of a VM beside its apps': kernel, supervisor and the page structures of the rest.
const VM_MEMORY: ByteSize = ByteSize::mib(64);
/// Memory counted for an app without a limit.
const UNLIMITED_APP_MEMORY: ByteSize = ByteSize::mib(448);
/// Smallest limit of an app: less does not hold a program and the caches of what it reads.
pub const MIN_APP_MEMORY: ByteSize = ByteSize::mib(16);
/// Where programs are looked for when the image does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What a terminal can do when this process's own does not say.
const DEFAULT_TERM: &str = "xterm";

/// What the pod has to fit.
#[derive(Debug, Clone)]
pub struct Host {
    /// CPUs.
    pub cpus: u32,
    /// Memory.
    pub memory: ByteSize,
    /// What this process's terminal can do.
    pub term: Option<String>,
}

impl Host {
    /// This host.
    pub fn this() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
        let memory = nix::sys::sysinfo::sysinfo().map_or(u64::MAX, |info| info.ram_total());
        Self { cpus, memory: ByteSize(memory), term: std::env::var("TERM").ok().filter(|term| !term.is_empty()) }
    }
}

/// The pod that was asked for. `images` are those of `args.apps()`, in order.
///
/// # Errors
/// [`PrepareError`].
pub fn assemble(
    args: &RunArgs,
    images: &[ImageSettings],
    host: &Host,
    stage1: Stage1Kind,
) -> Result<PodManifest, PrepareError> {
    let uuid = Uuid::new_v4();
    let network = args.network();
    if network == NetworkMode::Host && stage1 == Stage1Kind::Kvm {
        return Err(PrepareError::HostNetwork);
    }
    let hostname = match &args.hostname {
        Some(name) => checked_hostname(name)?,
        None => format!("podvm-{uuid}"),
    };
    let names = app_names(args, images)?;
    let (volumes, mounts) = {
        let parts = args.apps().zip(images).zip(&names);
        let wishes = parts.map(|((app, image), name)| volumes::AppVolumes {
            app: name,
            mounts: &app.mounts,
            declared: &image.volumes,
        });
        volumes::resolve(&args.volumes, &wishes.collect::<Vec<_>>())?
    };
    let declared: Vec<(&AppName, &[DeclaredPort])> =
        names.iter().zip(images).map(|(name, image)| (name, image.ports.as_slice())).collect();
    let ports = ports::resolve(&args.ports, &declared, &network)?;
    let mut apps = Vec::new();
    for (((args, image), name), mounts) in args.apps().zip(images).zip(names).zip(mounts) {
        apps.push(App { mounts, ..app(args, image, name, &hostname, host)? });
    }
    check_interactive(args, &apps)?;
    let resources = resources(&apps, args.disk, host, stage1)?;
    let created = Timestamp::now().seconds();
    let (version, private_users) = (MANIFEST_VERSION, args.private_users);
    Ok(PodManifest { version, uuid, created, hostname, apps, volumes, ports, network, private_users, resources })
}

fn app_names(args: &RunArgs, images: &[ImageSettings]) -> Result<Vec<AppName>, PrepareError> {
    let mut names: Vec<AppName> = Vec::new();
    for (app, image) in args.apps().zip(images) {
        let name = app.name.clone().unwrap_or_else(|| name_of_image(&image.image.name));
        if names.contains(&name) {
            return Err(PrepareError::AppTwice(name));
        }
        names.push(name);
    }
    Ok(names)
}

/// `registry:5000/team/etcd:3.4@sha256:…` is `etcd`.
fn name_of_image(image: &str) -> AppName {
    let without_digest = image.split('@').next().unwrap_or(image);
    let last = without_digest.rsplit('/').next().unwrap_or(without_digest);
    AppName::from_lossy(last.split(':').next().unwrap_or(last))
}

fn checked_hostname(name: &str) -> Result<String, PrepareError> {
    let fits = !name.is_empty() && name.len() <= 64;
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
    if fits && plain && name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        Ok(name.into())
    } else {
        Err(PrepareError::Hostname(name.into()))
    }
}

fn app(args: &AppArgs, image: &ImageSettings, name: AppName, hostname: &str, host: &Host) -> Result<App, PrepareError> {
    let working_directory = args.working_dir.as_ref().or(image.working_directory.as_ref());
    let working_directory = working_directory.map_or(Path::new("/"), |path| path.as_path()).to_owned();
    if !working_directory.is_absolute() {
        return Err(PrepareError::RelativeWorkingDirectory { app: name, path: working_directory });
    }
    if let Some(given) = args.memory.filter(|given| *given < MIN_APP_MEMORY) {
        return Err(PrepareError::TooLittleMemory { app: name, given, minimum: MIN_APP_MEMORY });
    }
    Ok(App {
        name,
        image: image.image.clone(),
        exec: program(args, image)?,
        user: user(args, image),
        supplementary_gids: Vec::new(),
        working_directory,
        environment: environment(args, image, hostname, host),
        mounts: Vec::new(),
        isolators: Isolators {
            memory: args.memory,
            cpu: args.cpu,
            capabilities: capabilities(args),
            no_new_privileges: args.no_new_privileges,
            ..Isolators::default()
        },
        read_only_root: args.readonly_rootfs,
        terminal: args.tty,
        stdin: args.interactive,
        stop_signal: stop_signal(image)?,
    })
}

/// As in docker: arguments stand in for the image's command; another program for its entry point and its command.
fn program(args: &AppArgs, image: &ImageSettings) -> Result<Vec<String>, PrepareError> {
    let mut exec = match &args.exec {
        Some(program) => vec![program.clone()],
        None => image.entrypoint.clone(),
    };
    if args.arguments.is_empty() && args.exec.is_none() {
        exec.extend(image.command.iter().cloned());
    } else {
        exec.extend(args.arguments.iter().cloned());
    }
    if exec.is_empty() { Err(PrepareError::NoProgram(image.image.name.clone())) } else { Ok(exec) }
}

fn user(args: &AppArgs, image: &ImageSettings) -> UserSpec {
    let mut user = args.user.as_deref().map_or_else(|| image.user.clone(), UserSpec::from);
    if args.group.is_some() {
        user.group.clone_from(&args.group);
    }
    user
}

/// What the user says comes before what the image says, and that before what every app has.
fn environment(args: &AppArgs, image: &ImageSettings, hostname: &str, host: &Host) -> Vec<EnvironmentVariable> {
    let variable = |name: &str, value: &str| EnvironmentVariable { name: name.into(), value: value.into() };
    let mut environment = vec![variable("PATH", DEFAULT_PATH), variable("HOSTNAME", hostname)];
    if args.tty {
        environment.push(variable("TERM", host.term.as_deref().unwrap_or(DEFAULT_TERM)));
    }
    for given in image.environment.iter().chain(&args.environment) {
        match environment.iter_mut().find(|known| known.name == given.name) {
            Some(known) => known.value.clone_from(&given.value),
            None => environment.push(given.clone()),
        }
    }
    environment
}

fn capabilities(args: &AppArgs) -> BTreeSet<Capability> {
    match &args.caps_retain {
        Some(retained) => retained.iter().copied().collect(),
        None => {
            let mut capabilities = Capability::default_set();
            capabilities.retain(|capability| !args.caps_remove.contains(capability));
            capabilities
        }
    }
}

/// `SIGTERM`, `TERM` or `15`; also the real-time signals, as `SIGRTMIN+3`.
fn stop_signal(image: &ImageSettings) -> Result<i32, PrepareError> {
    let Some(text) = image.stop_signal.as_deref().filter(|text| !text.is_empty()) else {
        return Ok(Signal::SIGTERM as i32);
    };
    let name = format!("SIG{}", text.strip_prefix("SIG").unwrap_or(text));
    let real_time = || name.strip_prefix("SIGRTMIN+")?.parse::<i32>().ok().map(|offset| nix::libc::SIGRTMIN() + offset);
    let number =
        text.parse().ok().or_else(|| Signal::from_str(&name).ok().map(|signal| signal as i32)).or_else(real_time);
    number.filter(|number| (1..=nix::libc::SIGRTMAX()).contains(number)).ok_or_else(|| {
        let what = format!("its stop signal {text:?} is no signal");
        PrepareError::Image { image: image.image.name.clone(), what }
    })
}

fn check_interactive(args: &RunArgs, apps: &[App]) -> Result<(), PrepareError> {
    let mut interactive = apps.iter().filter(|app| app.stdin);
    match (interactive.next(), interactive.next()) {
        (Some(one), Some(other)) if !args.detach => {
            Err(PrepareError::TwoInteractive(one.name.clone(), other.name.clone()))
        }
        _ => Ok(()),
    }
}

fn resources(apps: &[App], disk: ByteSize, host: &Host, stage1: Stage1Kind) -> Result<PodResources, PrepareError> {
    let of_app = |app: &App| app.isolators.memory.unwrap_or(UNLIMITED_APP_MEMORY).bytes();
    let memory = apps.iter().map(of_app).fold(VM_MEMORY.bytes(), u64::saturating_add);
    // Behind namespaces only what is used counts.
    if stage1 == Stage1Kind::Kvm && memory > host.memory.bytes() {
        return Err(PrepareError::TooMuchMemory { wanted: ByteSize(memory), present: host.memory });
    }
    if disk < podvm_pod::writable::MIN_DISK {
        return Err(PrepareError::TooSmallDisk { given: disk, minimum: podvm_pod::writable::MIN_DISK });
    }
    // What is left of a CPU by one app can be another's; whole CPUs are needed only for the sum.
    let thousandths: u64 = apps.iter().filter_map(|app| app.isolators.cpu).map(|limit| u64::from(limit.0)).sum();
    let cpus = u32::try_from(thousandths.div_ceil(1_000)).unwrap_or(u32::MAX).clamp(1, host.cpus);
    Ok(PodResources { memory: ByteSize(memory), cpus, disk })
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::super::image::tests::image;
    use super::*;
    use crate::cli::{Command, Parsed, parse};

    const ETCD: &str = r#"{
        "Entrypoint":["/usr/bin/etcd"], "Cmd":["--help"], "Env":["PATH=/usr/bin","A=image"], "User":"etcd:etcd",
        "WorkingDir":"/var/lib", "StopSignal":"SIGINT", "Volumes":{"/var/lib/etcd":{}},
        "Labels":{"io.podvm.port.client":"2379/tcp","io.podvm.volume.data-dir":"/var/lib/etcd"}}"#;

    fn assemble_text(text: &str) -> Result<PodManifest, PrepareError> {
        assemble_for(Stage1Kind::Kvm, text)
    }

    fn assemble_for(stage1: Stage1Kind, text: &str) -> Result<PodManifest, PrepareError> {
        let arguments: Vec<OsString> = format!("podvm run {text}").split(' ').map(OsString::from).collect();
        let Ok(Parsed::Command(cli)) = parse(&arguments) else { panic!("{text}") };
        let Command::Run(args) = cli.command else { panic!("{text}") };
        let images: Vec<_> = args
            .apps()
            .map(|app| image(&app.image, if app.image.contains("etcd") { ETCD } else { "{}" }).unwrap())
            .collect();
        let host = Host { cpus: 4, memory: ByteSize::mib(8 << 10), term: Some("vt100".into()) };
        assemble(&args, &images, &host, stage1)
    }

    fn value<'a>(app: &'a App, name: &str) -> Option<&'a str> {
        app.environment.iter().find(|variable| variable.name == name).map(|variable| variable.value.as_str())
    }

    #[test]
    fn the_image_fills_in_what_the_command_line_leaves_open() {
        let manifest = assemble_text("--port client:12379 registry.example/team/etcd:3.4").unwrap();
        let app = &manifest.apps[0];
        assert_eq!(app.name.as_str(), "etcd");
        assert_eq!(app.exec, ["/usr/bin/etcd", "--help"]);
        assert_eq!(app.user, UserSpec { user: Some("etcd".into()), group: Some("etcd".into()) });
        assert_eq!((value(app, "PATH"), value(app, "A")), (Some("/usr/bin"), Some("image")));
        assert_eq!(value(app, "HOSTNAME"), Some(manifest.hostname.as_str()));
        assert_eq!(value(app, "TERM"), None);
        assert_eq!(app.stop_signal, 2);
        assert_eq!(app.mounts.len(), 1);
        assert_eq!((manifest.ports[0].pod_port, manifest.ports[0].host_port), (2379, 12379));
        assert_eq!(manifest.resources.memory, ByteSize::mib(64 + 448));
    }

    #[test]
    fn arguments_replace_the_command_and_a_program_replaces_both() {
        let exec = |text| assemble_text(text).unwrap().apps.remove(0).exec;
        assert_eq!(exec("etcd -- --a --b"), ["/usr/bin/etcd", "--a", "--b"]);
        assert_eq!(exec("etcd --exec sh"), ["sh"]);
        assert_eq!(exec("etcd --exec sh -- -c x"), ["sh", "-c", "x"]);
        assert_eq!(exec("plain -- true"), ["true"]);
    }

    #[test]
    fn what_the_user_says_comes_first() {
        let manifest =
            assemble_text("-t -e A=mine -e B=1 --user 7 --group 8 --working-dir /x --hostname h etcd").unwrap();
        let app = &manifest.apps[0];
        assert_eq!((value(app, "A"), value(app, "B"), value(app, "TERM")), (Some("mine"), Some("1"), Some("vt100")));
        assert_eq!(app.user, UserSpec { user: Some("7".into()), group: Some("8".into()) });
        assert_eq!((app.working_directory.as_path(), manifest.hostname.as_str()), (Path::new("/x"), "h"));
    }

    #[test]
    fn a_pods_resources_are_the_sum_of_its_apps() {
        let resources = |text| assemble_text(text).unwrap().resources;
        let two = resources("--memory 32M --cpu 0.5 etcd --- --cpu 700m plain -- x");
        assert_eq!((two.memory, two.cpus), (ByteSize::mib(64 + 32 + 448), 2));
        assert_eq!(resources("--cpu 64 etcd").cpus, 4);
        assert_eq!(resources("etcd").cpus, 1);
    }

    #[test]
    fn capabilities_are_retained_or_removed() {
        let capabilities = |text| assemble_text(text).unwrap().apps.remove(0).isolators.capabilities;
        assert_eq!(
            capabilities("--caps-retain CAP_CHOWN,net_admin etcd"),
            [Capability::Chown, Capability::NetAdmin].into()
        );
        let fewer = capabilities("--caps-remove CAP_CHOWN etcd");
        assert_eq!(fewer.len() + 1, Capability::default_set().len());
        assert!(!fewer.contains(&Capability::Chown));
    }

    #[test]
    fn namespaces_share_the_hosts_network_and_memory() {
        let manifest = assemble_for(Stage1Kind::Ns, "--net=host --memory 1T etcd").unwrap();
        assert_eq!(manifest.network, NetworkMode::Host);
    }

    #[test]
    fn what_cannot_be_is_named_with_its_cure() {
        for (text, part) in [
            ("--memory 1M etcd", "1 MiB is too little memory; give at least 16 MiB"),
            ("--memory 1T etcd", "this host has 8 GiB"),
            ("--disk 1M etcd", "--disk"),
            ("plain", "image plain names no program"),
            ("etcd --- etcd", "two apps are named etcd"),
            ("-i etcd --- -i plain -- x", "both --interactive"),
            ("--hostname a_b etcd", "a_b"),
            ("--net=host etcd", "--stage1=ns"),
            ("--working-dir x etcd", "not absolute"),
        ] {
            let message = assemble_text(text).unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
