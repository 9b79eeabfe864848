//! `cargo xtask demo`: from a fresh clone to etcd in a micro-VM.
//!
//! Two halves: the first runs on this host and ends by calling the second where KVM runs guests, which is this host
//! or the lab ([`Part::Inside`]). The second is an ordinary user of the installed podvm.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use podvm_lab::{Ended, Lab, LabCommand, LabConfig};

use crate::lab::write_through;
use crate::step::{seconds, step};
use crate::{build, images, setup};

/// Where the second half keeps podvm's state, the volume and the logs; removed in the end.
const PLACE: &str = "/var/tmp/podvm-demo";
/// Where etcd answers on the host.
const CLIENT: &str = "http://127.0.0.1:2379";
/// Key and value as etcd's JSON gateway wants them, in base64: `greeting`, `hello from a micro-VM`.
const KEY: &str = "Z3JlZXRpbmc=";
const VALUE: &str = "aGVsbG8gZnJvbSBhIG1pY3JvLVZN";
/// How long etcd may take to answer, and to stop.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long the second half may take as a whole.
const LIMIT: Duration = Duration::from_secs(1200);

/// What to do.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    build: build::Arguments,
    /// Use the lab even if this host's own KVM would do
    #[arg(long)]
    emulate: bool,
    /// The second half, given the image's layout
    #[arg(long, hide = true, value_name = "LAYOUT")]
    inside: Option<PathBuf>,
}

/// Runs the demo.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    if let Some(layout) = &arguments.inside {
        return inside(layout).map(|()| ExitCode::SUCCESS);
    }
    setup::run()?;
    build::run(arguments.build)?;
    let layout = step("make the etcd image of Debian's etcd-server", || images::make("etcd"))?;
    let config = LabConfig::default();
    let lab = if arguments.emulate { Lab::Emulated(config) } else { Lab::select(config) };
    let place = match &lab {
        Lab::Direct => "this host's KVM runs guests: the demo runs on it directly",
        Lab::Emulated(_) => "this host's KVM runs no guests: boot the lab, an emulated machine (10 to 20 times slower)",
    };
    let mut session = step(place, || Ok(lab.session()?))?;
    let own = std::env::current_exe().context("xtask does not know its own path")?;
    let words = [own.display().to_string(), "demo".into(), "--inside".into(), layout.display().to_string()];
    let ended = session.run(LabCommand::new(words).time_limit(LIMIT), &mut write_through)?;
    ensure!(ended == Ended::Code(0), "the demo failed; what went wrong stands above");
    println!("\nthe demo worked, in {}", seconds(start.elapsed()));
    Ok(ExitCode::SUCCESS)
}

