//! Pods of several apps.

use podvm_e2e::Host;

#[test]
fn two_apps_share_localhost_and_a_volume() {
    let host = Host::new();
    let image = host.image("busybox");
    let server = "mkdir -p /pub/www; echo shared > /pub/www/index.html; httpd -f -p 8000 -h /pub/www";
    let client = "until wget -q -O - http://127.0.0.1:8000/; do sleep 1; done; cat /pub/www/index.html; ls /pub";
    let words = [
        "run",
        "--rm",
        "--volume",
        "pub,kind=empty",
        &image,
        "--name",
        "server",
        "--mount",
        "volume=pub,target=/pub",
        "--",
        "sh",
        "-c",
        server,
        "---",
        &image,
        "--name",
        "client",
        "--mount",
        "volume=pub,target=/pub",
        "--",
        "sh",
        "-c",
        &format!("{client}; exit 9"),
    ];
    // The first app that fails ends the pod and names its code.
    let finished = host.podvm(words).run().expect_code(9);
    assert_eq!(finished.stdout.matches("shared").count(), 2, "{finished}");
}

#[test]
fn apps_do_not_see_each_others_processes_and_files() {
    let host = Host::new();
    let image = host.image("busybox");
    let words = [
        "run",
        "--rm",
        "--net=none",
        &image,
        "--name",
        "one",
        "--",
        "sh",
        "-c",
        "touch /mine; sleep 3",
        "---",
        &image,
        "--name",
        "two",
        "--",
        "sh",
        "-c",
        "sleep 1; ls / | grep -c mine; ls -d /proc/[0-9]* | wc -l; exit 0",
    ];
    let finished = host.podvm(words).run().expect_code(0);
    assert!(finished.stdout.contains('0') && !finished.stdout.contains("mine"), "{finished}");
}
