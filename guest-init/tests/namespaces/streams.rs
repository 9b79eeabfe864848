//! Standard streams and terminals.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use podvm_pod::protocol::StreamKind;

use crate::pods::{PodBuilder, app, cannot_run, exec_spec, read_all};

#[test]
fn output_and_errors_come_apart_and_whole() {
    if cannot_run() {
        return;
    }
    let outcome = PodBuilder::script("echo out; echo err >&2; seq 1 200000").outcome();
    assert_eq!(outcome.stderr["main"], "err\n");
    let expected: String =
        std::iter::once("out".to_owned()).chain((1..=200_000).map(|n| n.to_string())).map(|n| n + "\n").collect();
    assert_eq!(outcome.stdout["main"], expected);
}

#[test]
fn a_program_may_open_its_output_again_whoever_it_is() {
    if cannot_run() {
        return;
    }
    let script = "echo one >/dev/stdout; echo two >>/proc/self/fd/1; echo three >/dev/stderr";
    let outcome = PodBuilder::script(script).user("worker").outcome();
    assert_eq!((outcome.ok(), outcome.stderr["main"].as_str()), ("one\ntwo", "three\n"));
}

#[test]
fn input_is_connected_only_when_asked_for() {
    if cannot_run() {
        return;
    }
    assert_eq!(PodBuilder::script("cat; readlink /proc/self/fd/0").outcome().ok(), "/dev/null");
    let built = PodBuilder::script("cat; echo end").app(|app| app.stdin = true);
    let pod = built.start().ready();
    let main = pod.processes["main"];
    let output = read_all(pod.client.open_stream(main, StreamKind::Stdout).unwrap());
    let mut input = pod.client.open_stream(main, StreamKind::Stdin).unwrap();
    let big = "x".repeat(1 << 20);
    input.write_all(big.as_bytes()).unwrap();
    input.shutdown(Shutdown::Write).unwrap();
    assert_eq!(output.join().unwrap(), big + "end\n");
}

#[test]
fn output_that_nobody_reads_stops_its_app_and_no_other() {
    if cannot_run() {
        return;
    }
    let built = PodBuilder::script("head -c 3000000 /dev/zero; echo done").with(app("other", "echo hello; sleep 1000"));
    let pod = built.start().ready();
    let other = pod.client.open_stream(pod.processes["other"], StreamKind::Stdout).unwrap();
    let mut hello = [0; 6];
    (&other).read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"hello\n");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(pod.client.status().unwrap()[0].0.state.exit_code(), None);
    let output = read_all(pod.client.open_stream(pod.processes["main"], StreamKind::Stdout).unwrap());
    assert_eq!(output.join().unwrap().len(), 3_000_005);
}

#[test]
fn output_whose_reader_left_goes_nowhere_and_the_app_goes_on() {
    if cannot_run() {
        return;
    }
    let built = PodBuilder::script("echo first; sleep 0.5; head -c 3000000 /dev/zero; exit 6");
    let mut pod = built.start().ready();
    let main = pod.processes["main"];
    let mut stream = pod.client.open_stream(main, StreamKind::Stdout).unwrap();
    stream.read_exact(&mut [0; 6]).unwrap();
    drop(stream);
    assert_eq!(pod.report().code, 6);
    let error = pod.client.open_stream(main, StreamKind::Stdout).unwrap_err().to_string();
    assert!(error.contains("opened before"), "{error}");
    let error = pod.client.open_stream(main, StreamKind::Terminal).unwrap_err().to_string();
    assert!(error.contains("has no terminal"), "{error}");
}

#[test]
fn a_terminal_is_one() {
    if cannot_run() {
        return;
    }
    let script = "test -t 0 && test -t 2 && tty; stat -c %u /dev/pts/0; test -c /dev/console && echo console
        echo $TERM; read line; echo got $line; stty size; exit 3";
    let built = PodBuilder::script(script).user("worker").app(|app| (app.terminal, app.stdin) = (true, true));
    let mut pod = built.start();
    while pod.processes.is_empty() {
        pod.next();
    }
    let main = pod.processes["main"];
    let mut terminal = pod.client.open_stream(main, StreamKind::Terminal).unwrap();
    let mut pod = pod.ready();
    std::thread::sleep(Duration::from_millis(500));
    pod.client.resize(main, podvm_pod::console::TerminalSize { rows: 33, columns: 111 }).unwrap();
    terminal.write_all(b"hello\n").unwrap();
    let text = read_all(terminal).join().unwrap().replace('\r', "");
    assert_eq!(text, "/dev/pts/0\n1000\nconsole\nxterm\nhello\ngot hello\n33 111\n");
    assert_eq!(pod.report().code, 3);
}

#[test]
fn an_executed_command_may_have_a_terminal_of_its_own() {
    if cannot_run() {
        return;
    }
    let built = PodBuilder::script("sleep 1000");
    let pod = built.start().ready();
    let mut spec = exec_spec(&["sh", "-c", "tty; stty size; exit 2"]);
    spec.terminal = true;
    let process = pod.client.prepare(spec).unwrap();
    pod.client.resize(process, podvm_pod::console::TerminalSize { rows: 5, columns: 9 }).unwrap();
    let output = read_all(pod.client.open_stream(process, StreamKind::Terminal).unwrap());
    pod.client.start(process).unwrap();
    assert_eq!(pod.client.wait(process).unwrap().code(), 2);
    assert_eq!(output.join().unwrap().replace('\r', ""), "/dev/pts/0\n5 9\n");
}
