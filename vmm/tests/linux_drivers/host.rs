//! The host's half: builds the machine, and moves data through its devices.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use podvm_vmm::boot::BootFile;
use podvm_vmm::devices::net::{Net, NetConfig, NetworkEnd};
use podvm_vmm::devices::rng::Rng;
use podvm_vmm::devices::vsock::{Vsock, VsockConfig, VsockConnector};
use podvm_vmm::machine::{Vm, VmConfig};
use podvm_vmm::probe;
use podvm_vmm::vcpu::exit::VmExit;

use super::{CONTROL_PORT, ECHO_PORT, GUEST_ADDRESS, HOST_ADDRESS, TCP_ECHO_PORT, configure_interface, initramfs};

/// Longest the whole test may take, on an emulated machine.
const TIME_LIMIT: Duration = Duration::from_secs(480);

/// Why the test did not pass.
pub enum Trouble {
    /// It cannot be run here.
    Skipped(String),
    /// It was run.
    Failed(String),
}

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Runs everything on a thread, so that a hang becomes a failure.
pub fn run() -> Result<(), Trouble> {
    probe::probe().map_err(|error| Trouble::Skipped(error.to_string()))?;
    let kernel = kernel().ok_or_else(|| {
        Trouble::Skipped("no guest kernel; name one in PODVM_TEST_KERNEL, or build it with cargo xtask".into())
    })?;
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(test(&kernel).map_err(|error| error.to_string())));
    match receiver.recv_timeout(TIME_LIMIT) {
        Ok(result) => result.map_err(Trouble::Failed),
        Err(_) => Err(Trouble::Failed(format!("not done after {} seconds", TIME_LIMIT.as_secs()))),
    }
}

fn kernel() -> Option<PathBuf> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/podvm/lib/podvm/vmlinux");
    let named = std::env::var_os("PODVM_TEST_KERNEL").map(PathBuf::from);
    named.or(Some(built)).filter(|path| path.exists())
}

fn test(kernel: &Path) -> Outcome<()> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("vsock.sock");
    let (mut control, device_end) = UnixStream::pair()?;
    let vsock = Vsock::new(VsockConfig {
        listener: Some(UnixListener::bind(&socket)?),
        host_ports: vec![(CONTROL_PORT, device_end)],
        ..VsockConfig::new(3)
    })?;
    let connector = vsock.connector();
    let tap = tap()?;
    configure_interface("tap0", HOST_ADDRESS)?;
    let net = Net::new(NetConfig { network: NetworkEnd::Tap(tap), mac: [2, 0, 0, 0, 0, 3], mtu: Some(1500) })?;

    let mut config = VmConfig::new(BootFile::kernel(kernel)?, 512 << 20);
    config.boot.initramfs = Some(BootFile::initramfs(&initramfs::write(directory.path())?)?);
    config.add_device(Rng::new())?;
    config.add_device(vsock)?;
    config.add_device(net)?;
    let running = Vm::build(config)?.start()?;
    let console = running.handle().console();

    let line = read_line(&mut control)?;
    if line != "ready, port 9 Some(ConnectionReset)\n" {
        return Err(format!("the guest reports {line:?}; its console: {}", console.text()).into());
    }
    let done = exchange(&connector, &socket);
    control.shutdown(Shutdown::Write)?;
    let mut last = String::new();
    control.read_to_string(&mut last)?;
    let exit = running.wait();
    done.map_err(|error| format!("{error}; the guest's console: {}", console.text()))?;
    if last != "bye\n" || exit != VmExit::Reset {
        return Err(format!("the guest ended with {last:?}, the machine with {exit:?}").into());
    }
    Ok(())
}

