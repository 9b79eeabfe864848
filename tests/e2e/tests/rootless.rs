//! Pods of ordinary users.
//!
//! The user is made up: in a mount namespace of the test's own, the host's lists of users and subordinate IDs have one more, and
//! the devices that are usually open to users are.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use podvm_e2e::{Host, Invocation, layout, prefix, skip, stage1, wait_for};

const A_WHILE: Duration = Duration::from_secs(120);
const USER: u32 = 4242;

struct User<'a> {
    host: &'a Host,
    home: PathBuf,
}

impl<'a> User<'a> {
    /// The user, with podvm and an image where a user can read them.
    fn new(host: &'a Host) -> Self {
        let home = host.directory("home");
        let open = |path: &Path| fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
        open(host.scratch());
        let copy = |from: &Path, to: &str| {
            let to = host.scratch().join(to);
            Invocation::new("cp", [Path::new("-rL"), from, &to]).run().expect_code(0);
        };
        copy(&prefix(), "podvm");
        copy(&layout("busybox"), "image");
        Invocation::new("chmod", ["-R", "a+rX", host.scratch().to_str().unwrap()]).run().expect_code(0);
        chown(&home, Some(USER), Some(USER)).unwrap();
        Self { host, home }
    }

    /// Runs a script as the user; `podvm` and `run` in it are podvm, and `podvm run` with the stage1 that is tested.
    fn shell(&self, script: &str) -> Invocation {
        self.shell_with("podvm-tester:300000:65536", script)
    }

    /// The same, of a user to whom `/etc/subuid` and `/etc/subgid` give these IDs.
    fn shell_with(&self, ids: &str, script: &str) -> Invocation {
        let (scratch, home) = (self.host.scratch().display(), self.home.display());
        let prepare = format!(
            "set -e; cd {scratch}; \
             device() {{ if [ -e $1 ]; then [ -e $2 ] || mknod -m 666 $2 c $3 $4; mount --bind $2 $1; fi; }}; \
             device /dev/net/tun tun 10 200; device /dev/kvm kvm 10 232; \
             (cat /etc/passwd; echo 'podvm-tester:x:{USER}:{USER}::{home}:/bin/sh') > passwd; \
             mount --bind passwd /etc/passwd; \
             echo '{ids}' > subid; mount --bind subid /etc/subuid; mount --bind subid /etc/subgid; \
             exec setpriv --reuid={USER} --regid={USER} --clear-groups env -i HOME={home} PATH=$PATH sh -c \"$1\""
        );
        let stage1 = stage1();
        let script = format!(
            "cd; podvm() {{ {scratch}/podvm/bin/podvm \"$@\"; }}; run() {{ podvm run --stage1={stage1} \"$@\"; }}; \
             podvm image list | grep -q busybox || podvm image import {scratch}/image --name busybox >/dev/null 2>&1; {script}"
        );
        Invocation::new("unshare", ["--mount", "sh", "-c", &prepare, "sh", &script])
    }

    fn state(&self) -> PathBuf {
        self.home.join(".local/share/podvm")
    }
}

/// A way out of the host, which pasta wants to see, where there is none, as in the lab. Nothing is ever sent there.
struct DefaultRoute(bool);

impl DefaultRoute {
    fn new() -> Self {
        let ip = |words: &str| Invocation::new("ip", words.split(' ')).run();
        let is_missing = ip("-4 route show default").stdout.trim().is_empty();
        if is_missing {
            for words in [
                "link add podvm-out type dummy",
                "address add 192.0.2.2/24 dev podvm-out",
                "link set podvm-out up",
                "route add default via 192.0.2.1",
            ] {
                ip(words).expect_code(0);
            }
        }
        Self(is_missing)
    }
}

impl Drop for DefaultRoute {
    fn drop(&mut self) {
        if self.0 {
            Invocation::new("ip", ["link", "delete", "podvm-out"]).run();
        }
    }
}

