//! What becomes of the members of an archive.

use super::*;
use crate::tar::Timestamp;
use crate::tar::builder::pax_record;

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
