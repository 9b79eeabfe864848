//! What a layer becomes, seen through a reader of its own.

use std::io::{Read, Seek};

use proptest::prelude::*;

use super::reader::{self, File, Files};
use super::{Limits, build, image_digest, write_tar};
use crate::tar::Timestamp;
use crate::tar::builder::{Member, archive, pax_record, seal};

fn try_build(tar: &[u8], limits: &Limits) -> Result<Vec<u8>, String> {
    let mut image = tempfile::tempfile().unwrap();
    let tails = tempfile::tempfile().unwrap();
    let built = build(tar, &image, &tails, limits).map_err(|error| error.to_string())?;
    assert_eq!(image_digest(&image).unwrap(), built.digest);
    let mut bytes = Vec::new();
    image.rewind().unwrap();
    image.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, built.size);
    Ok(bytes)
}

fn files_of(members: &[Member]) -> Files {
    let bytes = try_build(&archive(members), &Limits::default()).unwrap();
    reader::read(&bytes)
}

fn error_of(members: &[Member]) -> String {
    try_build(&archive(members), &Limits::default()).expect_err("the layer is refused")
}

fn get<'a>(files: &'a Files, path: &str) -> &'a File {
    files.get(path.as_bytes()).unwrap_or_else(|| panic!("{path} is missing"))
}

fn paths(files: &Files) -> Vec<String> {
    files.keys().map(|path| String::from_utf8_lossy(path).into_owned()).collect()
}

fn opaque(file: &File) -> bool {
    file.xattrs.get(&(4, b"overlay.opaque".to_vec())).map(Vec::as_slice) == Some(b"y")
}

#[test]
fn an_empty_layer_is_an_empty_root() {
    let files = files_of(&[]);
    assert_eq!(paths(&files), [""]);
    assert_eq!((get(&files, "").mode, get(&files, "").links), (0o040755, 2));
}

#[test]
fn attributes_beyond_the_old_header_are_kept() {
    let member = Member { mode: 0o6755, ..Member::file("su", "x") }
        .record("uid", "4294967294")
        .record("gid", "3000000000")
        .record("mtime", "-1.5")
        .record("SCHILY.xattr.security.capability", b"\x01\0\0\x02=\n")
        .record("SCHILY.xattr.user.empty", "")
        .record("SCHILY.acl.access", "user::rw-,user:7:r--,group::r--,mask::r--,other::r--");
    let files = files_of(&[member, Member { mode: 0o1777, ..Member::directory("tmp/") }]);
    let file = get(&files, "su");
    assert_eq!((file.mode, file.uid, file.gid), (0o106755, 4294967294, 3000000000));
    assert_eq!(file.mtime, Timestamp { seconds: -2, nanos: 500_000_000 });
    assert_eq!(file.xattrs[&(6, b"capability".to_vec())], b"\x01\0\0\x02=\n");
    assert_eq!(file.xattrs[&(1, b"empty".to_vec())], b"");
    assert_eq!(file.xattrs[&(2, Vec::new())].len(), 4 + 5 * 8);
    assert_eq!(get(&files, "tmp").mode, 0o041777);
}

#[test]
fn labels_of_selinux_are_left_out() {
    let label = "system_u:object_r:etc_t:s0";
    let files = files_of(&[
        Member::file("a", "").record("RHT.security.selinux", label),
        Member::file("b", "").record("SCHILY.xattr.security.selinux", format!("{label}\0")),
    ]);
    assert!(get(&files, "a").xattrs.is_empty() && get(&files, "b").xattrs.is_empty());
}

#[test]
fn a_final_slash_makes_a_directory_only_of_what_has_no_type() {
    let files = files_of(&[Member::file("file/", "x"), Member::new("directory/", 0), Member::file("after", "y")]);
    assert_eq!((get(&files, "file").mode, &get(&files, "file").data[..]), (0o100644, &b"x"[..]));
    assert_eq!(get(&files, "directory").mode, 0o040644);
    assert_eq!(get(&files, "after").data, b"y");
}

