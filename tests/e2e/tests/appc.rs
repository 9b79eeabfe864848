//! App Container images: by discovery with a signature, from files, upon one another, with handlers.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use podvm_e2e::{Finished, Host, Invocation, Running, Web, on_private_host, skip, wait_for};
use serde_json::{Value, json};

const A_WHILE: Duration = Duration::from_secs(300);
const NAME: &str = "coreos.com/etcd,version=v2.2.0-alpha.0";
const ARCHIVE: &str = "/images/coreos.com/etcd-v2.2.0-alpha.0-linux-amd64.aci";
const CLIENT: &str = "http://127.0.0.1:2379";

fn version_label() -> Value {
    json!({"name": "version", "value": "v2.2.0-alpha.0"})
}

/// A manifest of an image with this name; `more` is added.
fn manifest(name: &str, more: Value) -> Value {
    let version = version_label();
    let mut manifest = json!({
        "acKind": "ImageManifest", "acVersion": "0.8.11", "name": name,
        "labels": [version, {"name": "os", "value": "linux"}, {"name": "arch", "value": "amd64"}],
    });
    manifest.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    manifest
}

/// An archive of a manifest and a root, packed as `options` of tar(1) say.
fn pack(host: &Host, name: &str, manifest: &Value, root: &Path, options: &str) -> PathBuf {
    let folder = host.directory(&format!("{name}.content"));
    fs::write(folder.join("manifest"), manifest.to_string()).unwrap();
    let archive = host.scratch().join(format!("{name}.aci"));
    let transform = format!("--transform=s,^{},rootfs,", root.file_name().unwrap().to_str().unwrap());
    let tar =
        Invocation::new("tar", [options]).arg(&archive).arg("--numeric-owner").arg(transform).arg("-C").arg(&folder);
    let tar = tar.arg("manifest").arg("-C").arg(root.parent().unwrap()).arg(root.file_name().unwrap());
    tar.time_limit(A_WHILE).run().expect_code(0);
    archive
}

/// The root of one of the tests' images.
fn root_of(host: &Host, image: &str) -> PathBuf {
    let root = host.scratch().join(format!("root-of-{image}"));
    let words = ["image", "render", &host.image(image)].map(str::to_owned);
    host.podvm(words).arg(&root).time_limit(A_WHILE).run().expect_code(0);
    root
}

/// An app of the busybox image that runs a script.
fn app(script: &str) -> Value {
    json!({"exec": ["/bin/sh", "-c", script], "user": "0", "group": "0"})
}

/// Runs an image without a network.
fn run(host: &Host, image: &Path) -> Finished {
    host.podvm(["run", "--rm", "--net=none"]).arg(image).run()
}

/// Someone who signs.
pub struct Signer {
    home: PathBuf,
}

impl Signer {
    /// `user` is such as `etcd <etcd@coreos.com>`. `None` where GnuPG is not installed.
    pub fn new(host: &Host, user: &str) -> Option<Self> {
        std::process::Command::new("gpg").arg("--version").output().ok()?;
        let home = host.directory(&format!("gnupg-{}", user.split(' ').next().unwrap_or_default()));
        fs::set_permissions(&home, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let signer = Self { home };
        signer.gpg(&["--quick-generate-key", user, "ed25519", "sign", "never"]);
        Some(signer)
    }

    fn gpg(&self, words: &[&str]) -> String {
        let quiet = ["--batch", "--quiet", "--yes", "--pinentry-mode", "loopback", "--passphrase", ""];
        let gpg = Invocation::new("gpg", quiet).env("GNUPGHOME", &self.home);
        words.iter().fold(gpg, |gpg, word| gpg.arg(word)).time_limit(A_WHILE).run().expect_code(0).stdout
    }

    fn sign(&self, file: &Path) -> Vec<u8> {
        let signature = file.with_added_extension("asc");
        self.gpg(&["--armor", "--output", signature.to_str().unwrap(), "--detach-sign", file.to_str().unwrap()]);
        fs::read(&signature).unwrap()
    }

    /// Where GnuPG has the key.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The public key.
    pub fn key(&self) -> String {
        self.gpg(&["--armor", "--export"])
    }
}

impl Drop for Signer {
    fn drop(&mut self) {
        // Its agent would wait for another key.
        drop(std::process::Command::new("gpgconf").env("GNUPGHOME", &self.home).args(["--kill", "all"]).status());
    }
}

/// Makes the host's names lead to this host, for this test alone.
fn hosts(host: &Host, name: &str) {
    let file = host.scratch().join("hosts");
    fs::write(&file, format!("127.0.0.1 localhost {name}\n")).unwrap();
    Invocation::new("mount", ["--bind"]).arg(&file).arg("/etc/hosts").run().expect_code(0);
}

/// podvm with a keyring of the test's own, and trust in this server's certificate.
struct Client<'a> {
    host: &'a Host,
    web: &'a Web,
    config: PathBuf,
}

