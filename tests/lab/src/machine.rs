//! L1 itself: the QEMU command line, its process, its console, and the port to its agent.
//!
//! QEMU gets everything by inherited descriptors (initramfs, scratch disk, the agent's port), so that no name is
//! left in any directory, and asks the kernel to be killed with the thread that started it.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;

use podvm_lab_agent::plan::{BootPlan, FlavourPlan, HOST_TAG, PLAN_PATH};
use podvm_lab_agent::protocol::PORT_NAME;

use crate::cache::Cache;
use crate::initramfs::Archive;
use crate::kernel::Kernel;
use crate::{Flavour, LabConfig, LabError, agent, program};

/// The emulator.
const QEMU: &str = "qemu-system-x86_64";
/// Modules without which no root can be mounted. crc32c is what ext4 asks the crypto core for by name.
const FIRST_MODULES: [&str; 7] =
    ["virtio_pci", "virtio_console", "virtio_blk", "9pnet_virtio", "9p", "crc32c-intel", "ext4"];
/// Also needed for the root, but only by the fast flavour.
const FAST_MODULES: [&str; 1] = ["overlay"];
/// What has a device node or is used by every pod. Everything else is loaded by the kernel on demand.
const LATER_MODULES: [&str; 4] = ["kvm-amd", "tun", "loop", "vhost_vsock"];
/// The scratch disk's size. The file is sparse.
const SCRATCH_BYTES: u64 = 32 << 30;
/// How much of the console is kept for the account of a failure.
const CONSOLE_KEPT: usize = 64 * 1024;
/// The machine's name.
const HOSTNAME: &str = "podvm-lab";

/// Boot work that a lab has no use for: each of these costs 10 to 400 ms under emulation, and none changes what
/// KVM, cgroups or the network do.
const KERNEL_OPTIONS: &str = "console=ttyS0 quiet panic=-1 reboot=t mitigations=off tsc=reliable nokaslr \
    no_timer_check lpj=4000000 cryptomgr.notests rodata=off random.trust_cpu=on maxcpus=1 \
    initcall_blacklist=init_kprobe_trace,load_system_certificate_list,crypto_kdf108_init,init_encrypted,\
ksm_init,init_zswap";

/// A running machine. Dropping it kills QEMU and waits for it.
#[derive(Debug)]
pub struct Machine {
    console: Arc<Mutex<VecDeque<u8>>>,
    /// Tells the keeper to kill; dropped, too.
    stop: Option<Sender<()>>,
    keeper: Option<JoinHandle<String>>,
}

impl Machine {
    /// Starts QEMU. The stream leads to the agent, which says so when it is up.
    pub fn start(config: &LabConfig) -> Result<(Self, UnixStream), LabError> {
        let cache = Cache::open()?;
        let kernel = Kernel::obtain(&cache)?;
        let initramfs = initramfs(config, &kernel)?;
        let disk = match config.flavour {
            Flavour::Fast => Disk::Scratch(scratch_disk(&cache)?),
            Flavour::Full => Disk::Image(crate::full::image(&cache, &kernel)?),
        };
        let (port, qemus_port) = UnixStream::pair().map_err(LabError::io("make a socket pair"))?;
        let mut command = command_line(config, &kernel, &initramfs, &disk, qemus_port.as_raw_fd());
        let mut inherited = vec![OwnedFd::from(qemus_port), initramfs.into()];
        if let Disk::Scratch(file) = disk {
            inherited.push(file.into());
        }
        let fds: Vec<RawFd> = inherited.iter().map(AsRawFd::as_raw_fd).collect();
        // SAFETY: `prepare` makes only async-signal-safe system calls and allocates nothing.
        unsafe { command.pre_exec(move || prepare(&fds)) };
        Ok((Self::keep(command, inherited, config.show_console)?, port))
    }