#[test]
fn an_acl_that_only_repeats_the_mode_is_left_out() {
    let member = Member::file("a", "").record("SCHILY.acl.access", "user::rw-,group::r--,other::r--");
    assert!(get(&files_of(&[member]), "a").xattrs.is_empty());
}

#[test]
fn global_headers_are_passed_over() {
    let records = [("uid", "4242"), ("mtime", "77.5"), ("path", "other"), ("SCHILY.xattr.user.all", "1")];
    let data: Vec<u8> = records.iter().flat_map(|(key, value)| pax_record(key.as_bytes(), value.as_bytes())).collect();
    let global = Member { size: data.len() as u64, data, ..Member::new("global", b'g') };
    let files = files_of(&[Member::file("a", ""), global.clone(), Member::file("b", "x").record("gid", "7"), global]);
    assert_eq!(paths(&files), ["", "a", "b"]);
    let b = get(&files, "b");
    assert_eq!((b.uid, b.gid, b.mtime), (0, 7, Timestamp { seconds: 1, nanos: 0 }));
    assert!(b.xattrs.is_empty());
}

#[test]
fn devices_pipes_and_links_keep_their_nature() {
    let device = |name, kind, device| Member { device, ..Member::new(name, kind) };
    let files = files_of(&[
        device("null", b'3', (1, 3)),
        device("disk", b'4', (259, 0xfffff)),
        Member::new("pipe", b'6'),
        Member::symlink("short", "null"),
        Member::symlink("long", "t".repeat(4000)),
        Member::hard_link("also-long", "./long"),
    ]);
    assert_eq!((get(&files, "null").mode, &get(&files, "null").data[..]), (0o020644, &[3, 1, 0, 0][..]));
    assert_eq!(get(&files, "disk").mode & 0o170000, 0o060000);
    assert_eq!(get(&files, "disk").data, 0xfff1_03ff_u32.to_le_bytes());
    assert_eq!(get(&files, "pipe").mode, 0o010644);
    assert_eq!(get(&files, "short").data, b"null");
    assert_eq!(get(&files, "long").data, "t".repeat(4000).as_bytes());
    assert_eq!(get(&files, "long"), get(&files, "also-long"));
    assert_eq!(get(&files, "long").links, 2);
}

#[test]
fn the_last_entry_of_a_name_wins() {
    let files = files_of(&[
        Member::file("a", "first"),
        Member::hard_link("b", "a"),
        Member::file("a", "second"),
        Member::directory("d"),
        Member::file("d/inside", ""),
        Member { mode: 0o700, ..Member::directory("d") },
        Member::directory("gone"),
        Member::file("gone/inside", ""),
        Member::file("gone", "now a file"),
    ]);
    assert_eq!(paths(&files), ["", "a", "b", "d", "d/inside", "gone"]);
    assert_eq!((&get(&files, "a").data[..], get(&files, "a").links), (&b"second"[..], 1));
    assert_eq!((&get(&files, "b").data[..], get(&files, "b").links), (&b"first"[..], 1));
    assert_eq!(get(&files, "d").mode, 0o040700);
    assert_eq!(get(&files, "gone").data, b"now a file");
    assert_eq!(get(&files, "").links, 3);
}

