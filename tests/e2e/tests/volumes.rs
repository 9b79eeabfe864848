//! Volumes: what goes in comes out.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::PathBuf;
use std::time::Duration;

use podvm_e2e::{Host, Invocation};
use serde_json::json;

const LONG: Duration = Duration::from_secs(400);

#[test]
fn a_large_file_goes_in_and_out_unchanged() {
    let host = Host::new();
    let image = host.image("busybox");
    let data = host.directory("data");
    let make = format!("head -c 268435456 /dev/urandom > {}", data.join("in").display());
    Invocation::new("/bin/sh", ["-c", &make]).time_limit(LONG).run().expect_code(0);
    let volume = format!("data,kind=host,source={}", data.display());
    let words = [
        "run",
        "--rm",
        "--net=none",
        "--volume",
        &volume,
        &image,
        "--mount",
        "volume=data,target=/data",
        "--",
        "cp",
        "/data/in",
        "/data/out",
    ];
    host.podvm(words).time_limit(LONG).run().expect_code(0);
    let compare = [data.join("in"), data.join("out")];
    Invocation::new("cmp", compare).time_limit(LONG).run().expect_code(0);
}

#[test]
fn a_thousand_small_files_are_made_read_and_removed() {
    let host = Host::new();
    let image = host.image("busybox");
    let data = host.directory("data");
    let volume = format!("data,kind=host,source={}", data.display());
    let script = "cd /data; i=0; while [ $i -lt 1000 ]; do echo $i > f$i; i=$((i+1)); done; \
                  cat f* | wc -l; rm f?? f?; ls | wc -l";
    let words = [
        "run",
        "--rm",
        "--net=none",
        "--user",
        "1000:1000",
        "--volume",
        &volume,
        &image,
        "--mount",
        "volume=data,target=/data",
        "--",
        "sh",
        "-c",
        script,
    ];
    fs::set_permissions(&data, PermissionsExt::from_mode(0o777)).unwrap();
    let finished = host.podvm(words).time_limit(LONG).run().expect_code(0);
    assert_eq!(finished.stdout, "1000\n900\n");
    assert_eq!(fs::read_dir(&data).unwrap().count(), 900);
    let metadata = fs::metadata(data.join("f999")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.len()), (1000, 1000, 4));
}

#[test]
fn a_directory_is_bound_in_one_word_and_for_reading_only() {
    let host = Host::new();
    let image = host.image("busybox");
    let (one, two) = (host.directory("one"), host.directory("two"));
    fs::write(one.join("file"), "one\n").unwrap();
    fs::write(two.join("file"), "two\n").unwrap();
    let binds = [format!("{}:/in:ro", one.display()), format!("{}:/out", two.display())];
    let script = "cat /in/file /out/file; ! touch /in/new 2>/dev/null && echo new > /out/new";
    let words = ["run", "--rm", "--net=none", "-v", &binds[0], "-v", &binds[1], &image, "--", "sh", "-c", script];
    assert_eq!(host.podvm(words).run().expect_code(0).stdout, "one\ntwo\n");
    assert_eq!(fs::read_to_string(two.join("new")).unwrap(), "new\n");
    let missing = host.podvm(["run", "-v", "/no/such:/in", &image, "--", "true"]).run().expect_code(254);
    missing.expect_stderr("/no/such does not exist");
}

#[test]
fn links_modes_and_renames_are_those_of_a_filesystem() {
    let host = Host::new();
    let image = host.image("busybox");
    let data = host.directory("data");
    let volume = format!("data,kind=host,source={}", data.display());
    let script = "cd /data; echo x > a; ln a b; ln -s a c; chmod 640 a; chown 5:6 a; mkdir d; mv a d/e; \
                  stat -c '%h %a %u %g' b; readlink c; cat d/e; mkfifo p; test -p p && echo fifo";
    let words = [
        "run",
        "--rm",
        "--net=none",
        "--volume",
        &volume,
        &image,
        "--mount",
        "volume=data,target=/data",
        "--",
        "sh",
        "-c",
        script,
    ];
    let finished = host.podvm(words).run().expect_code(0);
    assert_eq!(finished.stdout, "2 640 5 6\na\nx\nfifo\n");
    let (b, e) = (fs::metadata(data.join("b")).unwrap(), fs::metadata(data.join("d/e")).unwrap());
    assert_eq!(b.ino(), e.ino());
}

