//! podvm's default profile: what ordinary software needs. As podman's default allow-list, with these made stricter, as docker
//! has them: without CAP_SYS_ADMIN no namespaces and no mounts; without CAP_SYS_BOOT no reboot; and no vsock, which leads to
//! the host.
//!
//! A call that some capability would allow, or that is known to be dangerous, fails with EPERM; one that is not listed, such
//! as one newer than this list, with ENOSYS, so that programs fall back to an older one.

use std::collections::{BTreeSet, HashMap};

use podvm_pod::manifest::Capability;

use super::{Case, Decision, Policy, Test, Verdict};

const EPERM: Verdict = Verdict::Errno(libc::EPERM as u16);
const EINVAL: Verdict = Verdict::Errno(libc::EINVAL as u16);
const ENOSYS: Verdict = Verdict::Errno(libc::ENOSYS as u16);

/// Allowed to all.
const ALLOWED: &[&str] = &[
    "accept",
    "accept4",
    "access",
    "adjtimex",
    "alarm",
    "arch_prctl",
    "bind",
    "brk",
    "cachestat",
    "capget",
    "capset",
    "chdir",
    "chmod",
    "chown",
    "clock_adjtime",
    "clock_getres",
    "clock_gettime",
    "clock_nanosleep",
    "close",
    "close_range",
    "connect",
    "copy_file_range",
    "creat",
    "dup",
    "dup2",
    "dup3",
    "epoll_create",
    "epoll_create1",
    "epoll_ctl",
    "epoll_ctl_old",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_wait",
    "epoll_wait_old",
    "eventfd",
    "eventfd2",
    "execve",
    "execveat",
    "exit",
    "exit_group",
    "faccessat",
    "faccessat2",
    "fadvise64",
    "fallocate",
    "fanotify_mark",
    "fchdir",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "fchown",
    "fchownat",
    "fcntl",
    "fdatasync",
    "fgetxattr",
    "flistxattr",
    "flock",
    "fork",
    "fremovexattr",
    "fsetxattr",
    "fstat",
    "fstatfs",
    "fsync",
    "ftruncate",
    "futex",
    "futex_requeue",
    "futex_wait",
    "futex_waitv",
    "futex_wake",
    "futimesat",
    "get_robust_list",
    "get_thread_area",
    "getcpu",
    "getcwd",
    "getdents",
    "getdents64",
    "getegid",
    "geteuid",
    "getgid",
    "getgroups",
    "getitimer",
    "getpeername",
    "getpgid",
    "getpgrp",
    "getpid",
    "getppid",
    "getpriority",
    "getrandom",
    "getresgid",
    "getresuid",
    "getrlimit",
    "getrusage",
    "getsid",
    "getsockname",
    "getsockopt",
    "gettid",
    "gettimeofday",
    "getuid",
    "getxattr",
    "getxattrat",
    "inotify_add_watch",
    "inotify_init",
    "inotify_init1",
    "inotify_rm_watch",
    "io_cancel",
    "io_destroy",
    "io_getevents",
    "io_setup",
    "io_submit",
    "ioctl",
    "ioprio_get",
    "ioprio_set",
    "keyctl",
    "kill",
    "landlock_add_rule",
    "landlock_create_ruleset",
    "landlock_restrict_self",
    "lchown",
    "lgetxattr",
    "link",
    "linkat",
    "listen",
    "listxattr",
    "listxattrat",
    "llistxattr",
    "lremovexattr",
    "lseek",
    "lsetxattr",
    "lstat",
    "madvise",
    "map_shadow_stack",
    "membarrier",
    "memfd_create",
    "memfd_secret",
    "mincore",
    "mkdir",
    "mkdirat",
    "mknod",
    "mknodat",
    "mlock",
    "mlock2",
    "mlockall",
    "mmap",
    "modify_ldt",
    "mprotect",
    "mq_getsetattr",
    "mq_notify",
    "mq_open",
    "mq_timedreceive",
    "mq_timedsend",
    "mq_unlink",
    "mremap",
    "mseal",
    "msgctl",
    "msgget",
    "msgrcv",
    "msgsnd",
    "msync",
    "munlock",
    "munlockall",
    "munmap",
    "name_to_handle_at",
    "nanosleep",
    "newfstatat",
    "open",
    "openat",
    "openat2",
    "pause",
    "pidfd_getfd",
    "pidfd_open",
    "pidfd_send_signal",
    "pipe",
    "pipe2",
    "pkey_alloc",
    "pkey_free",
    "pkey_mprotect",
    "poll",
    "ppoll",
    "prctl",
    "pread64",
    "preadv",
    "preadv2",
    "prlimit64",
    "process_mrelease",
    "pselect6",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "read",
    "readahead",
    "readlink",
    "readlinkat",
    "readv",
    "recvfrom",
    "recvmmsg",
    "recvmsg",
    "remap_file_pages",
    "removexattr",
    "removexattrat",
    "rename",
    "renameat",
    "renameat2",
    "restart_syscall",
    "rmdir",
    "rseq",
    "rt_sigaction",
    "rt_sigpending",
    "rt_sigprocmask",
    "rt_sigqueueinfo",
    "rt_sigreturn",
    "rt_sigsuspend",
    "rt_sigtimedwait",
    "rt_tgsigqueueinfo",
    "sched_get_priority_max",
    "sched_get_priority_min",
    "sched_getaffinity",
    "sched_getattr",
    "sched_getparam",
    "sched_getscheduler",
    "sched_rr_get_interval",
    "sched_setaffinity",
    "sched_setattr",
    "sched_setparam",
    "sched_setscheduler",
    "sched_yield",
    "seccomp",
    "select",
    "semctl",
    "semget",
    "semop",
    "semtimedop",
    "sendfile",
    "sendmmsg",
    "sendmsg",
    "sendto",
    "set_robust_list",
    "set_thread_area",
    "set_tid_address",
    "setfsgid",
    "setfsuid",
    "setgid",
    "setgroups",
    "setitimer",
    "setpgid",
    "setpriority",
    "setregid",
    "setresgid",
    "setresuid",
    "setreuid",
    "setrlimit",
    "setsid",
    "setsockopt",
    "setuid",
    "setxattr",
    "setxattrat",
    "shmat",
    "shmctl",
    "shmdt",
    "shmget",
    "shutdown",
    "sigaltstack",
    "signalfd",
    "signalfd4",
    "socketpair",
    "splice",
    "stat",
    "statfs",
    "statx",
    "symlink",
    "symlinkat",
    "sync",
    "sync_file_range",
    "syncfs",
    "sysinfo",
    "tee",
    "tgkill",
    "time",
    "timer_create",
    "timer_delete",
    "timer_getoverrun",
    "timer_gettime",
    "timer_settime",
    "timerfd_create",
    "timerfd_gettime",
    "timerfd_settime",
    "times",
    "tkill",
    "truncate",
    "umask",
    "uname",
    "unlink",
    "unlinkat",
    "utime",
    "utimensat",
    "utimes",
    "vfork",
    "wait4",
    "waitid",
    "write",
    "writev",
];