#[test]
fn an_entry_of_another_name_renews_the_files_attributes() {
    let owned = |member: Member, uid, gid| Member { uid, gid, ..member };
    let renewed = |member: Member| Member { mode: 0o600, mtime: 5000, ..owned(member, 7, 8) };
    let capable = |name| Member::file(name, "").record("SCHILY.xattr.security.capability", b"\x01\0\0\x02");
    let files = files_of(&[
        Member::file("a", "x").record("SCHILY.xattr.user.a", "1"),
        renewed(Member::hard_link("b", "a")).record("SCHILY.xattr.user.b", "2"),
        owned(Member::symlink("link", "nowhere"), 1, 1),
        renewed(Member::hard_link("link-too", "link")),
        capable("kept"),
        Member::hard_link("kept-too", "kept"),
        capable("lost"),
        owned(Member::hard_link("lost-too", "lost"), 7, 0),
    ]);
    let is = |name: &str| {
        (get(&files, name).mode, get(&files, name).uid, get(&files, name).gid, get(&files, name).mtime.seconds)
    };
    assert_eq!(is("a"), (0o100600, 7, 8, 5000));
    assert_eq!(get(&files, "a"), get(&files, "b"));
    assert_eq!(get(&files, "a").xattrs.keys().collect::<Vec<_>>(), [&(1, b"a".to_vec()), &(1, b"b".to_vec())]);
    assert_eq!(is("link"), (0o120644, 7, 8, 1), "of links, only the owner");
    assert_eq!(get(&files, "kept").xattrs.len(), 1);
    assert!(get(&files, "lost").xattrs.is_empty(), "as with chown");
}

#[test]
fn a_small_file_whose_attributes_grow_keeps_its_data() {
    let grown = |name: &str, target: &str, size| {
        Member::hard_link(name, target).record(&format!("SCHILY.xattr.user.{name}"), vec![b'v'; size])
    };
    let files = files_of(&[
        Member::file("first", [1; 2000]),
        Member::file("second", [2; 2000]),
        grown("two", "second", 3000),
        Member::file("third", [3; 2000]),
        grown("three", "third", 1000),
        grown("three-more", "third", 5000),
        Member::file("fourth", [4; 2000]),
    ]);
    for (name, byte) in [("first", 1), ("second", 2), ("two", 2), ("third", 3), ("three-more", 3), ("fourth", 4)] {
        assert_eq!(get(&files, name).data, [byte; 2000], "{name}");
    }
    assert_eq!(get(&files, "third").xattrs.len(), 2);
}

#[test]
fn missing_parents_appear() {
    let files = files_of(&[Member::file("/a//./b/c", "x")]);
    assert_eq!(paths(&files), ["", "a", "a/b", "a/b/c"]);
    assert_eq!(get(&files, "a/b").mode, 0o040755);
}

#[test]
fn whiteouts_become_overlayfs_marks() {
    let files = files_of(&[
        Member::file("dir/.wh.gone", ""),
        Member::file("all/.wh..wh..opq", ""),
        Member::file("kept", "mine"),
        Member::file(".wh.kept", ""),
        Member::file(".wh.fresh", ""),
        Member::directory("fresh"),
        Member::file(".wh.deep", ""),
        Member::file("deep/er", ""),
        Member::file(".wh..wh.plnk/1", ""),
    ]);
    assert_eq!(paths(&files), ["", "all", "deep", "deep/er", "dir", "dir/gone", "fresh", "kept"]);
    let gone = get(&files, "dir/gone");
    assert_eq!((gone.mode & 0o170000, &gone.data[..]), (0o020000, &[0; 4][..]));
    assert_eq!(get(&files, "kept").data, b"mine");
    for (path, expected) in [("all", true), ("fresh", true), ("deep", true), ("dir", false)] {
        assert_eq!(opaque(get(&files, path)), expected, "{path}");
    }
}

#[test]
fn whiteouts_below_what_is_hidden_do_not_bring_it_back() {
    let files = files_of(&[
        Member::file(".wh.gone", ""),
        Member::file("gone/.wh.inside", ""),
        Member::file("gone/deep/er/.wh.inside", ""),
        Member::file(".wh.all", ""),
        Member::file("all/.wh..wh..opq", ""),
        Member::file("file", "x"),
        Member::file("file/.wh.inside", ""),
        Member::file("file/.wh..wh..opq", ""),
        Member::symlink("way", "gone"),
        Member::file("way/.wh.inside", ""),
    ]);
    assert_eq!(paths(&files), ["", "all", "file", "gone", "way"]);
    for hidden in ["all", "gone"] {
        assert_eq!((get(&files, hidden).mode & 0o170000, &get(&files, hidden).data[..]), (0o020000, &[0; 4][..]));
    }
    assert_eq!(get(&files, "file").data, b"x");
}

