//! Files into running apps and out of them: `cp` and `export`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use podvm_e2e::{Host, Invocation, stage1};

fn start(host: &Host, script: &str) -> String {
    let image = host.image("busybox");
    let started = host.podvm(["run", "--detach", "--quiet", "--net=none", &image, "--", "sh", "-c", script]).run();
    started.expect_code(0).stdout.trim().to_owned()
}

fn inside(host: &Host, pod: &str, script: &str) -> String {
    host.podvm(["exec", pod, "--", "sh", "-c", script]).run().expect_code(0).stdout
}

#[test]
fn a_tree_goes_in_and_comes_out_with_owners_modes_and_links() {
    let host = Host::new();
    let pod = start(&host, "trap exit TERM; sleep 600 & wait");
    let tree = host.directory("tree");
    fs::create_dir(tree.join("inner")).unwrap();
    fs::write(tree.join("inner/file"), vec![b'x'; 3 << 20]).unwrap();
    fs::set_permissions(tree.join("inner/file"), PermissionsExt::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(tree.join("inner/file"), Some(1234), Some(100)).unwrap();
    symlink("inner/file", tree.join("link")).unwrap();

    let place = format!("{pod}:/copy");
    host.podvm(["cp", tree.to_str().unwrap(), &place]).run().expect_code(0);
    // Nothing was at /copy, so the copy is /copy itself; the next one goes into it.
    let seen = inside(&host, &pod, "cd /copy && stat -c '%u %g %a %s' inner/file && readlink link");
    assert_eq!(seen, "1234 100 640 3145728\ninner/file\n");
    host.podvm(["cp", tree.to_str().unwrap(), &format!("{pod}:busybox:copy")]).run().expect_code(0);
    assert_eq!(inside(&host, &pod, "ls /copy"), "inner\nlink\ntree\n");

    let out = host.scratch().join("out");
    host.podvm(["cp", &format!("{pod}:/copy/tree/."), out.to_str().unwrap()]).run().expect_code(0);
    let file = fs::metadata(out.join("inner/file")).unwrap();
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777, file.len()), (1234, 100, 0o640, 3 << 20));
    assert_eq!(fs::read_link(out.join("link")).unwrap().to_str(), Some("inner/file"));

    let one = host.scratch().join("one");
    host.podvm(["cp", &format!("{pod}:/copy/inner/file"), one.to_str().unwrap()]).run().expect_code(0);
    assert_eq!(fs::metadata(&one).unwrap().len(), 3 << 20);
    host.podvm(["cp", one.to_str().unwrap(), &format!("{pod}:/etc/")]).run().expect_code(0);
    assert_eq!(inside(&host, &pod, "wc -c < /etc/one"), "3145728\n");
}

#[test]
fn streams_are_tar_streams() {
    let host = Host::new();
    let pod = start(&host, "trap exit TERM; sleep 600 & wait");
    inside(&host, &pod, "mkdir /d; echo content > /d/f");
    let podvm = podvm_e2e::prefix().join("bin/podvm");
    let (podvm, root) = (podvm.display(), host.root().display());
    let line = format!("{podvm} --root {root} cp {pod}:/d - | tar xO d/f");
    Invocation::new("/bin/sh", ["-c", &line]).run().expect_code(0).expect_stdout("content");
    let line = format!("cd / && tar c etc/hostname | {podvm} --root {root} cp - {pod}:/d");
    Invocation::new("/bin/sh", ["-c", &line]).run().expect_code(0);
    assert_eq!(inside(&host, &pod, "ls /d/etc"), "hostname\n");
}

#[test]
fn what_an_app_made_of_its_files_does_no_harm_at_the_host() {
    let host = Host::new();
    let outside = host.directory("outside");
    fs::write(outside.join("kept"), "kept").unwrap();
    let target = outside.join("kept");
    // A link in place of a directory, a link in place of a file, a program that would run as root, a device.
    let script = format!(
        "mkdir -p /evil/sub; ln -s {0} /evil/dir; ln -s {1} /evil/file; cp /bin/busybox /evil/su; chmod 4755 /evil/su; \
         mkdir /plain; echo over > /plain/file; mkdir /plain/dir; echo over > /plain/dir/kept; \
         mknod /evil/disk b 8 0; ls /evil; trap exit TERM; sleep 600 & wait",
        outside.display(),
        target.display()
    );
    let image = host.image("busybox");
    let words = ["run", "-d", "-q", "--net=none", "--caps-retain=CAP_MKNOD,CAP_FOWNER,CAP_FSETID", &image, "--"];
    let started = host.podvm(words.into_iter().chain(["sh", "-c", &script])).run().expect_code(0);
    let pod = started.stdout.trim();
    podvm_e2e::wait_for("the app has made its files", std::time::Duration::from_secs(60), || {
        host.podvm(["exec", pod, "--", "test", "-e", "/evil/disk"]).run().status.success().then_some(())
    });
    let out = host.directory("out");
    let to = out.to_str().unwrap();
    let copied = host.podvm(["cp", &format!("{pod}:/evil/."), to]).run().expect_code(0);
    copied.expect_stderr("disk").expect_stderr("left out");
    assert_eq!(fs::metadata(out.join("su")).unwrap().mode() & 0o7777, 0o755);
    assert!(!out.join("disk").exists());
    // Now the links lie in the destination, and what is copied over them would go through them.
    let refused = host.podvm(["cp", &format!("{pod}:/plain/."), to]).run().expect_code(254);
    refused.expect_stderr("symbolic link");
    assert_eq!(fs::read_to_string(&target).unwrap(), "kept");
}

