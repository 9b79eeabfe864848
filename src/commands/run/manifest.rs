//! From the command line and the images to the pod's manifest. Nothing is made here; all that can be wrong is found.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::str::FromStr;

use nix::sys::signal::Signal;
use podvm_pod::manifest::{
    App, AppName, ByteSize, Capability, EnvironmentVariable, HostsChoice, HostsEntry, IpcMode, Isolators,
    MANIFEST_VERSION, NetworkMode, PodManifest, PodResources, RestartPolicy, UserSpec,
};
use podvm_pod::stage1::Stage1Kind;
use podvm_pod::timestamp::Timestamp;
use podvm_pod::writable::{MAX_DISK, MIN_DISK};
use uuid::Uuid;

use super::app_arguments::AppArgs;
use super::arguments::RunArgs;
use super::environment::environment;
use super::error::PrepareError;
use super::health::health;
use super::image::{DeclaredPort, ImageSettings};
use super::{bind, ports, volumes};

/// Memory of a VM beside its apps': kernel, supervisor and the page structures of the rest.
const VM_MEMORY: ByteSize = ByteSize::mib(64);
/// Memory counted for an app without a limit.
const UNLIMITED_APP_MEMORY: ByteSize = ByteSize::mib(448);
/// Smallest limit of an app: less does not hold a program and the caches of what it reads.
const MIN_APP_MEMORY: ByteSize = ByteSize::mib(16);

/// What the pod has to fit.
#[derive(Debug, Clone)]
pub struct Host {
    /// CPUs.
    pub cpus: u32,
    /// Memory.
    pub memory: ByteSize,
    /// What this process's terminal can do.
    pub term: Option<String>,
    /// This process's environment, as far as it is text.
    pub environment: Vec<EnvironmentVariable>,
}

