//! The parts of an ELF kernel that matter: loadable segments and the PVH entry note.
//!
//! ELF-64 as the System V ABI has it; the note is Xen's `XEN_ELFNOTE_PHYS32_ENTRY`, described in Xen's
//! `docs/misc/pvh.pandoc`. The file may be anything: every field is checked against the file's size.

use super::{BootError, BootFile};

/// First bytes of an ELF file.
pub const MAGIC: [u8; 4] = *b"\x7fELF";

const HEADER_SIZE: usize = 64;
const PROGRAM_HEADER_SIZE: usize = 56;
/// More program headers than any kernel has.
const MAX_PROGRAM_HEADERS: u16 = 64;
/// More bytes of notes than any kernel has.
const MAX_NOTE_BYTES: u64 = 64 << 10;

/// A stretch is sparse when less than one part in this many of it is used.
const SPARSE_FRACTION: u64 = 16;

const CLASS_64_LITTLE_ENDIAN: [u8; 2] = [2, 1];
const MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const XEN_PHYS32_ENTRY: u32 = 18;

/// A loadable segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where its bytes are in the file.
    pub offset: u64,
    /// Bytes in the file.
    pub file_size: u64,
    /// Guest-physical address.
    pub address: u64,
    /// Bytes in memory; what the file does not give is zero.
    pub memory_size: u64,
}

/// What an ELF kernel says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElfKernel {
    /// Segments to load.
    pub segments: Vec<Segment>,
    /// The PVH entry, if there is one.
    pub pvh_entry: Option<u64>,
}

impl ElfKernel {
    /// First address behind all segments.
    pub fn end(&self) -> u64 {
        self.segments.iter().map(|s| s.address + s.memory_size).max().unwrap_or(0)
    }

    /// The stretches of `unit` bytes, each at a multiple of it, of which the segments use next to nothing.
    pub fn sparse_stretches(&self, unit: u64) -> Vec<u64> {
        let used_of = |start: u64| -> u64 {
            let end = start + unit;
            self.segments
                .iter()
                .map(|s| (s.address + s.memory_size).min(end).saturating_sub(s.address.max(start)))
                .sum()
        };
        let is_sparse = |start: &u64| (1..unit / SPARSE_FRACTION).contains(&used_of(*start));
        (0..self.end().div_ceil(unit)).map(|number| number * unit).filter(is_sparse).collect()
    }
}

/// Reads the headers and notes of an ELF kernel.
///
/// # Errors
/// [`BootError::NotAKernel`] with what is wrong.
pub fn parse(file: &BootFile) -> Result<ElfKernel, BootError> {
    let header = file.read(0, HEADER_SIZE)?;
    if header[4..6] != CLASS_64_LITTLE_ENDIAN || u16_at(&header, 18) != MACHINE_X86_64 {
        return Err(file.not_a_kernel("it is an ELF file, but not for x86-64"));
    }
    let (table, entry_size, count) = (u64_at(&header, 32), u16_at(&header, 54), u16_at(&header, 56));
    if usize::from(entry_size) != PROGRAM_HEADER_SIZE || count == 0 || count > MAX_PROGRAM_HEADERS {
        return Err(file.not_a_kernel("its program headers are damaged"));
    }
    let table = file.read(table, usize::from(count) * PROGRAM_HEADER_SIZE)?;
    let mut kernel = ElfKernel { segments: Vec::new(), pvh_entry: None };
    for entry in table.chunks_exact(PROGRAM_HEADER_SIZE) {
        let (offset, file_size) = (u64_at(entry, 8), u64_at(entry, 32));
        match u32_at(entry, 0) {
            PT_LOAD => {
                let (address, memory_size) = (u64_at(entry, 24), u64_at(entry, 40));
                let segment = Segment { offset, file_size, address, memory_size };
                check_segment(file, &segment)?;
                kernel.segments.push(segment);
            }
            PT_NOTE if file_size <= MAX_NOTE_BYTES => {
                let notes = file.read(offset, file_size as usize)?;
                kernel.pvh_entry = kernel.pvh_entry.or(find_pvh_entry(&notes));
            }
            _ => {}
        }
    }
    if kernel.segments.is_empty() {
        return Err(file.not_a_kernel("it has no segment to load"));
    }
    Ok(kernel)
}

fn check_segment(file: &BootFile, segment: &Segment) -> Result<(), BootError> {
    let file_end = segment.offset.checked_add(segment.file_size);
    if file_end.is_none_or(|end| end > file.length) {
        return Err(file.not_a_kernel("it is cut short"));
    }
    let memory_end = segment.address.checked_add(segment.memory_size);
    if segment.file_size > segment.memory_size || memory_end.is_none_or(|end| end > u64::from(u32::MAX)) {
        return Err(file.not_a_kernel("a segment's addresses are impossible"));
    }
    if segment.memory_size > 0 && segment.address < super::layout::HIGH_MEMORY {
        return Err(file.not_a_kernel("a segment lies in the first megabyte"));
    }
    Ok(())
}

/// Walks ELF notes: name size, descriptor size, type, name, descriptor, each padded to four bytes.
fn find_pvh_entry(mut notes: &[u8]) -> Option<u64> {
    while notes.len() >= 12 {
        let (name_size, value_size) = (u32_at(notes, 0) as usize, u32_at(notes, 4) as usize);
        let kind = u32_at(notes, 8);
        let value_start = 12_usize.checked_add(name_size.checked_next_multiple_of(4)?)?;
        let name = notes.get(12..12_usize.checked_add(name_size)?)?;
        let value = notes.get(value_start..value_start.checked_add(value_size)?)?;
        if kind == XEN_PHYS32_ENTRY && name == b"Xen\0" {
            return match value.len() {
                4 => Some(u64::from(u32_at(value, 0))),
                8 => Some(u64_at(value, 0)),
                _ => None,
            };
        }
        notes = notes.get(value_start.checked_add(value_size.checked_next_multiple_of(4)?)?..)?;
    }
    None
}

// The callers pass offsets within buffers whose size they have checked.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn note(name: &[u8], kind: u32, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((name.len() as u32).to_le_bytes());
        bytes.extend((value.len() as u32).to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        for part in [name, value] {
            bytes.extend(part);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    #[test]
    fn the_pvh_note_is_found_behind_others() {
        let mut notes = note(b"GNU\0", 18, &[1, 2, 3, 4]);
        notes.extend(note(b"Xen\0", 5, b"linux"));
        notes.extend(note(b"Xen\0", 18, &0x100_0370_u64.to_le_bytes()));
        assert_eq!(find_pvh_entry(&notes), Some(0x100_0370));
    }

    #[test]
    fn a_note_of_another_owner_is_no_pvh_entry() {
        assert_eq!(find_pvh_entry(&note(b"GNU\0", 18, &[0; 8])), None);
    }

    #[test]
    fn a_stretch_with_little_in_it_is_sparse_and_an_empty_one_is_not() {
        let segment = |address, memory_size| Segment { offset: 0, file_size: 0, address, memory_size };
        let segments = vec![segment(0x20_0000, 0x10_0000), segment(0x40_1000, 0x2000), segment(0x5f_f000, 0x8000)];
        let kernel = ElfKernel { segments: [segments, vec![segment(0xa0_0000, 0x20_0000)]].concat(), pvh_entry: None };
        assert_eq!(kernel.sparse_stretches(0x20_0000), [0x40_0000, 0x60_0000]);
    }

    proptest! {
        #[test]
        fn arbitrary_notes_never_panic(notes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = find_pvh_entry(&notes);
        }
    }
}