impl<'a> Client<'a> {
    fn new(host: &'a Host, web: &'a Web) -> Self {
        let config = host.scratch().join("config.toml");
        fs::write(&config, format!("[trust]\nkeys = [{:?}]\n", host.scratch().join("keys"))).unwrap();
        Self { host, web, config }
    }

    fn podvm(&self, words: &[&str]) -> Invocation {
        let config = self.config.to_str().unwrap();
        let call = self.host.podvm(["--config", config].iter().chain(words));
        let call = call.env("SSL_CERT_FILE", self.web.authority()).time_limit(A_WHILE);
        call.env("NO_PROXY", "coreos.com").env("no_proxy", "coreos.com")
    }

    fn etcd(&self) -> Running {
        let volume = format!("data-dir,kind=host,source={}", self.host.directory("data").display());
        let urls = [format!("--advertise-client-urls={CLIENT}"), "--listen-client-urls=http://0.0.0.0:2379".to_owned()];
        self.podvm(&["run", "--port=client:2379", "--volume", &volume, NAME, "--", &urls[0], &urls[1]]).spawn()
    }

    fn refused(&self, words: &[&str], part: &str) {
        let finished = self.podvm(words).run().expect_code(254);
        assert!(finished.stderr.contains(part), "{part:?} is missing\n{finished}");
    }
}

/// What curl gets, if the server answers.
fn curl(words: &[&str]) -> Option<String> {
    let finished = Invocation::new("curl", ["-sf", "-m", "20"]);
    let finished = words.iter().fold(finished, |call, word| call.arg(word)).run();
    finished.status.success().then_some(finished.stdout)
}

/// An archive of etcd, from Debian's package.
fn etcd(host: &Host) -> PathBuf {
    let app = json!({
        "exec": ["/usr/bin/etcd", "--data-dir=/data"], "user": "0", "group": "0",
        "ports": [{"name": "client", "port": 2379, "protocol": "tcp", "socketActivated": true},
                  {"name": "peer", "port": 2380, "protocol": "tcp"}],
        "mountPoints": [{"name": "data-dir", "path": "/data"}],
        "isolators": [{"name": "resource/memory", "value": {"limit": "256Mi"}}],
    });
    pack(host, "etcd", &manifest("coreos.com/etcd", json!({"app": app})), &root_of(host, "etcd"), "-cf")
}

