//! A tap as the network device uses it: frames behind a virtio-net header, and what the kernel may leave to
//! the guest (linux/if_tun.h).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use super::HEADER_BYTES;
use super::features::Features;

/// What the guest can be given to finish (`TUN_F_*`).
const TUN_F_CSUM: u32 = 1;
const TUN_F_TSO4: u32 = 2;
const TUN_F_TSO6: u32 = 4;
const TUN_F_TSO_ECN: u32 = 8;

/// The flags a tap must have been opened with.
const NEEDED_FLAGS: i32 = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Why a file cannot be the tap of a network device.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The file is something else.
    #[error("the file given as a tap is none; open /dev/net/tun and attach it with TUNSETIFF")]
    NotATap(#[source] io::Error),
    /// The tap was attached with other flags.
    #[error("the tap has flags {flags:#x}; attach it with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR")]
    WrongFlags {
        /// Its flags.
        flags: i32,
    },
    /// The kernel refuses a setting.
    #[error("{what} of the tap cannot be set")]
    Setting {
        /// Which.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// What came of a read or write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// So many bytes, header and all.
    Bytes(usize),
    /// Nothing can be moved now.
    NotNow,
}

/// The tap. It does not block.
#[derive(Debug)]
pub(super) struct Tap {
    file: File,
    /// Only tests have a socket here, which knows no offloads.
    is_tap: bool,
}

impl Tap {
    /// Takes a tap over: checks its flags, and sets the size of the header and non-blocking mode.
    pub fn new(file: File) -> Result<Self, TapError> {
        let fd = file.as_raw_fd();
        let flags = flags(fd).map_err(TapError::NotATap)?;
        if flags & NEEDED_FLAGS != NEEDED_FLAGS {
            return Err(TapError::WrongFlags { flags });
        }
        let size = HEADER_BYTES as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one int, which is alive for the call.
        let done = unsafe { libc::ioctl(fd, libc::TUNSETVNETHDRSZ as libc::Ioctl, &raw const size) };
        check(done, "the header's size")?;
        // SAFETY: fcntl with these commands takes and gives plain flags.
        let done = unsafe {
            let status = libc::fcntl(fd, libc::F_GETFL);
            if status < 0 { status } else { libc::fcntl(fd, libc::F_SETFL, status | libc::O_NONBLOCK) }
        };
        check(done, "non-blocking mode")?;
        Ok(Self { file, is_tap: true })
    }

    /// A socket of datagrams or packets in a tap's place.
    #[cfg(test)]
    pub fn from_socket(file: File) -> Self {
        Self { file, is_tap: false }
    }

    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Lets the kernel hand over frames that the guest agreed to finish: without checksum, or many in one.
    pub fn set_offloads(&self, features: Features) -> Result<(), TapError> {
        if !self.is_tap {
            return Ok(());
        }
        let offloads = offloads(features);
        // SAFETY: TUNSETOFFLOAD takes its argument as a number.
        let done = unsafe { libc::ioctl(self.fd(), libc::TUNSETOFFLOAD as libc::Ioctl, libc::c_ulong::from(offloads)) };
        check(done, "the offloads").map(|_| ())
    }

    /// Reads one frame into guest memory. The iovecs come from [`crate::virtio::chain::Buffers::iovecs`], and the
    /// chains they belong to are still held.
    pub fn read(&self, iovecs: &[libc::iovec]) -> io::Result<Moved> {
        loop {
            // SAFETY: the caller holds the guest buffers, and only the kernel writes there.
            let count = unsafe { libc::readv(self.fd(), iovecs.as_ptr(), count_of(iovecs)) };
            if let Some(moved) = moved(count)? {
                return Ok(moved);
            }
        }
    }

    /// Writes one frame from guest memory; the iovecs as in [`read`](Self::read).
    pub fn write(&self, iovecs: &[libc::iovec]) -> io::Result<Moved> {
        loop {
            // SAFETY: the caller holds the guest buffers, and the kernel only reads there.
            let count = unsafe { libc::writev(self.fd(), iovecs.as_ptr(), count_of(iovecs)) };
            if let Some(moved) = moved(count)? {
                return Ok(moved);
            }
        }
    }
}

fn count_of(iovecs: &[libc::iovec]) -> libc::c_int {
    iovecs.len().min(crate::virtio::chain::MAX_DESCRIPTORS) as libc::c_int
}

/// `None`: interrupted, try again.
fn moved(count: isize) -> io::Result<Option<Moved>> {
    if let Ok(count) = usize::try_from(count) {
        return Ok(Some(Moved::Bytes(count)));
    }
    let error = io::Error::last_os_error();
    match error.kind() {
        io::ErrorKind::Interrupted => Ok(None),
        io::ErrorKind::WouldBlock => Ok(Some(Moved::NotNow)),
        _ => Err(error),
    }
}

fn check(result: libc::c_int, what: &'static str) -> Result<libc::c_int, TapError> {
    if result < 0 { Err(TapError::Setting { what, source: io::Error::last_os_error() }) } else { Ok(result) }
}

fn flags(fd: RawFd) -> io::Result<i32> {
    // SAFETY: all zeroes is a valid ifreq: its members are integers, arrays and unions of them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes one ifreq, which is alive for the call.
    if unsafe { libc::ioctl(fd, libc::TUNGETIFF as libc::Ioctl, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: TUNGETIFF fills the flags, and any bytes are valid ones.
    Ok(i32::from(unsafe { request.ifr_ifru.ifru_flags }))
}

fn offloads(features: Features) -> u32 {
    // The kernel's rule and the specification's: no segments without checksums, no ECN without segments.
    if !features.has(Features::GUEST_CSUM) {
        return 0;
    }
    let mut offloads = TUN_F_CSUM;
    for (feature, flag) in [(Features::GUEST_TSO4, TUN_F_TSO4), (Features::GUEST_TSO6, TUN_F_TSO6)] {
        if features.has(feature) {
            offloads |= flag;
        }
    }
    if offloads != TUN_F_CSUM && features.has(Features::GUEST_ECN) {
        offloads |= TUN_F_TSO_ECN;
    }
    offloads
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_never_offloaded_without_checksums() {
        assert_eq!(offloads(Features::GUEST_TSO4 | Features::GUEST_ECN), 0);
        assert_eq!(offloads(Features::GUEST_CSUM | Features::GUEST_ECN), TUN_F_CSUM);
        let all = Features::GUEST_CSUM | Features::GUEST_TSO4 | Features::GUEST_TSO6 | Features::GUEST_ECN;
        assert_eq!(offloads(all), TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN);
    }

    #[test]
    fn a_file_that_is_no_tap_is_refused() {
        let error = Tap::new(tempfile::tempfile().unwrap()).unwrap_err();
        assert!(matches!(error, TapError::NotATap(_)), "{error}");
    }
}