#[test]
fn a_layer_cannot_set_overlayfs_marks_itself() {
    let member = Member::directory("d")
        .record("SCHILY.xattr.trusted.overlay.redirect", "/etc")
        .record("SCHILY.xattr.trusted.mine", "1");
    let files = files_of(&[member]);
    assert_eq!(get(&files, "d").xattrs.keys().collect::<Vec<_>>(), [&(4, b"mine".to_vec())]);
}

#[test]
fn a_mark_fits_beside_all_the_attributes_that_a_directory_may_have() {
    let full = |last: usize| {
        let sizes = [65_525, 65_525, 65_525, last];
        let directory = Member::directory("d");
        let add =
            |member: Member, (number, size)| member.record(&format!("SCHILY.xattr.user.{number}"), vec![b'v'; size]);
        [sizes.into_iter().enumerate().fold(directory, add), Member::file("d/.wh..wh..opq", "")]
    };
    let files = files_of(&full(65_000));
    assert!(opaque(get(&files, "d")) && get(&files, "d").xattrs.len() == 6);
    assert!(error_of(&full(65_525)).contains("d: the extended attributes are larger than 256 KiB together"));
}

#[test]
fn symbolic_links_in_a_path_are_followed_inside_the_root_only() {
    let files = files_of(&[
        Member::directory("usr/lib"),
        Member::symlink("lib", "usr/lib"),
        Member::file("lib/a", "1"),
        Member::symlink("up", "../../../../etc"),
        Member::file("up/passwd", "2"),
        Member::symlink("abs", "/usr/./lib/.."),
        Member::file("abs/b", "3"),
        Member::hard_link("c", "lib/a"),
    ]);
    assert_eq!(
        paths(&files),
        ["", "abs", "c", "etc", "etc/passwd", "lib", "up", "usr", "usr/b", "usr/lib", "usr/lib/a"]
    );
    assert_eq!(get(&files, "c").nid, get(&files, "usr/lib/a").nid);
}

#[test]
fn hostile_names_and_links_are_refused_by_name() {
    let loops = [Member::symlink("x", "y"), Member::symlink("y", "x"), Member::file("x/f", "")];
    for (members, expected) in [
        (vec![Member::file("../x", "")], "../x: the name leads out of the root"),
        (vec![Member::file("a/../../x", "")], "leads out of the root"),
        (vec![Member::hard_link("h", "../../etc/shadow")], "h: the name leads out"),
        (vec![Member::hard_link("h", "/etc/shadow")], "hard link to /etc/shadow, which is not in this layer"),
        (vec![Member::directory("d"), Member::hard_link("h", "d")], "h: hard link to the directory d"),
        (vec![Member::hard_link("h", "/")], "hard link to the directory /"),
        (vec![Member::hard_link("h", "h")], "hard link to h, which is not in this layer"),
        (vec![Member::file(".wh.w", ""), Member::hard_link("h", "w")], "hard link to w"),
        (vec![Member::file("f", ""), Member::file("f/g", "")], "f/g: f is not a directory"),
        (loops.to_vec(), "x/f: too many levels of symbolic links"),
        (vec![Member::file("n".repeat(256), "")], "longer than 255 bytes"),
        (vec![Member::file("n/".repeat(2049), "")], "longer than 4095 bytes"),
        (vec![Member::file("", "").record("path", "a\0b")], "holds a NUL"),
        (vec![Member::file(".", "")], "must be a directory"),
        (vec![Member::symlink("s", "")], "s: the target of a symbolic link must have"),
        (vec![Member { device: (4096, 0), ..Member::new("c", b'3') }], "device number 4096:0"),
        (vec![Member::file("u", "").record("uid", "4294967296")], "u: its owner is not a 32-bit number"),
        (vec![Member::new("m", b'M')], "m: entries of type 'M' are not supported"),
    ] {
        let error = error_of(&members);
        assert!(error.contains(expected), "{error:?} should say {expected:?}");
    }
}

