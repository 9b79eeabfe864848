//! `podvm run`: resolves images, writes the pod down, and becomes it.
//!
//! All that can be found wrong with what was asked for is found before anything is made. The pod then runs in this very
//! process, which keeps its PID; with `--detach` in a child of it. That child, and the one that removes the pod of `--rm`,
//! are forked while there is one thread.

mod app_arguments;
mod appc;
mod arguments;
mod bind;
mod detach;
mod environment;
mod error;
mod from_manifest;
mod health;
mod image;
mod manifest;
mod ports;
mod prepared;
mod reaper;
mod sockets;
mod volumes;

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use podvm_image::source::STDIN;
use podvm_image::{ImageSource, ImportOptions, Imported, ResolvedImage, Silent, Store};
use podvm_pod::directory::PreparedPod;
use podvm_pod::draft::Output;
use podvm_pod::fault::{FaultPoint, reach};
use podvm_pod::manifest::{AppImage, IpcMode, PodManifest};
use podvm_pod::runner::PodIo;
use podvm_pod::status::{AppState, AppStatus, PodReport};
use podvm_pod::{Stage1, Stage1Kind, Uuid};
use podvm_stage1_kvm::KvmStage1;
use podvm_stage1_ns::NsStage1;

pub use app_arguments::AppArgs;
pub use arguments::RunArgs;
use error::PrepareError;
use image::ImageSettings;
pub use prepared::{RunPreparedArgs, prepare, run_prepared};
use reaper::Reaper;

use crate::commands::image::fetch::Fetcher;
use crate::commands::image::{checked, open_store};
use crate::commands::remove;
use crate::config::Config;
use crate::report;
use crate::stage1::{Chosen, choose};

/// Runs a pod; returns its exit code.
pub fn run(args: &RunArgs, config: &Config) -> Result<u8> {
    let passed = sockets::take()?;
    let (manifest, holds, stage1) = resolve_pod(args, config)?;
    let sockets = sockets::for_apps(passed, &manifest, stage1)?;
    if !args.quiet {
        sockets::remarks(&manifest, &sockets).iter().for_each(|line| report(line));
    }
    let uuid = manifest.uuid;
    let uuid_file = args.uuid_file_save.as_ref().map(std::path::absolute).transpose()?;
    let start = move |io| run_pod(args, config, stage1, manifest, holds, uuid_file.as_deref(), PodIo { sockets, ..io });
    start_pod(args.detach, uuid, start)
}

/// The pod that the command line describes, its images, held, and the walls it gets.
fn resolve_pod(args: &RunArgs, config: &Config) -> Result<(PodManifest, Vec<ResolvedImage>, Stage1Kind)> {
    let store = checked(open_store(config)?, &args.registry.insecure, config);
    let stage1 = choose(args.stage1.unwrap_or(config.stage1))?;
    let host = manifest::Host::this();
    let (mut manifest, holds) = match &args.pod_manifest {
        Some(path) => from_manifest::read(path, &store, &host, stage1.kind)?,
        None => from_images(args, config, &store, &host, stage1.kind)?,
    };
    reach(FaultPoint::ImagesHeld);
    require_files(config, stage1.kind)?;
    if !args.quiet {
        remarks(&stage1, &manifest, config.is_unprivileged).iter().for_each(|line| report(line));
    }
    if stage1.kind == Stage1Kind::Ns {
        suit_namespaces(&mut manifest, &store, &holds, config)?;
    }
    Ok((manifest, holds, stage1.kind))
}

/// Starts a pod in this process, or in a child of it; returns its exit code, or 0 once the child's apps run.
fn start_pod(detach: bool, uuid: Uuid, start: impl FnOnce(PodIo) -> Result<Outcome>) -> Result<u8> {
    if detach {
        return detach::start(uuid, |ready| start(PodIo { ready: Some(ready), ..PodIo::default() }));
    }
    let outcome = start(PodIo { attached: true, ..PodIo::default() })?;
    outcome.lines.iter().for_each(|line| report(line));
    Ok(outcome.code)
}

