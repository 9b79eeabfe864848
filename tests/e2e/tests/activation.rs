//! Socket activation: apps are started with sockets that podvm was started with.
//!
//! nginx, told by its variable `NGINX` which descriptors are listening sockets, serves by them instead of its own.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use nix::sys::signal::Signal;
use podvm_e2e::{Host, Invocation, stage1};

const A_WHILE: Duration = Duration::from_secs(120);

/// A volume with a page and a configuration by which nginx serves it at this address.
pub fn site(host: &Host, address: &str) -> String {
    let site = host.directory("site");
    fs::write(site.join("index.html"), "by a passed socket\n").unwrap();
    fs::write(site.join("large"), vec![b'n'; 8 << 20]).unwrap();
    let configuration = format!(
        "user www-data;\npid /run/nginx.pid;\nerror_log /dev/stderr;\nevents {{ worker_connections 256; }}\n\
         http {{ access_log off; server {{ listen {address}; root /site; }} }}\n"
    );
    fs::write(site.join("nginx.conf"), configuration).unwrap();
    format!("site,kind=host,source={}", site.display())
}

/// What follows the image and `--mount`.
pub fn arguments() -> [&'static str; 6] {
    ["volume=site,target=/site", "--", "-g", "daemon off;", "-c", "/site/nginx.conf"]
}

fn get(url: &str) -> String {
    Invocation::new("curl", ["-sf", "-m", "60", url]).run().expect_code(0).stdout
}

#[test]
fn an_app_serves_by_the_socket_that_podvm_was_started_with() {
    let host = Host::new();
    let image = host.image("nginx");
    let listener = TcpListener::bind("0.0.0.0:18480").unwrap();
    // Made before there is a pod, and answered by it.
    let mut early = TcpStream::connect("127.0.0.1:18480").unwrap();
    early.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    early.shutdown(Shutdown::Write).unwrap();
    // No network is needed.
    let words = ["run", "--rm", "--net=none", "--environment", "NGINX=3;", "--volume", &site(&host, "0.0.0.0:18480")];
    let words = words.into_iter().chain([image.as_str(), "--mount"]).chain(arguments());
    let pod = host.podvm(words).sockets(vec![("web.socket", listener.into())]).spawn();

    let mut answer = String::new();
    early.set_read_timeout(Some(A_WHILE)).unwrap();
    early.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("by a passed socket\n"), "{answer:?}");
    assert_eq!(get("http://127.0.0.1:18480/large").len(), 8 << 20);
    let many: Vec<_> = (0..20).map(|_| std::thread::spawn(|| get("http://127.0.0.1:18480/"))).collect();
    many.into_iter().for_each(|one| assert_eq!(one.join().unwrap(), "by a passed socket\n"));
    pod.signal(Signal::SIGTERM);
    pod.wait(A_WHILE).expect_code(0);
}

#[test]
fn an_app_is_told_of_its_sockets_and_no_other_process_is() {
    let host = Host::new();
    let image = host.image("busybox");
    let (one, two) = (TcpListener::bind("127.0.0.1:18483").unwrap(), TcpListener::bind("127.0.0.1:18484").unwrap());
    let port = "8080:127.0.0.1:18484";
    // The port that a socket is passed for is not forwarded, and takes that name.
    let words = ["run", "--detach", "--port", port, "--inherit-env", &image, "--name", "web", "--", "sh", "-c"];
    let script = "echo $$ = $LISTEN_PID, $LISTEN_FDS: $LISTEN_FDNAMES; for n in 3 4 5; do readlink /proc/$$/fd/$n; done; sleep 1000";
    let start = host.podvm(words.into_iter().chain([script])).sockets(vec![("a", one.into()), ("b", two.into())]);
    let uuid = start.run().expect_code(0).stdout.trim().to_owned();
    let logs = host.podvm(["logs", &uuid]).run().expect_code(0).stdout;
    let lines: Vec<&str> = logs.lines().collect();
    assert_eq!(lines[0], "1 = 1, 2: a:8080", "{logs}");
    assert!(lines.len() == 3 && lines[1..].iter().all(|line| line.starts_with("socket:[")), "{logs}");
    let exec = host.podvm(["exec", &uuid, "--", "sh", "-c", "echo $LISTEN_FDS:; ls /proc/self/fd | wc -l"]);
    // The standard streams, and the listed folder itself.
    exec.run().expect_code(0).expect_stdout(":\n4\n");
}

#[test]
fn a_socket_that_nobody_can_have_is_refused_before_anything_is_made() {
    let host = Host::new();
    let image = host.image("busybox");
    let before = host.pods();
    let listener = || TcpListener::bind("127.0.0.1:0").unwrap();
    let two_apps =
        ["run", "--net=none", &image, "--name", "a", "--", "true", "---", &image, "--name", "b", "--", "true"];
    let refused = host.podvm(two_apps).sockets(vec![("x.socket", listener().into())]).run().expect_code(254);
    assert!(refused.stderr.contains("x.socket") && refused.stderr.contains("FileDescriptorName="), "{refused}");
    let named = host.podvm(two_apps).sockets(vec![("b", listener().into())]).run();
    named.expect_code(0);

    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let one_app = ["run", "--rm", "--net=none", &image, "--", "sh", "-c", "readlink /proc/self/fd/3"];
    let finished = host.podvm(one_app).sockets(vec![("dns", udp.into())]).run();
    if stage1() == "kvm" {
        let refused = finished.expect_code(254);
        assert!(
            refused.stderr.contains("dns (UDP at 127.0.0.1") && refused.stderr.contains("--stage1=ns"),
            "{refused}"
        );
    } else {
        finished.expect_code(0);
    }
    host.gc();
    assert_eq!(host.pods(), before);
}
