//! Files with holes.

use super::*;

#[test]
fn a_huge_sparse_file_costs_only_its_data() {
    let map = format!("2\n4096\n3\n{}\n2\n", (1u64 << 40) - 2);
    let mut data = map.into_bytes();
    data.resize(512, 0);
    data.extend(b"abcde");
    let sparse = Member::file("placeholder", data)
        .record("GNU.sparse.major", "1")
        .record("GNU.sparse.minor", "0")
        .record("GNU.sparse.name", "huge")
        .record("GNU.sparse.realsize", (1u64 << 40).to_string());
    let bytes = try_build(&archive(&[sparse]), &Limits::default()).unwrap();
    // A map of 2^19 chunks of 2 MiB, and the two chunks that hold data.
    assert!(bytes.len() < 8 << 20, "{}", bytes.len());
}

/// A file of this size with a byte of data at each multiple of `step`.
fn dotted(size: u64, step: u64) -> Member {
    let offsets: Vec<u64> = (0..size / step).map(|number| number * step).collect();
    let map: Vec<String> = offsets.iter().map(|offset| format!("{offset},1")).collect();
    Member::file("dotted", vec![b'.'; offsets.len()])
        .record("GNU.sparse.size", size.to_string())
        .record("GNU.sparse.map", map.join(","))
}

#[test]
fn holes_that_would_be_stored_as_zeros_are_counted() {
    // Chunks of half a MiB, so 2 GiB of them from a few KiB of archive.
    let error = error_of(&[dotted(256 << 30, 64 << 20)]);
    assert!(error.contains("dotted: the layer's files with holes would be stored with more than 1024 MiB"), "{error}");
    // What is stored whole is counted as well, and that of several files together.
    let limits = Limits { padding_bytes: 1 << 20, ..Limits::default() };
    let small = |members: &[Member]| try_build(&archive(members), &limits).map(|image| image.len());
    let whole = || dotted(600 << 10, 4 << 10);
    assert!(small(&[whole()]).is_ok());
    assert!(small(&[whole(), whole()]).unwrap_err().contains("more than 1 MiB of zeros"));
    // An archive that is as large itself may have them.
    assert!(small(&[Member::file("large", vec![1; 2 << 20]), whole(), whole()]).is_ok());
}

#[test]
fn holes_read_as_zeros() {
    let size = 300_000usize;
    let sparse = Member::file("s", b"headmidtail")
        .record("GNU.sparse.size", size.to_string())
        .record("GNU.sparse.map", format!("0,4,100001,3,{},4", size - 4));
    let files = files_of(&[sparse]);
    let file = get(&files, "s");
    assert_eq!(file.layout, 4, "it has a chunk map");
    let mut expected = vec![0; size];
    expected[..4].copy_from_slice(b"head");
    expected[100_001..100_004].copy_from_slice(b"mid");
    expected[size - 4..].copy_from_slice(b"tail");
    assert_eq!(file.data, expected);
}
