//! What becomes of output that nobody reads, or that cannot be written; and signals that are the app's own.

use std::time::Duration;

use nix::sys::signal::Signal;
use podvm_e2e::{Finished, Host, Invocation};

const A_WHILE: Duration = Duration::from_secs(120);

/// A line of a shell in which `$podvm` is podvm with the host's state.
fn shell(host: &Host, line: &str) -> Finished {
    let podvm = podvm_e2e::prefix().join("bin/podvm").display().to_string();
    let words = format!("podvm='{podvm} --root {}'; {line}", host.root().display());
    Invocation::new("/bin/sh", ["-c", &words]).time_limit(A_WHILE).run()
}

/// `podvm run` of the busybox image in such a line.
fn run(host: &Host) -> String {
    let stage1 = podvm_e2e::stage1();
    format!("$podvm run --stage1={stage1} --quiet --rm --net=none {} --", host.image("busybox"))
}

fn start(host: &Host, script: &str) -> String {
    let image = host.image("busybox");
    let words = ["run", "--detach", "--quiet", "--net=none", &image, "--", "sh", "-c", script];
    host.podvm(words).run().expect_code(0).stdout.trim().to_owned()
}

#[test]
fn an_app_whose_output_nobody_reads_learns_of_it() {
    let host = Host::new();
    assert_eq!(shell(&host, &format!("{} yes | head -n 1", run(&host))).expect_code(0).stdout, "y\n");
    let pod = start(&host, "trap exit TERM; while :; do sleep 1; done");
    let exec = format!("$podvm exec {pod} -- yes | head -n 1; $podvm stats {pod} --interval 100ms | head -n 1");
    shell(&host, &exec).expect_code(0).expect_stdout("y\n").expect_stdout("CPU");
    let left = host.podvm(["top", &pod]).run().expect_code(0).stdout;
    assert!(!left.contains("yes"), "{left}");
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let host = Host::new();
    let run = format!("{} sh -c", run(&host));
    let full = shell(&host, &format!("{run} 'echo lost' > /dev/full")).expect_code(254);
    full.expect_stderr("cannot be written").expect_stderr("No space left");
    // An exit code of the app's own tells of a failure already.
    shell(&host, &format!("{run} 'echo lost; exit 3' > /dev/full")).expect_code(3).expect_stderr("No space left");
    let pod = start(&host, "trap exit TERM; while :; do sleep 1; done");
    for command in ["exec POD -- echo lost", "cat-manifest POD", "status POD", "list", "export POD"] {
        let line = format!("$podvm {} > /dev/full", command.replace("POD", &pod));
        shell(&host, &line).expect_code(254).expect_stderr("No space left");
    }
}

#[test]
fn a_signal_that_is_the_apps_own_reaches_it() {
    let host = Host::new();
    let image = host.image("busybox");
    let script = "trap 'echo USR1' USR1; trap 'echo QUIT; exit 5' QUIT; echo ready; while :; do sleep 0.1; done";
    let mut pod = host.podvm(["run", "--quiet", "--rm", "--net=none", &image, "--", "sh", "-c", script]).spawn();
    pod.wait_for_stdout("ready", A_WHILE);
    pod.signal(Signal::SIGUSR1);
    pod.wait_for_stdout("USR1", A_WHILE);
    pod.signal(Signal::SIGQUIT);
    pod.wait(A_WHILE).expect_code(5).expect_stdout("QUIT");
}
