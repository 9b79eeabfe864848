//! Images as the kernel sees them: what is mounted equals what tar(1) extracts, file by file with all metadata.
//!
//! Needs root, loop devices and EROFS in the kernel; elsewhere it says so and passes over. Mounts are made in a
//! mount namespace of the test's own and vanish with it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use podvm_image::erofs::{self, Limits};
use rustix::fs::{XattrFlags, lgetxattr, llistxattr, setxattr};

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect(program);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
}

/// Enters a mount namespace of its own, where mounting EROFS is possible. False when it is not.
fn can_mount() -> bool {
    let has_erofs = fs::read_to_string("/proc/filesystems").is_ok_and(|list| list.contains("erofs"));
    let can = nix::unistd::geteuid().is_root()
        && has_erofs
        && Path::new("/dev/loop-control").exists()
        && unshare(CloneFlags::CLONE_NEWNS).is_ok();
    if can {
        run("mount", &["--make-rprivate", "/"]);
    } else {
        eprintln!("skipped: needs root, loop devices and EROFS in the kernel");
    }
    can
}

/// A directory with files of every kind, none of them easy.
fn make_tree(root: &Path) {
    let at = |name: &str| root.join(name);
    for directory in ["a", "b/c/d", "many", "empty"] {
        fs::create_dir_all(at(directory)).unwrap();
    }
    fs::create_dir_all(at(&"d".repeat(255)).join("e".repeat(200))).unwrap();
    for i in 0..1200 {
        fs::write(at(&format!("many/{i}-{}", "n".repeat(i % 90))), "y".repeat(i)).unwrap();
    }
    for size in [0, 1, 2047, 2048, 2049, 4032, 4095, 4096, 4097, 100_000] {
        fs::write(at(&format!("a/{size}")), vec![size as u8 | 1; size]).unwrap();
    }
    fs::write(root.join(std::ffi::OsStr::from_bytes(b"not \xff\xfe UTF-8")), "x").unwrap();
    for length in [1, 1980, 2048, 4000] {
        std::os::unix::fs::symlink("t".repeat(length), at(&format!("link-{length}"))).unwrap();
    }
    fs::hard_link(at("a/4097"), at("b/hard")).unwrap();
    fs::hard_link(at("a/1"), at("b/c/hard")).unwrap();
    let device = |name: &str, kind, major, minor| {
        mknod(&at(name), kind, Mode::from_bits_truncate(0o640), makedev(major, minor)).unwrap();
    };
    device("char", SFlag::S_IFCHR, 5, 1);
    device("block", SFlag::S_IFBLK, 259, 1_048_575);
    device("pipe", SFlag::S_IFIFO, 0, 0);
    std::os::unix::fs::chown(at("a/0"), Some(4_000_000_000), Some(3_000_000_000)).unwrap();
    for (name, mode) in [("a/4096", 0o6755), ("b", 0o1777), ("a/2049", 0)] {
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    make_attributes(&at);
    make_sparse(&at("sparse"), 40 << 20, &[0, 5000, 20 << 20, (40 << 20) - 3]);
    make_sparse(&at("sparse-odd"), 200_003, &[70_000]);
    make_sparse(&at("sparse-empty"), 1 << 20, &[]);
    let old = std::time::UNIX_EPOCH - std::time::Duration::new(86_400, 500_000_001);
    File::open(at("a/4095")).unwrap().set_modified(old).unwrap();
    File::open(at("empty")).unwrap().set_modified(old).unwrap();
}

fn make_attributes(at: &dyn Fn(&str) -> PathBuf) {
    let acl = |entries: &[(u16, u16, u32)]| {
        let mut bytes = vec![2, 0, 0, 0];
        for (tag, permissions, id) in entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(permissions.to_le_bytes());
            bytes.extend(id.to_le_bytes());
        }
        bytes
    };
    let none = u32::MAX;
    let access = acl(&[(1, 6, none), (2, 7, 1234), (4, 4, none), (16, 7, none), (32, 4, none)]);
    let default = acl(&[(1, 7, none), (4, 5, none), (8, 7, 77), (16, 7, none), (32, 5, none)]);
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let big = vec![b'v'; 3000];
    for (name, key, value) in [
        ("a/4097", "system.posix_acl_access", &access[..]),
        ("b", "system.posix_acl_default", &default),
        ("a/4096", "user.big", &big),
        ("a/1", "security.capability", &capability),
        ("a/2048", "user.x", b"\0=\n"),
        ("empty", "trusted.t", b"\0\x01"),
    ] {
        setxattr(at(name), key, value, XattrFlags::empty()).unwrap();
    }
}

fn make_sparse(path: &Path, size: u64, offsets: &[u64]) {
    let mut file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for offset in offsets {
        file.seek(SeekFrom::Start(*offset)).unwrap();
        file.write_all(b"abc").unwrap();
    }
}

/// All that can be seen of a file, its content aside.
#[derive(Debug, PartialEq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    device: u64,
    size: Option<u64>,
    links: Option<u64>,
    target: Option<PathBuf>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path by which the same file is seen.
    same_as: PathBuf,
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 1 << 16];
    let length = llistxattr(path, &mut names[..]).unwrap();
    let names = names[..length].split(|&b| b == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 1 << 16];
            let length = lgetxattr(path, name, &mut value[..]).unwrap();
            (name.to_vec(), value[..length].to_vec())
        })
        .collect()
}

