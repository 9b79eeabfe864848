//! Puts a kernel, its initramfs and its command line into guest memory, and says where CPU 0 starts.
//!
//! Two kinds of kernel are known: an ELF `vmlinux` with a PVH entry ([`pvh`]), and a bzImage by Linux's 64-bit boot
//! protocol ([`bzimage`]). The low megabyte is laid out in [`layout`].

pub mod bzimage;
pub mod elf;
pub mod mptable;
pub mod pvh;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress, GuestMemory as _, GuestMemoryRegion};

use crate::memory::{self, GuestMemory, MMIO_HOLE};

/// Where things are in the guest's low memory.
pub mod layout {
    /// The GDT that CPUs start with.
    pub const GDT: u64 = 0x500;
    /// PVH's `hvm_start_info`.
    pub const START_INFO: u64 = 0x6000;
    /// PVH's list of modules.
    pub const MODULES: u64 = 0x6040;
    /// PVH's memory map.
    pub const MEMORY_MAP: u64 = 0x6080;
    /// Linux's `boot_params`.
    pub const ZERO_PAGE: u64 = 0x7000;
    /// Page tables for the 64-bit entry: three pages.
    pub const PAGE_TABLES: u64 = 0x9000;
    /// The command line.
    pub const COMMAND_LINE: u64 = 0x2_0000;
    /// End of the usable low memory; the MP table's body.
    pub const MP_TABLE: u64 = 0x9_f000;
    /// The MP floating pointer: the last KiB of base memory, where kernels look.
    pub const MP_POINTER: u64 = 0x9_fc00;
    /// Usable memory goes on here.
    pub const HIGH_MEMORY: u64 = 0x10_0000;
}

/// Longest command line Linux takes on x86 (COMMAND_LINE_SIZE), with its final zero byte.
pub const COMMAND_LINE_MAX: usize = 2048;

/// Memory that must be left beside kernel and initramfs, or no kernel gets as far as init.
const WORKING_MEMORY: u64 = 24 << 20;

/// Why a guest could not be made ready to boot.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file is not there or not readable.
    #[error("{what} {} cannot be opened; check the path and its permissions", path.display())]
    Open {
        /// Kernel or initramfs.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// What open(2) said.
        #[source]
        source: io::Error,
    },
    /// A file cannot be read or mapped.
    #[error("{what} {} cannot be loaded", path.display())]
    Load {
        /// Kernel or initramfs.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// The host's error.
        #[source]
        source: io::Error,
    },
    /// The file is neither an ELF for x86-64 nor a bzImage, or is damaged.
    #[error("{} is not a kernel that can be booted: {why}; give an x86-64 vmlinux (ELF) or bzImage", path.display())]
    NotAKernel {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// An ELF kernel without a PVH entry point.
    #[error("{} has no PVH entry; build the kernel with CONFIG_PVH=y, or give its bzImage", path.display())]
    NoPvhEntry {
        /// The path.
        path: PathBuf,
    },
    /// Kernel and initramfs do not fit.
    #[error("{given_mib} MiB of memory are too little: this kernel and initramfs need at least {needed_mib} MiB")]
    MemoryTooSmall {
        /// Configured size.
        given_mib: u64,
        /// Least size that can work.
        needed_mib: u64,
    },
    /// The command line is too long.
    #[error("the kernel command line has {length} bytes, the kernel takes at most {}; shorten it", COMMAND_LINE_MAX - 1)]
    CommandLineTooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// The command line contains a zero byte, which would end it early.
    #[error("the kernel command line contains a zero byte; remove it")]
    CommandLineZeroByte,
    /// Boot structures do not fit; memory is smaller than a megabyte.
    #[error("the boot structures cannot be written to guest memory")]
    Write(#[from] vm_memory::GuestMemoryError),
}

/// An open file that is part of the boot, with its path for messages.
#[derive(Debug)]
pub struct BootFile {
    what: &'static str,
    path: PathBuf,
    file: File,
    length: u64,
}

impl BootFile {
    /// Opens a kernel.
    ///
    /// # Errors
    /// [`BootError::Open`].
    pub fn kernel(path: &Path) -> Result<Self, BootError> {
        Self::open("kernel", path)
    }

    /// Opens an initramfs.
    ///
    /// # Errors
    /// [`BootError::Open`].
    pub fn initramfs(path: &Path) -> Result<Self, BootError> {
        Self::open("initramfs", path)
    }

    fn open(what: &'static str, path: &Path) -> Result<Self, BootError> {
        let opened = File::open(path).and_then(|file| {
            let metadata = file.metadata()?;
            if metadata.is_dir() { Err(io::ErrorKind::IsADirectory.into()) } else { Ok((file, metadata.len())) }
        });
        let (file, length) = opened.map_err(|source| BootError::Open { what, path: path.to_owned(), source })?;
        Ok(Self { what, path: path.to_owned(), file, length })
    }

    fn not_a_kernel(&self, why: &'static str) -> BootError {
        BootError::NotAKernel { path: self.path.clone(), why }
    }

    fn load_error(&self, source: io::Error) -> BootError {
        BootError::Load { what: self.what, path: self.path.clone(), source }
    }

    /// Reads exactly `count` bytes at `offset`; a file that ends before is no kernel.
    fn read(&self, offset: u64, count: usize) -> Result<Vec<u8>, BootError> {
        let mut bytes = vec![0; count];
        self.file.read_exact_at(&mut bytes, offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.not_a_kernel("it is cut short"),
            _ => self.load_error(error),
        })?;
        Ok(bytes)
    }

    fn place(&self, memory: &GuestMemory, at: u64, offset: u64, length: u64) -> Result<(), BootError> {
        memory::copy_file(memory, GuestAddress(at), &self.file, offset, length)
            .map_err(|source| self.load_error(source))
    }
}

