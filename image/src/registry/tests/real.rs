//! The registry that Debian ships, on loopback, with images that skopeo pushes.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::*;

/// What the tests run; Debian's packages docker-registry, skopeo, apache2-utils and openssl bring them.
const PROGRAMS: [&str; 4] = ["docker-registry", "skopeo", "htpasswd", "openssl"];
const USER: &str = "me";
const PASSWORD: &str = "pw:with colon";

/// A running registry.
struct Registry {
    process: Child,
    host: String,
    directory: tempfile::TempDir,
    is_guarded: bool,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn run(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {words:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// A key, a certificate for 127.0.0.1, and the authority's that signed it.
fn make_certificates(directory: &Path) {
    let at = |name: &str| directory.join(name).display().to_string();
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let authority = ["-x509", "-days", "2", "-subj", "/CN=podvm test authority"];
    let files = ["-keyout", &at("ca.key"), "-out", &at("ca.pem")];
    run("openssl", &[&["req"][..], &key, &authority, &files].concat());
    let files = ["-subj", "/CN=127.0.0.1", "-keyout", &at("key.pem"), "-out", &at("request")];
    run("openssl", &[&["req"][..], &key, &files].concat());
    fs::write(directory.join("extensions"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    let signing = ["x509", "-req", "-days", "2", "-CAcreateserial"];
    let files = ["-in", &at("request"), "-CA", &at("ca.pem"), "-CAkey", &at("ca.key"), "-out", &at("cert.pem")];
    run("openssl", &[&signing[..], &files, &["-extfile", &at("extensions")]].concat());
}

impl Registry {
    /// Starts one; `None`, with the reason on standard error, where its programs are not installed.
    fn start(is_guarded: bool, with_tls: bool) -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let is_there = |name: &&str| std::env::split_paths(&path).any(|folder| folder.join(name).exists());
        if let Some(missing) = PROGRAMS.iter().find(|name| !is_there(name)) {
            println!("skipped: {missing} is not installed; `cargo xtask setup` brings it");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        // Another process could take the port meanwhile; then the registry does not start and the test says so.
        let host = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let at = |name: &str| directory.path().join(name).display().to_string();
        let mut config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n",
            at("data")
        );
        if is_guarded {
            fs::write(at("users"), run("htpasswd", &["-Bbn", "-C", "5", USER, PASSWORD])).unwrap();
            config.push_str(&format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", at("users")));
        }
        config.push_str(&format!("http:\n  addr: {host}\n"));
        if with_tls {
            make_certificates(directory.path());
            config.push_str(&format!("  tls: {{certificate: {}, key: {}}}\n", at("cert.pem"), at("key.pem")));
        }
        fs::write(at("config.yml"), config).unwrap();
        let log = fs::File::create(at("log")).unwrap();
        let process = Command::new("docker-registry")
            .args(["serve", &at("config.yml")])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let registry = Self { process, host, directory, is_guarded };
        for _ in 0..500 {
            if TcpStream::connect(&registry.host).is_ok() {
                return Some(registry);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the registry does not start: {}", fs::read_to_string(registry.directory.path().join("log")).unwrap());
    }

    /// Pushes the image of a layout.
    fn push(&self, layout: &Layout, name: &str, options: &[&str]) {
        let source = tempfile::tempdir().unwrap();
        layout.write(source.path());
        let (from, to) = (format!("oci:{}", source.path().display()), format!("docker://{}/{name}", self.host));
        let login = format!("{USER}:{PASSWORD}");
        let mut words = vec!["copy", "--quiet", "--dest-tls-verify=false"];
        if self.is_guarded {
            words.extend(["--dest-creds", &login]);
        }
        words.extend(options);
        words.extend([from.as_str(), &to]);
        run("skopeo", &words);
    }

    fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.host)
    }
}

fn images() -> (Layout, Vec<Vec<u8>>) {
    let layers = vec![layer("base"), large_layer(40), layer("top")];
    let mut layout = Layout::new();
    let image = layout.image(crate::oci::host_architecture(), Packing::Plain, &layers);
    layout.entry(image, serde_json::json!({}));
    (layout, layers)
}

#[test]
fn images_are_fetched_in_all_forms_that_skopeo_pushes() {
    let (layout, layers) = images();
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let forms: [(&[&str], &str); 4] = [
        (&["--dest-compress-format", "gzip"], "layer.v1.tar+gzip"),
        (&["--dest-compress-format", "zstd"], "layer.v1.tar+zstd"),
        // Its annotations tell of a table of contents behind the data, which nobody has signed.
        (&["--dest-compress-format", "zstd:chunked"], "io.containers.zstd-chunked.manifest-position"),
        (&["--format", "v2s2"], "vnd.docker.image.rootfs.diff.tar.gzip"),
    ];
    for (options, mark) in forms {
        // Each to a registry of its own: skopeo does not push again what it knows to be there in another form.
        let Some(registry) = Registry::start(false, false) else { return };
        let place = Place::new();
        registry.push(&layout, "app:v1.2", options);
        let imported = place.fetch(&registry.name("app:v1.2")).unwrap();
        let image = place.store.resolve(&registry.name("app:v1.2")).unwrap();
        assert_eq!(image.layers.iter().map(|layer| layer.diff_id).collect::<Vec<_>>(), diff_ids, "{options:?}");
        let manifest = fs::read_to_string(place.store.manifest_path(&imported.id)).unwrap();
        assert!(manifest.contains(mark), "{options:?}: {manifest}");
        let url = format!("docker://{}", registry.name("app:v1.2"));
        let said = run("skopeo", &["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &url]);
        let digest = said.trim();
        assert_eq!(place.store.find(&name_of(&imported)).unwrap().manifest_digest.unwrap().to_string(), digest);
        assert_eq!(place.fetch(&registry.name(&format!("app@{digest}"))).unwrap().present, 3);
        place.assert_clean();
    }
}

#[test]
fn what_a_registry_does_not_have_or_not_without_tls_is_said() {
    let Some(registry) = Registry::start(false, false) else { return };
    registry.push(&images().0, "app:v1", &[]);
    let place = Place::new();
    for missing in ["app:v9", "none"] {
        let error = place.error(&registry.name(missing));
        assert!(error.contains(&format!("{} has no {}", registry.host, registry.name(missing))), "{error}");
    }
    let secure = Place { insecure: Vec::new(), ..place };
    let error = secure.error(&registry.name("app:v1"));
    assert!(error.contains("--insecure-options=http"), "{error}");
}

fn name_of(imported: &Imported) -> String {
    imported.names[0].to_string()
}

#[test]
fn the_image_for_this_machine_is_taken_from_an_index() {
    let Some(registry) = Registry::start(false, false) else { return };
    let mut layout = Layout::new();
    let architectures = ["s390x", crate::oci::host_architecture(), "riscv64"];
    let entries: Vec<_> = architectures
        .iter()
        .map(|architecture| {
            let mut entry = layout.image(architecture, Packing::Gzip, &[layer(architecture)]);
            entry["platform"] = serde_json::json!({"os": "linux", "architecture": architecture});
            entry
        })
        .collect();
    let index = layout.index(&entries);
    layout.entry(index, serde_json::json!({}));
    registry.push(&layout, "many", &["--all"]);
    let place = Place::new();
    place.fetch(&registry.name("many")).unwrap();
    let image = place.store.resolve(&registry.name("many")).unwrap();
    assert_eq!(image.layers[0].diff_id, Digest::of(&layer(architectures[1])));
    assert_eq!(place.fetch(&registry.name("many")).unwrap().present, 1);
}

/// A place that has logged in, by skopeo.
fn logged_in(registry: &Registry, password: &str) -> Place {
    let mut place = Place::new();
    let file = place.directory.path().join("auth.json");
    let words = ["login", "--authfile", &file.display().to_string(), "--tls-verify=false", "--username", USER];
    let rest = ["--password", password, &registry.host];
    if password == PASSWORD {
        run("skopeo", &[&words[..], &rest].concat());
        place.credentials.files = vec![file];
    } else {
        use base64::Engine;
        let auth = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{password}"));
        place.log_in(&registry.host, &format!(r#"{{"auth":"{auth}"}}"#));
    }
    place
}

#[test]
fn a_registry_with_users_wants_a_login_that_skopeo_has_made() {
    let Some(registry) = Registry::start(true, false) else { return };
    registry.push(&images().0, "team/app", &[]);
    let name = registry.name("team/app");
    let error = Place::new().error(&name);
    assert!(error.contains("wants a login"), "{error}");
    let error = logged_in(&registry, "wrong").error(&name);
    assert!(error.contains("auth.json is not accepted"), "{error}");
    let place = logged_in(&registry, PASSWORD);
    assert_eq!(place.fetch(&name).unwrap().layers, 3);
    assert_eq!(place.fetch(&name).unwrap().present, 3);
    place.assert_clean();
    with_helper(&registry, &name);
}

/// Fetches with a login that a credential helper gives.
fn with_helper(registry: &Registry, name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let helper = folder.path().join("docker-credential-test");
    let answer = serde_json::json!({"ServerURL": registry.host, "Username": USER, "Secret": PASSWORD});
    fs::write(
        &helper,
        format!("#!/bin/sh\nread host\n[ \"$1 $host\" = 'get {}' ] && echo '{answer}'\n", registry.host),
    )
    .unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let file = folder.path().join("config.json");
    fs::write(&file, r#"{"credsStore":"test"}"#).unwrap();
    let path = std::env::var("PATH").unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "registry::tests::real::fetcher_with_a_helper", "--ignored"])
        .env("PATH", format!("{}:{path}", folder.path().display()))
        .env("PODVM_TEST_CREDENTIALS", &file)
        .env("PODVM_TEST_NAME", name)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
#[ignore = "the child process of the test above"]
fn fetcher_with_a_helper() {
    let mut place = Place::new();
    place.credentials.files = vec![std::env::var_os("PODVM_TEST_CREDENTIALS").expect("run by the test above").into()];
    place.fetch(&std::env::var("PODVM_TEST_NAME").expect("run by the test above")).unwrap();
}

#[test]
fn tls_is_trusted_by_the_authority_that_is_configured_only() {
    let Some(registry) = Registry::start(true, true) else { return };
    registry.push(&images().0, "app", &[]);
    let name = registry.name("app");
    // Whether plain HTTP would be allowed makes no difference: TLS is spoken.
    for insecure in [vec![], vec![Insecure::Http]] {
        let error = Place { insecure, ..logged_in(&registry, PASSWORD) }.error(&name);
        assert!(error.contains("certificate is not trusted") && error.contains("as `ca`"), "{error}");
    }
    let mut place = Place { insecure: Vec::new(), ..logged_in(&registry, PASSWORD) };
    place.host(&registry.host).ca = Some(registry.directory.path().join("ca.pem"));
    place.fetch(&name).unwrap();
    place.assert_clean();
    let place = Place { insecure: vec![Insecure::Tls], ..logged_in(&registry, PASSWORD) };
    place.fetch(&name).unwrap();
    let mut place = Place { insecure: Vec::new(), ..Place::new() };
    place.host(&registry.host).ca = Some(registry.directory.path().join("key.pem"));
    let error = place.error(&name);
    assert!(error.contains("key.pem") && error.contains("no certificate"), "{error}");
}