/// Everything that is done with the guest.
fn exchange(connector: &VsockConnector, socket: &Path) -> Outcome<()> {
    timed("vsock, one connection, 8 MiB", || echo(client(socket)?, 8 << 20, 1))?;
    timed("vsock, from a thread, 2 MiB", || echo(connector.connect(ECHO_PORT)?, 2 << 20, 2))?;
    timed("vsock, 16 connections at once, 512 KiB each", || {
        together(16, |seed| echo(connector.connect(ECHO_PORT)?, 512 << 10, seed))
    })?;
    timed("vsock, 200 short connections", || {
        (0..200).try_for_each(|seed| echo(client(socket)?, usize::from(seed) * 7, seed))
    })?;
    let mut refused = connector.connect(9)?;
    if refused.read(&mut [0])? != 0 {
        return Err("a port nobody listens at was not refused".into());
    }
    timed("net, one connection, 16 MiB", || echo(tcp()?, 16 << 20, 3))?;
    timed("net, 8 connections at once, 1 MiB each", || together(8, |seed| echo(tcp()?, 1 << 20, seed)))
}

fn timed(what: &str, action: impl FnOnce() -> Outcome<()>) -> Outcome<()> {
    let start = Instant::now();
    action().map_err(|error| format!("{what}: {error}"))?;
    println!("{what}: {} ms", start.elapsed().as_millis());
    Ok(())
}

fn together(count: u8, action: impl Fn(u8) -> Outcome<()> + Sync) -> Outcome<()> {
    thread::scope(|scope| {
        let action = &action;
        let run = |seed| scope.spawn(move || action(seed).map_err(|error| error.to_string()));
        let threads: Vec<_> = (0..count).map(run).collect();
        for thread in threads {
            thread.join().map_err(|_| "a thread panicked")??;
        }
        Ok(())
    })
}

/// A connection to the echo port through the listener.
fn client(socket: &Path) -> Outcome<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    writeln!(stream, "CONNECT {ECHO_PORT}")?;
    let line = read_line(&mut stream)?;
    if line.starts_with("OK ") { Ok(stream) } else { Err(format!("the device said {line:?}").into()) }
}

/// Reads up to a line's end and nothing behind it.
fn read_line(stream: &mut UnixStream) -> Outcome<String> {
    let mut line = String::new();
    let mut byte = [0];
    while !line.ends_with('\n') && stream.read(&mut byte)? == 1 {
        line.push(byte[0].into());
    }
    Ok(line)
}

fn tcp() -> Outcome<TcpStream> {
    let address = SocketAddr::from((GUEST_ADDRESS, TCP_ECHO_PORT));
    Ok(TcpStream::connect_timeout(&address, Duration::from_secs(20))?)
}

/// A stream whose halves can be used by two threads.
trait Stream: Read + Write + Send + Sized {
    fn second(&self) -> std::io::Result<Self>;
    fn end(&self) -> std::io::Result<()>;
}

impl Stream for UnixStream {
    fn second(&self) -> std::io::Result<Self> {
        self.try_clone()
    }

    fn end(&self) -> std::io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl Stream for TcpStream {
    fn second(&self) -> std::io::Result<Self> {
        self.try_clone()
    }

    fn end(&self) -> std::io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

/// Sends `length` bytes and the end of the stream, and expects the same back.
fn echo<S: Stream + 'static>(mut stream: S, length: usize, seed: u8) -> Outcome<()> {
    let data: Vec<u8> = (0..length as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8 ^ seed).collect();
    let mut writer = stream.second()?;
    let sent = data.clone();
    let sending = thread::spawn(move || {
        writer.write_all(&sent)?;
        writer.end()
    });
    let mut received = Vec::with_capacity(length);
    stream.read_to_end(&mut received)?;
    sending.join().map_err(|_| "the sender panicked")??;
    if received == data {
        Ok(())
    } else {
        let same = received.iter().zip(&data).take_while(|(a, b)| a == b).count();
        Err(format!("{} of {length} bytes came back, the first {same} as sent", received.len()).into())
    }
}

/// A tap in a network namespace of its own.
fn tap() -> Outcome<File> {
    // SAFETY: moves only this thread into a new network namespace. Threads it starts are there too.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"tap0") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as libc::Ioctl, &raw mut request) } < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(file)
}
