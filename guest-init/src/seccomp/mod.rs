//! Which system calls an app may make (seccomp(2), filter mode).
//!
//! A [`Policy`] says what becomes of each call; [`bpf`] turns it into the kernel's filter program. Calls of another
//! architecture's numbering end the process, those of the x32 numbering do not exist.

mod bpf;
mod profile;
mod x86_64;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use podvm_pod::manifest::{Capability, Seccomp, SeccompAction};

pub use bpf::Filter;

/// What becomes of a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is made.
    Allow,
    /// It fails with this errno.
    Errno(u16),
    /// The process is killed.
    Kill,
}

impl From<SeccompAction> for Verdict {
    fn from(action: SeccompAction) -> Self {
        match action {
            SeccompAction::Errno(errno) => Self::Errno(errno),
            SeccompAction::Kill => Self::Kill,
        }
    }
}

/// A question about the lower half of one argument: the kernel takes all arguments looked at here as ints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Test {
    /// Which argument, from 0.
    argument: u8,
    /// Bits of it that are looked at.
    mask: u32,
    /// What they must be.
    value: u32,
}

impl Test {
    const fn equals(argument: u8, value: u32) -> Self {
        Self { argument, mask: u32::MAX, value }
    }
}

/// A case of a system call: all tests hold.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Case {
    tests: Vec<Test>,
    /// What becomes of the call then.
    verdict: Verdict,
}

/// What becomes of one system call: the first case that fits, else the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Decision {
    cases: Vec<Case>,
    otherwise: Verdict,
}

impl From<Verdict> for Decision {
    fn from(verdict: Verdict) -> Self {
        Self { cases: Vec::new(), otherwise: verdict }
    }
}

/// What becomes of every system call.
#[derive(Debug, Clone)]
struct Policy {
    calls: BTreeMap<u32, Decision>,
    otherwise: Verdict,
}

/// No such system call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no system call of this architecture; see syscalls(2) for their names")]
pub struct UnknownSyscall(pub String);

/// The filter for an app, or none when it may make every call.
///
/// # Errors
/// A list that names a system call which does not exist.
pub fn filter(seccomp: &Seccomp, capabilities: &BTreeSet<Capability>) -> Result<Option<Filter>, UnknownSyscall> {
    Ok(policy(seccomp, capabilities, &x86_64::table())?.map(|policy| policy.compile()))
}

/// What becomes of the calls, or none when all are made.
fn policy(
    seccomp: &Seccomp,
    capabilities: &BTreeSet<Capability>,
    numbers: &HashMap<&str, u32>,
) -> Result<Option<Policy>, UnknownSyscall> {
    Ok(Some(match seccomp {
        Seccomp::Unconfined => return Ok(None),
        Seccomp::Default => profile::default(capabilities, numbers),
        Seccomp::Narrowed { by } => {
            let default = profile::default(capabilities, numbers);
            match policy(by, capabilities, numbers)? {
                Some(narrower) => default.narrowed(&narrower),
                None => default,
            }
        }
        Seccomp::Retain { syscalls, otherwise } => {
            Policy { calls: listed(syscalls, Verdict::Allow, numbers)?, otherwise: (*otherwise).into() }
        }
        Seccomp::Remove { syscalls, then } => {
            Policy { calls: listed(syscalls, (*then).into(), numbers)?, otherwise: Verdict::Allow }
        }
    }))
}

impl Policy {
    fn decision(&self, call: u32) -> Decision {
        self.calls.get(&call).cloned().unwrap_or_else(|| self.otherwise.into())
    }

    /// What both allow. A call that the other one refuses ends as that one says.
    fn narrowed(&self, other: &Self) -> Self {
        let both = |ours: Decision, theirs: Decision| if theirs == Verdict::Allow.into() { ours } else { theirs };
        let known: BTreeSet<u32> = self.calls.keys().chain(other.calls.keys()).copied().collect();
        let calls = known.into_iter().map(|call| (call, both(self.decision(call), other.decision(call)))).collect();
        let otherwise = if other.otherwise == Verdict::Allow { self.otherwise } else { other.otherwise };
        Self { calls, otherwise }
    }
}

