//! PID 1's first half: modules, mounts, cgroups, names. Ends in the machine's new root.
//!
//! What the fast flavour becomes: `/` is the host's own tree (9p, read-only) under an overlay whose upper layer is
//! on the scratch disk (ext4); `/var/lib/podvm` and `/var/tmp` are directories of the scratch disk itself, since
//! an overlay can be neither another overlay's upper layer nor a place for every file operation.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, setrlimit};

use podvm_lab_agent::plan::{AGENT_PATH, BootPlan, FlavourPlan, HOST_TAG, PLAN_PATH};

/// The agent's own environment.
pub const ENVIRONMENT: [(&str, &str); 2] =
    [("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), ("HOME", "/root")];

/// Where the new root is put together.
const NEW: &str = "/new";
/// The host's tree.
const HOST: &str = "/host";
/// The scratch disk.
const SCRATCH: &str = "/scratch";
/// The one disk that the machine has, of either flavour.
const DISK: &str = "/dev/vda";
/// How long a device that must be there may take to show itself.
const DEVICE_WAIT: Duration = Duration::from_secs(20);
/// Open files, soft and hard, as systemd gives them to its services.
const OPEN_FILES: (u64, u64) = (1024, 524_288);

/// Why the machine could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A step failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// The step.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// A device did not come.
    #[error("no {0} after {seconds} s", seconds = DEVICE_WAIT.as_secs())]
    NoDevice(PathBuf),
    /// The agent ended, which it never should.
    #[error("the agent ended: {0}")]
    AgentEnded(String),
}

fn step<T, E: Into<io::Error>>(what: impl Into<String>, done: Result<T, E>) -> Result<T, BootError> {
    done.map_err(|source| BootError::Io { what: what.into(), source: source.into() })
}

/// Sets the machine up and enters its root. Returns the plan and what did not work but is not needed by all.
pub fn set_up() -> Result<(BootPlan, Vec<String>), BootError> {
    let plan = step(format!("read {PLAN_PATH}"), fs::read(PLAN_PATH))?;
    let plan: BootPlan = step(format!("parse {PLAN_PATH}"), serde_json::from_slice(&plan))?;
    mount_at("devtmpfs", "/dev", "devtmpfs", MsFlags::MS_NOSUID, "mode=755")?;
    mount_at("proc", "/proc", "proc", MsFlags::empty(), "")?;
    mount_at("sysfs", "/sys", "sysfs", MsFlags::empty(), "")?;
    let later = plan.later_modules.clone();
    let loader = std::thread::spawn(move || -> Vec<String> {
        later.iter().filter_map(|module| load(module).err()).map(|error| error.to_string()).collect()
    });
    for module in &plan.first_modules {
        load(module)?;
    }
    match &plan.flavour {
        FlavourPlan::Fast { modules, release } => mount_fast_root(modules, release)?,
        FlavourPlan::Full => mount_full_root()?,
    }
    let mut warnings = loader.join().unwrap_or_else(|_| vec!["the module loader panicked".into()]);
    step(format!("copy the agent to {AGENT_PATH}"), fs::copy("/proc/self/exe", in_new(AGENT_PATH)))?;
    for name in ["dev", "proc", "sys"] {
        let to = format!("{NEW}/{name}");
        move_mount(&format!("/{name}"), &to)?;
    }
    step(format!("enter {NEW}"), std::env::set_current_dir(NEW))?;
    move_mount(".", "/")?;
    step("change the root", nix::unistd::chroot("."))?;
    step("enter the root", std::env::set_current_dir("/"))?;
    step("start the other CPUs", start_cpus())?;
    if let FlavourPlan::Fast { .. } = plan.flavour {
        finish_fast(&plan.hostname, &mut warnings)?;
    }
    Ok((plan, warnings))
}

/// Becomes the system's own init. Returns only what went wrong.
pub fn hand_over_to_system() -> BootError {
    use std::os::unix::process::CommandExt;
    let source = Command::new("/sbin/init").env_clear().exec();
    BootError::Io { what: "start /sbin/init".into(), source }
}

fn load(module: &Path) -> Result<(), BootError> {
    let what = || format!("load {}", module.display());
    let file = step(what(), File::open(module))?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        Err(nix::errno::Errno::EEXIST) => Ok(()),
        done => step(what(), done),
    }
}

fn mount_at(source: &str, target: &str, kind: &str, flags: MsFlags, options: &str) -> Result<(), BootError> {
    step(format!("make {target}"), fs::create_dir_all(target))?;
    let done = mount(Some(source), target, Some(kind), flags, Some(options));
    step(format!("mount {kind} {source} at {target}"), done)
}

fn bind(from: &str, to: &str) -> Result<(), BootError> {
    step(format!("make {from}"), fs::create_dir_all(from))?;
    step(format!("make {to}"), fs::create_dir_all(to))?;
    let done = mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>);
    step(format!("bind {from} to {to}"), done)
}

