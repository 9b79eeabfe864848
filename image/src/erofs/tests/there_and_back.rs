//! Images made into archives and back, of generated trees and of damaged ones.

use proptest::prelude::*;

use super::super::{unpack, write_tar};
use super::*;
use crate::tar::builder::seal;

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
        let _ = unpack(&image, place.path());
        place.close().unwrap();
        prop_assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 0);
    });
}
