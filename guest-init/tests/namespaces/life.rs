//! Start, end, and everything in between.

use std::io::Write;
use std::time::{Duration, Instant};

use podvm_pod::manifest::{RestartPolicy, UserSpec};
use podvm_pod::protocol::{Command, Envelope, Event, Request, SignalTarget, StreamKind, write_frame};
use podvm_pod::status::{AppState, ExitStatus};

use crate::pods::{Pod, PodBuilder, app, cannot_run, exec_spec, read_all};

#[test]
fn events_come_in_order_and_the_code_is_the_apps() {
    if cannot_run() {
        return;
    }
    let mut pod = PodBuilder::script("exit 7").start();
    let report = pod.report();
    assert_eq!((report.code, report.error.as_deref()), (7, None));
    let kinds: Vec<&str> = pod
        .events
        .iter()
        .map(|event| match event {
            Event::Hello { .. } => "hello",
            Event::Prepared { .. } => "prepared",
            Event::Ready => "ready",
            Event::App(status) => match status.state {
                AppState::Running { .. } => "running",
                AppState::Exited { status: ExitStatus::Exited(7), oom_killed: false } => "exited",
                _ => "other",
            },
            Event::Finished(_) => "finished",
        })
        .collect();
    assert!(
        matches!(
            kinds.as_slice(),
            ["hello", "prepared", "running", "ready", "exited", "finished"]
                | ["hello", "prepared", "running", "exited", "ready", "finished"]
        ),
        "{kinds:?}"
    );
    pod.farewell();
}

#[test]
fn the_first_app_that_fails_stops_the_others_and_names_the_code() {
    if cannot_run() {
        return;
    }
    let trap = "trap 'echo asked; exit 9' TERM; while true; do sleep 0.05; done";
    let outcome = PodBuilder::script(trap).with(app("bad", "sleep 0.5; exit 3")).with(app("good", "true")).outcome();
    assert_eq!((outcome.report.code, outcome.report.failed_app.as_ref().unwrap().as_str()), (3, "bad"));
    assert_eq!(outcome.text(), "asked");
    assert_eq!(*outcome.state("main"), AppState::Exited { status: ExitStatus::Exited(9), oom_killed: false });
    assert_eq!(*outcome.state("good"), AppState::Exited { status: ExitStatus::Exited(0), oom_killed: false });
}

#[test]
fn a_program_that_is_not_there_is_named_and_nothing_else_runs_on() {
    if cannot_run() {
        return;
    }
    let start = |word: &str| {
        PodBuilder::script("").app(|app| app.exec = vec![word.into()]).with(app("other", "sleep 60")).outcome()
    };
    let missing = start("no-such-program");
    assert_eq!((missing.report.code, missing.report.failed_app.as_ref().unwrap().as_str()), (127, "main"));
    let AppState::Failed { message, code: 127 } = missing.state("main") else { panic!("{missing:?}") };
    assert!(message.contains("app main: the program \"no-such-program\" is not found in PATH"), "{message}");
    let directory = start("/etc");
    let AppState::Failed { message, code: 126 } = directory.state("main") else { panic!("{directory:?}") };
    assert!(message.contains("it is a directory"), "{message}");
}

#[test]
fn a_script_without_its_interpreter_says_so() {
    if cannot_run() {
        return;
    }
    let pod = PodBuilder::script("").app(|app| app.exec = vec!["/script".into()]).layer("script", |dir| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(dir.join("script"), "#!/no/interpreter\n").unwrap();
        std::fs::set_permissions(dir.join("script"), PermissionsExt::from_mode(0o755)).unwrap();
    });
    let outcome = pod.outcome();
    let AppState::Failed { message, code: 126 } = outcome.state("main") else { panic!("{outcome:?}") };
    assert!(message.contains("interpreter"), "{message}");
}

#[test]
fn stopping_asks_first_and_kills_after_the_grace() {
    if cannot_run() {
        return;
    }
    let mut pod = PodBuilder::script("trap 'exit 0' TERM; while true; do sleep 0.05; done").start().ready();
    // The shell sets its trap a moment after it was executed.
    std::thread::sleep(Duration::from_millis(300));
    pod.tell(&Command::Stop { grace_ms: 30_000 });
    assert_eq!(pod.report().code, 0);
    pod.farewell();

    let mut deaf = PodBuilder::script("trap '' TERM; while true; do sleep 0.05; done").start().ready();
    let since = Instant::now();
    deaf.client.stop(Duration::from_millis(500)).unwrap();
    let report = deaf.report();
    assert!(since.elapsed() >= Duration::from_millis(500));
    assert_eq!(report.code, 128 + libc::SIGKILL as u8);
    deaf.farewell();
}