/// The second half.
fn inside(layout: &Path) -> anyhow::Result<()> {
    let place = Place::make()?;
    step("podvm doctor", || place.podvm(&["doctor"]).map(|said| print_indented(&said)))?;
    step("podvm image import", || {
        place
            .podvm(&["image", "import", &layout.display().to_string(), "--name", "etcd"])
            .map(|said| print_indented(&said))
    })?;
    let pod = step("start etcd in a micro-VM, and wait until it answers", || place.start_etcd())?;
    step("curl /version", || ask("/version", None).map(|said| print_indented(&said)))?;
    step("the process tree that the host sees", || pod.print_tree())?;
    let body = format!(r#"{{"key":"{KEY}","value":"{VALUE}"}}"#);
    step("write a key", || ask("/v3/kv/put", Some(&body)).map(|said| print_indented(&said)))?;
    step("read it back", expect_value)?;
    step("podvm list", || place.podvm(&["list"]).map(|said| print_indented(&said)))?;
    step("stop the pod", || pod.stop(&place))?;
    let pod = step("start a second pod on the same volume", || place.start_etcd())?;
    step("the key is still there", expect_value)?;
    step("stop the second pod", || pod.stop(&place))?;
    step("podvm gc", || place.podvm(&["gc", "--grace-period", "0s"]).map(|said| print_indented(&said)))
}

fn print_indented(text: &str) {
    text.trim_end().lines().for_each(|line| println!("    {line}"));
}

/// Asks etcd, as a user with curl would.
fn ask(path: &str, body: Option<&str>) -> anyhow::Result<String> {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--fail", "--max-time", "30", &format!("{CLIENT}{path}")]);
    curl.args(body.into_iter().flat_map(|body| ["--data", body]));
    let output = curl.output().context("curl cannot be run")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn expect_value() -> anyhow::Result<()> {
    let answer = ask("/v3/kv/range", Some(&format!(r#"{{"key":"{KEY}"}}"#)))?;
    print_indented(&answer);
    ensure!(answer.contains(VALUE), "etcd answers, but not with the value that was written");
    println!("    the value is \"hello from a micro-VM\" in base64");
    Ok(())
}

/// The demo's directory.
struct Place;

impl Place {
    fn make() -> anyhow::Result<Self> {
        let make = || {
            fs::create_dir_all(Path::new(PLACE).join("data"))?;
            File::create(Path::new(PLACE).join("etcd.log"))
        };
        make().with_context(|| format!("cannot make {PLACE}"))?;
        Ok(Self)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(build::prefix().join("bin/podvm"));
        command.arg("--root").arg(Path::new(PLACE).join("state")).args(words);
        command
    }

    /// Runs podvm to its end and returns what it prints.
    fn podvm(&self, words: &[&str]) -> anyhow::Result<String> {
        let output = self.command(words).output().context("podvm cannot be run")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!("podvm {} ({}): {said}{}", words[0], output.status, String::from_utf8_lossy(&output.stderr));
        }
        Ok(said)
    }

    /// The command line that rkt's users know.
    fn start_etcd(&self) -> anyhow::Result<Pod> {
        let volume = format!("--volume=data-dir,kind=host,source={PLACE}/data");
        let uuid_file = Path::new(PLACE).join("uuid");
        let save = format!("--uuid-file-save={}", uuid_file.display());
        let listen = "--listen-client-urls=http://0.0.0.0:2379".to_owned();
        let advertise = format!("--advertise-client-urls={CLIENT}");
        let words = ["run", "--private-net", "--port=client:2379", &volume, &save, "etcd", "--", &advertise, &listen];
        println!("    podvm {}", words.join(" "));
        let log = File::options().append(true).open(Path::new(PLACE).join("etcd.log"))?;
        let mut command = self.command(&words);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut pod = Pod { child: command.spawn().context("podvm cannot be run")?, uuid_file };
        let start = Instant::now();
        while ask("/version", None).is_err() {
            let ended = pod.child.try_wait()?;
            let late = start.elapsed() > PATIENCE;
            ensure!(ended.is_none() && !late, "etcd does not answer; the pod's log:\n{}", Self::log());
            std::thread::sleep(Duration::from_millis(100));
        }
        println!("    etcd answers after {}", seconds(start.elapsed()));
        Ok(pod)
    }

    fn log() -> String {
        fs::read_to_string(Path::new(PLACE).join("etcd.log")).unwrap_or_default()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Whatever a failed step has left: a pod that runs, and its directory.
        let _ = self.podvm(&["gc", "--grace-period", "0s"]);
        if let Err(error) = fs::remove_dir_all(PLACE) {
            eprintln!("{PLACE} stays: {error}");
        }
    }
}

/// A running pod. Its process is the one that was started as `podvm run`. Dropped, it is killed.
struct Pod {
    child: Child,
    uuid_file: PathBuf,
}

impl Pod {
    fn print_tree(&self) -> anyhow::Result<()> {
        let output = Command::new("pstree").args(["-a", "-p", "-l", "-t", &self.child.id().to_string()]).output();
        let output = output.context("pstree cannot be run")?;
        print_indented(&String::from_utf8_lossy(&output.stdout));
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        let children = fs::read_to_string(&children).with_context(|| format!("cannot read {children}"))?;
        ensure!(children.trim().is_empty(), "the pod has processes on the host: {children}");
        println!("    the names in braces are its threads; it has no children: etcd itself runs behind the wall");
        Ok(())
    }

    fn stop(mut self, place: &Place) -> anyhow::Result<()> {
        let uuid = fs::read_to_string(&self.uuid_file).context("the pod has not left its UUID")?;
        let start = Instant::now();
        print_indented(&place.podvm(&["stop", uuid.trim()])?);
        loop {
            if let Some(status) = self.child.try_wait()? {
                println!("    podvm run: {status}");
                ensure!(status.success(), "the pod did not stop cleanly; its log:\n{}", Place::log());
                return Ok(());
            }
            ensure!(start.elapsed() < PATIENCE, "the pod does not stop");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