#[test]
fn truncated_and_lying_archives_are_refused() {
    let whole = archive(&[Member::file("f", [7; 1000])]);
    let limits = Limits::default();
    for cut in [1, 511, 513, 1000, 1511] {
        let error = try_build(&whole[..cut], &limits).unwrap_err();
        assert!(error.contains("truncated"), "{cut}: {error}");
    }
    // An archive may end after an entry without its end marker.
    assert!(try_build(&whole[..1536], &limits).is_ok());
    let mut wrong = whole.clone();
    wrong[0] ^= 1;
    assert!(try_build(&wrong, &limits).unwrap_err().contains("checksum"));
    let lying = Member { size: 1 << 40, ..Member::file("f", "short") };
    assert!(error_of(&[lying]).contains("larger than"));
    let lying = Member { size: 1 << 30, ..Member::file("f", "short") };
    assert!(error_of(&[lying]).contains("truncated"));
}

#[test]
fn limits_are_named_when_they_are_passed() {
    let limits =
        Limits { entries: 3, metadata_bytes: 1000, data_bytes: 5000, padding_bytes: 5000, stream_bytes: 20_000 };
    let small = |members: &[Member]| try_build(&archive(members), &limits).unwrap_err();
    let many: Vec<Member> = (0..4).map(|i| Member::directory(i.to_string())).collect();
    assert!(small(&many).contains("more than 3 entries"));
    let links = |count: u32| -> Vec<Member> {
        let links = (0..count).map(|number| Member::hard_link(format!("link{number}"), "f"));
        std::iter::once(Member::file("f", "")).chain(links).collect()
    };
    assert!(small(&links(3)).contains("more than 3 entries"), "each name counts");
    let short = Limits { entries: 1000, ..limits };
    assert!(try_build(&archive(&links(10)), &short).is_ok());
    assert!(try_build(&archive(&links(20)), &short).unwrap_err().contains("attributes of the layer are larger"));
    assert!(small(&[Member::symlink("s", "t".repeat(2000))]).contains("attributes of the layer are larger"));
    assert!(small(&[Member::file("f", [1; 6000])]).contains("files of the layer are larger"));
    let fill: Vec<Member> = (0..2).map(|_| Member::file("f", [1; 2400])).collect();
    assert!(try_build(&archive(&fill), &limits).is_ok());
    let mut long = archive(&fill);
    long.resize(30_000, 0);
    assert!(try_build(&long, &limits).unwrap_err().contains("unpacks to more than"));
}

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

#[test]
fn equal_archives_make_equal_images() {
    let tar = archive(&[Member::file("a", [1; 5000]), Member::directory("b"), Member::file("c", "x")]);
    let limits = Limits::default();
    assert_eq!(try_build(&tar, &limits), try_build(&tar, &limits));
    let other = archive(&[Member::file("a", [2; 5000]), Member::directory("b"), Member::file("c", "x")]);
    let uuid = |tar: &[u8]| try_build(tar, &limits).unwrap()[1024 + 48..1024 + 64].to_vec();
    assert_ne!(uuid(&tar), uuid(&other));
}

#[test]
fn a_directory_of_many_blocks_is_sorted_and_whole() {
    let members: Vec<Member> =
        (0..3000).map(|i| Member::file(format!("d/{:x<w$}", i * 7919 % 3000, w = i % 200), "")).collect();
    let files = files_of(&members);
    let names: std::collections::BTreeSet<Vec<u8>> = members.iter().map(|m| m.name.clone()).collect();
    assert_eq!(files.len(), names.len() + 2);
}

/// Takes so many bytes and no more: a damaged image may have files of any size.
struct Bounded(usize);

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 = self.0.checked_sub(bytes.len()).ok_or(std::io::ErrorKind::StorageFull)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// An image made from the archive that an image was made into.
fn there_and_back(image: &[u8]) -> Vec<u8> {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, image).unwrap();
    let mut tar = Vec::new();
    write_tar(&file, &mut tar).unwrap();
    try_build(&tar, &Limits::default()).unwrap()
}

