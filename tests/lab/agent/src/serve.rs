//! The agent: runs the commands that come through the port, and sends back what they say.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use podvm_lab_agent::process::{Event, Process, Sink};
use podvm_lab_agent::protocol::{Ended, Frame, HEARTBEAT, PORT_NAME, Ready, Spawn};

/// Where each command gets a cgroup of its own, if the hierarchy is ours (it is systemd's in the full flavour).
const CGROUPS: &str = "/sys/fs/cgroup/lab";
/// How long the port may take to show itself.
const PORT_WAIT: Duration = Duration::from_secs(20);

type Commands = Arc<Mutex<HashMap<u32, Process>>>;
type Port = Arc<Mutex<File>>;

/// Serves until the host's end of the port is closed.
pub fn serve(warnings: Vec<String>) -> io::Result<()> {
    let path = find_port()?;
    let mut from = File::options().read(true).write(true).open(path)?;
    let port: Port = Arc::new(Mutex::new(from.try_clone()?));
    let commands: Commands = Commands::default();
    let cgroups = prepare_cgroups();
    send(&port, &Frame::Ready(ready(warnings)?))?;
    let heart = port.clone();
    // Ends when the host's end of the port is closed.
    std::thread::spawn(move || {
        while send(&heart, &Frame::Alive).is_ok() {
            std::thread::sleep(HEARTBEAT);
        }
    });
    while let Some(frame) = Frame::read(&mut from)? {
        match frame {
            Frame::Start(id, spawn) => start(id, &spawn, cgroups, &port, &commands)?,
            Frame::Input(id, bytes) => with(&commands, id, |command| command.input(bytes)),
            Frame::InputEnd(id) => with(&commands, id, |command| command.end_input()),
            Frame::Resize(id, size) => with(&commands, id, |command| command.resize(size)),
            Frame::Kill(id) => with(&commands, id, |command| command.kill()),
            other => return Err(io::Error::other(format!("a frame only the agent sends: {other:?}"))),
        }
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn send(port: &Port, frame: &Frame) -> io::Result<()> {
    frame.write(&mut *lock(port))
}

fn with(commands: &Commands, id: u32, act: impl FnOnce(&mut Process)) {
    if let Some(command) = lock(commands).get_mut(&id) {
        act(command);
    }
}

fn start(id: u32, spawn: &Spawn, cgroups: Option<&Path>, port: &Port, commands: &Commands) -> io::Result<()> {
    let cgroup = cgroups.map(|parent| parent.join(format!("command-{id}")));
    // Held until the command is entered, so that its end, however early, finds it there.
    let mut running = lock(commands);
    match Process::start(spawn, cgroup.as_deref(), sink(id, port.clone(), commands.clone())) {
        Ok(process) => {
            running.insert(id, process);
            Ok(())
        }
        Err(error) => {
            let program = spawn.argv.first().map_or("", String::as_str);
            send(port, &Frame::Ended(id, Ended::NotStarted(format!("{program}: {error}"))))
        }
    }
}

fn sink(id: u32, port: Port, commands: Commands) -> Sink {
    Arc::new(move |event| {
        let frame = match event {
            Event::Output(stream, bytes) => Frame::Output(id, stream, bytes),
            Event::InputTaken(bytes) => Frame::InputTaken(id, bytes),
            Event::Ended(ended) => {
                lock(&commands).remove(&id);
                Frame::Ended(id, ended)
            }
        };
        // A port that does not take frames is one whose host has gone; the reader finds that out too.
        let _ = send(&port, &frame);
    })
}

fn ready(warnings: Vec<String>) -> io::Result<Ready> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    let uptime = fs::read_to_string("/proc/uptime")?;
    let uptime_seconds = uptime.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or_default();
    Ok(Ready { kernel, uptime_seconds, warnings })
}

/// The commands' parent cgroup, with every controller passed on to them.
fn prepare_cgroups() -> Option<&'static Path> {
    // Under systemd the agent is in a cgroup of its unit, and leaves the hierarchy alone.
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    if own.trim() != "0::/" {
        return None;
    }
    let parent = Path::new(CGROUPS);
    fs::create_dir_all(parent).ok()?;
    let controllers = fs::read_to_string(parent.join("cgroup.controllers")).ok()?;
    let all: Vec<String> = controllers.split_whitespace().map(|name| format!("+{name}")).collect();
    fs::write(parent.join("cgroup.subtree_control"), all.join(" ")).ok()?;
    Some(parent)
}

fn find_port() -> io::Result<PathBuf> {
    let start = Instant::now();
    loop {
        let ports = fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten();
        for port in ports {
            // The name comes from the host a moment after the port.
            let name = fs::read_to_string(port.path().join("name")).unwrap_or_default();
            if name.trim() == PORT_NAME {
                return Ok(Path::new("/dev").join(port.file_name()));
            }
        }
        if start.elapsed() > PORT_WAIT {
            return Err(io::Error::other(format!("no virtio-serial port named {PORT_NAME}")));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