#[test]
fn a_link_that_took_a_volumes_place_since_the_pod_was_prepared_is_not_followed() {
    let host = Host::empty();
    let image = host.image("busybox");
    let (source, other) = (host.directory("d/sub"), host.directory("other"));
    fs::write(other.join("secret"), "secret").unwrap();
    let volume = format!("v,kind=host,source={}", source.display());
    let words = ["prepare", "--net=none", "--volume", &volume, &image, "--mount", "volume=v,target=/v", "--"];
    let prepared = host.podvm(words.into_iter().chain(["ls", "/v"])).run().expect_code(0);
    let uuid = prepared.stdout.trim();
    // As another pod that may write to `d` could.
    fs::remove_dir(&source).unwrap();
    symlink(&other, &source).unwrap();
    let refused = host.podvm(["run-prepared", uuid]).run().expect_code(254);
    refused.expect_stderr("volume v").expect_stderr("symbolic link");
    fs::remove_file(&source).unwrap();
    fs::create_dir(&source).unwrap();
    fs::write(source.join("own"), "").unwrap();
    host.podvm(["run-prepared", uuid]).run().expect_code(0).expect_stdout("own");
}

/// An image with files in `/data`, which it declares to be a volume, and in `/srv`.
fn image_with_data(host: &Host) -> PathBuf {
    let root = host.directory("root");
    for name in ["data/inner", "srv"] {
        fs::create_dir_all(root.join(name)).unwrap();
        fs::write(root.join(name).join("file"), format!("{name}\n")).unwrap();
    }
    let file = root.join("data/inner/file");
    fs::hard_link(&file, root.join("data/other")).unwrap();
    symlink("/etc/hostname", root.join("data/link")).unwrap();
    chown(&file, Some(5), Some(6)).unwrap();
    fs::set_permissions(&file, PermissionsExt::from_mode(0o4751)).unwrap();
    // What a pod with users of its own cannot have as it is.
    fs::write(root.join("data/strangers"), "").unwrap();
    chown(root.join("data/strangers"), Some(200_000), Some(200_000)).unwrap();
    Invocation::new("mknod", [root.join("data/null").to_str().unwrap(), "c", "1", "3"]).run().expect_code(0);
    chown(root.join("data"), Some(7), Some(8)).unwrap();
    fs::set_permissions(root.join("data"), PermissionsExt::from_mode(0o1770)).unwrap();
    let time = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1_000_000));
    fs::File::open(&file).unwrap().set_times(time).unwrap();
    host.derived("busybox", &root, json!({"Volumes": {"/data": {}}}))
}

/// What is in `/data` of that image.
const DATA: &str = "7 8 1770\n5 6 4751 2 1000000\n/etc/hostname\ndata/inner\nstrangers\n";
const SHOW_DATA: &str = "cd /data && stat -c '%u %g %a' . && stat -c '%u %g %a %h %Y' inner/file && \
                         readlink link && cat other && ls strangers";

#[test]
fn an_images_content_is_in_the_empty_volume_that_takes_its_place() {
    let host = Host::empty();
    let image = image_with_data(&host);
    let image = image.to_str().unwrap();
    for options in [&[][..], &["--readonly-rootfs"], &["--private-users"]] {
        let (of_pod, of_app): (Vec<&str>, Vec<&str>) = options.iter().partition(|option| **option == "--private-users");
        let words = ["run", "--rm", "--net=none"].into_iter().chain(of_pod).chain([image]).chain(of_app);
        let finished = host.podvm(words.chain(["--", "sh", "-c", SHOW_DATA])).run().expect_code(0);
        assert_eq!(finished.stdout, DATA, "{options:?}");
    }
    let image_only = "cat /srv/file; ls /data/inner /nowhere";
    let given = ["--volume", "own,kind=empty", image, "--mount", "volume=own,target=/nowhere"];
    let words = ["run", "--rm", "--net=none"].into_iter().chain(given).chain(["--", "sh", "-c", image_only]);
    let finished = host.podvm(words).run().expect_code(0);
    assert_eq!(finished.stdout, "srv\n/data/inner:\nfile\n\n/nowhere:\n");
}

