//! What is refused, and where links in names lead.

use super::*;

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