fn move_mount(from: &str, to: &str) -> Result<(), BootError> {
    step(format!("make {to}"), fs::create_dir_all(to))?;
    let done = mount(Some(from), to, None::<&str>, MsFlags::MS_MOVE, None::<&str>);
    step(format!("move the mount {from} to {to}"), done)
}

fn in_new(path: &str) -> String {
    format!("{NEW}{path}")
}

fn await_device(path: &str) -> Result<(), BootError> {
    let start = Instant::now();
    while !Path::new(path).exists() {
        if start.elapsed() > DEVICE_WAIT {
            return Err(BootError::NoDevice(path.into()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// 9p options: whole pages in one message, and everything cached, since nobody writes.
fn mount_host(target: &str) -> Result<(), BootError> {
    let options = "trans=virtio,version=9p2000.L,msize=512000,cache=loose";
    mount_at(HOST_TAG, target, "9p", MsFlags::MS_RDONLY, options)
}

fn mount_fast_root(modules: &Path, release: &str) -> Result<(), BootError> {
    mount_host(HOST)?;
    await_device(DISK)?;
    mount_at(DISK, SCRATCH, "ext4", MsFlags::MS_NOATIME, "")?;
    let (upper, work) = (format!("{SCRATCH}/root/upper"), format!("{SCRATCH}/root/work"));
    step(format!("make {upper}"), fs::create_dir_all(&upper))?;
    step(format!("make {work}"), fs::create_dir_all(&work))?;
    let options = format!("lowerdir={HOST},upperdir={upper},workdir={work},xino=off");
    mount_at("overlay", NEW, "overlay", MsFlags::empty(), &options)?;
    mount_at("tmpfs", &in_new("/run"), "tmpfs", MsFlags::MS_NOSUID, "mode=755")?;
    bind(&format!("{SCRATCH}/podvm"), &in_new("/var/lib/podvm"))?;
    bind(&format!("{SCRATCH}/tmp"), &in_new("/var/tmp"))?;
    step("open /var/tmp to all", make_sticky(&in_new("/var/tmp")))?;
    bind(&format!("{HOST}{}", modules.display()), &in_new(&format!("/lib/modules/{release}")))
}

fn mount_full_root() -> Result<(), BootError> {
    await_device(DISK)?;
    mount_at(DISK, NEW, "ext4", MsFlags::MS_NOATIME, "")?;
    mount_at("tmpfs", &in_new("/run"), "tmpfs", MsFlags::MS_NOSUID, "mode=755")?;
    mount_host(&in_new(HOST))
}

fn make_sticky(path: &str) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o1777))
}

/// Starts all CPUs but the first. The kernel is told to leave them alone (`maxcpus=1`), because emulated CPUs that
/// wait for each other while code is patched and modules are loaded make a boot twice as dear.
fn start_cpus() -> io::Result<()> {
    for entry in fs::read_dir("/sys/devices/system/cpu")? {
        let switch = entry?.path().join("online");
        if switch.exists() && fs::read_to_string(&switch)?.trim() == "0" {
            fs::write(&switch, "1")?;
        }
    }
    Ok(())
}

/// What systemd would do on a real host.
fn finish_fast(hostname: &str, warnings: &mut Vec<String>) -> Result<(), BootError> {
    mount_at("devpts", "/dev/pts", "devpts", MsFlags::empty(), "gid=5,mode=620,ptmxmode=666")?;
    mount_at("tmpfs", "/dev/shm", "tmpfs", MsFlags::MS_NOSUID, "mode=1777")?;
    mount_at("mqueue", "/dev/mqueue", "mqueue", MsFlags::empty(), "")?;
    mount_at("debugfs", "/sys/kernel/debug", "debugfs", MsFlags::empty(), "")?;
    mount_at("tracefs", "/sys/kernel/tracing", "tracefs", MsFlags::empty(), "")?;
    let options = "nsdelegate,memory_recursiveprot";
    mount_at("cgroup2", "/sys/fs/cgroup", "cgroup2", MsFlags::empty(), options)?;
    for (name, target) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
        // There already if the host's devtmpfs has them.
        let _ = symlink(format!("/proc/self/fd{target}"), format!("/dev/{name}"));
    }
    step("enable the cgroup controllers", enable_controllers())?;
    step(
        "share the mounts",
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>),
    )?;
    step("set the host name", nix::unistd::sethostname(hostname))?;
    step("raise lo", raise_loopback())?;
    step("set the limit of open files", setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES.0, OPEN_FILES.1))?;
    if let Err(error) = File::open("/dev/kvm") {
        warnings.push(format!("/dev/kvm does not open: {error}"));
    }
    Ok(())
}

fn enable_controllers() -> io::Result<()> {
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")?;
    let all: Vec<String> = controllers.split_whitespace().map(|name| format!("+{name}")).collect();
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", all.join(" "))
}

fn raise_loopback() -> io::Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), None)?;
    // SAFETY: an all-zero ifreq is a valid value of that plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which lives on this stack; the socket is open.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
