//! The layers' device: all image layers of a pod as partitions of one read-only disk, or of memory that is used as one.
//!
//! A VM has few interrupt lines and an image may have many layers, so the layers share one device. Its partition
//! table (UEFI specification 2.10, section 5, "GUID Partition Table") is made here, in memory; the partitions are the
//! layers' blobs in the image store. Partition N holds layer N.

use uuid::Uuid;

/// Bytes of a sector, the unit of the table.
const SECTOR: u64 = 512;
/// Partitions begin at multiples of this, so that they can be mapped by huge pages.
const ALIGNMENT: u64 = 2 << 20;
/// Partitions are whole pages, or they could not be mapped.
const PAGE: u64 = 4096;
/// Bytes of a partition entry.
const ENTRY_BYTES: usize = 128;
/// Fewest entries that a table may have room for.
const MIN_ENTRIES: usize = 128;
/// Most partitions that Linux gives a disk (`DISK_MAX_PARTS` less the disk itself).
pub const MAX_PARTITIONS: usize = 255;
/// Partition type "Linux filesystem data", in the table's mixed-endian byte order.
const LINUX_DATA: Uuid = Uuid::from_u128(0x0fc6_3daf_8483_4772_8e79_3d69_d847_7de4);
/// Identity of the disk and, with the partition's number, of each partition. Nothing looks for them by identity.
const DISK_IDENTITY: u128 = 0x706f_6476_6d00_4000_8000_6c61_7965_7273;

/// A disk of partitions: what is before, where each one is, and what is after.
#[derive(Debug, PartialEq, Eq)]
pub struct PartitionTable {
    /// Content of the disk's first bytes.
    pub head: Vec<u8>,
    /// Byte offset of each partition.
    pub offsets: Vec<u64>,
    /// Byte offset of `tail`.
    pub tail_offset: u64,
    /// Content of the disk's last bytes.
    pub tail: Vec<u8>,
}

/// Lays out a disk with one partition for each of these sizes in bytes, at most [`MAX_PARTITIONS`] of them.
pub fn lay_out(sizes: &[u64]) -> PartitionTable {
    assert!(sizes.len() <= MAX_PARTITIONS, "the caller bounds the number of partitions");
    let mut offsets = Vec::with_capacity(sizes.len());
    let mut end = ALIGNMENT;
    for size in sizes {
        offsets.push(end);
        end = (end + size.max(&1)).next_multiple_of(ALIGNMENT);
    }
    let entries = entries(sizes, &offsets);
    let entry_sectors = entries.len() as u64 / SECTOR;
    // The disk ends with a whole huge page, too.
    let last = (end + (entry_sectors + 1) * SECTOR).next_multiple_of(ALIGNMENT) / SECTOR - 1;
    let header = Header { last, entry_sectors, entry_count: (entries.len() / ENTRY_BYTES) as u32, entries: &entries };

    let mut head = protective_mbr(last);
    head.extend(header.primary());
    head.extend(&entries);
    let mut tail = entries.clone();
    tail.extend(header.backup());
    PartitionTable { head, offsets, tail_offset: (last - entry_sectors) * SECTOR, tail }
}

/// The partition entries (UEFI 5.3.3), padded to whole sectors.
fn entries(sizes: &[u64], offsets: &[u64]) -> Vec<u8> {
    let mut entries = Vec::new();
    for (number, (size, offset)) in sizes.iter().zip(offsets).enumerate() {
        entries.extend(LINUX_DATA.to_bytes_le());
        entries.extend(Uuid::from_u128(DISK_IDENTITY + 1 + number as u128).to_bytes_le());
        entries.extend((offset / SECTOR).to_le_bytes());
        entries.extend(((offset + size.max(&1)).next_multiple_of(PAGE) / SECTOR - 1).to_le_bytes());
        entries.extend([0; 80]); // attributes and name
    }
    entries.resize(sizes.len().max(MIN_ENTRIES).next_multiple_of(4) * ENTRY_BYTES, 0);
    entries
}