/// The pod that the command line describes, and its images, held.
fn from_images(
    args: &RunArgs,
    config: &Config,
    store: &Store,
    host: &manifest::Host,
    stage1: Stage1Kind,
) -> Result<(PodManifest, Vec<ResolvedImage>)> {
    let fetcher = Fetcher::new(store, &args.registry, config, args.quiet);
    let mut images = Vec::new();
    let mut holds = Vec::new();
    for app in args.apps() {
        let wanted = app.image.as_deref().context("no IMAGE is named")?;
        let (image, resolved) = resolve(&fetcher, store, wanted)?;
        images.push(match &resolved.appc {
            Some(appc) => ImageSettings::of_appc(image, &appc.manifest)?,
            None => ImageSettings::read(image, &resolved.config)?,
        });
        holds.push(resolved);
    }
    let manifest = manifest::assemble(args, &images, host, stage1)?;
    if !args.quiet {
        image::remarks(args, &images, &manifest).iter().for_each(|line| report(line));
    }
    Ok((manifest, holds))
}

/// Finds an image in the store, or fetches it first; imports it when it is named by its path.
fn resolve(fetcher: &Fetcher<'_>, store: &Store, wanted: &str) -> Result<(AppImage, ResolvedImage)> {
    let (resolved, name) = match ImageSource::parse(wanted)? {
        ImageSource::Registry(name) => (fetcher.resolve(&name.to_string())?, name.to_string()),
        ImageSource::Named(wanted) => {
            let resolved = fetcher.resolve(&wanted)?;
            // An ID says nothing to who reads it later.
            let is_id = resolved.id.hex().starts_with(wanted.trim_start_matches("sha256:"));
            let known = if is_id { store.find(&wanted)?.names } else { Vec::new() };
            let own = resolved.appc.as_ref().map(|appc| appc.manifest.full_name().to_string());
            let name = own.or_else(|| known.first().map(ToString::to_string)).unwrap_or(wanted);
            (resolved, name)
        }
        ImageSource::Appc(name) => stored(fetcher.appc(&name)?, store)?,
        ImageSource::Url(url) => stored(fetcher.url(&url)?, store)?,
        ImageSource::Path { path, .. } if path.as_os_str() == STDIN => {
            anyhow::bail!("standard input is the app's; import the image first: `podvm image import -`")
        }
        ImageSource::Path { format, path } if fetcher.is_aci(&path, format) => {
            stored(fetcher.aci(&path, None, None)?, store)?
        }
        ImageSource::Path { format, path } => {
            let imported = store.import(&path, &ImportOptions { format, ..ImportOptions::default() }, &Silent)?;
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            (store.resolve(&imported.id.to_string())?, imported.names.first().map_or(stem, ToString::to_string))
        }
    };
    let layers = resolved.layers.iter().map(|layer| layer.path.clone()).collect();
    Ok((AppImage { name, id: resolved.id.to_string(), layers }, resolved))
}

/// An image of appc that is there now, and its name.
fn stored(imported: Imported, store: &Store) -> Result<(ResolvedImage, String)> {
    let name = imported.appc.map(|appc| appc.manifest.full_name().to_string()).unwrap_or_default();
    Ok((store.resolve(&imported.id.to_string())?, name))
}

/// What is otherwise than the user may think.
fn remarks(stage1: &Chosen, manifest: &PodManifest, is_unprivileged: bool) -> Vec<String> {
    let fallback = stage1.fallback.as_ref();
    let mut lines: Vec<String> = fallback
        .map(|reason| format!("the pod runs behind namespaces, for this host cannot run it in a VM: {reason}"))
        .into_iter()
        .collect();
    if stage1.kind == Stage1Kind::Ns {
        lines.extend(podvm_stage1_ns::cgroup::missed_limits(manifest));
        if is_unprivileged && manifest.resources.disk.is_some() {
            lines.push(
                "--disk does not hold: behind namespaces only root's pods have a disk; --stage1=kvm has one".into(),
            );
        }
    }
    lines
}