#[test]
fn an_app_that_ends_badly_when_asked_leaves_the_others_their_grace() {
    if cannot_run() {
        return;
    }
    let slow = "trap 'sleep 11; exit 0' TERM; touch /dev/shm/up; while true; do sleep 0.05; done";
    let hasty = "trap 'exit 1' TERM; touch /dev/shm/up.too; while true; do sleep 0.05; done";
    let mut pod = PodBuilder::script(slow).with(app("hasty", hasty)).start().ready();
    assert!(
        pod.exec(&["sh", "-c", "until [ -e /dev/shm/up -a -e /dev/shm/up.too ]; do sleep 0.05; done"]).0.is_success()
    );
    pod.tell(&Command::Stop { grace_ms: 60_000 });
    let report = pod.report();
    assert_eq!((report.apps[0].state.exit_code(), report.code), (Some(0), 1));
}

#[test]
fn an_app_that_is_stopped_before_its_program_runs_has_not_failed() {
    if cannot_run() {
        return;
    }
    let built = PodBuilder::script("sleep 1000").app(|app| app.stop_signal = libc::SIGQUIT);
    let mut pod = Pod::begin();
    // In one piece, so that the second is obeyed before the app has set itself up.
    let mut wire = Vec::new();
    write_frame(&mut wire, &Command::Run(Box::new(built.spec.clone()))).unwrap();
    write_frame(&mut wire, &Command::Stop { grace_ms: 30_000 }).unwrap();
    pod.write_raw(&wire).unwrap();
    let report = pod.report();
    let stopped = AppState::Exited { status: ExitStatus::Signaled(libc::SIGQUIT), oom_killed: false };
    assert_eq!((&report.apps[0].state, report.error.as_deref()), (&stopped, None));
    assert_eq!(report.code, 128 + libc::SIGQUIT as u8);
    pod.farewell();
}

#[test]
fn an_app_that_is_stopped_while_it_is_started_again_stays_as_it_ended() {
    if cannot_run() {
        return;
    }
    let mut pod = PodBuilder::script("exit 0").app(|app| app.restart = RestartPolicy::Always).start();
    while !matches!(pod.next(), Event::App(status) if matches!(status.state, AppState::Restarting { .. })) {}
    // The first pause is a tenth of a second.
    std::thread::sleep(Duration::from_millis(105));
    pod.tell(&Command::Stop { grace_ms: 30_000 });
    let report = pod.report();
    let ended = AppState::Exited { status: ExitStatus::Exited(0), oom_killed: false };
    assert_eq!((&report.apps[0].state, report.code), (&ended, 0));
    pod.farewell();
}

#[test]
fn an_app_is_started_again_even_if_its_post_stop_handler_cannot_be() {
    if cannot_run() {
        return;
    }
    let built = PodBuilder::script("exit 0").app(|app| {
        app.restart = RestartPolicy::Always;
        app.post_stop = vec!["/no-such-handler".into()];
    });
    let mut pod = built.start();
    loop {
        match pod.next() {
            Event::App(status) if status.restarts == 3 => break,
            Event::Finished(report) => panic!("{report:?}"),
            _ => {}
        }
    }
    assert!(pod.notes().contains("app main: its post-stop handler cannot be run"), "{}", pod.notes());
}

#[test]
fn an_apps_own_stop_signal_is_used() {
    if cannot_run() {
        return;
    }
    let script = "trap 'echo quit; exit 0' QUIT; echo up; while true; do sleep 0.05; done";
    let pod = PodBuilder::script(script).app(|app| app.stop_signal = libc::SIGQUIT).start().ready();
    std::thread::sleep(Duration::from_millis(300));
    pod.client.stop(Duration::from_secs(30)).unwrap();
    let main = pod.processes["main"];
    let output = read_all(pod.client.open_stream(main, StreamKind::Stdout).unwrap());
    assert_eq!(output.join().unwrap(), "up\nquit\n");
}

#[test]
fn losing_the_runner_ends_the_pod() {
    if cannot_run() {
        return;
    }
    let mut pod = PodBuilder::script("sleep 1000").start().ready();
    pod.hang_up();
    let since = Instant::now();
    pod.gone();
    assert!(since.elapsed() < Duration::from_secs(30));
}

#[test]
fn nonsense_from_the_runner_ends_the_pod_with_a_message() {
    if cannot_run() {
        return;
    }
    let built = PodBuilder::script("sleep 1000");
    let mut pod = built.start().ready();
    let mut wire = Vec::new();
    write_frame(&mut wire, &"what?").unwrap();
    pod.write_raw(&wire).unwrap();
    let report = pod.report();
    assert_eq!(report.code, 254);
    assert!(report.error.unwrap().contains("cannot be understood"));
}