/// What is booted.
#[derive(Debug)]
pub struct BootSource {
    /// The kernel.
    pub kernel: BootFile,
    /// The initial root file system, if any.
    pub initramfs: Option<BootFile>,
    /// The whole kernel command line.
    pub command_line: String,
}

/// How CPU 0 enters the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// 32-bit protected mode, EBX points to the start info.
    Pvh {
        /// Entry address.
        address: u64,
    },
    /// 64-bit mode with identity-mapped low memory, RSI points to the boot parameters.
    Linux64 {
        /// Entry address.
        address: u64,
    },
}

/// A piece of guest memory that something was placed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) start: u64,
    pub(crate) length: u64,
}

/// Loads everything and writes the boot structures, the MP table included.
///
/// # Errors
/// [`BootError`].
pub fn load(memory: &GuestMemory, source: &BootSource, vcpus: u8) -> Result<Entry, BootError> {
    write_command_line(memory, &source.command_line)?;
    mptable::write(memory, vcpus)?;
    let magic = source.kernel.read(0, 4)?;
    if magic == elf::MAGIC { pvh::load(memory, source) } else { bzimage::load(memory, source) }
}

fn write_command_line(memory: &GuestMemory, line: &str) -> Result<(), BootError> {
    if line.len() >= COMMAND_LINE_MAX {
        return Err(BootError::CommandLineTooLong { length: line.len() });
    }
    if line.contains('\0') {
        return Err(BootError::CommandLineZeroByte);
    }
    memory.write_slice(line.as_bytes(), GuestAddress(layout::COMMAND_LINE))?;
    memory.write_obj(0_u8, GuestAddress(layout::COMMAND_LINE + line.len() as u64))?;
    Ok(())
}

/// End of the RAM below the device hole.
fn low_memory_end(memory: &GuestMemory) -> u64 {
    memory
        .iter()
        .map(|region| region.start_addr().0 + region.len())
        .filter(|end| *end <= MMIO_HOLE.start)
        .max()
        .unwrap_or(0)
}

/// Checks that a kernel that ends at `kernel_end` has room, with the initramfs and memory to work in.
fn check_room(memory: &GuestMemory, source: &BootSource, kernel_end: u64) -> Result<(), BootError> {
    const MIB: u64 = 1 << 20;
    // The kernel unpacks the initramfs while the packed one is still there.
    let initramfs = source.initramfs.as_ref().map_or(0, |file| 2 * file.length);
    let needed = kernel_end.saturating_add(initramfs).saturating_add(WORKING_MEMORY);
    let given: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
    if given < needed || kernel_end > low_memory_end(memory) {
        return Err(BootError::MemoryTooSmall { given_mib: given / MIB, needed_mib: needed.div_ceil(MIB) });
    }
    Ok(())
}

/// Places the initramfs where `start` says for its length: the beginning of a page.
fn place_initramfs(
    memory: &GuestMemory,
    initramfs: Option<&BootFile>,
    start: impl FnOnce(u64) -> u64,
) -> Result<Option<Placed>, BootError> {
    let Some(file) = initramfs.filter(|file| file.length > 0) else { return Ok(None) };
    let start = start(file.length);
    file.place(memory, start, 0, file.length)?;
    Ok(Some(Placed { start, length: file.length }))
}

/// A memory map entry: start, length, and whether it is RAM (or else reserved).
type MapEntry = (u64, u64, bool);

/// The memory map as the guest is told it.
fn memory_map(memory: &GuestMemory) -> Vec<MapEntry> {
    let mut map = vec![(0, layout::MP_TABLE, true), (layout::MP_TABLE, layout::HIGH_MEMORY - layout::MP_TABLE, false)];
    for region in memory.iter() {
        let start = region.start_addr().0.max(layout::HIGH_MEMORY);
        let end = region.start_addr().0 + region.len();
        if end > start {
            map.push((start, end - start, true));
        }
    }
    map
}

#[cfg(test)]
mod tests;