/// Has layers unpacked where they cannot be mounted. An ordinary user's pod has mapped users in any case.
fn suit_namespaces(manifest: &mut PodManifest, store: &Store, images: &[ResolvedImage], config: &Config) -> Result<()> {
    if config.is_unprivileged && manifest.ipc == IpcMode::Host {
        return Err(PrepareError::HostIpcOfOthers.into());
    }
    manifest.private_users &= !config.is_unprivileged;
    if !config.is_unprivileged && podvm_stage1_ns::mount::host_mounts_erofs() {
        return Ok(());
    }
    for (app, image) in manifest.apps.iter_mut().zip(images) {
        let unpacked = image.layers.iter().map(|layer| store.unpacked(&layer.diff_id));
        app.image.layers = unpacked.collect::<Result<_, _>>()?;
    }
    Ok(())
}

/// What the stage1 is made of.
fn require_files(config: &Config, stage1: Stage1Kind) -> Result<()> {
    match stage1 {
        Stage1Kind::Kvm => {
            require_file(&config.kernel, "guest kernel", "kernel")?;
            require_file(&config.initramfs, "guest's initramfs", "initramfs")
        }
        Stage1Kind::Ns => require_file(&config.supervisor, "supervisor", "supervisor"),
    }
}

/// The file is opened again later; this is for the message, before anything is made.
fn require_file(path: &Path, what: &str, setting: &str) -> Result<()> {
    std::fs::File::open(path).map(drop).with_context(|| {
        format!(
            "the {what} {} is missing; install podvm with its files, or set {setting} in its configuration",
            path.display()
        )
    })
}

fn run_pod(
    args: &RunArgs,
    config: &Config,
    stage1: Stage1Kind,
    manifest: PodManifest,
    images: Vec<ResolvedImage>,
    uuid_file: Option<&Path>,
    io: PodIo,
) -> Result<Outcome> {
    let uuid = manifest.uuid;
    let pods = config.pods();
    let reaper = args.rm.then(|| Reaper::fork(pods.pod(uuid))).transpose()?;
    reach(FaultPoint::ReaperForked);
    let pod = pods.prepare(manifest)?;
    // Written down as used by a pod, they need not be held any longer.
    drop(images);
    reach(FaultPoint::ImagesLetGo);
    let manifest = pod.manifest().clone();
    let saved_before = uuid_file.and_then(saved_in);
    if let Some(Err(error)) = uuid_file.map(|path| save_uuid(path, uuid)) {
        pod.discard()?;
        return Err(error);
    }
    match run_behind(stage1, config, pod, io) {
        Ok(report) => Ok(Outcome::of(&report, &manifest, args.quiet).after(reaper)),
        Err(error) => {
            // It has never run: there is nothing in it that anyone could want.
            if let Err(leftover) = remove(&pods.pod(uuid)) {
                report(&format!("pod {uuid} cannot be removed: {leftover}"));
            }
            if let Some(path) = uuid_file {
                take_back(path, uuid, saved_before);
            }
            Err(error)
        }
    }
}

/// Becomes the pod behind the walls that were chosen.
fn run_behind(stage1: Stage1Kind, config: &Config, pod: PreparedPod, io: PodIo) -> Result<PodReport> {
    let (root, network, is_unprivileged) = (config.root.clone(), config.network.clone(), config.is_unprivileged);
    match stage1 {
        Stage1Kind::Kvm => {
            let (kernel, initramfs) = (config.kernel.clone(), config.initramfs.clone());
            let layers = config.layers;
            Ok(KvmStage1 { kernel, initramfs, root, network, io, layers, is_unprivileged }.run(pod)?)
        }
        Stage1Kind::Ns => {
            let supervisor = config.supervisor.clone();
            Ok(NsStage1 { supervisor, root, network, io, is_unprivileged }.run(pod)?)
        }
    }
}

