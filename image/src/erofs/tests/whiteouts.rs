//! What whiteouts become, and that nobody else can make their marks.

use super::*;

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
