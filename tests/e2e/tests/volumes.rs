//! Volumes: what goes in comes out.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use podvm_e2e::{Host, Invocation};

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
    fs::set_permissions(&data, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
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
    std::os::unix::fs::symlink(&other, &source).unwrap();
    let refused = host.podvm(["run-prepared", uuid]).run().expect_code(254);
    refused.expect_stderr("volume v").expect_stderr("symbolic link");
    fs::remove_file(&source).unwrap();
    fs::create_dir(&source).unwrap();
    fs::write(source.join("own"), "").unwrap();
    host.podvm(["run-prepared", uuid]).run().expect_code(0).expect_stdout("own");
}