    /// Starts the thread that starts QEMU and lives as long: the kernel ties QEMU's life to that thread's.
    fn keep(mut command: Command, inherited: Vec<OwnedFd>, show_console: bool) -> Result<Self, LabError> {
        let console = Arc::new(Mutex::new(VecDeque::new()));
        let (stop, stopped) = mpsc::channel::<()>();
        let (started, start) = mpsc::channel();
        let log = console.clone();
        let keeper = std::thread::spawn(move || {
            let mut child = match command.spawn() {
                Ok(child) => child,
                Err(error) => {
                    let _ = started.send(Err(error));
                    return String::new();
                }
            };
            drop(inherited);
            let readers = read_console(&mut child, &log, show_console);
            let _ = started.send(Ok(()));
            let status = wait_or_kill(&mut child, &stopped);
            readers.into_iter().for_each(|reader| drop(reader.join()));
            status
        });
        let started = start.recv().unwrap_or_else(|_| Err(io::Error::other("its keeper panicked")));
        started.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => LabError::ProgramMissing { program: QEMU.into() },
            _ => LabError::Io { what: format!("start {QEMU}"), source: error },
        })?;
        Ok(Self { console, stop: Some(stop), keeper: Some(keeper) })
    }

    /// Kills the machine and returns how QEMU ended and the end of the console.
    pub fn stop(mut self) -> (String, String) {
        let status = self.finish();
        let console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = console.iter().copied().filter(|byte| *byte != b'\r').collect();
        (status, String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    fn finish(&mut self) -> String {
        drop(self.stop.take());
        self.keeper.take().and_then(|keeper| keeper.join().ok()).unwrap_or_default()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.finish();
    }
}

/// The machine's one disk.
enum Disk {
    /// An empty file system in a file without a name.
    Scratch(File),
    /// A cached image; what the machine writes is forgotten.
    Image(PathBuf),
}

/// Runs in QEMU's process before it is QEMU.
fn prepare(inherited: &[RawFd]) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    for fd in inherited {
        // SAFETY: the parent holds these descriptors open until after the spawn.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(*fd) };
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    }
    Ok(())
}

fn command_line(config: &LabConfig, kernel: &Kernel, initramfs: &File, disk: &Disk, port: RawFd) -> Command {
    let mut command = Command::new(QEMU);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-M", "q35"]);
    if config.icount {
        command.args(["-accel", "tcg,thread=single", "-icount", "shift=0", "-smp", "1"]);
    } else {
        command.args(["-accel", "tcg,thread=multi", "-smp", &config.cpus.to_string()]);
    }
    command.args(["-cpu", "max,+svm,+npt", "-m", &config.memory_mib.to_string()]);
    command.arg("-kernel").arg(&kernel.image).args(["-append", KERNEL_OPTIONS]);
    command.args(["-initrd", &format!("/proc/self/fd/{}", initramfs.as_raw_fd())]);
    let file = match disk {
        Disk::Scratch(file) => format!("/proc/self/fd/{},snapshot=off", file.as_raw_fd()),
        Disk::Image(path) => format!("{},snapshot=on", path.display()),
    };
    // The disk lives no longer than the machine: nothing need ever reach the host's disk.
    let drive = format!("if=none,id=disk,format=raw,cache=unsafe,discard=unmap,file={file}");
    command.args(["-object", "iothread,id=io", "-drive", &drive]);
    command.args(["-device", "virtio-blk-pci,drive=disk,iothread=io"]);
    let share = format!("local,path=/,mount_tag={HOST_TAG},security_model=none,readonly=on,multidevs=remap");
    command.args(["-virtfs", &share]);
    command.args(["-chardev", &format!("socket,id=agent,fd={port}"), "-device", "virtio-serial-pci"]);
    command.args(["-device", &format!("virtserialport,chardev=agent,name={PORT_NAME}")]);
    command.args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    command
}

