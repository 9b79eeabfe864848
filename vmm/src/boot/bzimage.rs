//! Boots a bzImage by Linux's 64-bit protocol (Linux `Documentation/arch/x86/boot.rst`).

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, BootSource, Entry, Placed, layout};
use crate::memory::{GuestMemory, PAGE_SIZE};

/// Offset of the header's magic in the file.
const MAGIC_OFFSET: u64 = 0x202;
const MAGIC: [u8; 4] = *b"HdrS";
/// Where the protocol's 64-bit entry lies behind the loaded kernel's start.
const ENTRY_64: u64 = 0x200;
/// `xloadflags`: the kernel has a 64-bit entry.
const XLF_KERNEL_64: u16 = 1;
/// `type_of_loader`: none of the registered ones.
const LOADER_UNDEFINED: u8 = 0xff;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Loads a bzImage and its initramfs, and writes boot parameters and page tables.
///
/// # Errors
/// [`BootError`].
pub(super) fn load(memory: &GuestMemory, source: &BootSource) -> Result<Entry, BootError> {
    let kernel = &source.kernel;
    if kernel.length < MAGIC_OFFSET + 4 || kernel.read(MAGIC_OFFSET, 4)? != MAGIC {
        return Err(kernel.not_a_kernel("it is neither an ELF file nor a bzImage"));
    }
    // While it unpacks itself the kernel needs `init_size` bytes from where it is loaded.
    let init_size = kernel.read(0x260, 4)?;
    let init_size = u64::from(u32::from_le_bytes([init_size[0], init_size[1], init_size[2], init_size[3]]));
    super::check_room(memory, source, layout::HIGH_MEMORY + init_size.max(kernel.length))?;
    let mut file = &kernel.file;
    let loaded = BzImage::load(memory, Some(GuestAddress(layout::HIGH_MEMORY)), &mut file, None)
        .map_err(|_| kernel.not_a_kernel("its bzImage header is damaged"))?;
    let mut header = loaded.setup_header.unwrap_or_default();
    if header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(kernel.not_a_kernel("it has no 64-bit entry"));
    }
    // As high as the kernel takes it: what it unpacks itself to is below.
    let end = super::low_memory_end(memory).min(u64::from(header.initrd_addr_max) + 1);
    let below_end = |length| end.saturating_sub(length) / PAGE_SIZE * PAGE_SIZE;
    let initramfs = super::place_initramfs(memory, source.initramfs.as_ref(), below_end)?;
    header.type_of_loader = LOADER_UNDEFINED;
    header.cmd_line_ptr = layout::COMMAND_LINE as u32;
    header.cmdline_size = source.command_line.len() as u32;
    if let Some(Placed { start, length }) = initramfs {
        // Both lie below the device hole, and so below 4 GiB.
        header.ramdisk_image = start as u32;
        header.ramdisk_size = length as u32;
    }
    let mut params = boot_params { hdr: header, ..Default::default() };
    for (slot, (addr, size, is_ram)) in params.e820_table.iter_mut().zip(super::memory_map(memory)) {
        let type_ = if is_ram { E820_RAM } else { E820_RESERVED };
        *slot = boot_e820_entry { addr, size, type_ };
        params.e820_entries += 1;
    }
    memory.write_obj(params, GuestAddress(layout::ZERO_PAGE))?;
    write_page_tables(memory)?;
    Ok(Entry::Linux64 { address: layout::HIGH_MEMORY + ENTRY_64 })
}

/// Identity-maps the first GiB with 2 MiB pages.
fn write_page_tables(memory: &GuestMemory) -> Result<(), BootError> {
    const PRESENT_WRITABLE: u64 = 0x3;
    const HUGE: u64 = 0x80;
    let (pml4, pdpt, pd) = (layout::PAGE_TABLES, layout::PAGE_TABLES + 0x1000, layout::PAGE_TABLES + 0x2000);
    memory.write_obj(pdpt | PRESENT_WRITABLE, GuestAddress(pml4))?;
    memory.write_obj(pd | PRESENT_WRITABLE, GuestAddress(pdpt))?;
    for n in 0..512_u64 {
        memory.write_obj((n << 21) | PRESENT_WRITABLE | HUGE, GuestAddress(pd + n * 8))?;
    }
    Ok(())
}
