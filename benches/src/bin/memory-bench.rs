//! How image layers come into VMs: as a disk or mapped, in several layers or merged into one. What each way costs.
//!
//! Run by `cargo xtask memory-bench`: `prepare` on the host, which makes the images and imports them; `pods` in the lab, for the
//! memory of pods of one image, idle after one request; `starts` in the lab in its `-icount` mode, where the clock counts
//! executed instructions (1 virtual millisecond is 10^6 of them), for the time to the app's first line, to the first byte of a
//! large file of the image, and to its last.
//!
//! With `--check` it fails when a promise is broken.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use comfy_table::{Table, presets};
use podvm_benches::images::{Layout, append_files};
use podvm_benches::local::LocalCopies;
use podvm_benches::pods::{Podvm, WAYS, available_kib, await_answer};
use podvm_benches::promise::{Promise, Promises};
use podvm_benches::report;

/// Data in the images of `starts`: bytes a layer, and layers.
const LAYER_BYTES: u64 = 20 << 20;
const LAYERS: u64 = 5;
/// Data in the large one of them.
const LARGE_BYTES: u64 = 400 << 20;
/// The file that is read.
const BIG_FILE: &str = "big";
const BIG_BYTES: usize = 16 << 20;
/// What a pod does in `starts`: a line at each step. Reading its first byte takes no program but the shell.
const SCRIPT: &str = "echo runs; read -rn1 x </big; echo first; dd if=/big of=/dev/null bs=64k 2>/dev/null; echo all; \
    dd if=/big of=/dev/null bs=64k 2>/dev/null; echo again";
/// First port at which a pod is reached in `pods`.
const FIRST_PORT: u16 = 21000;

/// Most of a further pod's private memory with a disk that one with mapped layers takes.
const MOST_OF_DISK: f64 = 0.80;
/// Most private memory of a further pod of etcd, in KiB.
const MOST_FURTHER_KIB: u64 = 56 << 10;
/// Most of the time to the app's first line with a disk that mapping the same layers takes.
const MOST_START: f64 = 1.05;