#[test]
fn a_layer_that_is_missing_is_named() {
    if cannot_run() {
        return;
    }
    let pod = PodBuilder::script("true");
    std::fs::remove_dir_all(pod.path("users")).unwrap();
    let report = pod.start().report();
    assert_eq!(report.code, 254);
    let error = report.error.unwrap();
    assert!(error.contains("users") && error.contains("no directory"), "{error}");
}

#[test]
fn commands_are_executed_in_a_running_app() {
    if cannot_run() {
        return;
    }
    let built = PodBuilder::script("echo $$ >/tmp/mine; sleep 1000").user("worker").layer("tmp", |dir| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::create_dir(dir.join("tmp")).unwrap();
        std::fs::set_permissions(dir.join("tmp"), PermissionsExt::from_mode(0o777)).unwrap();
    });
    let pod = built.app(|app| app.environment = vec!["COLOUR=red".parse().unwrap()]).start().ready();
    let sh = |script: &str| pod.exec(&["sh", "-c", script]);
    assert_eq!(sh("id -u; echo $COLOUR; exit 5"), (ExitStatus::Exited(5), "1000\nred\n".into(), String::new()));
    assert_eq!(sh("echo oops >&2").2, "oops\n");
    assert_eq!(sh("until [ -s /tmp/mine ]; do sleep 0.05; done; cat /tmp/mine").1, "1\n");
    assert_eq!(sh("kill -9 $$").0, ExitStatus::Signaled(9));
    let grep = "grep -E 'CapEff|Seccomp:' /proc/self/status | tr -d '\\t'";
    assert_eq!(sh(grep).1, "CapEff:0000000000000000\nSeccomp:2\n");

    let mut as_root = exec_spec(&["sh", "-c", "id -u; echo $COLOUR; pwd; cat"]);
    as_root.user = Some(UserSpec::from("root"));
    as_root.environment = vec!["COLOUR=blue".parse().unwrap()];
    as_root.working_directory = Some("/etc".into());
    as_root.stdin = true;
    assert_eq!(pod.exec_spec(as_root, b"typed").1, "0\nblue\n/etc\ntyped");

    let missing = pod.client.prepare(exec_spec(&["no-such"])).unwrap();
    let error = pod.client.start(missing).unwrap_err();
    assert_eq!(error.exit_code(), 127);
    assert!(error.to_string().contains("\"no-such\" is not found"), "{error}");
    let mut nobody = exec_spec(&["true"]);
    nobody.user = Some(UserSpec::from("nobody"));
    assert!(pod.client.prepare(nobody).unwrap_err().to_string().contains("no user \"nobody\""));
    let mut elsewhere = exec_spec(&["true"]);
    elsewhere.app = "elsewhere".parse().unwrap();
    assert!(pod.client.prepare(elsewhere).unwrap_err().to_string().contains("its apps are: main"));
}

#[test]
fn orphans_are_reaped_and_ended_processes_forgotten() {
    if cannot_run() {
        return;
    }
    let built = PodBuilder::script("sleep 1000");
    let pod = built.start().ready();
    for _ in 0..70 {
        let process = pod.client.prepare(exec_spec(&["true"])).unwrap();
        pod.client.start(process).unwrap();
        assert_eq!(pod.client.wait(process).unwrap(), ExitStatus::Exited(0));
    }
    // Orphans of what was executed are the app's first process's, as in docker.
    assert_eq!(pod.exec(&["sh", "-c", "(sleep 0.2 &) ; sleep 0.1; ps -o pid,ppid,comm | grep -c ' 1 sleep'"]).1, "1\n");
    let gone = podvm_pod::protocol::ProcessId(2);
    assert!(pod.client.wait(gone).unwrap_err().to_string().contains("no process 2"));
}

#[test]
fn signals_reach_whom_they_are_for() {
    if cannot_run() {
        return;
    }
    let built =
        PodBuilder::script("trap 'echo usr1' USR1; trap 'exit 4' USR2; echo up; while true; do sleep 0.05; done");
    let mut pod = built.start().ready();
    std::thread::sleep(Duration::from_millis(300));
    let process = pod.client.prepare(exec_spec(&["sleep", "1000"])).unwrap();
    pod.client.start(process).unwrap();
    pod.client.signal(SignalTarget::Process(process), libc::SIGHUP).unwrap();
    assert_eq!(pod.client.wait(process).unwrap(), ExitStatus::Signaled(libc::SIGHUP));
    assert!(pod.client.signal(SignalTarget::Process(process), libc::SIGHUP).is_err());
    assert!(pod.client.signal(SignalTarget::Pod, 99).unwrap_err().to_string().contains("no signal 99"));
    pod.client.signal(SignalTarget::App("main".parse().unwrap()), libc::SIGUSR1).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    pod.client.signal(SignalTarget::Pod, libc::SIGUSR2).unwrap();
    assert_eq!(pod.report().code, 4);
    let state = pod.client.status().unwrap().remove(0).0.state;
    assert_eq!(state.exit_code(), Some(4));
}