/// Allowed to none.
const REFUSED: &[&str] = &[
    "add_key",
    "io_pgetevents",
    "kexec_file_load",
    "kexec_load",
    "migrate_pages",
    "move_pages",
    "nfsservctl",
    "request_key",
    "swapoff",
    "swapon",
    "sysfs",
    "userfaultfd",
    "uselib",
    "ustat",
    "vmsplice",
];

/// Allowed to who has the capability.
const BY_CAPABILITY: &[(Capability, &[&str])] = &[
    (
        Capability::SysAdmin,
        &[
            "bpf",
            "clone3",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "listmount",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "open_tree_attr",
            "perf_event_open",
            "pivot_root",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "statmount",
            "syslog",
            "umount2",
            "unshare",
        ],
    ),
    (Capability::SysChroot, &["chroot"]),
    (Capability::DacReadSearch, &["open_by_handle_at"]),
    (Capability::SysModule, &["delete_module", "finit_module", "init_module", "query_module"]),
    (Capability::SysNice, &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    (Capability::SysPacct, &["acct"]),
    (Capability::SysPtrace, &["kcmp", "process_madvise", "process_vm_readv", "process_vm_writev", "ptrace"]),
    (Capability::SysRawio, &["ioperm", "iopl"]),
    (Capability::SysTime, &["clock_settime", "settimeofday"]),
    (Capability::SysTtyConfig, &["vhangup"]),
    (Capability::SysBoot, &["reboot"]),
    (Capability::Syslog, &["syslog"]),
    (Capability::Bpf, &["bpf"]),
    (Capability::Perfmon, &["perf_event_open"]),
];

/// Flags of clone(2) that make a namespace, but for `CLONE_NEWTIME`, which clone(2) cannot have.
const NAMESPACE_FLAGS: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

/// Personas of personality(2) that weaken nothing: Linux, with or without a 32-bit address space or uname 2.6, and the
/// question for the present one.
const PERSONAS: [u32; 5] = [0x0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// `NETLINK_AUDIT` of linux/netlink.h.
const NETLINK_AUDIT: u32 = 9;

/// The default profile for an app with these capabilities.
pub(super) fn default(capabilities: &BTreeSet<Capability>, numbers: &HashMap<&str, u32>) -> Policy {
    let mut policy = Policy { calls: Default::default(), otherwise: ENOSYS };
    let mut set = |name: &str, decision: Decision| {
        policy.calls.insert(numbers[name], decision);
    };
    ALLOWED.iter().for_each(|name| set(name, Verdict::Allow.into()));
    REFUSED.iter().for_each(|name| set(name, EPERM.into()));
    // Two rounds, since several capabilities may open the same call.
    BY_CAPABILITY.iter().flat_map(|(_, names)| *names).for_each(|name| set(name, EPERM.into()));
    let held = BY_CAPABILITY.iter().filter(|(capability, _)| capabilities.contains(capability));
    held.flat_map(|(_, names)| *names).for_each(|name| set(name, Verdict::Allow.into()));

    let admin = capabilities.contains(&Capability::SysAdmin);
    if admin {
        set("clone", Verdict::Allow.into());
    } else {
        let no_namespace = Test { argument: 0, mask: NAMESPACE_FLAGS, value: 0 };
        let plain = Case { tests: vec![no_namespace], verdict: Verdict::Allow };
        set("clone", Decision { cases: vec![plain], otherwise: EPERM });
        set("clone3", ENOSYS.into());
    }
    set("personality", personality());
    set("socket", socket(capabilities.contains(&Capability::AuditWrite)));
    policy
}

fn personality() -> Decision {
    let allow = |persona| Case { tests: vec![Test::equals(0, persona)], verdict: Verdict::Allow };
    Decision { cases: PERSONAS.into_iter().map(allow).collect(), otherwise: EPERM }
}

fn socket(audit: bool) -> Decision {
    let mut cases = vec![Case { tests: vec![Test::equals(0, libc::AF_VSOCK as u32)], verdict: EPERM }];
    if !audit {
        let tests = vec![Test::equals(0, libc::AF_NETLINK as u32), Test::equals(2, NETLINK_AUDIT)];
        cases.push(Case { tests, verdict: EINVAL });
    }
    Decision { cases, otherwise: Verdict::Allow }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_call_exists_and_stands_in_one_list_only() {
        let numbers = super::super::x86_64::table();
        let conditional = BY_CAPABILITY.iter().flat_map(|(_, names)| *names);
        for name in ALLOWED.iter().chain(REFUSED).chain(conditional.clone()) {
            assert!(numbers.contains_key(name), "{name}");
        }
        for name in ALLOWED {
            assert!(!REFUSED.contains(name) && !conditional.clone().any(|other| other == name), "{name}");
        }
    }

    #[test]
    fn a_capability_opens_its_calls() {
        let numbers = super::super::x86_64::table();
        let policy = default(&[Capability::Bpf].into(), &numbers);
        assert_eq!(policy.calls[&numbers["bpf"]], Verdict::Allow.into());
        assert_eq!(policy.calls[&numbers["mount"]], EPERM.into());
    }
}
