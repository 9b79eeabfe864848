//! The MP table: tells a kernel without ACPI of its CPUs, its IOAPIC and how interrupts are wired
//! (Intel MultiProcessor Specification 1.4, chapter 4).

use vm_memory::{Bytes, GuestAddress};

use super::{BootError, layout};
use crate::memory::GuestMemory;

/// Interrupt lines of the IOAPIC.
pub const IOAPIC_PINS: u8 = 24;

/// Most CPUs: their entries and the others must fit before the floating pointer, and APIC ids are 8 bits.
pub const MAX_VCPUS: u8 = 128;

const LAPIC_ADDRESS: u32 = 0xfee0_0000;
const IOAPIC_ADDRESS: u32 = 0xfec0_0000;
const APIC_VERSION: u8 = 0x14;
const SPEC_1_4: u8 = 4;
const ISA_BUS: u8 = 0;
const ALL_APICS: u8 = 0xff;

const ENTRY_PROCESSOR: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IOAPIC: u8 = 2;
const ENTRY_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;

const CPU_ENABLED: u8 = 1;
const CPU_BOOT: u8 = 2;
const INTERRUPT_VECTORED: u8 = 0;
const INTERRUPT_NMI: u8 = 1;
const INTERRUPT_EXTERNAL: u8 = 3;

/// Writes the floating pointer and the table.
///
/// # Errors
/// [`BootError::Write`] if guest memory is smaller than a megabyte.
pub fn write(memory: &GuestMemory, vcpus: u8) -> Result<(), BootError> {
    memory.write_slice(&table(vcpus), GuestAddress(layout::MP_TABLE))?;
    memory.write_slice(&floating_pointer(), GuestAddress(layout::MP_POINTER))?;
    Ok(())
}

fn floating_pointer() -> Vec<u8> {
    let mut bytes = b"_MP_".to_vec();
    bytes.extend((layout::MP_TABLE as u32).to_le_bytes());
    // Length in 16-byte units, version, checksum, five feature bytes (0: the table below is used).
    bytes.extend([1, SPEC_1_4, 0, 0, 0, 0, 0, 0]);
    set_checksum(&mut bytes, 10);
    bytes
}

fn table(vcpus: u8) -> Vec<u8> {
    let ioapic_id = vcpus;
    let mut entries = Vec::new();
    let mut count: u16 = 0;
    let mut entry = |bytes: &[u8]| {
        entries.extend_from_slice(bytes);
        count += 1;
    };
    for id in 0..vcpus {
        let flags = CPU_ENABLED | if id == 0 { CPU_BOOT } else { 0 };
        let mut bytes = [0; 20];
        bytes[..4].copy_from_slice(&[ENTRY_PROCESSOR, id, APIC_VERSION, flags]);
        // Signature: family 6; features: FPU and APIC.
        bytes[4..8].copy_from_slice(&0x600_u32.to_le_bytes());
        bytes[8..12].copy_from_slice(&0x201_u32.to_le_bytes());
        entry(&bytes);
    }
    entry(&[ENTRY_BUS, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' ']);
    let [a, b, c, d] = IOAPIC_ADDRESS.to_le_bytes();
    entry(&[ENTRY_IOAPIC, ioapic_id, APIC_VERSION, 1, a, b, c, d]);
    for pin in 0..IOAPIC_PINS {
        entry(&[ENTRY_INTERRUPT, INTERRUPT_VECTORED, 0, 0, ISA_BUS, pin, ioapic_id, pin]);
    }
    entry(&[ENTRY_LOCAL_INTERRUPT, INTERRUPT_EXTERNAL, 0, 0, ISA_BUS, 0, 0, 0]);
    entry(&[ENTRY_LOCAL_INTERRUPT, INTERRUPT_NMI, 0, 0, ISA_BUS, 0, ALL_APICS, 1]);
    with_header(&entries, count)
}

fn with_header(entries: &[u8], count: u16) -> Vec<u8> {
    let length = (44 + entries.len()) as u16;
    let mut table = b"PCMP".to_vec();
    table.extend(length.to_le_bytes());
    table.extend([SPEC_1_4, 0]);
    table.extend(b"PODVM   ");
    table.extend(b"VIRTUAL     ");
    table.extend([0; 6]);
    table.extend(count.to_le_bytes());
    table.extend(LAPIC_ADDRESS.to_le_bytes());
    table.extend([0; 4]);
    table.extend(entries);
    set_checksum(&mut table, 7);
    table
}

/// Makes all bytes add up to zero.
fn set_checksum(bytes: &mut [u8], at: usize) {
    let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    bytes[at] = sum.wrapping_neg();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn checksums_add_up_to_zero() {
        assert_eq!(sum(&floating_pointer()), 0);
        assert_eq!(sum(&table(3)), 0);
        assert_eq!(floating_pointer().len(), 16);
    }

    #[test]
    fn the_largest_table_ends_before_the_floating_pointer() {
        assert!(layout::MP_TABLE + table(MAX_VCPUS).len() as u64 <= layout::MP_POINTER);
    }

    #[test]
    fn every_cpu_has_an_entry_and_only_the_first_is_the_boot_cpu() {
        let table = table(4);
        let cpus: Vec<_> = table[44..].chunks_exact(20).take(4).map(|e| (e[0], e[1], e[3])).collect();
        assert_eq!(cpus, [(0, 0, 3), (0, 1, 1), (0, 2, 1), (0, 3, 1)]);
        assert_eq!(u16::from_le_bytes([table[34], table[35]]), 4 + 2 + 24 + 2);
    }
}