/// All that users see of files, and which are one file.
fn seen(files: Files) -> Vec<(Vec<u8>, File, usize)> {
    let nids: Vec<u64> = files.values().map(|file| file.nid).collect();
    let first = |nid| nids.iter().position(|other| *other == nid).unwrap();
    files.into_iter().map(|(path, file)| (path, File { nid: 0, layout: 0, ..file.clone() }, first(file.nid))).collect()
}

#[test]
fn an_image_made_into_an_archive_and_back_is_the_same() {
    let members = [
        Member { mode: 0o1700, ..Member::directory("./") },
        Member::file("dir/.wh.gone", ""),
        Member::file("dir/.wh..wh..opq", ""),
        Member::file("dir/file", vec![1; 9000]).record("SCHILY.xattr.user.a", "1").record("mtime", "-1.5"),
        Member::hard_link("link", "dir/file"),
        Member::hard_link("another", "dir/file"),
        Member::symlink("long", "t/".repeat(2000)),
        Member { device: (1, 3), ..Member::new("null", b'3') },
        Member { device: (8, 1), ..Member::new("disk", b'4') },
        Member::new("pipe", b'6'),
        Member::file("n".repeat(200), "x"),
        Member::file("s", b"headtail").record("GNU.sparse.size", "300000").record("GNU.sparse.map", "0,4,299996,4"),
        Member::directory("e").record("SCHILY.acl.default", "user::rwx,group::r-x,user:7:rw-,mask::rwx,other::---"),
    ];
    let image = try_build(&archive(&members), &Limits::default()).unwrap();
    let again = there_and_back(&image);
    assert_eq!(seen(reader::read(&again)), seen(reader::read(&image)));
    assert_eq!(there_and_back(&again), again, "and from then on nothing changes");
}

/// A tree of random files with all they can have.
fn any_members() -> impl Strategy<Value = Vec<Member>> {
    let xattr = ("user\\.[a-z]{1,8}", proptest::collection::vec(any::<u8>(), 0..300));
    let data = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..100),
        (2000usize..9000, any::<u8>()).prop_map(|(n, byte)| vec![byte; n]),
    ];
    let member = (
        proptest::collection::vec("[a-d]{1,2}|[x-z]{100}", 1..4),
        0..6u8,
        data,
        0..0o10000u32,
        any::<(u32, u32, i32, u32)>(),
        proptest::collection::vec(xattr, 0..3),
    );
    proptest::collection::vec(member, 0..30).prop_map(|members| {
        let kinds = [b'0', b'5', b'2', b'3', b'6', b'0'];
        members
            .into_iter()
            .map(|(path, kind, data, mode, (uid, gid, seconds, nanos), xattrs)| {
                let kind = kinds[usize::from(kind)];
                // One letter per kind keeps files out of the way of directories.
                let name = format!("{}/{}", path.join("/"), kind as char);
                let size = if kind == b'0' { data.len() as u64 } else { 0 };
                let mut member = Member {
                    mode,
                    size,
                    data: if kind == b'0' { data } else { Vec::new() },
                    link: if kind == b'2' { path.concat().into_bytes() } else { Vec::new() },
                    device: (uid >> 20, gid >> 12),
                    ..Member::new(name, kind)
                };
                let time = format!("{seconds}.{:09}", nanos % 1_000_000_000);
                member = member.record("uid", uid.to_string()).record("gid", gid.to_string());
                member = member.record("mtime", time);
                for (name, value) in xattrs {
                    member = member.record(&format!("SCHILY.xattr.{name}"), value);
                }
                member
            })
            .collect()
    })
}