/// Why users cannot have pods here.
fn missing() -> Option<&'static str> {
    let found = |name: &str| Invocation::new("sh", ["-c", &format!("command -v {name}")]).run().status.success();
    if !found("newuidmap") {
        Some("needs newuidmap, of Debian's package uidmap")
    } else if !found("pasta") {
        Some("needs pasta, of Debian's package passt")
    } else {
        None
    }
}

#[test]
fn a_user_of_one_id_has_pods_whose_apps_are_root_alone() {
    let host = Host::empty();
    let user = User::new(&host);
    let finished = user.shell_with("", "run --rm --net=none busybox -- sh -c 'id -u; touch /own && echo made'").run();
    assert_eq!(finished.expect_code(0).stdout, "0\nmade\n");
    if stage1() == "ns" {
        let refused = user.shell_with("", "run --rm --net=none --user=5 busybox -- true").run().expect_code(254);
        refused.expect_stderr("no user 5 in this pod, whose users are 0;").expect_stderr("podvm doctor");
    }
}

#[test]
fn an_ordinary_user_runs_a_pod_with_the_users_files() {
    if let Some(reason) = missing() {
        skip!("{reason}");
    }
    let host = Host::new();
    let user = User::new(&host);
    let script = "mkdir -p data; echo mine > data/file; \
                  run --rm --net=none --volume data,kind=host,source=$HOME/data busybox --mount volume=data,target=/data \
                  -- sh -c 'id -u; cat /data/file; echo from inside > /data/new; touch /of-user; chown 1000:1000 /of-user; \
                  stat -c %u:%g /of-user /bin/busybox; su -s /bin/sh nobody -c \"id -u\"'";
    let finished = user.shell(script).run().expect_code(0);
    assert_eq!(finished.stdout, "0\nmine\n1000:1000\n0:0\n65534\n", "{finished}");
    let made = fs::metadata(user.home.join("data/new")).unwrap();
    assert_eq!(made.uid(), USER);
    wait_for("the pod is removed", A_WHILE, || {
        (fs::read_dir(user.state().join("pods")).unwrap().count() == 0).then_some(())
    });
}

#[test]
fn an_ordinary_user_copies_files_in_and_out_of_a_pod() {
    if let Some(reason) = missing() {
        skip!("{reason}");
    }
    let host = Host::empty();
    let user = User::new(&host);
    let script = "echo mine > own; chmod 640 own; \
                  pod=$(run -d -q --net=none busybox -- sh -c 'mkdir /d; echo its > /d/file; chown -R 33:33 /d; sleep 600'); \
                  until podvm exec $pod -- test -e /d/file; do sleep 0.1; done; \
                  podvm cp own $pod:/own; podvm exec $pod -- stat -c '%u:%g %a' /own; \
                  podvm cp $pod:/d .; cat d/file; podvm cp $pod:/own back; cat back; podvm stop --force $pod";
    let finished = user.shell(script).run().expect_code(0);
    assert_eq!(finished.stdout, "0:0 640\nits\nmine\n", "{finished}");
    for file in ["d", "d/file", "back"] {
        assert_eq!(fs::metadata(user.home.join(file)).unwrap().uid(), USER, "{file}");
    }
}

