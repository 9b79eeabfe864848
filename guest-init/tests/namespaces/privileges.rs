//! Users, capabilities, system calls, limits.

use std::os::unix::fs::symlink;

use podvm_pod::manifest::{Capability, Rlimit, Seccomp, SeccompAction};
use podvm_pod::status::AppState;

use crate::pods::{PodBuilder, cannot_run};

/// Capabilities, privileges and filter as the kernel sees them.
const STATUS: &str = "grep -E 'CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp:' /proc/self/status | tr -d '\\t'";

fn bits(capabilities: impl IntoIterator<Item = Capability>) -> String {
    let bits = capabilities.into_iter().fold(0u64, |bits, capability| bits | 1 << capability as u8);
    format!("{bits:016x}")
}

#[test]
fn users_are_those_of_the_image() {
    if cannot_run() {
        return;
    }
    let script = "id -u; id -g; id -G; echo $HOME";
    for (user, expected) in [
        ("", "0\n0\n0\n/root"),
        ("worker", "1000\n1001\n1001 1002\n/home/worker"),
        ("1000", "1000\n1001\n1001 1002\n/home/worker"),
        ("worker:extra", "1000\n1002\n1002\n/home/worker"),
        ("4242:77", "4242\n77\n77\n/"),
    ] {
        let outcome = PodBuilder::script(script).user(user).outcome();
        assert_eq!(outcome.ok(), expected, "{user}");
    }
}

#[test]
fn an_unknown_user_fails_the_app_by_name() {
    if cannot_run() {
        return;
    }
    let outcome = PodBuilder::script("true").user("nobody").outcome();
    assert_eq!((outcome.report.code, outcome.report.failed_app.as_ref().unwrap().as_str()), (254, "main"));
    let AppState::Failed { message, .. } = outcome.state("main") else { panic!("{outcome:?}") };
    assert!(message.starts_with("app main: there is no user \"nobody\""), "{message}");
}

#[test]
fn root_has_the_capabilities_it_is_given_and_others_none() {
    if cannot_run() {
        return;
    }
    let default = bits(Capability::default_set());
    let none = bits([]);
    let root = format!(
        "CapInh:{none}\nCapPrm:{default}\nCapEff:{default}\nCapBnd:{default}\nCapAmb:{none}\nNoNewPrivs:0\nSeccomp:2"
    );
    assert_eq!(PodBuilder::script(STATUS).outcome().ok(), root);
    let other = format!(
        "CapInh:{none}\nCapPrm:{none}\nCapEff:{none}\nCapBnd:{default}\nCapAmb:{none}\nNoNewPrivs:0\nSeccomp:2"
    );
    assert_eq!(PodBuilder::script(STATUS).user("worker").outcome().ok(), other);
}

#[test]
fn privileges_can_be_narrowed_and_widened() {
    if cannot_run() {
        return;
    }
    let pod = PodBuilder::script(STATUS).app(|app| {
        app.isolators.capabilities = [Capability::NetAdmin].into();
        app.isolators.no_new_privileges = true;
        app.isolators.seccomp = Seccomp::Unconfined;
    });
    let (only, none) = (bits([Capability::NetAdmin]), bits([]));
    let expected =
        format!("CapInh:{none}\nCapPrm:{only}\nCapEff:{only}\nCapBnd:{only}\nCapAmb:{none}\nNoNewPrivs:1\nSeccomp:0");
    assert_eq!(pod.outcome().ok(), expected);
}

#[test]
fn the_default_filter_refuses_mounts_even_to_who_could() {
    if cannot_run() {
        return;
    }
    let script = "mount -t tmpfs x /tmp 2>&1 | sed 's/.*: //'; unshare -m true 2>&1 | sed 's/.*: //'; echo done";
    let expected = "Operation not permitted\nOperation not permitted\ndone";
    // chroot, which the default has, is a call that needs a capability too.
    assert_eq!(
        PodBuilder::script(script)
            .outcome()
            .text()
            .replace("permission denied (are you root?)", "Operation not permitted"),
        expected
    );
    let admin = PodBuilder::script("mount -t tmpfs x /tmp && echo mounted").app(|app| {
        app.isolators.capabilities.insert(Capability::SysAdmin);
    });
    assert_eq!(admin.outcome().ok(), "mounted");
}

