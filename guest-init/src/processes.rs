//! The processes of an app, as /proc tells of them (proc_pid_stat(5), proc_pid_status(5)): all in its main process's PID
//! namespace.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use podvm_pod::status::{AppStats, ProcessInfo};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Most processes that are told of.
const MAX_PROCESSES: usize = 4096;
/// Most that is read of a process's file, and told of its command line.
const MAX_FILE: u64 = 16 << 10;
const MAX_COMMAND: usize = 512;

/// The processes in the PID namespace of `main`, by PID.
pub fn of_app(main: i32) -> Vec<ProcessInfo> {
    let mut found: Vec<ProcessInfo> = folders(main).iter().filter_map(|folder| read(folder)).collect();
    found.sort_by_key(|process| process.pid);
    found
}

/// What the processes of an app use together, where no cgroup counts it: of those that have ended nothing is known, and
/// memory that several share is counted for each.
pub fn usage(main: i32) -> AppStats {
    let processes = of_app(main);
    AppStats {
        memory_bytes: processes.iter().map(|process| process.memory_bytes).sum(),
        cpu_usec: processes.iter().map(|process| process.cpu_usec).sum(),
        pids: processes.len() as u64,
        ..AppStats::default()
    }
}

/// Kills the processes of the session that `leader` leads (setsid(2)). The caller has not reaped the leader, so that the number is
/// no other's; its own end is the caller's affair when it leads none yet.
pub fn kill_session(leader: i32) {
    /// Most times that is looked again for what was made meanwhile.
    const MAX_ROUNDS: usize = 16;
    if let Some(group) = rustix::process::Pid::from_raw(leader) {
        // There is none when the process has not come as far.
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
    for _ in 0..MAX_ROUNDS {
        let members: Vec<_> = all().filter_map(|folder| open_if_in(&folder, leader)).collect();
        if members.is_empty() {
            return;
        }
        for member in members {
            // It may have ended meanwhile.
            let _ = pidfd_send_signal(&member, Signal::KILL);
        }
    }
}

/// A handle on the process of this folder, if it is in the session and has not ended.
fn open_if_in(folder: &Path, session: i32) -> Option<OwnedFd> {
    let pid = folder.file_name()?.to_str()?.parse().ok()?;
    let handle = pidfd_open(rustix::process::Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    // Read with the handle open: the folder may have become that of another process.
    let stat = text(&folder.join("stat")).ok()?;
    (session_of(&stat)? == session).then_some(handle)
}

/// The session of a process that has not ended.
fn session_of(stat: &str) -> Option<i32> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    // Of proc_pid_stat(5) the fields 3, the state, and 6.
    let state = fields.next()?;
    let session = fields.nth(2)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(session)
}

/// The folders of all processes.
fn all() -> impl Iterator<Item = PathBuf> {
    let folders = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    folders.filter(|folder| {
        folder.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.parse::<u32>().is_ok())
    })
}

fn folders(main: i32) -> Vec<PathBuf> {
    let namespace = |folder: &Path| fs::read_link(folder.join("ns/pid")).ok();
    let Some(wanted) = namespace(&Path::new("/proc").join(main.to_string())) else { return Vec::new() };
    all().filter(|folder| namespace(folder).as_ref() == Some(&wanted)).take(MAX_PROCESSES).collect()
}

/// None when the process has ended meanwhile.
fn read(folder: &Path) -> Option<ProcessInfo> {
    let stat = text(&folder.join("stat")).ok()?;
    let status = text(&folder.join("status")).ok()?;
    let mut process = parse(&stat, &status)?;
    let words = text(&folder.join("cmdline")).unwrap_or_default().replace('\0', " ");
    if !words.trim().is_empty() {
        process.command = words.trim_end().chars().take(MAX_COMMAND).collect();
    }
    Some(process)
}

fn text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Reads `stat` and `status`. A process's name stands in parentheses and may hold any character.
fn parse(stat: &str, status: &str) -> Option<ProcessInfo> {
    let (front, rest) = stat.rsplit_once(')')?;
    let name = front.split_once('(')?.1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // The state is field 3 of proc_pid_stat(5).
    let field = |number: usize| fields.get(number - 3);
    let number = |index| field(index).and_then(|text| text.parse::<u64>().ok());
    let (ticks, page) = (sysconf(libc::_SC_CLK_TCK), sysconf(libc::_SC_PAGESIZE));
    let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key));
    Some(ProcessInfo {
        // The last is that of the innermost namespace.
        pid: line("NSpid:")?.split_whitespace().last()?.parse().ok()?,
        uid: line("Uid:")?.split_whitespace().nth(1)?.parse().ok()?,
        state: field(3)?.chars().next()?,
        memory_bytes: number(24)?.saturating_mul(page),
        cpu_usec: number(14)?.saturating_add(number(15)?).saturating_mul(1_000_000 / ticks),
        command: format!("[{name}]"),
    })
}

fn sysconf(name: libc::c_int) -> u64 {
    // SAFETY: takes an integer and has no side effects.
    u64::try_from(unsafe { libc::sysconf(name) }).unwrap_or(1).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_process_is_found_in_its_own_namespace() {
        let own = std::process::id() as i32;
        let processes = of_app(own);
        let this = processes.iter().find(|process| process.memory_bytes > 0 && process.command.contains("guest_init"));
        assert!(this.is_some(), "{processes:?}");
        assert!(usage(own).pids >= 1);
    }

    #[test]
    fn a_session_ends_with_all_its_groups() {
        use std::io::BufRead;
        use std::process::{Command, Stdio};

        // With job control, each pipeline is a group of its own.
        let script = "set -m; sleep 500 | sleep 500 & sleep 500 & echo ready; wait";
        let mut leader = Command::new("setsid").args(["bash", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = std::io::BufReader::new(leader.stdout.take().unwrap());
        output.read_line(&mut String::new()).unwrap();
        let pid = leader.id() as i32;
        assert!(all().filter_map(|folder| open_if_in(&folder, pid)).count() > 1);
        kill_session(pid);
        // The end of the output is the end of all that have it.
        output.read_line(&mut String::new()).unwrap();
        leader.wait().unwrap();
        assert_eq!(all().filter_map(|folder| open_if_in(&folder, pid)).count(), 0);
    }

    #[test]
    fn a_name_may_hold_parentheses() {
        let stat = format!("77 (a) b (c)) R 1 {}", (0..40).map(|n| n.to_string()).collect::<Vec<_>>().join(" "));
        let process = parse(&stat, "Uid:\t1\t2\t3\t4\nNSpid:\t900\t5\n").unwrap();
        assert_eq!((process.pid, process.uid, process.state, process.command.as_str()), (5, 2, 'R', "[a) b (c)]"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(stat in "[0-9() R]{0,80}", status in "(Uid:|NSpid:|[0-9\t\n])*") {
            let _ = (parse(&stat, &status), session_of(&stat));
        }
    }
}