impl Host {
    /// This host.
    pub fn this() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
        let memory = nix::sys::sysinfo::sysinfo().map_or(u64::MAX, |info| info.ram_total());
        let term = std::env::var("TERM").ok().filter(|term| !term.is_empty());
        let text = |(name, value): (OsString, OsString)| {
            Some(EnvironmentVariable { name: name.into_string().ok()?, value: value.into_string().ok()? })
        };
        Self { cpus, memory: ByteSize(memory), term, environment: std::env::vars_os().filter_map(text).collect() }
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
    let ipc = args.ipc.map(IpcMode::from).unwrap_or_default();
    check_sharing(&network, ipc, args.private_users, stage1)?;
    let dns = args.name_service()?;
    let hostname = match &args.hostname {
        Some(name) => checked_hostname(name)?,
        None => default_hostname(uuid),
    };
    let names = app_names(args, images)?;
    let (volumes, mounts) = {
        let mut given = args.volumes.clone();
        let mounts = |app: &AppArgs| Ok([app.mounts.clone(), bind::mounts(&app.binds, &mut given)?].concat());
        let mounts = args.apps().map(mounts).collect::<io::Result<Vec<_>>>().map_err(PrepareError::NoDirectory)?;
        let parts = mounts.iter().zip(images).zip(&names);
        let wishes = parts.map(|((mounts, image), app)| volumes::AppVolumes { app, mounts, declared: &image.volumes });
        volumes::resolve(&given, &wishes.collect::<Vec<_>>())?
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
    Ok(PodManifest {
        version: MANIFEST_VERSION,
        uuid,
        created: Timestamp::now().seconds(),
        hostname,
        apps,
        volumes,
        ports,
        network,
        private_users: args.private_users,
        dns,
        hosts: hosts(&args.hosts_entries),
        ipc,
        resources,
    })
}

/// A VM shares nothing of the host's, and users of the pod's own have no part in what is the host users'.
pub fn check_sharing(
    network: &NetworkMode,
    ipc: IpcMode,
    private_users: bool,
    stage1: Stage1Kind,
) -> Result<(), PrepareError> {
    match stage1 {
        Stage1Kind::Kvm if *network == NetworkMode::Host => Err(PrepareError::HostNetwork),
        Stage1Kind::Kvm if ipc == IpcMode::Host => Err(PrepareError::HostIpc),
        Stage1Kind::Ns if ipc == IpcMode::Host && private_users => Err(PrepareError::HostIpcOfOthers),
        _ => Ok(()),
    }
}

/// The entries of `/etc/hosts` that were asked for.
fn hosts(choices: &[HostsChoice]) -> Vec<HostsEntry> {
    let entries = |choice: &HostsChoice| match choice {
        HostsChoice::Host => podvm_net::host_names(),
        HostsChoice::Entries(entries) => entries.clone(),
    };
    choices.iter().flat_map(entries).collect()
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

/// `registry:5000/team/etcd:3.4@sha256:…` is `etcd`, and so is `coreos.com/etcd,version=v3`.
fn name_of_image(image: &str) -> AppName {
    let without_digest = image.split(['@', ',']).next().unwrap_or(image);
    let last = without_digest.rsplit('/').next().unwrap_or(without_digest);
    AppName::from_lossy(last.split(':').next().unwrap_or(last))
}

/// The hostname of a pod that was given none.
pub fn default_hostname(uuid: Uuid) -> String {
    format!("podvm-{uuid}")
}

/// A hostname that can be one.
///
/// # Errors
/// [`PrepareError::Hostname`].
pub fn checked_hostname(name: &str) -> Result<String, PrepareError> {
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
    let isolators = isolators(args, &image.isolators);
    check_limits(&name, &isolators)?;
    if args.restart != RestartPolicy::No && args.interactive {
        return Err(PrepareError::InteractiveRestart(name));
    }
    Ok(App {
        name,
        image: image.image.clone(),
        exec: program(args, image)?,
        user: user(args, image),
        supplementary_gids: match args.supplementary_gids.is_empty() {
            true => image.supplementary_gids.clone(),
            false => args.supplementary_gids.clone(),
        },
        working_directory,
        environment: environment(args, image, hostname, host)?,
        mounts: Vec::new(),
        isolators,
        read_only_root: args.readonly_rootfs,
        terminal: args.tty,
        stdin: args.interactive,
        health: health(args, image)?,
        restart: args.restart,
        pre_start: image.pre_start.clone(),
        post_stop: image.post_stop.clone(),
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

/// Limits that no program can start under, or that contradict each other.
///
/// # Errors
/// Which one.
pub fn check_limits(app: &AppName, isolators: &Isolators) -> Result<(), PrepareError> {
    if let Some(given) = isolators.memory.filter(|given| *given < MIN_APP_MEMORY) {
        return Err(PrepareError::TooLittleMemory { app: app.clone(), given, minimum: MIN_APP_MEMORY });
    }
    let mut names = isolators.rlimits.iter().map(|limit| &limit.name);
    while let Some(name) = names.next() {
        if names.clone().any(|other| other == name) {
            return Err(PrepareError::RlimitTwice { app: app.clone(), name: name.clone() });
        }
    }
    Ok(())
}

/// What the user says, and else the image.
fn isolators(args: &AppArgs, image: &Isolators) -> Isolators {
    Isolators {
        memory: args.memory.or(image.memory),
        cpu: args.cpu.or(image.cpu),
        cpu_shares: args.cpu_shares.or(image.cpu_shares),
        pids: args.pids.or(image.pids),
        capabilities: capabilities(args, &image.capabilities),
        no_new_privileges: args.no_new_privileges || image.no_new_privileges,
        seccomp: args.seccomp.clone().unwrap_or_else(|| image.seccomp.clone()),
        rlimits: args.rlimits.clone(),
        oom_score_adj: args.oom_score_adj.or(image.oom_score_adj),
    }
}

fn capabilities(args: &AppArgs, of_image: &BTreeSet<Capability>) -> BTreeSet<Capability> {
    match &args.caps_retain {
        Some(retained) => retained.iter().copied().collect(),
        None => {
            let mut capabilities = of_image.clone();
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
    let upper = text.to_ascii_uppercase();
    let name = format!("SIG{}", upper.strip_prefix("SIG").unwrap_or(&upper));
    let real_time = || name.strip_prefix("SIGRTMIN+")?.parse::<i32>().ok()?.checked_add(nix::libc::SIGRTMIN());
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

/// What the apps need together.
///
/// # Errors
/// More memory than the host has, or too small a disk.
pub fn resources(
    apps: &[App],
    disk: Option<ByteSize>,
    host: &Host,
    stage1: Stage1Kind,
) -> Result<PodResources, PrepareError> {
    let of_app = |app: &App| app.isolators.memory.unwrap_or(UNLIMITED_APP_MEMORY).bytes();
    let memory = apps.iter().map(of_app).fold(VM_MEMORY.bytes(), u64::saturating_add);
    // Behind namespaces only what is used counts.
    if stage1 == Stage1Kind::Kvm && memory > host.memory.bytes() {
        return Err(PrepareError::TooMuchMemory { wanted: ByteSize(memory), present: host.memory });
    }
    if let Some(given) = disk.filter(|given| !(MIN_DISK..=MAX_DISK).contains(given)) {
        return Err(PrepareError::DiskSize(given));
    }
    // What is left of a CPU by one app can be another's; whole CPUs are needed only for the sum.
    let thousandths: u64 = apps.iter().filter_map(|app| app.isolators.cpu).map(|limit| u64::from(limit.0)).sum();
    let cpus = u32::try_from(thousandths.div_ceil(1_000)).unwrap_or(u32::MAX).clamp(1, host.cpus);
    Ok(PodResources { memory: ByteSize(memory), cpus, disk })
}

#[cfg(test)]
mod tests {
    use podvm_pod::manifest::{DnsSource, Seccomp};

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
            .map(|app| {
                let name = app.image.as_deref().unwrap();
                image(name, if name.contains("etcd") { ETCD } else { "{}" }).unwrap()
            })
            .collect();
        let variable = |name: &str| EnvironmentVariable { name: name.into(), value: "host".into() };
        let environment = ["A", "HOME", "HOSTNAME"].map(variable).into();
        let host = Host { cpus: 4, memory: ByteSize::mib(8 << 10), term: Some("vt100".into()), environment };
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
    fn inherited_variables_give_way_to_all_others_and_files_to_options() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "F=file\nG=file\n").unwrap();
        let text = format!("--inherit-env --set-env-file {} -e G=mine etcd", file.path().display());
        let manifest = assemble_text(&text).unwrap();
        let app = &manifest.apps[0];
        for (name, expected) in [("A", "image"), ("HOME", "host"), ("F", "file"), ("G", "mine")] {
            assert_eq!(value(app, name), Some(expected));
        }
        assert_eq!(value(app, "HOSTNAME"), Some(manifest.hostname.as_str()));
    }

    #[test]
    fn settings_reach_the_manifest() {
        let text = "--dns 192.0.2.1 --dns-search a.example --dns-opt ndots:2 --hosts-entry 10.0.0.5=db,db.local \
                    --seccomp mode=unconfined --oom-score-adj -5 --cpu-shares 512 --pids 64 --rlimit nofile=10:20 \
                    --supplementary-gids 27,100 etcd";
        let words: Vec<&str> = text.split_whitespace().collect();
        let manifest = assemble_text(&words.join(" ")).unwrap();
        assert_eq!(manifest.dns.source, DnsSource::Servers(vec!["192.0.2.1".parse().unwrap()]));
        assert_eq!((manifest.dns.search[0].as_str(), manifest.dns.options[0].as_str()), ("a.example", "ndots:2"));
        assert_eq!(manifest.hosts[0].names, ["db", "db.local"]);
        let app = &manifest.apps[0];
        assert_eq!(app.supplementary_gids, [27, 100]);
        let Isolators { seccomp, oom_score_adj, cpu_shares, pids, rlimits, .. } = &app.isolators;
        assert_eq!(
            (seccomp, *oom_score_adj, *cpu_shares, *pids),
            (&Seccomp::Unconfined, Some(-5), Some(512), Some(64))
        );
        assert_eq!((rlimits[0].name.as_str(), rlimits[0].soft, rlimits[0].hard), ("nofile", 10, 20));
    }

    #[test]
    fn health_and_restarts_are_the_images_or_the_users() {
        let app = |text| assemble_text(text).unwrap().apps.remove(0);
        assert_eq!(app("etcd").health, None);
        let looked_at = app("--health-cmd true --health-interval 5s --health-retries 2 --restart on-failure:3 etcd");
        assert_eq!(looked_at.restart, RestartPolicy::OnFailure { most: Some(3) });
        let health = looked_at.health.unwrap();
        assert_eq!(health.exec, ["/bin/sh", "-c", "true"]);
        assert_eq!((health.interval_ms, health.timeout_ms, health.retries), (5_000, 30_000, 2));
        let of_image = r#"{"Healthcheck":{"Test":["CMD","ok"],"Interval":7000000000,"Timeout":-5,"StartPeriod":1000000,"Retries":-1}}"#;
        let image = image("x", of_image).unwrap();
        let health = |text: &str| {
            let Ok(Parsed::Command(cli)) = parse(&text.split(' ').map(OsString::from).collect::<Vec<_>>()) else {
                panic!("{text}")
            };
            let Command::Run(args) = cli.command else { panic!("{text}") };
            super::health(&args.app, &image).unwrap()
        };
        let found = health("podvm run --health-timeout 1s x").unwrap();
        assert_eq!((found.interval_ms, found.timeout_ms, found.start_period_ms, found.retries), (7_000, 1_000, 1, 3));
        assert_eq!(health("podvm run --health-cmd none x"), None);
    }

    #[test]
    fn stop_signals_are_taken_as_they_are_written() {
        let signal = |text: &str| stop_signal(&image("x", &format!(r#"{{"StopSignal":"{text}"}}"#)).unwrap());
        for (text, number) in [("", 15), ("SIGINT", 2), ("int", 2), ("sigTerm", 15), ("15", 15)] {
            assert_eq!(signal(text).unwrap(), number, "{text}");
        }
        assert_eq!(signal("rtmin+3").unwrap(), nix::libc::SIGRTMIN() + 3);
        for text in ["fly", "rtmin+2147483647", "rtmin-1", "99"] {
            assert!(signal(text).unwrap_err().to_string().contains("is no signal"), "{text}");
        }
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
            ("--disk 1M etcd", "a disk cannot be of 1 MiB; give 16 MiB"),
            ("--disk 9999999T etcd", "to 8 TiB with --disk"),
            ("plain", "image plain names no program"),
            ("etcd --- etcd", "two apps are named etcd"),
            ("-i etcd --- -i plain -- x", "both --interactive"),
            ("--hostname a_b etcd", "a_b"),
            ("--net=host etcd", "--stage1=ns"),
            ("--health-retries 2 etcd", "--health-cmd"),
            ("-i --restart always etcd", "--interactive"),
            ("--ipc=host etcd", "--stage1=ns"),
            ("--dns host --dns 192.0.2.1 etcd", "stand alone"),
            ("--dns none --dns-search x etcd", "stand alone"),
            ("--rlimit nofile=1 --rlimit nofile=2 etcd", "nofile is given twice"),
            ("--set-env-file /no/such/file etcd", "/no/such/file"),
            ("--working-dir x etcd", "not absolute"),
        ] {
            let message = assemble_text(text).unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