/// Writes the UUID in one step: whoever waits for the file never reads a part of it. Of two pods that are given the same file,
/// it names the one that came last.
fn save_uuid(path: &Path, uuid: Uuid) -> Result<()> {
    let write = || {
        let output = Output::open(path, 0o666)?;
        output.file().write_all(uuid.to_string().as_bytes())?;
        output.keep()
    };
    write().with_context(|| format!("--uuid-file-save {}", path.display()))?;
    reach(FaultPoint::UuidFileSaved);
    Ok(())
}

/// The UUID in a file, or whatever else is there and as short; none of what is no file, such as a pipe.
fn saved_in(path: &Path) -> Option<Vec<u8>> {
    /// Far more than a UUID.
    const MOST: u64 = 4096;
    let metadata = std::fs::symlink_metadata(path).ok()?;
    (metadata.is_file() && metadata.len() <= MOST).then(|| std::fs::read(path).ok()).flatten()
}

/// Makes the file what it was: a pod that was never started is not to take the place of one that runs.
fn take_back(path: &Path, uuid: Uuid, before: Option<Vec<u8>>) {
    if saved_in(path) != Some(uuid.to_string().into_bytes()) {
        return;
    }
    let restored = match before {
        Some(bytes) => Output::open(path, 0o666).and_then(|output| {
            output.file().write_all(&bytes)?;
            output.keep()
        }),
        None => std::fs::remove_file(path),
    };
    if let Err(error) = restored {
        report(&format!("--uuid-file-save {} names a pod that was not started: {error}", path.display()));
    }
}

/// How a pod ended, for who started it.
struct Outcome {
    /// The pod's exit code.
    code: u8,
    /// What the exit code alone does not tell.
    lines: Vec<String>,
}

impl Outcome {
    /// Of a pod that is to be removed.
    fn after(mut self, reaper: Option<Reaper>) -> Self {
        if let Some(Err(error)) = reaper.map(Reaper::finish) {
            self.lines.push(format!("the pod has ended, but {error:#}"));
        }
        self
    }

    fn of(report: &PodReport, manifest: &PodManifest, quiet: bool) -> Self {
        let mut lines = Vec::new();
        if let Some(error) = &report.error {
            lines.push(format!("pod {}: {error}", manifest.uuid));
        }
        // Of a pod with one app the exit code tells it all.
        let names_the_code =
            |app: &AppStatus| !quiet && manifest.apps.len() > 1 && report.failed_app.as_ref() == Some(&app.name);
        for app in &report.apps {
            let name = &app.name;
            match &app.state {
                AppState::Failed { message, .. } => {
                    let told = format!("app {name}: ");
                    lines.push(format!("{told}{}", message.strip_prefix(&told).unwrap_or(message)));
                }
                AppState::Exited { oom_killed: true, .. } if !quiet => {
                    let app = manifest.apps.iter().find(|app| app.name == *name);
                    let limit = app.and_then(|app| app.isolators.memory).map(|limit| format!(" of {limit}"));
                    let limit = limit.unwrap_or_default();
                    lines.push(format!(
                        "app {name} ran out of its memory{limit} and was killed; give it more with --memory"
                    ));
                }
                AppState::Exited { status, .. } if names_the_code(app) => {
                    lines.push(format!("app {name} {status}; the pod was stopped"));
                }
                _ => {}
            }
        }
        Self { code: report.code, lines }
    }

    /// The one message of a pod that ended before its apps ran.
    fn message(&self, uuid: Uuid) -> String {
        if self.lines.is_empty() {
            format!("pod {uuid} ended with {} before its apps ran", self.code)
        } else {
            self.lines.join("; ")
        }
    }
}
