//! Boots an ELF kernel by the PVH protocol (Xen's `docs/misc/pvh.pandoc`): segments copied from the file,
//! and a start info with memory map, command line and initramfs.

use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, BootSource, Entry, Placed, elf, layout};
use crate::memory::{self, GuestMemory, HUGE_PAGE, PAGE_SIZE};

const START_MAGIC: u32 = 0x336e_c578;
const TYPE_RAM: u32 = 1;
const TYPE_RESERVED: u32 = 2;

/// Loads an ELF kernel and its initramfs, and writes the start info.
///
/// # Errors
/// [`BootError`].
pub(super) fn load(memory: &GuestMemory, source: &BootSource) -> Result<Entry, BootError> {
    let kernel = elf::parse(&source.kernel)?;
    let address = kernel.pvh_entry.ok_or_else(|| BootError::NoPvhEntry { path: source.kernel.path.clone() })?;
    super::check_room(memory, source, kernel.end())?;
    for start in kernel.sparse_stretches(HUGE_PAGE) {
        memory::prefer_small_pages(memory, GuestAddress(start), HUGE_PAGE);
    }
    for segment in &kernel.segments {
        source.kernel.place(memory, segment.address, segment.offset, segment.file_size)?;
    }
    // Right behind the kernel, where the guest's first allocations follow: the fewer huge pages a boot touches, the
    // fewer the host must find and clear.
    let behind_kernel = kernel.end().next_multiple_of(PAGE_SIZE);
    let initramfs = super::place_initramfs(memory, source.initramfs.as_ref(), |_| behind_kernel)?;
    write_start_info(memory, initramfs)?;
    Ok(Entry::Pvh { address })
}

fn write_start_info(memory: &GuestMemory, initramfs: Option<Placed>) -> Result<(), BootError> {
    let map = super::memory_map(memory);
    let info = hvm_start_info {
        magic: START_MAGIC,
        version: 1,
        nr_modules: u32::from(initramfs.is_some()),
        modlist_paddr: layout::MODULES,
        cmdline_paddr: layout::COMMAND_LINE,
        memmap_paddr: layout::MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    memory.write_obj(info, GuestAddress(layout::START_INFO))?;
    if let Some(Placed { start, length }) = initramfs {
        let module = hvm_modlist_entry { paddr: start, size: length, ..Default::default() };
        memory.write_obj(module, GuestAddress(layout::MODULES))?;
    }
    let mut at = layout::MEMORY_MAP;
    for (addr, size, is_ram) in map {
        let type_ = if is_ram { TYPE_RAM } else { TYPE_RESERVED };
        let entry = hvm_memmap_table_entry { addr, size, type_, ..Default::default() };
        memory.write_obj(entry, GuestAddress(at))?;
        at += size_of::<hvm_memmap_table_entry>() as u64;
    }
    Ok(())
}
