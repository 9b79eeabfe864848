//! Fetching images: podvm beside podman, from Debian's registry on loopback, in one run.
//!
//! Run by `cargo xtask image-bench`, on the host. It takes
//!
//! - wall time and memory of fetching an image of five layers, 500 MiB unpacked, into an empty store; each in turn,
//! - the time of fetching it again, when all of it is there,
//! - the time of listing 1,000 images,
//! - the store's size with ten images that share layers, beside the size of the layers alone.
//!
//! Times depend on the machine; ratios do so less. With `--check` it fails when a promise is broken. Without podman, its
//! part is left out and said so.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use podvm_benches::images::{LAYER_BYTES, LAYERS, Layer, Layout, Registry};
use podvm_benches::process::{Cost, measure, median};
use podvm_benches::promise::{Promise, Promises};
use podvm_benches::report;

/// Most of podman's time, and of its memory, that a fetch takes.
const MOST_OF_PODMAN: f64 = 0.5;
/// Most milliseconds of a fetch of what is there, and of a list of [`MANY`] images.
const MOST_AGAIN_MS: f64 = 20.0;
const MOST_LIST_MS: f64 = 50.0;
/// Most of the unique layers' size that the store takes.
const MOST_OF_LAYERS: f64 = 1.05;
/// Images in the list.
const MANY: usize = 1000;
/// How often short commands are run; the median counts.
const SHORT_RUNS: usize = 11;

/// Measures what it costs to fetch images, podvm beside podman.
#[derive(Debug, Parser)]
struct Arguments {
    /// podvm's program.
    #[arg(long)]
    podvm: PathBuf,
    /// Fetches by each program; the median is reported.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Folder on the disk that is measured; 3 GiB are needed.
    #[arg(long, default_value = "/var/tmp")]
    folder: PathBuf,
    /// Fail when a promise is broken.
    #[arg(long)]
    check: bool,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let folder = tempfile::tempdir_in(&arguments.folder)?;
    let bench = Bench { podvm: arguments.podvm, folder: folder.path().to_owned() };
    let registry = Registry::start(folder.path())?;
    let layout = Layout::new(folder.path().join("large"))?;
    let layers = (0..LAYERS as u64).map(|number| layout.layer(number, LAYER_BYTES)).collect::<Result<Vec<_>>>()?;
    layout.image(&layers, "large")?;
    let name = registry.push(&layout, "large")?;

    let mut promises = bench.fetch(&name, arguments.runs)?;
    promises.push(bench.fetch_again(&name)?);
    promises.push(bench.shared_layers(&layout, &layers)?);
    promises.push(bench.list()?);
    let promises = Promises(promises);
    println!("{}", report::promises(&promises));
    let kept = promises.all_kept() || !arguments.check;
    Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Bench {
    podvm: PathBuf,
    folder: PathBuf,
}

impl Bench {
    /// podvm's command line, with a state of its own.
    fn podvm(&self, root: &Path, words: &[&str]) -> Vec<String> {
        let mut command = vec![self.podvm.display().to_string(), "--root".into(), root.display().to_string()];
        command.extend(words.iter().map(|word| (*word).to_owned()));
        command
    }

    fn podvm_root(&self) -> PathBuf {
        self.folder.join("podvm")
    }

    fn fetch_command(&self, name: &str) -> Vec<String> {
        self.podvm(&self.podvm_root(), &["image", "fetch", "--quiet", "--insecure-options=http", name])
    }

    fn podman(&self, words: &[&str]) -> Vec<String> {
        let mut command: Vec<String> = ["podman", "--storage-driver", "overlay"].map(String::from).into();
        for (option, folder) in [("--root", "podman"), ("--runroot", "podman-run")] {
            command.extend([option.to_owned(), self.folder.join(folder).display().to_string()]);
        }
        command.extend(words.iter().map(|word| (*word).to_owned()));
        command
    }