#[test]
fn lists_of_system_calls_are_kept_to() {
    if cannot_run() {
        return;
    }
    let pod = PodBuilder::script("mkdir /tmp/x 2>/dev/null && echo made; echo after").app(|app| {
        let syscalls = vec!["mkdir".into(), "mkdirat".into()];
        app.isolators.seccomp = Seccomp::Remove { syscalls, then: SeccompAction::Errno(libc::EROFS as u16) };
    });
    assert_eq!(pod.outcome().ok(), "after");
    let killed = PodBuilder::script("mkdir /tmp/x; echo $?").app(|app| {
        let syscalls = vec!["mkdir".into(), "mkdirat".into()];
        app.isolators.seccomp = Seccomp::Remove { syscalls, then: SeccompAction::Kill };
    });
    assert_eq!(killed.outcome().ok(), (128 + libc::SIGSYS).to_string());
    let wrong = PodBuilder::script("true").app(|app| {
        app.isolators.seccomp = Seccomp::Retain { syscalls: vec!["fly".into()], otherwise: SeccompAction::Kill };
    });
    let outcome = wrong.outcome();
    let AppState::Failed { message, code: 254 } = outcome.state("main") else { panic!("{outcome:?}") };
    assert!(message.contains("\"fly\" is no system call"), "{message}");
}

#[test]
fn resource_limits_and_the_oom_score_are_set() {
    if cannot_run() {
        return;
    }
    let pod = PodBuilder::script("ulimit -Sn; ulimit -Hn; ulimit -c; cat /proc/self/oom_score_adj; umask").app(|app| {
        let limit = |name: &str, soft, hard| Rlimit { name: name.into(), soft, hard };
        app.isolators.rlimits = vec![limit("nofile", 100, 200), limit("core", 0, 0)];
        app.isolators.oom_score_adj = Some(77);
    });
    assert_eq!(pod.outcome().ok(), "100\n200\n0\n77\n0022");
    let wrong = PodBuilder::script("true").app(|app| {
        app.isolators.rlimits = vec![Rlimit { name: "fish".into(), soft: 1, hard: 1 }];
    });
    let outcome = wrong.outcome();
    let AppState::Failed { message, .. } = outcome.state("main") else { panic!("{outcome:?}") };
    assert!(message.contains("\"fish\""), "{message}");
}

#[test]
fn an_image_cannot_lead_what_is_mounted_to_the_root() {
    if cannot_run() {
        return;
    }
    for (place, target, part) in
        [("proc", "/", "symbolic link"), ("sys", ".", "symbolic link"), ("tmp", "/", "the root itself")]
    {
        let built = PodBuilder::script("ls -d /../sys/kernel").app(|app| app.read_only_root = true);
        let outcome = built.layer("evil", |layer| symlink(target, layer.join(place)).unwrap()).outcome();
        let AppState::Failed { message, code: 254 } = outcome.state("main") else { panic!("{outcome:?}") };
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn the_id_that_is_none_is_no_user() {
    if cannot_run() {
        return;
    }
    for user in ["4294967295", "0:4294967295", "nobody"] {
        let built = PodBuilder::script("id -u").user(user).layer("more", |layer| {
            std::fs::create_dir_all(layer.join("etc")).unwrap();
            std::fs::write(layer.join("etc/passwd"), "nobody:x:4294967295:4294967295:::\n").unwrap();
        });
        let outcome = built.outcome();
        assert!(matches!(outcome.state("main"), AppState::Failed { .. }), "{outcome:?}");
    }
}

#[test]
fn a_layer_that_an_image_has_twice_counts_where_it_is_uppermost() {
    if cannot_run() {
        return;
    }
    let write = |text: &'static str| move |layer: &std::path::Path| std::fs::write(layer.join("file"), text).unwrap();
    let built = PodBuilder::script("cat /file")
        .layer("one", write("one"))
        .layer("two", write("two"))
        .layer("one", write("one"));
    assert_eq!(built.outcome().ok(), "one");
}
