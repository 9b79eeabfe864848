//! A directory's data: blocks of entries sorted by name, each followed by its names.

use super::ondisk::{BLOCK, DIRENT_SIZE, FileType};

/// One entry of a directory.
#[derive(Debug, Clone, Copy)]
pub struct Dirent<'a> {
    pub name: &'a [u8],
    pub nid: u64,
    pub file_type: FileType,
}

/// How many of the entries fit into one block, and the bytes they take.
fn fill_block<'a>(names: impl Iterator<Item = &'a [u8]>) -> (usize, usize) {
    let (mut count, mut used) = (0, 0);
    for name in names {
        let more = used + DIRENT_SIZE + name.len();
        if more > BLOCK {
            break;
        }
        (count, used) = (count + 1, more);
    }
    (count, used)
}

/// Size of a directory with these names, which must be sorted and hold `.` and `..`.
pub fn size(names: &[&[u8]]) -> u64 {
    let (mut rest, mut size) = (names, 0);
    loop {
        let (count, used) = fill_block(rest.iter().copied());
        rest = &rest[count..];
        if rest.is_empty() {
            return size + used as u64;
        }
        size += BLOCK as u64;
    }
}

/// The bytes of a directory, [`size`] of them: every block but the last is full-sized.
pub fn encode(entries: &[Dirent<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = entries;
    loop {
        let (count, _) = fill_block(rest.iter().map(|entry| entry.name));
        let (block, later) = rest.split_at(count);
        let mut name_offset = count * DIRENT_SIZE;
        for entry in block {
            bytes.extend(entry.nid.to_le_bytes());
            bytes.extend((name_offset as u16).to_le_bytes());
            bytes.extend([entry.file_type as u8, 0]);
            name_offset += entry.name.len();
        }
        for entry in block {
            bytes.extend_from_slice(entry.name);
        }
        rest = later;
        if rest.is_empty() {
            return bytes;
        }
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sizes_agree_and_blocks_hold_whole_entries(
            names in proptest::collection::btree_set(proptest::collection::vec(1u8..=255, 1..=255), 1..300)
        ) {
            let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
            let entries: Vec<Dirent<'_>> = names
                .iter()
                .map(|&name| Dirent { name, nid: 7, file_type: FileType::Regular })
                .collect();
            let bytes = encode(&entries);
            prop_assert_eq!(bytes.len() as u64, size(&names));
            let mut read = Vec::new();
            for block in bytes.chunks(BLOCK) {
                let offset = |i: usize| usize::from(u16::from_le_bytes([block[i * 12 + 8], block[i * 12 + 9]]));
                let count = offset(0) / DIRENT_SIZE;
                for i in 0..count {
                    let end = if i + 1 < count { offset(i + 1) } else { block.len() };
                    let name = &block[offset(i)..end];
                    let end = name.iter().position(|&b| b == 0).unwrap_or(name.len());
                    read.push(name[..end].to_vec());
                }
            }
            prop_assert_eq!(read, names.iter().map(|n| n.to_vec()).collect::<Vec<_>>());
        }
    }
}
