//! The pod's network, seen from inside and from the host.

use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use podvm_e2e::{Host, Invocation, wait_for};

const A_WHILE: Duration = Duration::from_secs(120);

fn links_and_rules() -> String {
    let look = |program: &str, words: &[&str]| Invocation::new(program, words).run().expect_code(0).stdout;
    look("ip", &["-br", "link"]) + &look("ip", &["route"]) + &look("nft", &["list", "ruleset"])
}

#[test]
fn none_is_only_loopback() {
    let host = Host::new();
    let image = host.image("busybox");
    let words = ["run", "--rm", "--net=none", &image, "--", "ls", "/sys/class/net"];
    assert_eq!(host.podvm(words).run().expect_code(0).stdout, "lo\n");
}

#[test]
fn a_pods_own_name_is_its_addresses() {
    let host = Host::new();
    let image = host.image("busybox");
    let script = "ip -o addr show scope global | awk '{sub(\"/.*\", \"\", $4); print $4}'; echo; \
                  awk -v name=$(hostname) '$2 == name {print $1}' /etc/hosts";
    let words = ["run", "--rm", "--quiet", &image, "--", "sh", "-c", script];
    let finished = host.podvm(words).run().expect_code(0);
    let sorted = |lines: &str| lines.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
    let (own, named) = finished.stdout.split_once("\n\n").unwrap();
    assert!(!own.is_empty() && sorted(own) == sorted(named), "{finished}");
    let script = "awk -v name=$(hostname) '$2 == name {print $1}' /etc/hosts";
    let words = ["run", "--rm", "--quiet", "--net=none", &image, "--", "sh", "-c", script];
    assert_eq!(host.podvm(words).run().expect_code(0).stdout, "127.0.0.1\n");
}

#[test]
fn any_user_of_the_pod_may_serve_at_a_low_port() {
    let host = Host::new();
    let image = host.image("busybox");
    let script = "echo here > /tmp/index.html; httpd -p 80 -h /tmp && wget -q -O - http://127.0.0.1/";
    let words = ["run", "--rm", "--net=none", &image, "--user", "1000:1000", "--", "sh", "-c", script];
    assert_eq!(host.podvm(words).run().expect_code(0).stdout, "here\n");
}

#[test]
fn a_pod_reaches_the_host_and_leaves_nothing_behind() {
    let host = Host::new();
    let image = host.image("busybox");
    let before = links_and_rules();
    let listener = TcpListener::bind("0.0.0.0:7001").unwrap();
    let answer = std::thread::spawn(move || {
        let (mut stream, from) = listener.accept().unwrap();
        std::io::Write::write_all(&mut stream, b"hello from the host\n").unwrap();
        from
    });
    let script = "gateway=$(ip route | awk '/default/ {print $3}'); nc -w 60 $gateway 7001 < /dev/null; ip -6 route | grep default";
    let words = ["run", "--rm", &image, "--", "sh", "-c", script];
    host.podvm(words).run().expect_code(0).expect_stdout("hello from the host");
    assert!(answer.join().unwrap().ip().to_string().starts_with("172.16.28."));
    wait_for("the pod's network is gone", A_WHILE, || (links_and_rules() == before).then_some(()));
}

#[test]
fn a_forward_with_an_address_is_only_there() {
    let host = Host::new();
    let image = host.image("busybox");
    let script = "mkdir /www; echo here > /www/index.html; echo up; exec httpd -f -p 80 -h /www";
    let words = ["run", "--port", "80:127.0.0.1:7002", &image, "--", "sh", "-c", script];
    let mut pod = host.podvm(words).spawn();
    pod.wait_for_stdout("up", A_WHILE);
    let get = || {
        let finished = Invocation::new("curl", ["-sf", "-m", "20", "http://127.0.0.1:7002/"]).run();
        finished.status.success().then_some(finished.stdout)
    };
    assert_eq!(wait_for("the server answers", A_WHILE, get), "here\n");
    assert!(TcpStream::connect_timeout(&"[::1]:7002".parse().unwrap(), Duration::from_secs(5)).is_err());
    pod.signal(nix::sys::signal::Signal::SIGTERM);
    pod.wait(A_WHILE);
}
