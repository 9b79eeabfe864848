//! Fetching images: podvm beside podman, and beside skopeo and umoci, from Debian's registry on loopback, in one run.
//!
//! Run by `cargo xtask image-bench`, on the host. It takes
//!
//! - wall time and memory of fetching an image of five layers, 500 MiB unpacked, into an empty store; each in turn,
//! - the time of fetching it again, when all of it is there,
//! - the time of listing 1,000 images,
//! - the store's size with ten images that share layers, beside the size of the layers alone.
//!
//! Times depend on the machine; ratios do so less. With `--check` it fails when a promise is broken. The part of a program that is
//! not installed is left out and said so.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use podvm_benches::images::{LAYER_BYTES, LAYERS, Layer, Layout, Registry};
use podvm_benches::process::{Cost, measure, median};
use podvm_benches::promise::{Promise, Promises};
use podvm_benches::report;

/// Most of podman's time that a fetch takes.
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

/// Measures what it costs to fetch images, podvm beside podman, and beside skopeo and umoci.
#[derive(Debug, Parser)]
struct Arguments {
    /// podvm's program.
    #[arg(long)]
    podvm: PathBuf,
    /// Fetches by each program; the median is reported.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Folder on the disk that is measured; 4 GiB are needed.
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

    /// Copies an image into a layout, and unpacks it into a directory.
    fn skopeo_and_umoci(&self, name: &str) -> Vec<String> {
        let at = |name: &str| self.folder.join(name).display().to_string();
        let (layout, bundle) = (at("skopeo"), at("umoci"));
        let script = format!(
            "rm -rf {layout} {bundle} && skopeo copy --quiet --src-tls-verify=false docker://{name} oci:{layout}:x && \
             umoci unpack --image {layout}:x {bundle}"
        );
        ["sh".into(), "-c".into(), script].into()
    }

    /// Fetches into empty stores, in turn.
    fn fetch(&self, name: &str, runs: usize) -> Result<Vec<Promise>> {
        let (has_podman, has_umoci) = (is_there("podman"), is_there("skopeo") && is_there("umoci"));
        let (mut own, mut podman, mut umoci) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..runs.max(1) {
            if self.podvm_root().exists() {
                fs::remove_dir_all(self.podvm_root())?;
            }
            own.push(measure(&self.fetch_command(name))?);
            if has_podman {
                podman.push(measure(&self.podman(&["pull", "--quiet", "--tls-verify=false", name]))?);
                // Its layers are mounts and the like: it takes them away itself.
                measure(&self.podman(&["rmi", "--all", "--force"]))?;
            }
            if has_umoci {
                umoci.push(measure(&self.skopeo_and_umoci(name))?);
            }
        }
        let figures = |who: &str, costs: &[Cost]| {
            if costs.is_empty() {
                println!("{who:<16} not measured, since it is not installed; `cargo xtask setup` brings it");
                return None;
            }
            let seconds = median(costs.iter().map(|cost| cost.seconds));
            let mib = median(costs.iter().map(|cost| cost.peak_kib as f64 / 1024.0));
            println!("{who:<16} {seconds:.2} s, {mib:.0} MiB");
            Some((seconds, mib))
        };
        let own_figures = figures("podvm", &own);
        let peer_figures = figures("podman", &podman);
        figures("skopeo and umoci", &umoci);
        println!();
        let (Some((_, mib)), Some((_, peer_mib))) = (own_figures, peer_figures) else { return Ok(Vec::new()) };
        // Of each turn, since what else the machine does changes from one to the next.
        let ratio = median(own.iter().zip(&podman).map(|(own, peer)| own.seconds / peer.seconds));
        let promise = |what: &str, ratio: f64, most: f64| Promise {
            text: format!("fetch of 500 MiB in 5 layers: at most {most:.2} of podman's {what}"),
            measured: format!("{ratio:.2}"),
            kept: ratio <= most,
        };
        let time = promise("time", ratio, MOST_OF_PODMAN);
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

fn is_there(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok()
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
