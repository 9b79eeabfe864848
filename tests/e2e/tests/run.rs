//! `podvm run`: what an app gets, and what comes back from it.

use std::time::Duration;

use nix::sys::signal::Signal;
use podvm_e2e::Host;

const A_WHILE: Duration = Duration::from_secs(120);

/// Runs a shell script in a pod of the busybox image.
fn shell(host: &Host, options: &[&str], script: &str) -> podvm_e2e::Finished {
    let image = host.image("busybox");
    let mut words = vec!["run", "--rm"];
    words.extend(options);
    words.extend([image.as_str(), "--", "sh", "-c", script]);
    host.podvm(words).run()
}

/// `podvm run` for a line of a shell.
fn run_line(host: &Host) -> String {
    let podvm = podvm_e2e::prefix().join("bin/podvm").display().to_string();
    format!("{podvm} --root {} run --stage1={}", host.root().display(), podvm_e2e::stage1())
}

#[test]
fn output_and_exit_code_are_the_apps() {
    let host = Host::new();
    let finished = shell(&host, &["--net=none"], "echo out; echo err >&2; exit 7").expect_code(7);
    assert_eq!(finished.stdout, "out\n");
    assert!(finished.stderr.contains("err\n"), "{finished}");
}

#[test]
fn an_app_gets_what_its_options_say() {
    let host = Host::new();
    let options = [
        "--net=none",
        "--hostname",
        "box",
        "--environment",
        "COLOUR=red",
        "--user",
        "1234:100",
        "--working-dir",
        "/tmp",
    ];
    let finished = shell(&host, &options, "hostname; echo $COLOUR; id -u; id -g; pwd; echo $$").expect_code(0);
    assert_eq!(finished.stdout, "box\nred\n1234\n100\n/tmp\n1\n");
}

#[test]
fn standard_input_reaches_an_interactive_app_and_ends() {
    let host = Host::new();
    let image = host.image("busybox");
    let words = ["run", "--rm", "--net=none", "--interactive", &image, "--", "sha256sum"];
    let input = vec![b'x'; 1 << 20];
    let finished = host.podvm(words).input(input).run().expect_code(0);
    // sha256sum of 1 MiB of "x", by coreutils.
    let expected = podvm_e2e::Invocation::new("/bin/sh", ["-c", "head -c 1048576 /dev/zero | tr '\\0' x | sha256sum"]);
    assert_eq!(finished.stdout, expected.run().stdout);
}

#[test]
fn much_output_arrives_whole() {
    let host = Host::new();
    let image = host.image("busybox");
    let words = ["run", "--rm", "--net=none", &image, "--", "head", "-c", "16777216", "/dev/zero"];
    assert_eq!(host.podvm(words).run().expect_code(0).stdout.len(), 16 << 20);
}

#[test]
fn output_waits_for_a_reader_that_is_slow() {
    let host = Host::new();
    let image = host.image("busybox");
    let run = format!("{} --net=none {image}", run_line(&host));
    // More than all buffers on the way hold, from an app that has long ended by then.
    let line = format!("{run} -- head -c 1000000 /dev/zero | (sleep 12; wc -c)");
    podvm_e2e::Invocation::new("sh", ["-c", &line]).run().expect_code(0).expect_stdout("1000000\n");
}

#[test]
fn a_terminal_is_one() {
    let host = Host::new();
    let image = host.image("busybox");
    let words = ["run", "--rm", "--net=none", "--tty", &image, "--", "sh", "-c", "test -t 0 && test -t 1 && tty"];
    host.podvm(words).run().expect_code(0).expect_stdout("/dev/pts/");
}

#[test]
fn an_app_killed_by_a_signal_counts_as_128_and_its_number() {
    let host = Host::new();
    // The first process of a PID namespace is not killed by its own signals, so a child is.
    shell(&host, &["--net=none"], "sh -c 'kill -9 $$'; exit $?").expect_code(137);
}

#[test]
fn sigterm_stops_the_pod_gracefully_and_the_apps_code_is_returned() {
    let host = Host::new();
    let image = host.image("busybox");
    let script = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 1; done";
    let mut pod = host.podvm(["run", "--rm", "--net=none", &image, "--", "sh", "-c", script]).spawn();
    pod.wait_for_stdout("up", A_WHILE);
    pod.signal(Signal::SIGTERM);
    pod.wait(A_WHILE).expect_code(5).expect_stdout("bye");
}

#[test]
fn a_program_that_is_not_there_is_127_and_one_that_cannot_be_executed_126() {
    let host = Host::new();
    let image = host.image("busybox");
    let run = |program| host.podvm(["run", "--rm", "--net=none", &image, "--", program]).run();
    run("/bin/nosuch").expect_code(127).expect_stderr("/bin/nosuch");
    run("/etc").expect_code(126).expect_stderr("/etc");
}

#[test]
fn an_app_is_as_unprivileged_as_elsewhere() {
    let host = Host::new();
    let script = "grep -E 'CapEff|CapBnd|Seccomp:' /proc/self/status; mount -t tmpfs x /tmp 2>/dev/null && echo mounted; \
                  cat /proc/kcore 2>/dev/null | head -c 1 | wc -c; ls /dev";
    let finished = shell(&host, &["--net=none"], script).expect_code(0);
    for part in ["CapEff:\t00000000800405fb", "CapBnd:\t00000000800405fb", "Seccomp:\t2", "\n0\n"] {
        assert!(finished.stdout.contains(part), "{part:?} is missing\n{finished}");
    }
    assert!(!finished.stdout.contains("mounted") && !finished.stdout.contains("vda"), "{finished}");
}

#[test]
fn a_read_only_root_cannot_be_written() {
    let host = Host::new();
    let script = "touch /x 2>&1; touch /tmp/x && echo tmp works";
    let finished = shell(&host, &["--net=none", "--readonly-rootfs"], script).expect_code(0);
    assert!(finished.stdout.contains("Read-only file system") && finished.stdout.contains("tmp works"), "{finished}");
}