#[derive(Debug, Parser)]
struct Arguments {
    /// podvm's program, installed beside its files.
    #[arg(long)]
    podvm: PathBuf,
    /// podvm's state, with the images.
    #[arg(long)]
    root: PathBuf,
    /// Fail when a promise is broken.
    #[arg(long)]
    check: bool,
    #[command(subcommand)]
    part: Part,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Makes the images and imports them
    Prepare {
        /// OCI layout of etcd.
        #[arg(long)]
        etcd: PathBuf,
        /// OCI layout of busybox.
        #[arg(long)]
        busybox: PathBuf,
    },
    /// Measures the memory of pods of one image
    Pods {
        /// How many at once.
        #[arg(long, default_value_t = 10)]
        pods: u16,
    },
    /// Measures starts and first reads
    Starts {
        /// Starts of each; the fastest is reported.
        #[arg(long, default_value_t = 2)]
        runs: usize,
    },
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let promises = match &arguments.part {
        Part::Prepare { etcd, busybox } => return prepare(&arguments, etcd, busybox).map(|()| ExitCode::SUCCESS),
        Part::Pods { pods } => measure_pods(&arguments, *pods)?,
        Part::Starts { runs } => measure_starts(&arguments, *runs)?,
    };
    println!("{}", report::promises(&promises));
    let kept = promises.all_kept() || !arguments.check;
    Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Makes and imports the images: etcd; one in layers, the same merged, and a large one.
fn prepare(arguments: &Arguments, etcd: &Path, busybox: &Path) -> Result<()> {
    let folder = tempfile::tempdir_in("/var/tmp")?;
    let podvm = Podvm::new(&arguments.podvm, &arguments.root, WAYS[0])?;
    podvm.import(etcd, "etcd")?;
    let programs = layers_of(busybox)?;
    let data = |number| {
        let mut tar = tar::Builder::new(Vec::new());
        append_files(&mut tar, number, LAYER_BYTES)?;
        Ok::<_, anyhow::Error>(tar.into_inner()?)
    };
    let mut parts = programs.clone();
    for number in 0..LAYERS {
        parts.push(data(number)?);
    }
    parts.push(big_file()?);
    let import = |name: &str, layers: &[Vec<u8>]| {
        let layout = Layout::new(folder.path().join(name))?;
        let layers = layers.iter().map(|tar| layout.layer_of(tar)).collect::<Result<Vec<_>>>()?;
        layout.image(&layers, name)?;
        podvm.import(layout.folder(), name)
    };
    import("layers", &parts)?;
    import("merged", &[merged(&parts)?])?;
    let mut large = tar::Builder::new(Vec::new());
    append_files(&mut large, LAYERS, LARGE_BYTES)?;
    import("large", &[merged(&[programs.concat(), big_file()?, large.into_inner()?])?])
}

/// A layer of nothing but the file that is read.
fn big_file() -> Result<Vec<u8>> {
    let data: Vec<u8> = (0..BIG_BYTES as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut header = tar::Header::new_ustar();
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_data(&mut header, BIG_FILE, data.as_slice())?;
    Ok(tar.into_inner()?)
}

/// The plain tars of a layout's layers, which are packed by gzip or not at all.
fn layers_of(layout: &Path) -> Result<Vec<Vec<u8>>> {
    let blob = |digest: &serde_json::Value| -> Result<PathBuf> {
        let digest = digest.as_str().and_then(|digest| digest.strip_prefix("sha256:"));
        Ok(layout.join("blobs/sha256").join(digest.context("a digest is missing")?))
    };
    let json = |path: &Path| -> Result<serde_json::Value> { Ok(serde_json::from_slice(&std::fs::read(path)?)?) };
    let index = json(&layout.join("index.json"))?;
    let manifest = json(&blob(&index["manifests"][0]["digest"])?)?;
    let layers = manifest["layers"].as_array().context("a manifest has layers")?.iter();
    layers.map(|layer| unpacked(&blob(&layer["digest"])?)).collect()
}

fn unpacked(path: &Path) -> Result<Vec<u8>> {
    let output =
        Command::new("gzip").arg("-dcf").stdin(std::fs::File::open(path)?).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{} cannot be unpacked", path.display());
    Ok(output.stdout)
}

/// One tar of all tars' entries.
fn merged(parts: &[Vec<u8>]) -> Result<Vec<u8>> {
    let mut all = tar::Builder::new(Vec::new());
    for part in parts {
        let mut archive = tar::Archive::new(part.as_slice());
        archive.set_ignore_zeros(true);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let (mut header, path) = (entry.header().clone(), entry.path()?.into_owned());
            let link = entry.link_name()?.map(std::borrow::Cow::into_owned);
            let mut data = Vec::new();
            entry.read_to_end(&mut data)?;
            match link {
                Some(target) => all.append_link(&mut header, path, target)?,
                None => all.append_data(&mut header, path, data.as_slice())?,
            }
        }
    }
    Ok(all.into_inner()?)
}

fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(header.to_vec());
    table
}

