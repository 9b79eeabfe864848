//! Starting a pod behind namespaces: podvm beside crun and runc, the same program with the same files, in one run.
//!
//! Run by `cargo xtask start-bench`, as root, on the host. Wall time of `/bin/true` from a cached image: without network beside the
//! other runtimes, which make none either; and with the built-in network. Each in turn, so that a busy host is busy for all.
//!
//! Times depend on the machine; ratios do so less. With `--check` it fails when a promise is broken. Runtimes that are not
//! installed, or do not run here, are left out and said so. crun refuses hosts whose controllers are cgroup v1's beside a cgroup2
//! tree: there, it is started where that tree cannot be seen.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use podvm_benches::process::{median, milliseconds};
use podvm_benches::promise::{Promise, Promises};
use podvm_benches::report;
use serde_json::{Value, json};

/// Most of crun's time that a pod takes without network, and with the built-in one.
const MOST_WITHOUT_NETWORK: f64 = 1.0;
const MOST_WITH_NETWORK: f64 = 1.3;

/// Where a host with cgroup v1's controllers may have a cgroup2 tree as well.
const CGROUP2_OF_HYBRID: &str = "/sys/fs/cgroup/unified";

/// Measures what starting a pod behind namespaces takes, beside other runtimes.
#[derive(Debug, Parser)]
struct Arguments {
    /// podvm's program, installed beside its files.
    #[arg(long)]
    podvm: PathBuf,
    /// OCI layout with busybox.
    #[arg(long)]
    image: PathBuf,
    /// Starts by each; the median is reported.
    #[arg(long, default_value_t = 31)]
    runs: usize,
    /// Fail when a promise is broken.
    #[arg(long)]
    check: bool,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let folder = tempfile::tempdir_in("/var/tmp")?;
    let bench = Bench { podvm: arguments.podvm, folder: folder.path().to_owned() };
    bench.import(&arguments.image)?;
    let bundle = bench.make_bundle()?;
    let mut starts = vec![
        Start::new(
            "podvm, no network",
            bench.podvm(&["run", "-q", "--rm", "--stage1=ns", "--net=none", "busybox", "--", "true"]),
            View::Host,
        )?,
        Start::new(
            "podvm, its network",
            bench.podvm(&["run", "-q", "--rm", "--stage1=ns", "busybox", "--", "true"]),
            View::Host,
        )?,
    ];
    let hybrid = Path::new(CGROUP2_OF_HYBRID).exists();
    for (runtime, view) in [("crun", if hybrid { View::WithoutCgroup2 } else { View::Host }), ("runc", View::Host)] {
        let bundle = bundle.display().to_string();
        let command = [runtime, "run", "--bundle", &bundle, "podvm-bench"].map(str::to_owned).to_vec();
        match Start::new(runtime, command, view) {
            Ok(start) => starts.push(start),
            Err(error) => println!("{runtime} is left out: {error:#}"),
        }
    }
    for _ in 0..arguments.runs.max(1) {
        for start in &mut starts {
            start.once()?;
        }
    }
    for start in &starts {
        let least = start.milliseconds.iter().copied().fold(f64::INFINITY, f64::min);
        println!("{:<20} median {:6.1} ms, least {least:6.1} ms", start.name, start.median());
    }
    let promises = promises(&starts);
    println!("\n{}", report::promises(&promises));
    Ok(if promises.all_kept() || !arguments.check { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What of the host a command sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum View {
    /// All.
    Host,
    /// All but the cgroup2 tree beside cgroup v1's.
    WithoutCgroup2,
}

/// One way to start a program, in the hands of a thread that has its own view of the host.
struct Start {
    name: String,
    milliseconds: Vec<f64>,
    ask: Sender<()>,
    answers: Receiver<Result<f64>>,
}

impl Start {
    /// Starts it once, to see that it works.
    fn new(name: &str, command: Vec<String>, view: View) -> Result<Self> {
        let ((ask, asked), (answer, answers)) = (channel(), channel());
        std::thread::spawn(move || {
            let seen = if view == View::WithoutCgroup2 { hide_cgroup2() } else { Ok(()) };
            let mut refused = seen.err();
            for () in asked {
                let taken = refused.take().map_or_else(|| milliseconds(&command), Err);
                if answer.send(taken).is_err() {
                    break;
                }
            }
        });
        let mut start = Self { name: name.into(), milliseconds: Vec::new(), ask, answers };
        start.once()?;
        start.milliseconds.clear();
        Ok(start)
    }

    fn once(&mut self) -> Result<()> {
        self.ask.send(())?;
        self.milliseconds.push(self.answers.recv()??);
        Ok(())
    }

    fn median(&self) -> f64 {
        median(self.milliseconds.iter().copied())
    }
}

/// Takes the cgroup2 tree out of this thread's sight.
fn hide_cgroup2() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("unshare")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).context("mount")?;
    umount2(CGROUP2_OF_HYBRID, MntFlags::MNT_DETACH).context(CGROUP2_OF_HYBRID)
}

fn promises(starts: &[Start]) -> Promises {
    let Some(crun) = starts.iter().find(|start| start.name == "crun") else { return Promises(Vec::new()) };
    let limits = [("without network", MOST_WITHOUT_NETWORK), ("with the built-in network", MOST_WITH_NETWORK)];
    let promise = |(start, (what, most)): (&Start, (&str, f64))| {
        let ratio = start.median() / crun.median();
        let text = format!("start {what}: at most {most:.1} of crun's time");
        Promise { text, measured: format!("{ratio:.2}"), kept: ratio <= most }
    };
    Promises(starts.iter().zip(limits).map(promise).collect())
}

struct Bench {
    podvm: PathBuf,
    folder: PathBuf,
}

impl Bench {
    /// podvm's command line, with a state of its own.
    fn podvm(&self, words: &[&str]) -> Vec<String> {
        let root = self.folder.join("podvm").display().to_string();
        let own = [self.podvm.display().to_string(), "--root".into(), root];
        own.into_iter().chain(words.iter().map(|word| (*word).to_owned())).collect()
    }

    fn import(&self, image: &Path) -> Result<()> {
        let image = image.display().to_string();
        milliseconds(&self.podvm(&["image", "import", "--quiet", &image, "--name", "busybox"])).map(drop)
    }

    /// A bundle (OCI runtime specification, bundle.md) whose root has what the image has.
    fn make_bundle(&self) -> Result<PathBuf> {
        let bundle = self.folder.join("bundle");
        for directory in ["bin", "proc", "dev", "sys", "tmp", "etc"] {
            fs::create_dir_all(bundle.join("rootfs").join(directory))?;
        }
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
        let busybox = busybox.context("busybox is not installed; install busybox-static")?;
        fs::copy(busybox, bundle.join("rootfs/bin/busybox"))?;
        std::os::unix::fs::symlink("busybox", bundle.join("rootfs/bin/true"))?;
        let spec = Command::new("runc").arg("spec").current_dir(&bundle).stderr(Stdio::null()).status();
        let spec = spec.or_else(|_| Command::new("crun").arg("spec").current_dir(&bundle).status())?;
        ensure!(spec.success(), "no runtime makes a specification");
        let path = bundle.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(["/bin/true"]);
        fs::write(&path, serde_json::to_vec(&config)?)?;
        Ok(bundle)
    }
}
