//! Roots, volumes, and the files an app finds.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::PathBuf;

use podvm_pod::manifest::RestartPolicy;
use podvm_pod::protocol::{DnsSpec, HostsEntry, VolumeSource, WritableSource};

use crate::pods::{PodBuilder, app, cannot_run};

#[test]
fn layers_lie_on_one_another_and_stay_as_they_are() {
    if cannot_run() {
        return;
    }
    let pod = PodBuilder::script(
        "cat /etc/motd; cat /only-low; rm /only-low; echo changed >/etc/motd; ls / | grep -c only-low",
    )
    .layer("low", |dir| {
        std::fs::create_dir_all(dir.join("etc")).unwrap();
        std::fs::write(dir.join("etc/motd"), "low\n").unwrap();
        std::fs::write(dir.join("only-low"), "below\n").unwrap();
    })
    .layer("high", |dir| {
        std::fs::create_dir_all(dir.join("etc")).unwrap();
        std::fs::write(dir.join("etc/motd"), "high\n").unwrap();
    });
    assert_eq!(pod.outcome().text(), "high\nbelow\n0");
    assert_eq!(std::fs::read_to_string(pod.path("high/etc/motd")).unwrap(), "high\n");
    assert!(pod.path("low/only-low").exists());
}

#[test]
fn an_image_may_have_as_many_layers_as_registries_allow() {
    if cannot_run() {
        return;
    }
    let mut pod = PodBuilder::script("cat /number; ls /layers | wc -l");
    for number in 0..126 {
        pod = pod.layer(&format!("a-layer-with-a-long-name-{number}"), |dir| {
            std::fs::create_dir_all(dir.join("layers")).unwrap();
            std::fs::write(dir.join("layers").join(number.to_string()), "").unwrap();
            std::fs::write(dir.join("number"), format!("{number}\n")).unwrap();
        });
    }
    assert_eq!(pod.outcome().ok(), "125\n126");
}

#[test]
fn a_writable_directory_keeps_what_an_app_wrote() {
    if cannot_run() {
        return;
    }
    let mut pod = PodBuilder::script("cat /count 2>/dev/null; echo x >>/count");
    std::fs::create_dir(pod.path("writable")).unwrap();
    pod.spec.writable = WritableSource::Directory(pod.path("writable"));
    assert_eq!(pod.outcome().ok(), "");
    assert_eq!(pod.outcome().ok(), "x");
}

