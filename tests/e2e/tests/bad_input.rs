//! Bad input: one clear line that names the thing and the cure, exit code 254, nothing half-made.

use std::fs;
use std::net::TcpListener;

use podvm_e2e::{Host, layout};

/// Runs podvm and expects one line of refusal with these parts, and no pod.
fn refused(host: &Host, words: &[&str], parts: &[&str]) {
    let finished = host.podvm(words).run().expect_code(254);
    assert_eq!(finished.stdout, "", "{finished}");
    for part in parts {
        assert!(finished.stderr.contains(part), "{part:?} is not in the message\n{finished}");
    }
    assert_eq!(finished.stderr.trim_end().lines().count(), 1, "more than one line\n{finished}");
    assert!(host.pods().is_empty(), "a pod is left behind");
}

#[test]
fn an_image_that_is_not_there_is_named() {
    let host = Host::empty();
    refused(&host, &["run", "--pull-policy=never", "nosuch"], &["nosuch", "podvm image fetch"]);
    let message = ["image 127.0.0.1:9/nosuch cannot be fetched", "Connection refused"];
    refused(&host, &["run", "127.0.0.1:9/nosuch"], &message);
}

#[test]
fn values_that_make_no_sense_are_named() {
    let host = Host::new();
    let image = &host.image("busybox");
    refused(&host, &["run", "--memory", "many", image], &["--memory", "many", "256M"]);
    refused(&host, &["run", "--cpu", "0", image], &["--cpu", "0"]);
    refused(&host, &["run", "--port", "80", image], &["--port", "80", "NAME:[IP:]PORT"]);
    refused(&host, &["run", "--port", "web:80", image], &["web"]);
    refused(&host, &["run", "--volume", "x,kind=tape", image], &["kind", "host or empty"]);
    refused(&host, &["run", "--mount", "volume=x,target=/x", image], &["x", "--volume"]);
    refused(&host, &["run", "--stage1", "xen", image], &["xen", "kvm"]);
    refused(&host, &["run", "--colour", image], &["--colour"]);
    refused(&host, &["run", "--memory", "1M", image], &["1 MiB", "memory"]);
    refused(&host, &["stop", "zzz"], &["zzz", "podvm list"]);
}

#[test]
fn a_volume_whose_source_is_missing_is_named() {
    let host = Host::new();
    let image = &host.image("busybox");
    let words = ["run", "--volume", "x,kind=host,source=/no/such/dir", image, "--mount", "volume=x,target=/x"];
    refused(&host, &words, &["volume x", "/no/such/dir", "create it"]);
}

#[test]
fn a_port_in_use_is_named() {
    let host = Host::new();
    let image = &host.image("busybox");
    let _listener = TcpListener::bind("0.0.0.0:7010").unwrap();
    refused(&host, &["run", "--port", "80:7010", image, "--", "true"], &["7010", "in use"]);
}

#[test]
fn a_layout_whose_bytes_are_not_what_they_should_be_is_refused_whole() {
    let host = Host::empty();
    let copy = host.directory("layout");
    let copied = podvm_e2e::Invocation::new("cp", ["-rL", layout("busybox").to_str().unwrap(), copy.to_str().unwrap()]);
    copied.run().expect_code(0);
    let blobs = copy.join("busybox/blobs/sha256");
    let blobs = if blobs.exists() {
        blobs
    } else {
        fs::read_dir(&copy).unwrap().next().unwrap().unwrap().path().join("blobs/sha256")
    };
    let largest = fs::read_dir(&blobs).unwrap().map(|e| e.unwrap().path()).max_by_key(|p| p.metadata().unwrap().len());
    let largest = largest.unwrap();
    let mut bytes = fs::read(&largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&largest, bytes).unwrap();
    let layout = blobs.parent().unwrap().parent().unwrap();
    let digest = largest.file_name().unwrap().to_str().unwrap();
    refused(&host, &["image", "import", "--quiet", layout.to_str().unwrap(), "--name", "bad"], &[&digest[..12]]);
    let listed = host.podvm(["image", "list", "--output", "json"]).run().expect_code(0).json();
    assert_eq!(listed.as_array().map(Vec::len), Some(0), "{listed}");
}

#[test]
fn a_damaged_name_is_named_with_its_cure_and_the_cure_works() {
    let host = Host::empty();
    host.podvm(["image", "list"]).run().expect_code(0);
    let path = host.root().join("images/refs/damaged.json");
    fs::write(&path, "{").unwrap();
    let file = path.to_str().unwrap();
    let listed = host.podvm(["image", "list"]).run().expect_code(254);
    listed.expect_stderr(file).expect_stderr("podvm image verify --repair");
    host.podvm(["image", "verify"]).run().expect_code(254).expect_stdout(file);
    host.podvm(["image", "verify", "--repair"]).run().expect_code(254).expect_stdout(file);
    host.podvm(["image", "verify"]).run().expect_code(0);
    host.podvm(["image", "list"]).run().expect_code(0);
}
