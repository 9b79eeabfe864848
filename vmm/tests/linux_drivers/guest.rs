//! The guest's half: echoes over vsock and TCP until the host hangs up, then says so and ends the machine.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::thread;

use super::{CONTROL_PORT, ECHO_PORT, GUEST_ADDRESS, TCP_ECHO_PORT, configure_interface};

const HOST_CID: u32 = 2;

/// PID 1. Whatever goes wrong is printed, and ends the machine like success does: the host misses the report.
pub fn main() -> ! {
    if let Err(error) = serve() {
        eprintln!("guest: {error}");
    }
    // SAFETY: the machine ends here; nothing is mounted that would have to be synced.
    unsafe { libc::reboot(libc::RB_AUTOBOOT) };
    loop {
        thread::park();
    }
}

fn serve() -> io::Result<()> {
    let listener = listen(ECHO_PORT)?;
    thread::spawn(move || {
        while let Ok(stream) = accept(&listener) {
            thread::spawn(move || echo_vsock(stream));
        }
    });
    configure_interface("lo", [127, 0, 0, 1])?;
    configure_interface("eth0", GUEST_ADDRESS)?;
    let tcp = TcpListener::bind(("0.0.0.0", TCP_ECHO_PORT))?;
    thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            thread::spawn(move || echo_tcp(stream));
        }
    });
    // A port that nobody configured is refused.
    let refused = connect(9).err().map(|error| error.kind());
    let mut control = connect(CONTROL_PORT)?;
    writeln!(control, "ready, port 9 {refused:?}")?;
    io::copy(&mut control, &mut io::sink())?;
    control.write_all(b"bye\n")
}

/// Sends everything back, and then its own end of the stream.
fn echo_vsock(mut stream: File) -> io::Result<()> {
    echo(&mut stream)?;
    // SAFETY: the descriptor is the stream's.
    unsafe { libc::shutdown(stream.as_raw_fd(), libc::SHUT_WR) };
    Ok(())
}

fn echo_tcp(mut stream: TcpStream) -> io::Result<()> {
    echo(&mut stream)?;
    stream.shutdown(Shutdown::Write)
}

fn echo(stream: &mut (impl Read + Write)) -> io::Result<()> {
    let mut buffer = vec![0; 128 * 1024];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..count])?;
    }
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: makes a new descriptor, which is nobody else's.
    owned(unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })
}

fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call just made gave this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: all zeroes is a valid sockaddr_vm.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as u16;
    (address.svm_cid, address.svm_port) = (cid, port);
    address
}

const ADDRESS_BYTES: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;

fn connect(port: u32) -> io::Result<File> {
    let socket = socket()?;
    let address = address(HOST_CID, port);
    // SAFETY: the address is alive and as long as said.
    let result = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_BYTES) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(File::from(socket)) }
}

fn listen(port: u32) -> io::Result<OwnedFd> {
    let socket = socket()?;
    let address = address(libc::VMADDR_CID_ANY, port);
    // SAFETY: the address is alive and as long as said.
    let result = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_BYTES)
            | libc::listen(socket.as_raw_fd(), 64)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

fn accept(listener: &OwnedFd) -> io::Result<File> {
    // SAFETY: no address is asked for.
    let fd = unsafe { libc::accept(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut()) };
    owned(fd).map(File::from)
}