/// The protective master boot record (UEFI 5.2.3): one partition of type 0xEE over the whole disk.
fn protective_mbr(last: u64) -> Vec<u8> {
    let mut mbr = vec![0; SECTOR as usize];
    mbr[446..462].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0, 0, 0, 0]);
    mbr[458..462].copy_from_slice(&u32::try_from(last).unwrap_or(u32::MAX).to_le_bytes());
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    mbr
}

/// What both copies of the table's header say.
struct Header<'a> {
    /// The disk's last sector, where the backup header is.
    last: u64,
    entry_sectors: u64,
    entry_count: u32,
    entries: &'a [u8],
}

impl Header<'_> {
    fn primary(&self) -> Vec<u8> {
        self.write(1, self.last, 2)
    }

    fn backup(&self) -> Vec<u8> {
        self.write(self.last, 1, self.last - self.entry_sectors)
    }

    /// One sector (UEFI 5.3.2); its checksum counts its own field as zero.
    fn write(&self, this: u64, other: u64, entries_at: u64) -> Vec<u8> {
        let mut header = Vec::with_capacity(SECTOR as usize);
        header.extend(b"EFI PART");
        header.extend(0x0001_0000_u32.to_le_bytes());
        header.extend(92_u32.to_le_bytes());
        header.extend([0; 8]); // checksum, reserved
        header.extend(this.to_le_bytes());
        header.extend(other.to_le_bytes());
        header.extend((2 + self.entry_sectors).to_le_bytes()); // first usable sector
        header.extend((self.last - self.entry_sectors - 1).to_le_bytes()); // last usable sector
        header.extend(Uuid::from_u128(DISK_IDENTITY).to_bytes_le());
        header.extend(entries_at.to_le_bytes());
        header.extend(self.entry_count.to_le_bytes());
        header.extend((ENTRY_BYTES as u32).to_le_bytes());
        header.extend(crc32fast::hash(self.entries).to_le_bytes());
        let checksum = crc32fast::hash(&header);
        header[16..20].copy_from_slice(&checksum.to_le_bytes());
        header.resize(SECTOR as usize, 0);
        header
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};
    use std::process::Command;

    use super::*;

    #[test]
    fn partitions_are_aligned_and_do_not_overlap() {
        let table = lay_out(&[4096, ALIGNMENT, 1]);
        assert_eq!(table.offsets, [ALIGNMENT, 2 * ALIGNMENT, 3 * ALIGNMENT]);
        assert_eq!(table.tail_offset + table.tail.len() as u64, 5 * ALIGNMENT, "the disk ends with a whole huge page");
        assert!((table.head.len() as u64) < ALIGNMENT);
    }

    #[test]
    fn as_many_partitions_as_linux_takes_fit_before_the_first() {
        let table = lay_out(&[4096; MAX_PARTITIONS]);
        assert!((table.head.len() as u64) < ALIGNMENT);
        assert_eq!(table.tail.len() as u64 % SECTOR, 0);
    }

    #[test]
    fn sfdisk_reads_the_table_and_finds_no_fault() {
        let table = lay_out(&[4096, 3 << 20]);
        let mut disk = tempfile::NamedTempFile::new().unwrap();
        disk.write_all(&table.head).unwrap();
        disk.seek(SeekFrom::Start(table.tail_offset)).unwrap();
        disk.write_all(&table.tail).unwrap();
        let Ok(output) = Command::new("sfdisk").arg("--verify").arg(disk.path()).output() else {
            eprintln!("skipped: sfdisk is not installed");
            return;
        };
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("No errors detected"), "{said}");
        let dump = Command::new("sfdisk").arg("--dump").arg(disk.path()).output().unwrap();
        let dump = String::from_utf8_lossy(&dump.stdout).into_owned();
        assert_eq!(dump.lines().filter(|line| line.contains("start=")).count(), 2, "{dump}");
        assert!(dump.contains("start=        4096, size=           8"), "{dump}");
    }
}
