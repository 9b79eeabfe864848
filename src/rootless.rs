//! Ordinary users: what takes root is done in a user namespace of their own, in which they are (user_namespaces(7)).
//!
//! The process keeps its PID. Its IDs are mapped by newuidmap(1) and newgidmap(1), which give a user the ranges of /etc/subuid and
//! /etc/subgid; where there are none, only the user's own ID is there, and images with files of other users cannot be used.

use std::fs;
use std::io::{self, Read};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Pid, Uid, fork, read, setresgid, setresuid, write};

/// Whether this process has not the privileges of the host's root: it is an ordinary user's, or in a user namespace already.
pub fn is_unprivileged() -> bool {
    /// The map of a process in the host's own user namespace.
    const WHOLE: [&str; 3] = ["0", "0", "4294967295"];
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !nix::unistd::geteuid().is_root() || !map.split_whitespace().eq(WHOLE)
}

/// The user's share of a file of lines `name:first:count` (subuid(5)).
fn share(path: &str, user: &str, id: u32) -> Option<(u32, u32)> {
    let text = fs::read_to_string(path).ok()?;
    let id = id.to_string();
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let mut number = || fields.next()?.trim().parse::<u32>().ok();
        let range = (number()?, number()?);
        (name == user || name == id).then_some(range)
    })
}

/// Which IDs the namespace has: those of the user as 0, and the user's share from 1 on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Map {
    own: u32,
    share: Option<(u32, u32)>,
}

impl Map {
    /// The arguments of newuidmap(1) after the process.
    fn arguments(&self) -> Vec<String> {
        let mut numbers = vec![0, self.own, 1];
        if let Some((first, count)) = self.share {
            numbers.extend([1, first, count]);
        }
        numbers.iter().map(ToString::to_string).collect()
    }
}

/// Which IDs this user's pods have, in words; as an error, that they are few.
pub fn map_of_this_user() -> std::result::Result<String, String> {
    let uid = nix::unistd::getuid();
    let name = nix::unistd::User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name);
    let shares = ["/etc/subuid", "/etc/subgid"].map(|path| share(path, &name, uid.as_raw()));
    match shares {
        [Some((first, count)), Some(_)] => Ok(format!("{name}, whose pods have the {count} IDs from {first} on")),
        _ => Err(format!(
            "{name}, whose pods have one ID only; give this user more: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}"
        )),
    }
}

/// Enters a user namespace in which this process is root, and a mount namespace, unless it is root of one already. The process
/// must have one thread.
///
/// # Errors
/// When the host lets its users have no user namespaces, or the IDs cannot be mapped.
pub fn become_root() -> Result<()> {
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    if uid.is_root() {
        return Ok(());
    }
    let user = nix::unistd::User::from_uid(uid).ok().flatten().map(|user| user.name).unwrap_or_default();
    let uids = Map { own: uid.as_raw(), share: share("/etc/subuid", &user, uid.as_raw()) };
    let gids = Map { own: gid.as_raw(), share: share("/etc/subgid", &user, uid.as_raw()) };
    let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC);
    let ((unshared, tell), (failure, fail)) = (pipe()?, pipe()?);
    let process = Pid::this();
    // SAFETY: the process has one thread.
    match unsafe { fork() }.context("the process that maps this user's IDs cannot be made")? {
        // It stays in the host's user namespace, where alone the map can be written.
        ForkResult::Child => {
            drop((tell, failure));
            let mapped = read(&unshared, &mut [0])
                .map_err(anyhow::Error::from)
                .and_then(|length| if length == 0 { Ok(()) } else { map(process, &uids, &gids) });
            if let Err(error) = &mapped {
                let _ = write(&fail, crate::chain(error).as_bytes());
            }
            std::process::exit(i32::from(mapped.is_err()));
        }
        ForkResult::Parent { child } => {
            drop((unshared, fail));
            unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
                .context("this host lets its users have no user namespaces; run podvm as root, or set user.max_user_namespaces and kernel.unprivileged_userns_clone by sysctl")?;
            write(&tell, &[1])?;
            drop(tell);
            if !matches!(waitpid(child, None)?, WaitStatus::Exited(_, 0)) {
                let mut message = String::new();
                let _ = fs::File::from(failure).read_to_string(&mut message);
                bail!("this user's IDs cannot be mapped: {message}");
            }
        }
    }
    setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0))?;
    setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0))?;
    Ok(())
}

fn map(process: Pid, uids: &Map, gids: &Map) -> Result<()> {
    if uids.share.is_none() || gids.share.is_none() {
        return Ok(map_own_only(process, uids.own, gids.own)?);
    }
    for (program, map) in [("newuidmap", uids), ("newgidmap", gids)] {
        let output = Command::new(program).arg(process.to_string()).args(map.arguments()).output();
        let output = output.with_context(|| format!("{program} cannot be run; install the package uidmap"))?;
        if !output.status.success() {
            bail!("{}; see /etc/subuid and /etc/subgid", String::from_utf8_lossy(&output.stderr).trim());
        }
    }
    Ok(())
}

/// The one map that takes no privilege (user_namespaces(7), "Defining user and group ID mappings").
fn map_own_only(process: Pid, uid: u32, gid: u32) -> io::Result<()> {
    let write = |file: &str, text: &str| fs::write(format!("/proc/{process}/{file}"), text);
    write("uid_map", &format!("0 {uid} 1"))?;
    write("setgroups", "deny")?;
    write("gid_map", &format!("0 {gid} 1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_share_goes_by_name_or_number() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "other:1:2\nme:100000:65536\n1001:7:8\n").unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(share(path, "me", 1000), Some((100_000, 65_536)));
        assert_eq!(share(path, "she", 1001), Some((7, 8)));
        assert_eq!(share(path, "he", 1002), None);
    }

    #[test]
    fn the_user_is_root_and_the_share_comes_after() {
        let map = Map { own: 1000, share: Some((100_000, 65_536)) };
        assert_eq!(map.arguments(), ["0", "1000", "1", "1", "100000", "65536"]);
    }
}