/// Each way: so many pods of etcd, and what the first and each further one hold.
fn measure_pods(arguments: &Arguments, pods: u16) -> Result<Promises> {
    ensure!(pods > 1, "a further pod needs a first one");
    let header = [
        "layers",
        "first: private, KiB",
        "further: private",
        "proportional",
        "of the host's",
        "exits",
        "nested faults",
    ];
    let mut table = new_table(&header);
    let mut private = Vec::new();
    // On a disk of the lab's own, as images usually are.
    let folder = tempfile::tempdir_in("/var/tmp")?;
    let root = folder.path().join("root");
    copy(&arguments.root, &root)?;
    for way in WAYS {
        let podvm = Podvm::new(&arguments.podvm, &root, way)?;
        let mut available = Vec::new();
        for number in 0..pods {
            let port = format!("client:{}", FIRST_PORT + number);
            let words = ["run", "--stage1=kvm", "--detach", "--port", &port, "etcd", "--"];
            let urls = ["--listen-client-urls=http://0.0.0.0:2379", "--advertise-client-urls=http://127.0.0.1:2379"];
            podvm.run(&[&words[..], &urls].concat())?;
            await_answer(FIRST_PORT + number, "/version")?;
            std::thread::sleep(std::time::Duration::from_secs(2));
            available.push(available_kib()?);
            eprintln!("layers as {way}: pod {} of {pods} answers", number + 1);
        }
        let held = podvm.held()?;
        ensure!(held.len() == usize::from(pods), "of {pods} pods {} run", held.len());
        podvm.clear()?;
        let further = |value: fn(&podvm_benches::pods::Held) -> u64| {
            held[1..].iter().map(value).sum::<u64>() / u64::from(pods - 1)
        };
        let taken = available[0].saturating_sub(available[held.len() - 1]) / u64::from(pods - 1);
        private.push(further(|pod| pod.private));
        table.add_row([
            way.to_owned(),
            held[0].private.to_string(),
            further(|pod| pod.private).to_string(),
            further(|pod| pod.proportional).to_string(),
            taken.to_string(),
            further(|pod| pod.kvm.exits).to_string(),
            further(|pod| pod.kvm.nested_faults).to_string(),
        ]);
    }
    println!("{pods} pods of etcd, each idle after one request:\n{table}");
    let ratio = private[1] as f64 / private[0] as f64;
    Ok(Promises(vec![
        Promise {
            text: format!(
                "a further pod with mapped layers: at most {MOST_OF_DISK:.2} of the private memory with a disk"
            ),
            measured: format!("{ratio:.2}"),
            kept: ratio <= MOST_OF_DISK,
        },
        Promise {
            text: format!("and at most {MOST_FURTHER_KIB} KiB"),
            measured: private[1].to_string(),
            kept: private[1] <= MOST_FURTHER_KIB,
        },
    ]))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").arg("-aL").args([from, to]).status()?;
    ensure!(status.success(), "{} cannot be copied", from.display());
    Ok(())
}

/// Each image, each way: how long a pod takes to its first line and to read a large file.
fn measure_starts(arguments: &Arguments, runs: usize) -> Result<Promises> {
    // The lab gets files from a server on the host, which would take its time.
    let copies = LocalCopies::new()?;
    let root = copies.path().join("root");
    copy(&arguments.root, &root)?;
    let prefix = arguments.podvm.parent().and_then(Path::parent).context("podvm is in bin/ of its prefix")?;
    copy(prefix, &copies.path().join("prefix"))?;
    let program = copies.path().join("prefix/bin/podvm");

    let header = ["image", "layers", "first line, ms", "then first byte", "then 16 MiB", "once more"];
    let mut table = new_table(&header);
    let mut first_lines = Vec::new();
    for image in ["layers", "merged", "large"] {
        for way in WAYS {
            let podvm = Podvm::new(&program, &root, way)?;
            let words = ["run", "-q", "--rm", "--stage1=kvm", "--net=none", image, "--", "sh", "-c", SCRIPT];
            let mut fastest = [f64::INFINITY; 4];
            // The first one reads the files into the host's page cache, and does not count.
            for run in 0..=runs.max(1) {
                let lines = podvm.time_lines::<4>(&words)?;
                eprintln!("{image} as {way}, run {run}: {lines:.0?}");
                let steps = [lines[0], lines[1] - lines[0], lines[2] - lines[1], lines[3] - lines[2]];
                if run > 0 {
                    fastest = std::array::from_fn(|step| fastest[step].min(steps[step]));
                }
            }
            first_lines.push(fastest[0]);
            let mut row = vec![image.to_owned(), way.to_owned()];
            row.extend(fastest.map(|ms| format!("{ms:.1}")));
            table.add_row(row);
        }
    }
    println!("from exec of podvm to the app's first line, and what it reads from its image:\n{table}");
    let ratio = first_lines[1] / first_lines[0];
    Ok(Promises(vec![Promise {
        text: format!("mapped layers: at most {MOST_START:.2} of the time to the first line with a disk"),
        measured: format!("{ratio:.2}"),
        kept: ratio <= MOST_START,
    }]))
}
