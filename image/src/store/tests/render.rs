//! Images' files in directories.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

use super::*;
use crate::erofs::Losses;
use crate::store::{RenderOptions, What};
use crate::tar::builder::{Member, archive};

/// Owners, devices and most attributes are root's to set.
macro_rules! need_root {
    () => {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
    };
}

impl Place {
    fn import_layers(&self, layers: &[Vec<Member>]) {
        let layers: Vec<Vec<u8>> = layers.iter().map(archive).collect();
        self.import(&self.layout("image", &layout("1", Packing::Plain, &layers))).unwrap();
    }

    fn render(&self, what: What, place: &Path, overwrite: bool) -> Result<Losses, String> {
        let options = RenderOptions { what, overwrite };
        self.store.render("image:1", place, &options).map_err(|error| error.to_string())
    }

    /// The whole root, in `out`.
    fn rendered(&self) -> PathBuf {
        let out = self.path("out");
        assert_eq!(self.render(What::Root, &out, true), Ok(Losses::default()));
        out
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn owned(member: Member, uid: u64) -> Member {
    Member { uid, gid: uid + 1, ..member }
}

#[test]
fn layers_are_merged_as_overlayfs_merges_them() {
    need_root!();
    let place = Place::new();
    place.import_layers(&[
        vec![
            Member::directory("./"),
            Member::file("kept/lower", "1"),
            Member::file("kept/gone", "1"),
            Member::file("hidden/lower", "1"),
            Member::file("closed/lower", "1"),
            Member::directory("becomes-a-file/inside"),
            Member::file("becomes-a-directory", "1"),
            Member::file("back/lower", "1"),
            owned(Member { mode: 0o700, ..Member::directory("dressed") }, 7),
        ],
        vec![
            Member::file("kept/.wh.gone", ""),
            Member::file(".wh.hidden", ""),
            Member::file("closed/.wh..wh..opq", ""),
            Member::file("closed/middle", "2"),
            Member::file("becomes-a-file", "2"),
            Member::file("becomes-a-directory/inside", "2"),
            Member::file(".wh.back", ""),
            owned(Member { mode: 0o2750, ..Member::directory("dressed") }, 8),
        ],
        vec![
            Member { mode: 0o711, ..Member::directory("./") },
            Member::file("closed/upper", "3"),
            Member::file("back/upper", "3"),
            Member::file("dressed/inside", "3"),
            owned(Member { mode: 0o4755, ..Member::directory("dressed") }, 9),
        ],
    ]);
    let out = place.rendered();
    assert_eq!(names(&out), ["back", "becomes-a-directory", "becomes-a-file", "closed", "dressed", "kept"]);
    for (directory, expected) in [
        ("kept", &["lower"][..]),
        ("closed", &["middle", "upper"]),
        ("becomes-a-directory", &["inside"]),
        ("back", &["upper"]),
        ("dressed", &["inside"]),
    ] {
        assert_eq!(names(&out.join(directory)), expected, "{directory}");
    }
    assert_eq!(fs::read(out.join("becomes-a-file")).unwrap(), b"2");
    let dressed = fs::metadata(out.join("dressed")).unwrap();
    assert_eq!((dressed.mode() & 0o7777, dressed.uid(), dressed.gid(), dressed.mtime()), (0o4755, 9, 10, 1));
    assert_eq!(fs::metadata(&out).unwrap().mode() & 0o7777, 0o711);
}

#[test]
fn files_have_all_that_the_archive_says() {
    need_root!();
    let place = Place::new();
    let device = |name, kind, device| Member { device, ..Member::new(name, kind) };
    place.import_layers(&[vec![
        owned(Member { mode: 0o6755, ..Member::file("su", "x") }, 4_000_000_000)
            .record("mtime", "-1.5")
            .record("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0")
            .record("SCHILY.xattr.user.any", b"\0\xff=\n"),
        owned(Member { mode: 0o6755, ..Member::hard_link("su-too", "su") }, 4_000_000_000).record("mtime", "-1.5"),
        Member { mode: 0o000, ..Member::directory("closed") },
        Member::file("closed/inside", "y"),
        owned(Member::symlink("link", "nowhere/at all"), 5).record("SCHILY.xattr.trusted.on-link", "v"),
        owned(Member::hard_link("link-too", "link"), 5),
        device("null", b'3', (1, 3)),
        device("disk", b'4', (259, 0xfffff)),
        owned(Member { mode: 0o622, ..Member::new("pipe", b'6') }, 6),
        Member::file(b"name\nof \xff bytes", "z"),
        Member::file("sparse", b"headtail")
            .record("GNU.sparse.size", "4194304")
            .record("GNU.sparse.map", "0,4,4194300,4"),
        Member::directory("acl").record("SCHILY.acl.default", "user::rwx,group::r-x,user:7:rw-,mask::rwx,other::---"),
    ]]);
    let out = place.rendered();
    let stat = |name: &str| fs::symlink_metadata(out.join(name)).unwrap();
    let su = stat("su");
    assert_eq!((su.mode(), su.uid(), su.gid(), su.nlink()), (0o106755, 4_000_000_000, 4_000_000_001, 2));
    assert_eq!((su.mtime(), su.mtime_nsec(), su.ino()), (-2, 500_000_000, stat("su-too").ino()));
    let value = |name: &str, attribute: &str| {
        let mut buffer = vec![0; 1000];
        let length = rustix::fs::lgetxattr(out.join(name), attribute, &mut buffer[..]).unwrap();
        buffer.truncate(length);
        buffer
    };
    assert_eq!(value("su", "user.any"), b"\0\xff=\n");
    assert_eq!(value("su", "security.capability")[..8], *b"\x01\0\0\x02\0\x20\0\0");
    assert_eq!(value("acl", "system.posix_acl_default").len(), 4 + 5 * 8);
    assert_eq!(stat("closed").mode() & 0o7777, 0);
    assert_eq!(fs::read(out.join("closed/inside")).unwrap(), b"y");
    assert_eq!(fs::read_link(out.join("link")).unwrap(), Path::new("nowhere/at all"));
    assert_eq!((stat("link").uid(), stat("link").mtime(), stat("link").ino()), (5, 1, stat("link-too").ino()));
    assert_eq!(value("link", "trusted.on-link"), b"v");
    assert!(stat("null").file_type().is_char_device() && stat("disk").file_type().is_block_device());
    assert_eq!(stat("null").rdev(), nix::sys::stat::makedev(1, 3));
    assert_eq!(stat("disk").rdev(), nix::sys::stat::makedev(259, 0xfffff));
    assert_eq!((stat("pipe").mode(), stat("pipe").uid()), (0o010622, 6));
    assert!(names(&out).iter().any(|name| name.starts_with("name\nof ")));
    assert_eq!(stat("sparse").size(), 4 << 20);
    assert!(stat("sparse").blocks() * 512 < 1 << 20, "holes stay holes");
}

#[test]
fn what_is_at_the_place_stays_unless_it_is_to_be_replaced() {
    need_root!();
    let place = Place::new();
    place.import_layers(&[vec![Member::file("a", "1")]]);
    let out = place.path("out");
    fs::create_dir(&out).unwrap();
    assert_eq!(place.render(What::Root, &out, false), Ok(Losses::default()), "an empty directory is filled");
    let error = place.render(What::Root, &out, false).unwrap_err();
    assert!(error.contains("is there and not an empty directory") && error.contains("--overwrite"), "{error}");
    fs::write(out.join("mine"), "").unwrap();
    symlink(&out, place.path("link")).unwrap();
    assert_eq!(place.render(What::Root, &place.path("link"), true), Ok(Losses::default()));
    assert_eq!(names(&out), ["a"]);
    assert!(fs::symlink_metadata(place.path("link")).unwrap().is_symlink(), "what a link leads to is replaced");
    let error = place.render(What::Path("none".into()), &place.path("new"), true).unwrap_err();
    assert_eq!(error, "image image:1: none: no such file in the image");
    assert_eq!(names(place.directory.path()), ["image", "images", "link", "out"], "nothing is left beside it");
}

#[test]
fn what_fails_half_way_leaves_what_was_there() {
    need_root!();
    let place = Place::new();
    place.import_layers(&[vec![Member::file("a", "1"), Member::file("b", vec![1; 9000])]]);
    // A layer that lost its end: found out when half is written.
    let blob = place.store.resolve("image:1").unwrap().layers[0].path.clone();
    let mut bytes = fs::read(&blob).unwrap();
    let root = bytes.windows(4).rposition(|window| window == 9000u32.to_le_bytes()).unwrap();
    bytes[root..root + 4].copy_from_slice(&90_000_000u32.to_le_bytes());
    fs::remove_file(&blob).unwrap();
    fs::write(&blob, bytes).unwrap();
    let (empty, full) = (place.path("empty"), place.path("full"));
    fs::create_dir(&empty).unwrap();
    fs::create_dir(&full).unwrap();
    fs::write(full.join("mine"), "").unwrap();
    for (out, overwrite) in [(&place.path("new"), false), (&empty, false), (&full, true)] {
        let error = place.render(What::Root, out, overwrite).unwrap_err();
        assert!(error.contains("the layer is damaged"), "{error}");
    }
    assert_eq!(names(place.directory.path()), ["empty", "full", "image", "images"]);
    assert_eq!((names(&empty), names(&full)), (vec![], vec!["mine".to_owned()]));
}

#[test]
fn one_file_or_directory_is_enough() {
    need_root!();
    let place = Place::new();
    place.import_layers(&[
        vec![Member::file("usr/lib/x", "lower"), Member::symlink("lib", "usr/lib"), Member::symlink("up", "../../lib")],
        vec![Member { mode: 0o600, ..Member::file("usr/lib/x", "upper") }],
    ]);
    let get = |path: &str, to: &str| place.render(What::Path(path.into()), &place.path(to), false).unwrap();
    for (number, path) in ["usr/lib/x", "/lib/x", "up/../lib/./x"].into_iter().enumerate() {
        get(path, &format!("file{number}"));
        assert_eq!(fs::read(place.path(&format!("file{number}"))).unwrap(), b"upper", "{path}");
    }
    assert_eq!(fs::metadata(place.path("file0")).unwrap().permissions().mode() & 0o7777, 0o600);
    fs::create_dir(place.path("folder")).unwrap();
    get("usr/lib/x", "folder");
    assert_eq!(names(&place.path("folder")), ["x"]);
    get("lib/", "directory");
    assert_eq!(names(&place.path("directory")), ["x"]);
    get("lib", "link");
    assert_eq!(fs::read_link(place.path("link")).unwrap(), Path::new("usr/lib"));
    let image = place.path("all");
    assert_eq!(place.render(What::All, &image, false), Ok(Losses::default()));
    assert_eq!(names(&image), ["config.json", "manifest.json", "rootfs"]);
    let id = place.store.find("image:1").unwrap().id;
    assert_eq!(Digest::of(&fs::read(image.join("config.json")).unwrap()), id);
}

#[test]
fn links_to_nowhere_and_in_circles_are_errors() {
    let place = Place::new();
    place.import_layers(&[vec![Member::symlink("a", "b"), Member::symlink("b", "a"), Member::file("f", "")]]);
    for (path, expected) in
        [("a/x", "too many levels of symbolic links"), ("f/x", "no such file"), ("g", "no such file")]
    {
        let error = place.render(What::Path(path.into()), &place.path("out"), false).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}
