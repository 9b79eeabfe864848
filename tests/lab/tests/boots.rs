//! The lab's own promises, held by booting it. On a host with KVM of its own these machines are emulated all the same.
#![cfg(feature = "boots")]

use std::io::Cursor;
use std::path::Path;
use std::time::Duration;

use podvm_lab::{Ended, Flavour, Lab, LabCommand, LabConfig, RunError, Session};

fn boot(config: LabConfig) -> Session {
    Lab::Emulated(config).session().unwrap_or_else(|error| panic!("{error}"))
}

fn shell(script: &str) -> LabCommand {
    LabCommand::new(["sh", "-c", script]).time_limit(Duration::from_secs(300))
}

/// Runs a script that must succeed and returns what it prints.
#[track_caller]
fn output(session: &mut Session, script: &str) -> String {
    let (ended, out, err) = session.capture(shell(script)).unwrap_or_else(|error| panic!("{script}: {error}"));
    assert_eq!(ended, Ended::Code(0), "{script}: {}", String::from_utf8_lossy(&err));
    String::from_utf8_lossy(&out).trim().to_owned()
}

#[test]
fn many_commands_share_a_boot_and_each_has_its_own_streams_code_and_limit() {
    let mut session = boot(LabConfig::default());
    let (ended, out, err) = session.capture(shell("echo out; echo err >&2; exit 42")).unwrap();
    assert_eq!((ended, out.as_slice(), err.as_slice()), (Ended::Code(42), &b"out\n"[..], &b"err\n"[..]));

    let slow = LabCommand::new(["sh", "-c", "sleep 600 & sleep 600"]).time_limit(Duration::from_secs(1));
    assert!(matches!(session.capture(slow), Err(RunError::TimeLimit(_))));
    assert_eq!(output(&mut session, "pgrep -c sleep || true"), "0", "what a command started dies with it");

    let input = vec![b'x'; 1 << 20];
    let (_, out, _) = session.capture(shell("wc -c").input(Cursor::new(input))).unwrap();
    assert_eq!(String::from_utf8_lossy(&out).trim(), (1 << 20).to_string());

    let directory = tempfile::tempdir().unwrap();
    output(&mut session, "mkdir -p /tmp/left/deep; seq 100000 > /tmp/left/deep/file; chmod 750 /tmp/left/deep");
    session.carry_out(Path::new("/tmp/left"), &directory.path().join("left")).unwrap();
    let carried = std::fs::read_to_string(directory.path().join("left/deep/file")).unwrap();
    assert_eq!(carried.lines().count(), 100_000);
}

#[test]
fn the_fast_flavour_is_a_host_that_podvm_can_run_on() {
    let mut session = boot(LabConfig::default());
    assert_eq!(output(&mut session, "test -w /dev/kvm && ls -d /sys/module/kvm_amd"), "/sys/module/kvm_amd");
    assert_eq!(output(&mut session, "ls -d /sys/kernel/debug/kvm"), "/sys/kernel/debug/kvm");
    assert!(output(&mut session, "cat /sys/fs/cgroup/cgroup.subtree_control").contains("memory"));
    assert_eq!(output(&mut session, "stat -f -c %T /var/lib/podvm"), "ext2/ext3");
    output(&mut session, "cd /var/tmp; truncate -s 8M f; dd if=/dev/zero of=f bs=1M count=4 oflag=direct conv=notrunc");
    output(&mut session, "cd /var/tmp; fallocate --punch-hole --offset 0 --length 1M f");
    output(
        &mut session,
        "ip netns add n; ip link add a type veth peer name b netns n; ip tuntap add t mode tap vnet_hdr",
    );
    output(&mut session, "nft add table ip t; nft add chain ip t c '{ type nat hook postrouting priority 100; }'");
    output(&mut session, "nft add rule ip t c ip saddr 10.0.0.0/8 masquerade");
    assert_eq!(output(&mut session, "ip -o link show lo | grep -o LOOPBACK,UP"), "LOOPBACK,UP");
    let own = env!("CARGO_MANIFEST_DIR");
    output(&mut session, &format!("test -f {own}/Cargo.toml && echo changed > {own}/Cargo.toml"));
    let here = std::fs::read_to_string(Path::new(own).join("Cargo.toml")).unwrap();
    assert!(here.contains("podvm-lab"), "the lab has written to the host's tree");
}

#[test]
fn a_machine_that_panics_says_so_with_its_last_words() {
    let mut session = boot(LabConfig::default());
    match session.capture(shell("echo c > /proc/sysrq-trigger; sleep 60")) {
        Err(RunError::MachineDied { console, .. }) => assert!(console.contains("Kernel panic"), "{console}"),
        other => panic!("{other:?}"),
    }
    assert!(session.capture(shell("true")).is_err(), "a dead session runs nothing");
}

#[test]
fn an_instruction_count_is_the_same_every_time() {
    // Virtual microseconds of a loop whose instructions do not vary, read by the shell that runs it.
    let script = "read a _ < /proc/uptime; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; read b _ < /proc/uptime; \
                  echo \"$a $b\" | awk '{print int(($2 - $1) * 1000)}'";
    let measure = || {
        let mut session = boot(LabConfig { icount: true, ..LabConfig::default() });
        output(&mut session, script).parse::<i64>().unwrap()
    };
    let (one, two) = (measure(), measure());
    assert!(one > 0 && (one - two).abs() * 20 <= one + 200, "{one} ms and {two} ms differ by more than 5 %");
}

#[test]
fn the_full_flavour_runs_systemd_and_binaries_of_the_host() {
    let mut session = boot(LabConfig { flavour: Flavour::Full, ..LabConfig::default() });
    let state = output(&mut session, "systemctl is-system-running --wait || true");
    assert!(state == "running" || state == "degraded", "{state}");
    output(&mut session, "machinectl list");
    let own = std::env::current_exe().unwrap();
    let listed = output(&mut session, &format!("systemd-run --quiet --wait --pipe /host{} --list", own.display()));
    assert!(listed.contains("the_full_flavour"), "{listed}");
}