#[test]
fn a_read_only_root_leaves_the_usual_places_writable() {
    if cannot_run() {
        return;
    }
    let script = "for dir in / /etc /root /usr; do touch $dir/x 2>/dev/null && echo wrote $dir; done
        for dir in /tmp /run /var/tmp /dev/shm; do touch $dir/x || echo not $dir; done
        echo x >/etc/hosts 2>/dev/null && echo wrote hosts; cat /tmp/kept; stat -c %a /tmp /run /var/tmp";
    let pod = PodBuilder::script(script).app(|app| app.read_only_root = true).layer("top", |dir| {
        std::fs::create_dir_all(dir.join("tmp")).unwrap();
        std::fs::set_permissions(dir.join("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
        std::fs::write(dir.join("tmp/kept"), "kept\n").unwrap();
    });
    assert_eq!(pod.outcome().ok(), "kept\n1777\n755\n1777");
}

#[test]
fn volumes_are_mounted_in_one_another_and_read_only_holds() {
    if cannot_run() {
        return;
    }
    let script = "cat /data/file /data/inner/file; touch /data/inner/x && echo wrote inner; touch /data/x 2>/dev/null && echo wrote data
        touch /again/x 2>/dev/null && echo wrote again; true";
    let pod = PodBuilder::script(script)
        .directory("outer", |dir| {
            std::fs::write(dir.join("file"), "outer\n").unwrap();
            std::fs::create_dir(dir.join("inner")).unwrap();
        })
        .directory("inner", |dir| std::fs::write(dir.join("file"), "inner\n").unwrap())
        .volume("empty", VolumeSource::Empty, true)
        .mount("outer", "/data", true)
        .mount("inner", "/data/inner", false)
        .mount("empty", "/again", false);
    assert_eq!(pod.outcome().ok(), "outer\ninner\nwrote inner");
    assert!(pod.path("inner/x").exists());
}

#[test]
fn a_link_in_the_image_cannot_lead_a_volume_outside() {
    if cannot_run() {
        return;
    }
    let pod = PodBuilder::script("cat /there/file; cat /../there/file; readlink /data")
        .directory("vol", |dir| std::fs::write(dir.join("file"), "here\n").unwrap())
        .layer("links", |dir| symlink("../../../../there", dir.join("data")).unwrap())
        .mount("vol", "/data", false);
    assert_eq!(pod.outcome().ok(), "here\nhere\n../../../../there");
    assert!(!PathBuf::from("/there").exists());
}

#[test]
fn an_empty_volume_is_shared_and_owned_as_in_the_image() {
    if cannot_run() {
        return;
    }
    let pod =
        PodBuilder::script("until [ -e /data/said ]; do sleep 0.05; done; cat /data/said; stat -c '%u %g %a' /data")
            .layer("owned", |dir| {
                std::fs::create_dir(dir.join("data")).unwrap();
                chown(dir.join("data"), Some(1000), Some(1001)).unwrap();
                std::fs::set_permissions(dir.join("data"), PermissionsExt::from_mode(0o750)).unwrap();
            })
            .volume("shared", VolumeSource::Empty, false)
            .mount("shared", "/data", false)
            .with(app("other", "echo hello >/elsewhere/said.new; mv /elsewhere/said.new /elsewhere/said"))
            .mount("shared", "/elsewhere", false);
    assert_eq!(pod.outcome().ok(), "hello\n1000 1001 750");
}

#[test]
fn what_an_app_makes_of_an_empty_volumes_owner_stays_when_it_is_started_again() {
    if cannot_run() {
        return;
    }
    let log = "stat -c '%u %a' /data >>/data/log";
    let script =
        format!("{log}; chown 1000 /data; chmod 700 /data; test -e /data/again || {{ touch /data/again; exit 1; }}");
    let mut pod = PodBuilder::script(&script)
        .app(|app| {
            app.restart = RestartPolicy::OnFailure { most: None };
            app.post_stop = ["/bin/sh", "-c", log].map(str::to_owned).into();
        })
        .layer("place", |dir| std::fs::create_dir(dir.join("data")).unwrap())
        .volume("data", VolumeSource::Empty, false)
        .mount("data", "/data", false);
    std::fs::create_dir(pod.path("writable")).unwrap();
    pod.spec.writable = WritableSource::Directory(pod.path("writable"));
    assert_eq!(pod.outcome().report.code, 0);
    let log = std::fs::read_to_string(pod.path("writable/volumes/data/log")).unwrap();
    assert_eq!(log, "0 755\n1000 700\n1000 700\n1000 700\n");
}

#[test]
fn names_are_found_in_etc_and_the_image_keeps_its_own() {
    if cannot_run() {
        return;
    }
    let mut pod =
        PodBuilder::script("hostname; cat /etc/hostname /etc/resolv.conf; tail -n2 /etc/hosts").layer("etc", |dir| {
            std::fs::create_dir(dir.join("etc")).unwrap();
            std::fs::write(dir.join("etc/hosts"), "image's own").unwrap();
            symlink("../run/resolve/stub.conf", dir.join("etc/resolv.conf")).unwrap();
        });
    let dns =
        DnsSpec { servers: vec!["10.1.2.3".parse().unwrap()], search: vec!["example".into()], options: Vec::new() };
    pod.spec.network.dns = Some(dns);
    let entry = HostsEntry { address: "10.9.9.9".parse().unwrap(), names: vec!["db".into()] };
    pod.spec.network.hosts.push(entry);
    let expected = "testpod\ntestpod\nsearch example\nnameserver 10.1.2.3\n127.0.0.1\ttestpod\n10.9.9.9\tdb";
    assert_eq!(pod.outcome().ok(), expected);
    assert_eq!(std::fs::read_to_string(pod.path("etc/etc/hosts")).unwrap(), "image's own");
}

#[test]
fn devices_are_the_few_that_programs_expect() {
    if cannot_run() {
        return;
    }
    let script = "ls /dev | tr '\\n' ' '; echo; stat -c '%a %t %T' /dev/null /dev/urandom; head -c4 /dev/zero | wc -c
        readlink /dev/ptmx; readlink /dev/stdin; touch /dev/shm/x /dev/mqueue/q; mknod /tmp/disk b 8 0 2>/dev/null || echo no mknod";
    let text = PodBuilder::script(script).outcome();
    let expected = "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero \n\
                    666 1 3\n666 1 9\n4\npts/ptmx\n/proc/self/fd/0\nno mknod";
    assert_eq!(text.ok(), expected);
}

#[test]
fn the_image_cannot_bring_devices_along() {
    if cannot_run() {
        return;
    }
    let pod = PodBuilder::script("cat /node 2>&1 | sed 's/.*: //'; test -c /node && echo there").layer("node", |dir| {
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
        nix::sys::stat::mknod(&dir.join("node"), nix::sys::stat::SFlag::S_IFCHR, mode, nix::sys::stat::makedev(1, 5))
            .unwrap();
        let node = std::fs::metadata(dir.join("node")).unwrap();
        assert_eq!(node.rdev(), nix::sys::stat::makedev(1, 5));
    });
    assert_eq!(pod.outcome().ok(), "Permission denied\nthere");
}

#[test]
fn the_host_is_hidden_and_its_kernel_read_only() {
    if cannot_run() {
        return;
    }
    let script = "for file in kcore keys timer_list; do cat /proc/$file 2>/dev/null | head -c1; done
        ls /sys/firmware /sys/dev/block
        echo 1 2>/dev/null >/proc/sys/kernel/domainname && echo wrote sysctl
        echo b 2>/dev/null >/proc/sysrq-trigger && echo wrote sysrq
        touch /sys/x 2>/dev/null && echo wrote sys
        echo $$; ls -d /proc/[0-9]* | wc -l; env | grep LEAKED; ls /proc/self/fd | wc -l
        cut -d' ' -f5 /proc/self/mountinfo | grep -vE '^/(dev|proc|sys)(/|$)' | tr '\\n' ' '";
    let outcome = PodBuilder::script(script).outcome();
    // The shell, `ls` and `wc`; `ls` itself has its directory open as a fourth descriptor.
    let expected = "/sys/dev/block:\n\n/sys/firmware:\n1\n3\n4\n/ /etc/hosts /etc/hostname ";
    assert_eq!(outcome.text(), expected, "{outcome:?}");
}

#[test]
fn the_working_directory_is_made_and_entered() {
    if cannot_run() {
        return;
    }
    let pod =
        PodBuilder::script("pwd; stat -c %u .").app(|app| app.working_directory = "/srv/deep/er".into()).user("worker");
    assert_eq!(pod.outcome().ok(), "/srv/deep/er\n0");
}
