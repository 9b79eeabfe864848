//! The command line that podvm is made for: etcd behind a hardware wall, its data on the host.

use std::time::Duration;

use nix::sys::signal::Signal;
use podvm_e2e::{Host, Invocation, Running, wait_for};

const A_WHILE: Duration = Duration::from_secs(180);
const CLIENT: &str = "http://127.0.0.1:2379";

fn start(host: &Host, image: &str) -> Running {
    let volume = format!("data-dir,kind=host,source={}", host.directory("etcd").display());
    let urls = [format!("--advertise-client-urls={CLIENT}"), "--listen-client-urls=http://0.0.0.0:2379".into()];
    let words = ["run", "--private-net", "--port=client:2379", "--volume", &volume, image, "--", &urls[0], &urls[1]];
    host.podvm(words).spawn()
}

/// What curl gets, if the server answers.
fn curl(words: &[&str]) -> Option<String> {
    let finished = Invocation::new("curl", ["-sf", "-m", "20"]);
    let finished = words.iter().fold(finished, |call, word| call.arg(word)).run();
    finished.status.success().then_some(finished.stdout)
}

#[test]
fn etcd_keeps_its_keys_on_the_hosts_volume() {
    let host = Host::new();
    let image = host.image("etcd");
    let put = r#"{"key":"Zm9v","value":"YmFy"}"#;
    let get = r#"{"key":"Zm9v"}"#;

    let first = start(&host, &image);
    let version = wait_for("etcd answers", A_WHILE, || curl(&[&format!("{CLIENT}/version")]));
    assert!(version.contains("etcdserver"), "{version}");
    wait_for("the key is written", A_WHILE, || curl(&[&format!("{CLIENT}/v3/kv/put"), "-d", put]));
    first.signal(Signal::SIGTERM);
    // etcd ends itself by the signal that asked it to.
    first.wait(A_WHILE).expect_code(0);

    let second = start(&host, &image);
    let answer = wait_for("etcd answers", A_WHILE, || curl(&[&format!("{CLIENT}/v3/kv/range"), "-d", get]));
    assert!(answer.contains(r#""value":"YmFy""#), "{answer}");
    second.signal(Signal::SIGTERM);
    second.wait(A_WHILE).expect_code(0);
}