#[test]
fn device_files_that_an_app_makes_open_no_device_of_the_host() {
    let host = Host::new();
    let image = host.image("busybox");
    let script = "for path in /made /dev/made; do mknod $path c 1 3; { echo x > $path; } 2>/dev/null && echo opened; done; \
                  for name in null zero full random urandom tty; do ls /dev/$name > /dev/null || exit 9; done; \
                  head -c 3 /dev/zero | wc -c";
    let words = ["run", "--rm", "--net=none", "--caps-retain=CAP_MKNOD", &image, "--", "sh", "-c", script];
    let expected = if stage1() == "kvm" { "opened\nopened\n3\n" } else { "3\n" };
    assert_eq!(host.podvm(words).run().expect_code(0).stdout, expected);
}

#[test]
fn links_inside_an_app_lead_nowhere_else() {
    let host = Host::new();
    let secret = host.scratch().join("secret");
    fs::write(&secret, "secret").unwrap();
    let pod = start(
        &host,
        &format!("ln -s {} /link; ln -s /etc /inner; trap exit TERM; sleep 600 & wait", host.scratch().display()),
    );
    // At the host the link would lead to the secret; in the app it leads nowhere.
    let out = host.scratch().join("out");
    let refused = host.podvm(["cp", &format!("{pod}:/link/secret"), out.to_str().unwrap()]).run();
    refused.expect_code(254).expect_stderr("secret");
    host.podvm(["cp", secret.to_str().unwrap(), &format!("{pod}:/inner/")]).run().expect_code(0);
    assert_eq!(inside(&host, &pod, "cat /etc/secret"), "secret");
    let refused = host.podvm(["cp", secret.to_str().unwrap(), &format!("{pod}:/no/such/")]).run().expect_code(254);
    refused.expect_stderr("/no/such");
    host.podvm(["cp", secret.to_str().unwrap(), "./there"]).run().expect_code(254).expect_stderr("POD[:APP]:PATH");
}

#[test]
fn an_apps_root_is_exported_without_its_volumes() {
    let host = Host::new();
    let image = host.image("busybox");
    let words = ["run", "-d", "-q", "--net=none", "--volume", "data,kind=empty", &image, "--mount"];
    let script = "echo mine > /made; echo volume > /data/inside; trap exit TERM; sleep 600 & wait";
    let words = words.into_iter().chain(["volume=data,target=/data", "--", "sh", "-c", script]);
    let started = host.podvm(words).run().expect_code(0);
    let pod = started.stdout.trim();
    podvm_e2e::wait_for("the app has made its file", std::time::Duration::from_secs(60), || {
        host.podvm(["exec", pod, "--", "test", "-e", "/data/inside"]).run().status.success().then_some(())
    });
    let file = host.scratch().join("root.tar");
    host.podvm(["export", pod, "--output", file.to_str().unwrap()]).run().expect_code(0);
    let names = Invocation::new("tar", ["tf", file.to_str().unwrap()]).run().expect_code(0).stdout;
    let has = |name: &str| names.lines().any(|line| line.trim_start_matches("./").trim_end_matches('/') == name);
    assert!(has("made") && has("usr/bin/busybox") && has("data"), "{names}");
    assert!(!has("data/inside") && !has("proc/1") && !names.contains("cpuinfo"), "{names}");
    let listed: Vec<_> = fs::read_dir(host.scratch()).unwrap().flatten().collect();
    assert_eq!(listed.len(), 1, "{listed:?}");
}

#[test]
fn an_export_that_was_killed_leaves_nothing_and_stands_in_nobodys_way() {
    let host = Host::new();
    let pod = start(&host, "dd if=/dev/urandom of=/big bs=1M count=64; touch /made; trap exit TERM; sleep 600 & wait");
    podvm_e2e::wait_for("the app has made its file", std::time::Duration::from_secs(120), || {
        host.podvm(["exec", &pod, "--", "test", "-e", "/made"]).run().status.success().then_some(())
    });
    let file = host.scratch().join("root.tar");
    let words = ["export", &pod, "--output", file.to_str().unwrap()];
    let killed = host.podvm(words).spawn();
    std::thread::sleep(std::time::Duration::from_millis(200));
    killed.signal(nix::sys::signal::Signal::SIGKILL);
    killed.wait(std::time::Duration::from_secs(60));
    host.podvm(words).run().expect_code(0);
    assert!(fs::metadata(&file).unwrap().len() > 64 << 20);
    let listed: Vec<_> = fs::read_dir(host.scratch()).unwrap().flatten().collect();
    assert_eq!(listed.len(), 1, "{listed:?}");
}