#[test]
fn an_ordinary_users_pod_serves_at_the_host_and_goes_whole() {
    if let Some(reason) = missing() {
        skip!("{reason}");
    }
    let host = Host::new();
    let user = User::new(&host);
    let _route = DefaultRoute::new();
    let serve = "run --quiet --detach --port 80:127.0.0.1:7021 busybox -- sh -c \
                 'mkdir /www; echo here > /www/index.html; exec httpd -f -p 80 -h /www'";
    let uuid = user.shell(serve).run().expect_code(0).stdout.trim().to_owned();
    let get = || {
        let finished = Invocation::new("curl", ["-sf", "-m", "20", "http://127.0.0.1:7021/"]).run();
        finished.status.success().then_some(finished.stdout)
    };
    assert_eq!(wait_for("the server answers", A_WHILE, get), "here\n");
    let refused = user.shell("run --quiet --port 80:127.0.0.1:7021 busybox -- true").run();
    refused.expect_code(254).expect_stderr("7021").expect_stderr("in use");
    let status = user.shell(&format!("podvm status {uuid} --output json")).run().expect_code(0).json();
    let pid = status["pid"].as_i64().expect("a running pod has a process");
    assert_eq!(fs::metadata(format!("/proc/{pid}")).unwrap().uid(), USER);
    let exec = user.shell(&format!("podvm exec {uuid} -- cat /www/index.html")).run().expect_code(0);
    assert_eq!(exec.stdout, "here\n");

    user.shell(&format!("kill -9 {pid}")).run().expect_code(0);
    wait_for("the pod is dead", A_WHILE, || {
        user.shell(&format!("podvm status {uuid}")).run().stdout.contains("aborted").then_some(())
    });
    wait_for("the port is free", A_WHILE, || TcpListener::bind("127.0.0.1:7021").ok());
    user.shell("podvm gc --grace-period 0s").run().expect_code(0).expect_stdout(&uuid);
    assert_eq!(user.shell("podvm gc --grace-period 0s").run().expect_code(0).stdout, "");
    assert_eq!(fs::read_dir(user.state().join("pods")).unwrap().count(), 0);
}

#[test]
fn an_ordinary_users_pod_reaches_what_the_user_does() {
    if let Some(reason) = missing() {
        skip!("{reason}");
    }
    let host = Host::new();
    let user = User::new(&host);
    let _route = DefaultRoute::new();
    // The address that the host goes out by.
    let route = Invocation::new("ip", ["-4", "-o", "route", "get", "198.51.100.1"]).run().expect_code(0).stdout;
    let address = route.split(" src ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a source address");
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let served = "x".repeat(1 << 20);
    let answer = format!("HTTP/1.0 200 OK\r\ncontent-length: {}\r\n\r\n{served}", served.len());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    let fetch = format!("run --quiet --rm busybox -- sh -c 'wget -q -O - http://{address}:{port}/ | wc -c'");
    assert_eq!(user.shell(&fetch).run().expect_code(0).stdout, "1048576\n");
}

#[test]
fn what_an_ordinary_user_cannot_have_is_said() {
    if let Some(reason) = missing() {
        skip!("{reason}");
    }
    let host = Host::new();
    let user = User::new(&host);
    let refused = user.shell("run --quiet --port 80:80 busybox -- true").run().expect_code(254);
    refused.expect_stderr("from 1024 on");
    let refused = user.shell("podvm --root /usr/not-the-users image list").run();
    refused.expect_code(254).expect_stderr("/usr/not-the-users");
}

#[test]
fn an_ordinary_users_volumes_begin_with_the_images_content_whatever_the_umask() {
    if let Some(reason) = missing() {
        skip!("{reason}");
    }
    let host = Host::empty();
    let root = host.directory("root");
    let data = root.join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("file"), "").unwrap();
    chown(data.join("file"), Some(33), Some(33)).unwrap();
    fs::set_permissions(data.join("file"), PermissionsExt::from_mode(0o4755)).unwrap();
    Invocation::new("mknod", [data.join("null").to_str().unwrap(), "c", "1", "3"]).run().expect_code(0);
    host.derived("busybox", &root, serde_json::json!({"Volumes": {"/data": {}}}));
    let user = User::new(&host);
    let show = "stat -c '%a' /data; cd /data; stat -c '%u %a' file";
    let image = host.scratch().join("busybox.derived");
    let script = format!("umask 0777; run --rm --quiet --net=none {} -- sh -c \"{show}\"", image.display());
    let finished = user.shell(&script).time_limit(A_WHILE).run().expect_code(0);
    assert_eq!(finished.stdout, "755\n33 4755\n");
}