fn listed(
    names: &[String],
    verdict: Verdict,
    numbers: &HashMap<&str, u32>,
) -> Result<BTreeMap<u32, Decision>, UnknownSyscall> {
    names
        .iter()
        .map(|name| match numbers.get(name.as_str()) {
            Some(number) => Ok((*number, verdict.into())),
            None => Err(UnknownSyscall(name.clone())),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(seccomp: &Seccomp, capabilities: &[Capability], call: i64, arguments: [u64; 6]) -> Verdict {
        let capabilities = capabilities.iter().copied().collect();
        filter(seccomp, &capabilities).unwrap().unwrap().run(bpf::NATIVE_ARCH, call as u32, arguments)
    }

    fn default(call: i64, arguments: [u64; 6]) -> Verdict {
        let capabilities: Vec<_> = Capability::default_set().into_iter().collect();
        verdict(&Seccomp::Default, &capabilities, call, arguments)
    }

    #[test]
    fn the_default_lets_ordinary_calls_through_and_stops_the_dangerous_ones() {
        let none = [0; 6];
        for call in
            [libc::SYS_read, libc::SYS_execve, libc::SYS_clone, libc::SYS_futex, libc::SYS_openat, libc::SYS_chroot]
        {
            assert_eq!(default(call, none), Verdict::Allow, "{call}");
        }
        let refused = [
            libc::SYS_mount,
            libc::SYS_setns,
            libc::SYS_unshare,
            libc::SYS_bpf,
            libc::SYS_kexec_load,
            libc::SYS_init_module,
            libc::SYS_open_by_handle_at,
            libc::SYS_reboot,
            libc::SYS_userfaultfd,
        ];
        for call in refused {
            assert_eq!(default(call, none), Verdict::Errno(libc::EPERM as u16), "{call}");
        }
        // glibc tries clone(2) when clone3(2) is not there.
        for call in [libc::SYS_clone3, libc::SYS_io_uring_setup, 999] {
            assert_eq!(default(call, none), Verdict::Errno(libc::ENOSYS as u16), "{call}");
        }
    }

    #[test]
    fn arguments_decide_where_the_call_alone_does_not() {
        let eperm = Verdict::Errno(libc::EPERM as u16);
        let thread = (libc::CLONE_VM | libc::CLONE_THREAD) as u64;
        assert_eq!(default(libc::SYS_clone, [thread, 0, 0, 0, 0, 0]), Verdict::Allow);
        for namespace in [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWNET, libc::CLONE_NEWCGROUP] {
            assert_eq!(default(libc::SYS_clone, [namespace as u64 | thread, 0, 0, 0, 0, 0]), eperm);
            let admin = [Capability::SysAdmin];
            assert_eq!(
                verdict(&Seccomp::Default, &admin, libc::SYS_clone, [namespace as u64, 0, 0, 0, 0, 0]),
                Verdict::Allow
            );
        }
        let socket = |family: i32, protocol: u64| default(libc::SYS_socket, [family as u64, 0, protocol, 0, 0, 0]);
        assert_eq!(socket(libc::AF_INET, 0), Verdict::Allow);
        assert_eq!(socket(libc::AF_NETLINK, 0), Verdict::Allow);
        assert_eq!(socket(libc::AF_NETLINK, 9), Verdict::Errno(libc::EINVAL as u16));
        assert_eq!(socket(libc::AF_VSOCK, 0), eperm);
        // The kernel looks at the lower half of the family only.
        assert_eq!(default(libc::SYS_socket, [1 << 32 | libc::AF_VSOCK as u64, 0, 0, 0, 0, 0]), eperm);
        for (persona, expected) in [(0, Verdict::Allow), (0xffff_ffff, Verdict::Allow), (0x0400_0000, eperm)] {
            assert_eq!(default(libc::SYS_personality, [persona, 0, 0, 0, 0, 0]), expected);
        }
    }

    #[test]
    fn lists_retain_and_remove() {
        let retain = Seccomp::Retain { syscalls: vec!["read".into()], otherwise: SeccompAction::Errno(7) };
        assert_eq!(verdict(&retain, &[], libc::SYS_read, [0; 6]), Verdict::Allow);
        assert_eq!(verdict(&retain, &[], libc::SYS_write, [0; 6]), Verdict::Errno(7));
        let remove = Seccomp::Remove { syscalls: vec!["mkdir".into()], then: SeccompAction::Kill };
        assert_eq!(verdict(&remove, &[], libc::SYS_mkdir, [0; 6]), Verdict::Kill);
        assert_eq!(verdict(&remove, &[], libc::SYS_write, [0; 6]), Verdict::Allow);
        assert_eq!(verdict(&remove, &[], 0x4000_0000 + libc::SYS_mkdir, [0; 6]), Verdict::Errno(libc::ENOSYS as u16));
        let wrong = Seccomp::Remove { syscalls: vec!["fly".into()], then: SeccompAction::Kill };
        assert_eq!(filter(&wrong, &BTreeSet::new()).unwrap_err(), UnknownSyscall("fly".into()));
        assert!(filter(&Seccomp::Unconfined, &BTreeSet::new()).unwrap().is_none());
    }

    #[test]
    fn an_images_choice_takes_away_only() {
        let narrowed = |by: Seccomp| Seccomp::Narrowed { by: Box::new(by) };
        let eperm = Verdict::Errno(libc::EPERM as u16);
        let remove = narrowed(Seccomp::Remove { syscalls: vec!["mkdir".into()], then: SeccompAction::Kill });
        assert_eq!(verdict(&remove, &[], libc::SYS_mkdir, [0; 6]), Verdict::Kill);
        assert_eq!(verdict(&remove, &[], libc::SYS_read, [0; 6]), Verdict::Allow);
        assert_eq!(verdict(&remove, &[], libc::SYS_mount, [0; 6]), eperm);
        let syscalls = ["read", "mount", "clone"].map(String::from).into();
        let retain = narrowed(Seccomp::Retain { syscalls, otherwise: SeccompAction::Errno(7) });
        assert_eq!(verdict(&retain, &[], libc::SYS_read, [0; 6]), Verdict::Allow);
        assert_eq!(verdict(&retain, &[], libc::SYS_write, [0; 6]), Verdict::Errno(7));
        assert_eq!(verdict(&retain, &[], libc::SYS_mount, [0; 6]), eperm);
        assert_eq!(verdict(&retain, &[], libc::SYS_clone, [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0]), eperm);
        let everything = narrowed(Seccomp::Unconfined);
        assert_eq!(verdict(&everything, &[], libc::SYS_mount, [0; 6]), eperm);
    }
}