#[test]
fn a_signed_etcd_is_run_by_its_appc_name() {
    if !on_private_host("appc::a_signed_etcd_is_run_by_its_appc_name", Duration::from_secs(1500)) {
        return;
    }
    let host = Host::empty();
    let Some(signer) = Signer::new(&host, "etcd <etcd@coreos.com>") else {
        skip!("gpg is not installed; `cargo xtask setup` brings it")
    };
    hosts(&host, "coreos.com");
    let web = Web::start(host.scratch(), "coreos.com", "127.0.0.1:443");
    let client = Client::new(&host, &web);
    let template = "coreos.com https://coreos.com/images/{name}-{version}-{os}-{arch}.{ext}";
    let metas = [("ac-discovery", template), ("ac-discovery-pubkeys", "coreos.com https://coreos.com/keys.gpg")];
    let metas = metas.map(|(name, content)| format!("<meta name=\"{name}\" content=\"{content}\">"));
    web.put("/?ac-discovery=1", format!("<html><head>{}</head></html>", metas.concat()));
    client.refused(&["run", "coreos.com/none,version=1"], "coreos.com/none");

    let archive = etcd(&host);
    let signature = signer.sign(&archive);
    web.put(ARCHIVE, fs::read(&archive).unwrap());
    let url = format!("https://coreos.com{ARCHIVE}");
    for name in [NAME, &url] {
        client.refused(&["run", name], "is not signed");
    }
    web.put(&format!("{ARCHIVE}.asc"), &signature[..]);
    client.refused(&["run", NAME], "podvm trust add --prefix coreos.com/etcd");
    web.put("/keys.gpg", signer.key());
    client.podvm(&["trust", "add", "--prefix", "coreos.com", "--skip-fingerprint-review"]).run().expect_code(0);
    let mut changed = fs::read(&archive).unwrap();
    changed.extend([0; 1024]);
    web.put(ARCHIVE, changed);
    client.refused(&["image", "fetch", NAME], "signature");
    let listed = client.podvm(&["image", "list", "--output=json"]).run().expect_code(0).json();
    assert!(!listed.to_string().contains("coreos.com"), "nothing of it is stored: {listed}");
    web.put(ARCHIVE, fs::read(&archive).unwrap());

    let first = client.etcd();
    let version = wait_for("etcd answers", A_WHILE, || curl(&[&format!("{CLIENT}/version")]));
    assert!(version.contains("etcdserver"), "{version}");
    let put = r#"{"key":"Zm9v","value":"YmFy"}"#;
    wait_for("the key is written", A_WHILE, || curl(&[&format!("{CLIENT}/v3/kv/put"), "-d", put]));
    first.signal(Signal::SIGTERM);
    let ended = first.wait(A_WHILE).expect_code(0);
    assert!(ended.stderr.contains("port client is to be passed as an open socket"), "{ended}");
    assert!(host.directory("data").join("member").is_dir(), "the data is on the host");

    // Two that are placed upon each other.
    for (name, on) in [("one", "two"), ("two", "one")] {
        let upon = json!({"dependencies": [{"imageName": format!("coreos.com/{on}"), "labels": [version_label()]}]});
        let path = format!("/images/coreos.com/{name}-v2.2.0-alpha.0-linux-amd64.aci");
        let root = host.directory(&format!("root-of-{name}"));
        let archive = pack(&host, name, &manifest(&format!("coreos.com/{name}"), upon), &root, "-cf");
        web.put(&path, fs::read(archive).unwrap());
    }
    let circle = ["image", "fetch", "--insecure-options=image", "coreos.com/one,version=v2.2.0-alpha.0"];
    client.refused(&circle, "lead back to it");

    // Stored, it needs its server no more.
    for page in ["/?ac-discovery=1", ARCHIVE] {
        web.remove(page);
    }
    let second = client.etcd();
    let get = r#"{"key":"Zm9v"}"#;
    let answer = wait_for("etcd answers", A_WHILE, || curl(&[&format!("{CLIENT}/v3/kv/range"), "-d", get]));
    assert!(answer.contains(r#""value":"YmFy""#), "{answer}");
    second.signal(Signal::SIGTERM);
    second.wait(A_WHILE).expect_code(0);
    let inspected = client.podvm(&["image", "inspect", "coreos.com/etcd"]).run().expect_code(0);
    for part in ["id:", "etcd@coreos.com", &url] {
        assert!(part == "id:" || inspected.stdout.contains(part), "{part:?} is missing\n{inspected}");
    }
    client.podvm(&["image", "verify"]).run().expect_code(0);
}

#[test]
fn an_image_is_placed_upon_others_and_shows_listed_paths_only() {
    let host = Host::empty();
    let base = pack(&host, "base", &manifest("example.com/base", json!({})), &root_of(&host, "busybox"), "-czf");
    let middle = host.directory("middle");
    fs::write(middle.join("who"), "middle\n").unwrap();
    fs::write(middle.join("hidden"), "x").unwrap();
    let upon = |name: &str| json!([{"imageName": name}]);
    let middle = manifest("example.com/middle", json!({"dependencies": upon("example.com/base")}));
    let middle = pack(&host, "middle", &middle, &host.scratch().join("middle"), "-cJf");
    let own = host.directory("own");
    fs::write(own.join("own"), "own\n").unwrap();
    let programs = ["/bin", "/usr/bin/busybox", "/usr/bin/sh", "/usr/bin/cat", "/usr/bin/ls"];
    let listed = [&programs[..], &["/who", "/own"]].concat();
    let more =
        json!({"dependencies": upon("example.com/middle"), "pathWhitelist": listed, "app": app("cat /who /own; ls /")});
    let top = pack(&host, "top", &manifest("example.com/top", more), &own, "-cf");

    let refused = run(&host, &top).expect_code(254);
    assert!(refused.stderr.contains("example.com/top") && refused.stderr.contains("example.com/middle"), "{refused}");
    for archive in [&base, &middle] {
        host.podvm(["image", "import"]).arg(archive).run().expect_code(0);
    }
    let finished = run(&host, &top).expect_code(0);
    assert!(finished.stdout.starts_with("middle\nown\n"), "{finished}");
    assert!(finished.stdout.contains("\nwho\n") && !finished.stdout.contains("hidden"), "{finished}");
    let again = host.podvm(["run", "--rm", "--net=none", "--quiet", "example.com/top"]).run().expect_code(0);
    assert_eq!(again.stdout, finished.stdout);
    let exported = host.scratch().join("exported.aci");
    host.podvm(["image", "export", "example.com/base"]).arg(&exported).run().expect_code(0);
    let words = ["image", "cat-manifest", "example.com/base,version=v2.2.0-alpha.0"];
    assert!(host.podvm(words).run().expect_code(0).stdout.contains("example.com/base"));
    // They have names of their own, and are not in the way of those that have lost theirs.
    host.podvm(["image", "prune"]).run().expect_code(0);
    let removed =
        host.podvm(["image", "rm", "example.com/top", "example.com/base:v2.2.0-alpha.0"]).run().expect_code(0);
    assert_eq!(removed.stdout.matches("sha512-").count(), 2, "{removed}");
    host.podvm(["image", "verify"]).run().expect_code(0).expect_stdout("2 images");
}

#[test]
fn handlers_run_before_and_after_the_app() {
    let host = Host::empty();
    let root = root_of(&host, "busybox");
    let handler = |name: &str, script: &str| json!({"name": name, "exec": ["/bin/sh", "-c", script]});
    let archive = |name: &str, script: &str, pre: &str, post: &str| {
        let mut app = app(script);
        app["user"] = json!("12");
        app["group"] = json!("/bin/sh");
        app["supplementaryGIDs"] = json!([34]);
        app["workingDirectory"] = json!("/tmp");
        app["eventHandlers"] = json!([handler("pre-start", pre), handler("post-stop", post)]);
        pack(&host, name, &manifest(&format!("example.com/{name}"), json!({"app": app})), &root, "-cf")
    };
    let good = archive("good", "cat made; id; exit 3", "echo before; echo made > made", "echo after; cat made; exit 1");
    let finished = run(&host, &good).expect_code(3);
    assert_eq!(finished.stdout, "before\nmade\nuid=12 gid=0(root) groups=34\nafter\nmade\n", "{finished}");
    let bad = archive("bad", "echo main", "exit 9", "echo after");
    let finished = run(&host, &bad).expect_code(9);
    assert_eq!(finished.stdout, "");
    assert!(finished.stderr.contains("pre-start") && finished.stderr.contains("exited with 9"), "{finished}");
    let missing = archive("missing", "echo main", "x", "x");
    host.podvm(["run", "--rm", "--net=none", "--exec=/bin/true"]).arg(&missing).run().expect_code(127);
    // A pod that is stopped runs them, too.
    let long = archive("long", "trap 'exit 5' TERM; echo up; while :; do sleep 1; done", "true", "echo after");
    let mut pod = host.podvm(["run", "--rm", "--net=none"]).arg(&long).spawn();
    pod.wait_for_stdout("up", A_WHILE);
    pod.signal(Signal::SIGTERM);
    pod.wait(A_WHILE).expect_code(5).expect_stdout("after");
}

#[test]
fn what_an_image_asks_for_and_cannot_have_is_named() {
    let host = Host::empty();
    let root = root_of(&host, "busybox");
    let archive =
        |name: &str, more: Value| pack(&host, name, &manifest(&format!("example.com/{name}"), more), &root, "-cf");
    let mut with_isolator = app("true");
    with_isolator["isolators"] = json!([{"name": "example.com/frobnicate", "value": 1}]);
    let mut upon_itself = json!({"dependencies": [{"imageName": "example.com/itself"}]});
    upon_itself["app"] = app("true");
    for (archive, part) in [
        (archive("isolator", json!({"app": with_isolator})), "example.com/frobnicate"),
        (archive("no-app", json!({})), "names no program"),
        (archive("itself", upon_itself), "example.com/itself"),
        (archive("kind", json!({"acKind": "PodManifest"})), "PodManifest"),
    ] {
        let finished = host.podvm(["run", "--net=none", "--pull-policy=never"]).arg(&archive).run().expect_code(254);
        assert!(finished.stderr.contains(part), "{part:?} is missing\n{finished}");
    }
    for (name, part) in [
        ("example.com/none,version", "is no label"),
        ("example.com/none,version=1", "example.com/none"),
        ("appc:Example.com", "no appc identifier"),
        ("https://user:secret@example.com/x.aci", "is no URL"),
    ] {
        let finished = host.podvm(["run", "--net=none", "--pull-policy=never", name]).run().expect_code(254);
        assert!(finished.stderr.contains(part), "{part:?} is missing\n{finished}");
    }
}