#[test]
fn status_and_stats_name_every_app() {
    if cannot_run() {
        return;
    }
    let built = PodBuilder::script("sleep 1000").with(app("other", "sleep 1000"));
    let pod = built.start().ready();
    let status = pod.client.status().unwrap();
    assert_eq!(status.len(), 2);
    assert!(
        status.iter().all(|(status, process)| matches!(status.state, AppState::Running { .. }) && process.is_some())
    );
    let names: Vec<String> = pod.client.stats().unwrap().into_iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(names, ["main", "other"]);
}

#[test]
fn nonsense_on_a_request_connection_harms_nobody() {
    if cannot_run() {
        return;
    }
    let pod = PodBuilder::script("sleep 1000").start().ready();
    let mut held = Vec::new();
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"CONNECT 7\n",
        &[b'x'; 200],
        b"CONNECT 1024\n\xff\xff\xff\xff",
        b"CONNECT 1024\n\x02\0\0\0{}",
    ] {
        let mut connection = pod.connect_raw();
        connection.write_all(bytes).unwrap();
        held.push(connection);
    }
    let answer = read_all(held.pop().unwrap()).join().unwrap();
    assert!(answer.contains("cannot be understood"), "{answer}");
    let mut envelope = Envelope::new(Request::Status);
    envelope.protocol = 99;
    let mut connection = pod.connect_raw();
    connection.write_all(b"CONNECT 1024\n").unwrap();
    write_frame(&mut connection, &envelope).unwrap();
    let answer = read_all(connection).join().unwrap();
    assert!(answer.contains("version 1 of the protocol, not 99"), "{answer}");
    assert_eq!(pod.client.status().unwrap().len(), 1);
}

#[test]
fn more_requests_than_the_bound_are_refused_and_then_served_again() {
    if cannot_run() {
        return;
    }
    let pod = PodBuilder::script("sleep 1000").start().ready();
    let idle: Vec<_> = (0..256).map(|_| pod.connect_raw()).collect();
    assert!(pod.client.status().is_err());
    drop(idle);
    let until = Instant::now() + Duration::from_secs(20);
    while pod.client.status().is_err() {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn commands_are_not_bounded_by_the_descriptors_that_the_supervisor_began_with() {
    if cannot_run() {
        return;
    }
    let pod = PodBuilder::script("sleep 1000").start().ready();
    let mut inputs = Vec::new();
    let mut outputs = Vec::new();
    for number in 0..40 {
        let mut spec = exec_spec(&["sh", "-c", "read line; echo $line"]);
        spec.stdin = true;
        let process = pod.client.prepare(spec).unwrap();
        let [stdin, stdout, stderr] = [StreamKind::Stdin, StreamKind::Stdout, StreamKind::Stderr]
            .map(|kind| pod.client.open_stream(process, kind).unwrap());
        pod.client.start(process).unwrap();
        inputs.push((number, stdin));
        outputs.push((number, read_all(stdout), stderr));
    }
    for (number, mut stdin) in inputs {
        writeln!(stdin, "{number}").unwrap();
    }
    for (number, stdout, _) in outputs {
        assert_eq!(stdout.join().unwrap(), format!("{number}\n"));
    }
}

#[test]
fn connections_beyond_the_descriptors_wait_quietly_and_are_served_later() {
    if cannot_run() {
        return;
    }
    let pod = PodBuilder::script("sleep 1000").start().ready();
    let few = libc::rlimit { rlim_cur: 64, rlim_max: 64 };
    // SAFETY: the limit is valid, and nothing is written.
    let limited =
        unsafe { libc::prlimit(pod.supervisor_pid(), libc::RLIMIT_NOFILE, &raw const few, std::ptr::null_mut()) };
    assert_eq!(limited, 0);
    let idle: Vec<_> = (0..100).map(|_| pod.connect_raw()).collect();
    std::thread::sleep(Duration::from_millis(300));
    let before = pod.cpu_time();
    std::thread::sleep(Duration::from_secs(2));
    let used = pod.cpu_time() - before;
    assert!(used < Duration::from_millis(250), "{used:?}");
    drop(idle);
    assert_eq!(pod.client.status().unwrap().len(), 1);
}
