//! The vsock and network devices under Linux's own drivers: this program boots a kernel whose init is this
//! program again, and moves data between its two halves.
//!
//! It needs a KVM that runs guests, and a guest kernel: the file that `PODVM_TEST_KERNEL` names, or the one in
//! `target/podvm`. It is skipped, with the reason, without them.

mod guest;
mod host;
mod initramfs;

use std::process::ExitCode;

/// Host port that the guest reports to.
const CONTROL_PORT: u32 = 1025;
/// Guest port that sends back what it is sent.
const ECHO_PORT: u32 = 1024;
/// TCP port of the guest that does the same.
const TCP_ECHO_PORT: u16 = 7;
/// Addresses of both ends of the tap.
const HOST_ADDRESS: [u8; 4] = [192, 0, 2, 1];
const GUEST_ADDRESS: [u8; 4] = [192, 0, 2, 2];

fn main() -> ExitCode {
    if std::process::id() == 1 {
        guest::main();
    }
    // Asked by test runners for the list of tests.
    if std::env::args().any(|argument| argument == "--list") {
        println!("linux_drivers: test");
        return ExitCode::SUCCESS;
    }
    match host::run() {
        Ok(()) => {
            println!("test linux_drivers ... ok");
            ExitCode::SUCCESS
        }
        Err(host::Trouble::Skipped(reason)) => {
            println!("test linux_drivers ... skipped: {reason}");
            ExitCode::SUCCESS
        }
        Err(host::Trouble::Failed(reason)) => {
            println!("test linux_drivers ... FAILED: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// Gives the interface `name` an address in a /24 and brings it up.
fn configure_interface(name: &str, address: [u8; 4]) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let address_of = |address: [u8; 4]| {
        // SAFETY: both are plain bytes of the same length.
        unsafe {
            std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(libc::sockaddr_in {
                sin_family: libc::AF_INET as u16,
                sin_port: 0,
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address) },
                sin_zero: [0; 8],
            })
        }
    };
    let control = |operation, request: &mut libc::ifreq| {
        // SAFETY: these operations read one ifreq.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), operation, std::ptr::from_mut(request)) };
        if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    request.ifr_ifru.ifru_addr = address_of(address);
    control(libc::SIOCSIFADDR, &mut request)?;
    request.ifr_ifru.ifru_addr = address_of([255, 255, 255, 0]);
    control(libc::SIOCSIFNETMASK, &mut request)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    control(libc::SIOCSIFFLAGS, &mut request)
}
