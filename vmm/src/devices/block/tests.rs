//! The disk as a driver sees it.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use super::*;
use crate::devices::testing::{Bench, Buffer, survives_hostile_rings};

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

fn file_of(bytes: &[u8]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

fn header(kind: u32, sector: u64) -> Buffer {
    Buffer::readable(&[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat())
}

/// Sends one request; returns what was written to the guest, the status last.
fn request(bench: &mut Bench<Block>, buffers: &[Buffer]) -> Vec<u8> {
    let head = bench.add_chain(0, buffers);
    bench.kick(0);
    assert_eq!(bench.used(0).len(), 1);
    bench.written(0, head)
}

fn read(bench: &mut Bench<Block>, sector: u64, length: u32) -> Vec<u8> {
    request(bench, &[header(0, sector), Buffer::writable(length), Buffer::writable(1)])
}

#[test]
fn what_is_written_is_read_back_and_reaches_the_file() {
    let file = file_of(&[7; 8192]);
    let mut bench = Bench::start(Block::new(Disk::writable(file.try_clone().unwrap()).unwrap(), "disk"));
    let answer = request(&mut bench, &[header(1, 3), Buffer::readable(&[9; 1024]), Buffer::writable(1)]);
    assert_eq!(answer, [OK]);
    let answer = read(&mut bench, 2, 2048);
    assert_eq!(answer, [&[7; 512][..], &[9; 1024], &[7; 512], &[OK]].concat());
    let mut bytes = [0; 512];
    file.read_exact_at(&mut bytes, 3 * 512).unwrap();
    assert_eq!(bytes, [9; 512]);
    assert_eq!(request(&mut bench, &[header(4, 0), Buffer::writable(1)]), [OK]);
}

#[test]
fn a_disk_of_pieces_reads_as_one_with_zeroes_between() {
    let pieces = vec![
        Extent::bytes(0, vec![1; 700]),
        Extent::file(1024, file_of(&[2; 1000])).unwrap(),
        Extent::bytes(4096, vec![3; 10]),
    ];
    let disk = Disk::read_only(pieces).unwrap();
    assert_eq!(disk.size(), 4096 + 512);
    let mut bench = Bench::start(Block::new(disk, "pieces"));
    let mut expected = vec![0; 4608];
    expected[..700].fill(1);
    expected[1024..2024].fill(2);
    expected[4096..4106].fill(3);
    expected.push(OK);
    assert_eq!(read(&mut bench, 0, 4608), expected);
    for sector in 0..9 {
        let start = sector as usize * 512;
        assert_eq!(read(&mut bench, sector, 512)[..512], expected[start..start + 512], "sector {sector}");
    }
}

#[test]
fn pieces_that_overlap_are_refused() {
    let pieces = vec![Extent::bytes(0, vec![1; 700]), Extent::bytes(512, vec![1; 1])];
    assert!(matches!(Disk::read_only(pieces), Err(DiskError::Overlap { start: 512 })));
}

#[test]
fn a_read_only_disk_refuses_every_change() {
    let disk = Disk::read_only(vec![Extent::file(0, file_of(&[7; 4096])).unwrap()]).unwrap();
    let mut bench = Bench::start(Block::new(disk, "ro"));
    let write = [header(1, 0), Buffer::readable(&[9; 512]), Buffer::writable(1)];
    assert_eq!(request(&mut bench, &write), [IO_ERROR]);
    let range = [&0_u64.to_le_bytes()[..], &8_u32.to_le_bytes(), &[0; 4]].concat();
    for kind in [11, 13] {
        let discard = [header(kind, 0), Buffer::readable(&range), Buffer::writable(1)];
        assert_eq!(request(&mut bench, &discard), [IO_ERROR]);
    }
    assert_eq!(read(&mut bench, 0, 512)[..512], [7; 512]);
}

#[test]
fn discarded_blocks_read_as_zeroes_and_free_their_room() {
    let file = file_of(&[7; 1 << 20]);
    let before = file.metadata().unwrap().blocks();
    let mut bench = Bench::start(Block::new(Disk::writable(file.try_clone().unwrap()).unwrap(), "disk"));
    let range = [&8_u64.to_le_bytes()[..], &1024_u32.to_le_bytes(), &[0; 4]].concat();
    let discard = [header(11, 0), Buffer::readable(&range), Buffer::writable(1)];
    assert_eq!(request(&mut bench, &discard), [OK]);
    assert_eq!(read(&mut bench, 8, 512)[..512], [0; 512]);
    assert_eq!(read(&mut bench, 7, 512)[..512], [7; 512]);
    assert!(file.metadata().unwrap().blocks() < before);
}

#[test]
fn what_lies_beyond_the_disk_is_an_error_in_the_status() {
    let mut bench = Bench::start(Block::new(Disk::writable(file_of(&[7; 4096])).unwrap(), "disk"));
    for (sector, length) in [(8, 512), (7, 1024), (u64::MAX, 512), (u64::MAX / 512, 512), (0, 100)] {
        let answer = read(&mut bench, sector, length);
        assert_eq!(answer.last(), Some(&IO_ERROR), "sector {sector}, {length} bytes");
    }
    assert_eq!(request(&mut bench, &[header(99, 0), Buffer::writable(1)]), [UNSUPPORTED]);
    assert_eq!(request(&mut bench, &[Buffer::readable(b"short"), Buffer::writable(1)]), [IO_ERROR]);
}

#[test]
fn the_identity_is_cut_to_twenty_bytes() {
    let disk = Disk::writable(file_of(&[7; 4096])).unwrap();
    let mut bench = Bench::start(Block::new(disk, "a-very-long-identity-indeed"));
    let answer = request(&mut bench, &[header(8, 0), Buffer::writable(20), Buffer::writable(1)]);
    assert_eq!(answer, b"a-very-long-identity\0");
}

#[test]
fn state_fits_only_a_disk_of_the_same_size() {
    let block = Block::new(Disk::writable(file_of(&[7; 4096])).unwrap(), "disk");
    let other = Disk::writable(file_of(&[7; 8192])).unwrap();
    assert!(Block::restore(other, block.save()).is_err());
    let same = Disk::writable(file_of(&[1; 4096])).unwrap();
    assert_eq!(Block::restore(same, block.save()).unwrap().save(), block.save());
}

#[test]
fn hostile_rings_only_stop_the_device() {
    survives_hostile_rings(|| Block::new(Disk::writable(file_of(&[7; 65536])).unwrap(), "disk"));
    survives_hostile_rings(|| {
        let pieces = vec![Extent::bytes(0, vec![1; 700]), Extent::file(1024, file_of(&[2; 1000])).unwrap()];
        Block::new(Disk::read_only(pieces).unwrap(), "pieces")
    });
}
