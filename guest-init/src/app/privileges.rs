//! Limits and privileges of an app's process: set step by step, from those that need the most privilege to the filter that
//! may forbid any further step.
//!
//! What is held back by the bounding set is gone once a program is executed: for root the kernel then grants what the
//! bounding set has, for others nothing but what the program's file carries (capabilities(7)). So `CAP_SYS_ADMIN`, which
//! installing the filter needs, is kept until that very moment and no longer.

use std::fs;
use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use podvm_pod::manifest::{Capability, Isolators, Rlimit};

use super::LaunchError;
use super::user::User;
use crate::step::{Step, StepError};
use crate::sys::process::{permitted_capabilities, set_capabilities, set_process_option};

/// Limit on open files when none is set: podman's.
const DEFAULT_OPEN_FILES: u64 = 1 << 20;

/// The resource of that name.
///
/// # Errors
/// A name that no resource has.
pub fn resource(name: &str) -> Result<Resource, LaunchError> {
    Ok(match name {
        "as" => Resource::RLIMIT_AS,
        "core" => Resource::RLIMIT_CORE,
        "cpu" => Resource::RLIMIT_CPU,
        "data" => Resource::RLIMIT_DATA,
        "fsize" => Resource::RLIMIT_FSIZE,
        "locks" => Resource::RLIMIT_LOCKS,
        "memlock" => Resource::RLIMIT_MEMLOCK,
        "msgqueue" => Resource::RLIMIT_MSGQUEUE,
        "nice" => Resource::RLIMIT_NICE,
        "nofile" => Resource::RLIMIT_NOFILE,
        "nproc" => Resource::RLIMIT_NPROC,
        "rss" => Resource::RLIMIT_RSS,
        "rtprio" => Resource::RLIMIT_RTPRIO,
        "rttime" => Resource::RLIMIT_RTTIME,
        "sigpending" => Resource::RLIMIT_SIGPENDING,
        "stack" => Resource::RLIMIT_STACK,
        _ => return Err(LaunchError::UnknownRlimit(name.into())),
    })
}

/// Sets resource limits and how readily the process is killed for want of memory.
///
/// # Errors
/// Which limit is unknown or was refused.
pub fn set_limits(isolators: &Isolators) -> Result<(), LaunchError> {
    if !isolators.rlimits.iter().any(|limit| limit.name == "nofile") {
        set_default_open_files().step(|| "set the limit on open files")?;
    }
    for Rlimit { name, soft, hard } in &isolators.rlimits {
        setrlimit(resource(name)?, *soft, *hard).step(|| format!("set the limit {name} to {soft}, at most {hard}"))?;
    }
    if let Some(adjustment) = isolators.oom_score_adj {
        fs::write("/proc/self/oom_score_adj", adjustment.to_string())
            .step(|| format!("set oom_score_adj to {adjustment}"))?;
    }
    Ok(())
}

fn set_default_open_files() -> io::Result<()> {
    let wanted = DEFAULT_OPEN_FILES;
    match setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted) {
        // Without the privilege to raise the limit, as much of it as there is.
        Err(nix::errno::Errno::EPERM) => {
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
            let most = hard.min(wanted);
            Ok(setrlimit(Resource::RLIMIT_NOFILE, most, hard)?)
        }
        other => Ok(other?),
    }
}

/// Becomes `user`, with no more capabilities than `isolators` names but the one [`super::program`] still needs for the
/// filter of system calls.
///
/// # Errors
/// Which step was refused.
pub fn become_user(user: &User, isolators: &Isolators) -> Result<(), StepError> {
    let allowed: u64 = isolators.capabilities.iter().fold(0, |bits, capability| bits | 1 << (*capability as u8));
    drop_from_bounding_set(allowed).step(|| "limit the capabilities")?;
    set_process_option(libc::PR_SET_KEEPCAPS, 1).step(|| "keep capabilities")?;
    let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
    match setgroups(&groups) {
        // A user who has one ID only may not change the groups of the pod's processes: they stay those of its own.
        Err(nix::errno::Errno::EPERM) if groups.iter().all(|group| *group == Gid::from_raw(user.gid)) => {}
        other => other.step(|| format!("join groups {:?}", user.groups))?,
    }
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    setresgid(gid, gid, gid).step(|| format!("become group {gid}"))?;
    setresuid(uid, uid, uid).step(|| format!("become user {uid}"))?;
    let filter_needs = 1 << (Capability::SysAdmin as u8);
    let of_user = if uid.is_root() { allowed } else { 0 };
    let held = permitted_capabilities().step(|| "read the capabilities")?;
    set_capabilities((of_user | filter_needs) & held).step(|| "set the capabilities")?;
    if isolators.no_new_privileges {
        set_process_option(libc::PR_SET_NO_NEW_PRIVS, 1).step(|| "give up new privileges")?;
    }
    Ok(())
}

fn drop_from_bounding_set(allowed: u64) -> io::Result<()> {
    for bit in 0..64 {
        if allowed & 1 << bit == 0 {
            match set_process_option(libc::PR_CAPBSET_DROP, bit) {
                // The kernel has no more capabilities than this.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
                other => other?,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_have_their_names_and_no_others() {
        assert_eq!(resource("nofile").unwrap(), Resource::RLIMIT_NOFILE);
        let message = resource("NOFILE").unwrap_err().to_string();
        assert!(message.contains("NOFILE") && message.contains("lower case"), "{message}");
    }
}