/// Modules, agent and plan in one archive, in a file without a name.
fn initramfs(config: &LabConfig, kernel: &Kernel) -> Result<File, LabError> {
    let fast = config.flavour == Flavour::Fast;
    let first = FIRST_MODULES.iter().chain(FAST_MODULES.iter().filter(|_| fast)).copied().collect::<Vec<_>>();
    let first = kernel.with_dependencies(&first)?;
    let mut later = kernel.with_dependencies(&LATER_MODULES)?;
    later.retain(|module| !first.contains(module));
    let inside = |file: &PathBuf| Path::new("/modules").join(file.file_name().unwrap_or_default());
    let plan = BootPlan {
        flavour: match config.flavour {
            Flavour::Fast => FlavourPlan::Fast { modules: kernel.modules.clone(), release: kernel.release.clone() },
            Flavour::Full => FlavourPlan::Full,
        },
        hostname: HOSTNAME.into(),
        first_modules: first.iter().map(inside).collect(),
        later_modules: later.iter().map(inside).collect(),
    };
    let agent = agent::build()?;
    let pack = || -> io::Result<File> {
        let mut archive = Archive::default();
        for directory in ["dev", "proc", "sys", "new", "host", "scratch", "modules"] {
            archive.directory(directory)?;
        }
        archive.character_device("dev/console", 5, 1)?;
        for module in first.iter().chain(&later) {
            let name = inside(module).display().to_string();
            archive.file(name.trim_start_matches('/'), 0o644, unsigned(&fs::read(module)?))?;
        }
        archive.file("init", 0o755, &fs::read(&agent)?)?;
        archive.file(PLAN_PATH.trim_start_matches('/'), 0o644, &serde_json::to_vec(&plan)?)?;
        let mut file = File::from(memfd_create(c"podvm-lab-initramfs", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(&archive.finish()?)?;
        Ok(file)
    };
    pack().map_err(LabError::io("pack the lab's initramfs"))
}

/// A module without the signature at its end (kernel/module/signing.c), whose check costs more than the loading.
fn unsigned(module: &[u8]) -> &[u8] {
    const MAGIC: &[u8] = b"~Module signature appended~\n";
    const INFORMATION: usize = 12;
    let end = module.strip_suffix(MAGIC).and_then(|rest| {
        let (rest, information) = rest.split_at_checked(rest.len().checked_sub(INFORMATION)?)?;
        let length = u32::from_be_bytes(information[8..].try_into().ok()?) as usize;
        rest.len().checked_sub(length)
    });
    &module[..end.unwrap_or(module.len())]
}

/// An empty ext4 in a sparse file that has no name, so that it is gone with its last user.
fn scratch_disk(cache: &Cache) -> Result<File, LabError> {
    let make = || -> io::Result<File> {
        let mut options = File::options();
        let file = options.read(true).write(true).custom_flags(libc::O_TMPFILE).open(cache.root())?;
        file.set_len(SCRATCH_BYTES)?;
        Ok(file)
    };
    let file = make().map_err(LabError::io("make the lab's scratch disk"))?;
    // No journal: a machine that is killed leaves nothing to recover.
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let options = ["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", "-m", "0"];
    program::output(Command::new("mke2fs").args(options).arg(path))?;
    Ok(file)
}

/// Collects the end of what QEMU and its serial port say.
fn read_console(child: &mut Child, log: &Arc<Mutex<VecDeque<u8>>>, show: bool) -> Vec<JoinHandle<()>> {
    let mut sources: Vec<Box<dyn Read + Send>> = Vec::new();
    sources.extend(child.stdout.take().map(|from| Box::new(from) as Box<dyn Read + Send>));
    sources.extend(child.stderr.take().map(|from| Box::new(from) as Box<dyn Read + Send>));
    let read = |mut from: Box<dyn Read + Send>, log: Arc<Mutex<VecDeque<u8>>>| {
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = from.read(&mut buffer) {
                if show {
                    let _ = io::stderr().write_all(&buffer[..length]);
                }
                let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                log.extend(&buffer[..length]);
                let surplus = log.len().saturating_sub(CONSOLE_KEPT);
                log.drain(..surplus);
            }
        })
    };
    sources.into_iter().map(|from| read(from, log.clone())).collect()
}

/// Waits until QEMU ends by itself or the machine is dropped.
fn wait_or_kill(child: &mut Child, stopped: &mpsc::Receiver<()>) -> String {
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return status.to_string();
        }
        if stopped.recv_timeout(Duration::from_millis(100)) != Err(RecvTimeoutError::Timeout) {
            let _ = child.kill();
            return child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_cut_off_and_everything_else_kept() {
        let mut signed = b"module".to_vec();
        signed.extend(b"SIGNATURE");
        signed.extend([0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
        signed.extend(b"~Module signature appended~\n");
        assert_eq!(unsigned(&signed), b"module");
        assert_eq!(unsigned(b"module"), b"module");
        assert_eq!(unsigned(b"~Module signature appended~\n").len(), 28);
    }
}
