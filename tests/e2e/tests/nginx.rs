//! nginx serving a read-only volume.

use std::fs;
use std::time::Duration;

use podvm_e2e::{Host, Invocation, wait_for};

const A_WHILE: Duration = Duration::from_secs(120);

#[test]
fn nginx_serves_a_read_only_volume_over_ipv4_and_ipv6() {
    let host = Host::new();
    let image = host.image("nginx");
    let site = host.directory("site");
    fs::write(site.join("index.html"), "from the host\n").unwrap();
    fs::write(site.join("large"), vec![b'n'; 8 << 20]).unwrap();
    let volume = format!("www,kind=host,source={},readOnly=true", site.display());
    let started = host.podvm(["run", "--detach", "--port", "http:8080", "--volume", &volume, &image]).run();
    let uuid = started.expect_code(0).stdout.trim().to_owned();

    let get = |url: &str| {
        let finished = Invocation::new("curl", ["-sfg", "-m", "60", url]).run();
        finished.status.success().then_some(finished.stdout)
    };
    let page = wait_for("nginx answers", A_WHILE, || get("http://127.0.0.1:8080/"));
    assert_eq!(page, "from the host\n");
    assert_eq!(get("http://[::1]:8080/").as_deref(), Some("from the host\n"));
    assert_eq!(get("http://127.0.0.1:8080/large").map(|body| body.len()), Some(8 << 20));

    let written = host.podvm(["exec", &uuid, "--", "touch", "/srv/www/x"]).run();
    assert!(!written.status.success(), "a read-only volume was written to\n{written}");
    assert!(!site.join("x").exists());
    // nginx ends with 0 on its own stop signal.
    host.podvm(["stop", &uuid]).run().expect_code(0);
    host.podvm(["status", &uuid]).run().expect_code(0).expect_stdout("exited (0)");
}