#[test]
fn a_shared_empty_volume_has_the_content_of_the_first_app_and_a_hosts_none() {
    let host = Host::empty();
    let image = image_with_data(&host);
    let image = image.to_str().unwrap();
    let of_host = format!("data,kind=host,source={}", host.directory("of-host").display());
    let script = "ls /data; until [ -e /srv/done ]; do sleep 0.1; done; cat /srv/file";
    let words = ["run", "--rm", "--net=none", "--volume", "site,kind=empty", "--volume", &of_host, image];
    let first = ["--name=one", "--mount", "volume=site,target=/srv", "--", "sh", "-c", script, "---"];
    let mount = ["--name=two", "--mount", "volume=site,target=/data", "--", "sh", "-c", "ls /data; touch /data/done"];
    let finished = host.podvm(words.into_iter().chain(first).chain([image]).chain(mount)).run().expect_code(0);
    let mut lines: Vec<&str> = finished.stdout.lines().collect();
    lines.sort_unstable();
    assert!(lines.iter().all(|line| line.ends_with("file") || line.ends_with("srv")), "{finished}");
    assert_eq!(lines.len(), 2, "{finished}");
}

#[test]
fn a_volume_is_not_filled_again_when_its_app_is_started_again() {
    let host = Host::empty();
    let image = image_with_data(&host);
    let script = "test ! -e /data/gone || exit 0; rm -r /data/inner /data/link /data/null /data/strangers; mv /data/other /data/gone; exit 1";
    let last = "ls /data";
    let script = format!("trap '{last}' EXIT; {script}");
    let words =
        ["run", "--rm", "--net=none", image.to_str().unwrap(), "--restart=on-failure:3", "--", "sh", "-c", &script];
    assert_eq!(host.podvm(words).run().expect_code(0).stdout, "gone\ngone\n");
}

/// `podvm run` for a line of a shell.
fn run_line(host: &Host) -> String {
    let (podvm, stage1) = (podvm_e2e::prefix().join("bin/podvm"), podvm_e2e::stage1());
    format!("{} --root {} run --rm --net=none --stage1={stage1}", podvm.display(), host.root().display())
}

#[test]
fn the_callers_umask_is_not_the_pods() {
    let host = Host::empty();
    let image = host.image("busybox");
    let command = run_line(&host);
    let script = "stat -c %a / /data /etc/hosts; umask";
    for (umask, options) in [("0077", ""), ("0177", ""), ("0077", "--private-users")] {
        let line = format!(
            "umask {umask}; {command} {options} --volume data,kind=empty {image} \
             --mount volume=data,target=/data -- sh -c '{script}'"
        );
        let finished = Invocation::new("/bin/sh", ["-c", &line]).run().expect_code(0);
        assert_eq!(finished.stdout, "755\n755\n644\n0022\n", "{line}");
    }
}

#[test]
fn a_volume_in_the_systems_place_is_refused_and_an_images_passed_over() {
    let host = Host::empty();
    let image = host.derived("busybox", &host.directory("root"), json!({"Volumes": {"/dev": {}, "/sys/fs": {}}}));
    let image = image.to_str().unwrap();
    let finished = host.podvm(["run", "--rm", "--net=none", image, "--", "ls", "/dev/null"]).run().expect_code(0);
    finished.expect_stdout("/dev/null\n").expect_stderr(r#"passed over: "/dev", "/sys/fs""#);
    for target in ["/dev", "/proc", "/proc/interrupts", "/sys/fs"] {
        let mount = format!("volume=v,target={target}");
        let words = ["run", "--net=none", "--volume", "v,kind=empty", image, "--mount", &mount, "--", "true"];
        host.podvm(words).run().expect_code(254).expect_stderr(&format!("volume v cannot be mounted at {target}"));
    }
    assert!(host.pods().is_empty());
}
