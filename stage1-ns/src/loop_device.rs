//! A file as a block device (loop(4)), for filesystems that mount from nothing else.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

/// How often another process may be faster to take the device that was free.
const ATTEMPTS: u32 = 100;

// Of linux/loop.h.
const LOOP_CONFIGURE: libc::c_ulong = 0x4c0a;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct LoopInfo {
    /// Device, inode, rdevice, offset, size limit.
    head: [u64; 5],
    /// Number, encryption type, encryption key size.
    middle: [u32; 3],
    flags: u32,
    /// Names of file and encryption, and the key.
    names: [u8; 64 + 64 + 32],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// A loop device that frees itself when nobody has it open or mounted any more.
#[derive(Debug)]
pub struct LoopDevice {
    /// Its path.
    pub path: PathBuf,
    /// Keeps the device until it is mounted.
    _open: File,
}

impl LoopDevice {
    /// Attaches a file.
    ///
    /// # Errors
    /// Those of opening `/dev/loop-control` and the device, and of the device's ioctls; the first of these are usually due to a
    /// host without the module `loop`.
    pub fn attach(file: &File, read_only: bool) -> io::Result<Self> {
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        for _ in 0..ATTEMPTS {
            // SAFETY: takes no argument.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            if number < 0 {
                return Err(io::Error::last_os_error());
            }
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = OpenOptions::new().read(true).write(!read_only).open(&path)?;
            match configure(&device, file, read_only) {
                Ok(()) => return Ok(Self { path, _open: device }),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::from_raw_os_error(libc::EBUSY))
    }
}

fn configure(device: &File, file: &File, read_only: bool) -> io::Result<()> {
    let flags = LO_FLAGS_AUTOCLEAR | if read_only { LO_FLAGS_READ_ONLY } else { 0 };
    let info = LoopInfo { head: [0; 5], middle: [0; 3], flags, names: [0; 160], init: [0; 2] };
    let config = LoopConfig { fd: file.as_raw_fd() as u32, block_size: 0, info, reserved: [0; 8] };
    // SAFETY: the structure has the layout the kernel reads, and lives through the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_have_the_kernels_size() {
        assert_eq!(size_of::<LoopInfo>(), 232);
        assert_eq!(size_of::<LoopConfig>(), 304);
    }

    #[test]
    fn an_attached_file_is_read_through_the_device_and_let_go() {
        use std::io::{Read, Write};
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 4096]).unwrap();
        let device = match LoopDevice::attach(&file, true) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                println!("skipped: no loop devices here");
                return;
            }
            other => other.unwrap(),
        };
        let mut read = Vec::new();
        File::open(&device.path).unwrap().read_to_end(&mut read).unwrap();
        assert_eq!(read, [7; 4096]);
    }
}