fn look(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let (mut seen, mut first) = (BTreeMap::new(), BTreeMap::new());
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let path = root.join(&relative);
        let metadata = fs::symlink_metadata(&path).unwrap();
        let kind = metadata.file_type();
        if kind.is_dir() {
            let mut names: Vec<OsString> =
                fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            pending.extend(names.into_iter().rev().map(|name| relative.join(name)));
        }
        let is_device = kind.is_char_device() || kind.is_block_device();
        let same_as = first.entry(metadata.ino()).or_insert_with(|| relative.clone()).clone();
        let entry = Seen {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            device: if is_device { metadata.rdev() } else { 0 },
            size: (!kind.is_dir()).then_some(metadata.len()),
            links: (!kind.is_dir()).then_some(metadata.nlink()),
            target: kind.is_symlink().then(|| fs::read_link(&path).unwrap()),
            xattrs: xattrs(&path),
            same_as,
        };
        seen.insert(relative, entry);
    }
    seen
}

fn assert_same(extracted: &Path, mounted: &Path) {
    let (expected, actual) = (look(extracted), look(mounted));
    let paths = |seen: &BTreeMap<PathBuf, Seen>| seen.keys().cloned().collect::<Vec<_>>();
    assert_eq!(paths(&expected), paths(&actual));
    assert!(expected.len() > 1200);
    for (path, seen) in &expected {
        assert_eq!(seen, &actual[path], "{}", path.display());
        if seen.mode & 0o170_000 == 0o100_000 {
            let content = |root: &Path| fs::read(root.join(path)).unwrap();
            assert!(content(extracted) == content(mounted), "{}", path.display());
        }
    }
}

#[test]
fn what_is_mounted_and_what_is_unpacked_equal_what_tar_extracts() {
    if !can_mount() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let text = |name: &str| at(name).to_str().unwrap().to_owned();
    fs::create_dir(at("tree")).unwrap();
    make_tree(&at("tree"));
    let all = ["--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls", "--sparse"];
    let forms: [&[&str]; 4] = [
        &["--format=gnu", "--numeric-owner", "--sparse"],
        &[&all[..], &["--format=pax", "--sparse-version=0.0"]].concat(),
        &[&all[..], &["--format=pax", "--sparse-version=0.1"]].concat(),
        &[&all[..], &["--format=pax", "--sparse-version=1.0"]].concat(),
    ];
    for (number, form) in forms.iter().enumerate() {
        let (tar, x, image, mounted) =
            (text("tree.tar"), text(&format!("x{number}")), text("image"), text(&format!("m{number}")));
        run("tar", &[form, &["-C", &text("tree"), "-cf", &tar, "."][..]].concat());
        fs::create_dir(&x).unwrap();
        run("tar", &[&all[..4], &["-xpSf", &tar, "-C", &x]].concat());
        let file = File::options().create(true).truncate(true).read(true).write(true).open(&image).unwrap();
        let tails = tempfile::tempfile().unwrap();
        let stream = std::io::BufReader::new(File::open(&tar).unwrap());
        erofs::build(stream, &file, &tails, &Limits::default()).unwrap();
        fs::create_dir(&mounted).unwrap();
        run("mount", &["-t", "erofs", "-o", "loop,ro", &image, &mounted]);
        assert_same(Path::new(&x), Path::new(&mounted));
        run("umount", &[&mounted]);
        let unpacked = at(&format!("u{number}"));
        fs::create_dir(&unpacked).unwrap();
        erofs::unpack(&file, &unpacked).unwrap();
        assert_same(Path::new(&x), &unpacked);
        if Command::new("fsck.erofs").arg("-V").output().is_ok() {
            run("fsck.erofs", &[&image]);
        }
        fs::remove_dir_all(&x).unwrap();
    }
}

/// Makes an image of a directory's content and mounts it.
fn mount_layer(directory: &Path, name: &str) -> String {
    let at = |suffix: &str| directory.join(format!("{name}{suffix}")).to_str().unwrap().to_owned();
    run("tar", &["--numeric-owner", "-C", &at(""), "-cf", &at(".tar"), "."]);
    let image = File::create_new(at(".erofs")).unwrap();
    let stream = File::open(at(".tar")).unwrap();
    erofs::build(stream, &image, &tempfile::tempfile().unwrap(), &Limits::default()).unwrap();
    fs::create_dir(at(".mnt")).unwrap();
    run("mount", &["-t", "erofs", "-o", "loop,ro", &at(".erofs"), &at(".mnt")]);
    at(".mnt")
}

#[test]
fn overlayfs_stacks_layers_with_whiteouts_and_opaque_directories() {
    if !can_mount() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str| {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, name).unwrap();
    };
    for name in ["low/etc/keep", "low/etc/gone", "low/opt/old/file", "low/var/x", "low/var/y"] {
        write(name);
    }
    for name in ["up/etc/.wh.gone", "up/.wh.opt", "up/var/.wh..wh..opq", "up/var/new", "up/etc/more"] {
        write(name);
    }
    let (low, up) = (mount_layer(directory.path(), "low"), mount_layer(directory.path(), "up"));
    let merged = directory.path().join("merged");
    fs::create_dir(&merged).unwrap();
    let options = format!("ro,lowerdir={up}:{low}");
    run("mount", &["-t", "overlay", "-o", &options, "overlay", merged.to_str().unwrap()]);
    let seen: Vec<String> = look(&merged).keys().map(|path| path.to_str().unwrap().to_owned()).collect();
    assert_eq!(seen, ["", "etc", "etc/keep", "etc/more", "var", "var/new"]);
    for mounted in [merged.to_str().unwrap(), &up, &low] {
        run("umount", &[mounted]);
    }
}
