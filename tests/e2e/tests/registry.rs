//! Images by name, from the registry that Debian ships, on loopback.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use podvm_e2e::{Host, layout, skip, wait_for};

/// A running registry, which ends when it is dropped.
pub struct Registry {
    process: Child,
    /// Host and port.
    pub host: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.process.kill().expect("the registry can be killed");
        self.process.wait().expect("the registry can be waited for");
    }
}

impl Registry {
    /// `None` where it, or what pushes to it, is not installed.
    pub fn start(folder: &Path) -> Option<Self> {
        let is_there = |name: &str| Command::new(name).arg("--version").stdout(Stdio::null()).status().is_ok();
        if !is_there("docker-registry") || !is_there("skopeo") {
            return None;
        }
        let host = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let storage = format!("storage: {{filesystem: {{rootdirectory: {}}}}}", folder.join("data").display());
        let config = folder.join("registry.yml");
        std::fs::write(
            &config,
            format!("version: 0.1\nlog: {{level: error}}\n{storage}\nhttp: {{addr: \"{host}\"}}\n"),
        )
        .unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self { process, host };
        wait_for("the registry answers", Duration::from_secs(60), || TcpStream::connect(&registry.host).ok().map(drop));
        Some(registry)
    }

    /// Pushes one of the tests' images; returns its full name.
    pub fn push(&self, image: &str, name: &str) -> String {
        self.push_layout(&layout(image), name)
    }

    /// Pushes the image of a layout as it is; returns its full name.
    pub fn push_layout(&self, layout: &Path, name: &str) -> String {
        let name = format!("{}/{name}", self.host);
        let pushed = Command::new("skopeo")
            .args(["copy", "--quiet", "--dest-tls-verify=false", "--preserve-digests"])
            .arg(format!("oci:{}", layout.display()))
            .arg(format!("docker://{name}"))
            .status()
            .unwrap();
        assert!(pushed.success());
        name
    }
}

#[test]
fn what_is_not_stored_is_fetched_and_then_runs_without_its_registry() {
    let host = Host::empty();
    let Some(registry) = Registry::start(host.scratch()) else {
        skip!("docker-registry or skopeo is not installed; `cargo xtask setup` brings them");
    };
    let name = registry.push("busybox", "team/busybox:1");
    let refused = host.podvm(["run", "--pull-policy=never", &name, "--", "true"]).run().expect_code(254);
    assert!(refused.stderr.contains(&name), "{refused}");
    let refused = host.podvm(["run", &name, "--", "true"]).run().expect_code(254);
    assert!(refused.stderr.contains("--insecure-options=http"), "{refused}");

    let http = "--insecure-options=http";
    let ran = host.podvm(["run", http, "--quiet", "--rm", &format!("docker://{name}"), "--", "echo", "fetched"]).run();
    ran.expect_code(0).expect_stdout("fetched");
    let images = host.podvm(["image", "list", "--output", "json"]).run().expect_code(0).json();
    assert_eq!(images[0]["names"][0], name.as_str(), "{images}");
    let exported = host.scratch().join("exported");
    host.podvm(["image", "export", &name, exported.to_str().unwrap()]).run().expect_code(0);
    assert!(exported.join("index.json").exists());

    drop(registry);
    host.podvm(["run", "--rm", &name, "--", "echo", "again"]).run().expect_code(0).expect_stdout("again");
    let gone = host.podvm(["run", http, "--pull-policy=update", &name, "--", "true"]).run().expect_code(254);
    assert!(gone.stderr.contains(&name) && gone.stderr.contains("Connection refused"), "{gone}");
    let verified = host.podvm(["image", "verify"]).run().expect_code(0);
    assert!(verified.stdout.contains("1 images"), "{verified}");
}