    /// Fetches into empty stores, in turn.
    fn fetch(&self, name: &str, runs: usize) -> Result<Vec<Promise>> {
        let has_podman = Command::new("podman").arg("--version").stdout(Stdio::null()).status().is_ok();
        let (mut own, mut peer) = (Vec::new(), Vec::new());
        for _ in 0..runs.max(1) {
            if self.podvm_root().exists() {
                fs::remove_dir_all(self.podvm_root())?;
            }
            own.push(measure(&self.fetch_command(name))?);
            if has_podman {
                peer.push(measure(&self.podman(&["pull", "--quiet", "--tls-verify=false", name]))?);
                // Its layers are mounts and the like: it takes them away itself.
                measure(&self.podman(&["rmi", "--all", "--force"]))?;
            }
        }
        let figures = |costs: &[Cost]| {
            let seconds = median(costs.iter().map(|cost| cost.seconds));
            let mib = median(costs.iter().map(|cost| cost.peak_kib as f64 / 1024.0));
            (seconds, mib)
        };
        let (seconds, mib) = figures(&own);
        println!("podvm:  {seconds:.2} s, {mib:.0} MiB");
        if peer.is_empty() {
            println!("podman: not measured, since it is not installed (apt-get install podman)");
            return Ok(Vec::new());
        }
        let (peer_seconds, peer_mib) = figures(&peer);
        println!("podman: {peer_seconds:.2} s, {peer_mib:.0} MiB\n");
        let promise = |what: &str, ratio: f64, most: f64| Promise {
            text: format!("fetch of 500 MiB in 5 layers: at most {most:.2} of podman's {what}"),
            measured: format!("{ratio:.2}"),
            kept: ratio <= most,
        };
        let time = promise("time", seconds / peer_seconds, MOST_OF_PODMAN);
        Ok(vec![time, promise("memory", mib / peer_mib, 1.0)])
    }

    fn fetch_again(&self, name: &str) -> Result<Promise> {
        let milliseconds = self.median_ms(&self.fetch_command(name))?;
        Ok(Promise {
            text: format!("fetch of what is there: at most {MOST_AGAIN_MS:.0} ms"),
            measured: format!("{milliseconds:.1}"),
            kept: milliseconds <= MOST_AGAIN_MS,
        })
    }

    fn median_ms(&self, command: &[String]) -> Result<f64> {
        let costs = (0..SHORT_RUNS).map(|_| measure(command)).collect::<Result<Vec<_>>>()?;
        Ok(median(costs.iter().map(|cost| cost.seconds * 1e3)))
    }

    fn import(&self, root: &Path, layout: &Layout, name: &str) -> Result<()> {
        let path = layout.folder().display().to_string();
        let words = self.podvm(root, &["image", "import", "--quiet", "--name", name, &path]);
        let output = Command::new(&words[0]).args(&words[1..]).output().context("podvm cannot be run")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Ten images, each of some of the large layers, beside the layers alone.
    fn shared_layers(&self, layout: &Layout, layers: &[Layer]) -> Result<Promise> {
        for number in 0..10 {
            let some = &layers[..1 + number % layers.len()];
            layout.image(some, &number.to_string())?;
            self.import(&self.podvm_root(), layout, &format!("shared{number}"))?;
        }
        let store = self.podvm_root().join("images");
        let (all, erofs) = sizes(&store)?;
        let ratio = all as f64 / erofs as f64;
        Ok(Promise {
            text: format!("store of ten images that share layers: at most {MOST_OF_LAYERS} of the layers' size"),
            measured: format!("{ratio:.4}"),
            kept: ratio <= MOST_OF_LAYERS,
        })
    }

    fn list(&self) -> Result<Promise> {
        let root = self.folder.join("many");
        let layout = Layout::new(self.folder.join("small"))?;
        let layer = layout.layer(100, 4096)?;
        for number in 0..MANY {
            layout.image(std::slice::from_ref(&layer), &number.to_string())?;
            self.import(&root, &layout, &format!("registry.example/team/image{number}"))?;
        }
        let milliseconds = self.median_ms(&self.podvm(&root, &["image", "list"]))?;
        Ok(Promise {
            text: format!("list of {MANY} images: at most {MOST_LIST_MS:.0} ms"),
            measured: format!("{milliseconds:.1}"),
            kept: milliseconds <= MOST_LIST_MS,
        })
    }
}

/// Bytes on disk of all files below a folder, and of the EROFS images among them.
fn sizes(folder: &Path) -> Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let (mut all, mut erofs) = (0, 0);
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            let (inside, images) = sizes(&entry.path())?;
            (all, erofs) = (all + inside, erofs + images);
            continue;
        }
        let bytes = entry.metadata()?.blocks() * 512;
        all += bytes;
        if entry.path().extension().is_some_and(|extension| extension == "erofs") {
            erofs += bytes;
        }
    }
    Ok((all, erofs))
}