fn record_of<'a>(member: &'a Member, key: &str) -> &'a [u8] {
    &member.records.iter().rev().find(|(have, _)| have == key.as_bytes()).unwrap().1
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn generated_trees_come_back_whole(members in any_members()) {
        let files = files_of(&members);
        let mut last = std::collections::BTreeMap::new();
        for member in &members {
            last.insert(member.name.clone(), member.clone());
        }
        for (path, member) in &last {
            let file = files.get(path).expect("every entry is in the image");
            prop_assert_eq!(u32::from(file.mode) & 0o7777, member.mode);
            prop_assert_eq!(file.uid.to_string().into_bytes(), record_of(member, "uid"));
            prop_assert_eq!(file.gid.to_string().into_bytes(), record_of(member, "gid"));
            let time = crate::tar::parse_time(record_of(member, "mtime")).unwrap();
            prop_assert_eq!(file.mtime, time);
            match member.kind {
                b'0' => prop_assert_eq!(&file.data, &member.data),
                b'2' => prop_assert_eq!(&file.data, &member.link),
                _ => {}
            }
            for (key, _) in &member.records {
                let key = String::from_utf8(key.clone()).unwrap();
                if let Some(name) = key.strip_prefix("SCHILY.xattr.user.") {
                    let value = &file.xattrs[&(1, name.as_bytes().to_vec())];
                    prop_assert_eq!(value, record_of(member, &key));
                }
            }
        }
    }

    #[test]
    fn generated_images_come_back_from_archives(members in any_members()) {
        let image = try_build(&archive(&members), &Limits::default()).unwrap();
        prop_assert_eq!(seen(reader::read(&there_and_back(&image))), seen(reader::read(&image)));
    }

    #[test]
    fn damaged_images_are_answered_without_panic(
        members in any_members(),
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..20),
    ) {
        let mut image = try_build(&archive(&members), &Limits::default()).unwrap();
        for (at, byte) in damage {
            // The data area is the least interesting.
            let at = at.index(image.len().min(20_000));
            let end = image.len() - 1;
            image[end - at] = byte;
        }
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &image).unwrap();
        let _ = write_tar(&file, Bounded(4 << 20));
    }

    #[test]
    fn any_blocks_with_right_checksums_are_answered_without_panic(
        blocks in proptest::collection::vec(
            (any::<u8>(), "[a-c./\0]{0,6}", 0u64..3000, "[a-c./]{0,6}", proptest::collection::vec(any::<u8>(), 0..120)),
            0..12,
        ),
        cut in 0usize..20_000,
    ) {
        let kinds = b"0123456xgLKSDV\0";
        let mut tar = Vec::new();
        for (kind, name, size, link, mut data) in blocks {
            let kind = kinds[usize::from(kind) % kinds.len()];
            if kind == b'x' {
                data = [b"22 GNU.sparse.major=1\n27 GNU.sparse.realsize=9999\n".to_vec(), data].concat();
            }
            let member = Member { size, link: link.into_bytes(), data, ..Member::new(name, kind) };
            tar.extend(member.encode());
        }
        tar.truncate(cut);
        let _ = try_build(&tar, &Limits::default());
    }

    #[test]
    fn any_bytes_are_answered_without_panic(mut bytes in proptest::collection::vec(any::<u8>(), 512..4096)) {
        let block: &mut [u8; 512] = (&mut bytes[..512]).try_into().unwrap();
        seal(block);
        let _ = try_build(&bytes, &Limits::default());
    }
}

#[test]
fn a_damaged_image_is_refused_or_unpacked_but_never_more() {
    let whole = try_build(
        &archive(&[Member::file("a/b/file", "x".repeat(9000)), Member::file("small", "y")]),
        &Limits::default(),
    )
    .unwrap();
    let outer = tempfile::tempdir().unwrap();
    proptest!(ProptestConfig::with_cases(300), |(at in 1024..whole.len(), value: u8, cut in 0..8usize)| {
        let mut bytes = whole.clone();
        bytes[at] = value;
        bytes.truncate(whole.len() - cut * 1000);
        let mut image = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut image, &bytes).unwrap();
        let place = tempfile::tempdir_in(outer.path()).unwrap();
        let _ = super::unpack(&image, place.path());
        place.close().unwrap();
        prop_assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 0);
    });
}
