use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};
use tempfile::{TempDir, tempdir};

use super::*;

fn packed(root: &Path, path: &str, top: &str) -> Vec<u8> {
    pack(open_root(root).unwrap().as_fd(), Path::new(path), Path::new(top), Vec::new()).unwrap()
}

fn unpacked(root: &Path, path: &str, policy: Policy<'_>, stream: &[u8]) -> Result<Unpacked, ArchiveError> {
    unpack(open_root(root).unwrap().as_fd(), Path::new(path), Destination::Copy, policy, stream)
}

fn asked(name: &str) -> Policy<'_> {
    Policy::OntoHost(OsStr::new(name))
}

/// Onto the host, whatever the first names are.
fn inside_of(root: &Path, stream: &[u8]) -> Result<Unpacked, ArchiveError> {
    unpack(open_root(root).unwrap().as_fd(), Path::new("/"), Destination::Inside, asked(""), stream)
}

fn contents(root: &Path, path: &str, stream: &[u8]) {
    let root = open_root(root).unwrap();
    unpack(root.as_fd(), Path::new(path), Destination::Contents, Policy::IntoApp, stream).unwrap();
}

/// A tree with a file, a program, a directory, links, and a name that fits no header.
fn tree() -> TempDir {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join("src").join(name);
    fs::create_dir_all(at("inner")).unwrap();
    fs::write(at("file"), "content").unwrap();
    fs::set_permissions(at("file"), PermissionsExt::from_mode(0o4751)).unwrap();
    fs::hard_link(at("file"), at("inner/same")).unwrap();
    symlink("/etc/passwd", at("link")).unwrap();
    fs::write(at(&format!("inner/{}", "n".repeat(200))), "long").unwrap();
    fs::set_permissions(at("inner"), PermissionsExt::from_mode(0o750)).unwrap();
    folder
}

#[test]
fn a_tree_comes_out_as_it_went_in() {
    let (from, to) = (tree(), tempdir().unwrap());
    unpacked(to.path(), "/", Policy::IntoApp, &packed(from.path(), "/src", "src")).unwrap();
    let at = |name: &str| to.path().join("src").join(name);
    assert_eq!(fs::read(at("file")).unwrap(), b"content");
    let (file, same) = (fs::metadata(at("file")).unwrap(), fs::metadata(at("inner/same")).unwrap());
    assert_eq!((file.mode() & 0o7777, file.ino()), (0o4751, same.ino()));
    assert_eq!(file.mtime(), fs::metadata(from.path().join("src/file")).unwrap().mtime());
    assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(fs::metadata(at("inner")).unwrap().mode() & 0o7777, 0o750);
    assert_eq!(fs::read(at(&format!("inner/{}", "n".repeat(200)))).unwrap(), b"long");
}

#[test]
fn a_copy_goes_into_a_directory_or_gets_the_new_name() {
    let (from, to) = (tree(), tempdir().unwrap());
    let whole = packed(from.path(), "src", "src");
    unpacked(to.path(), "new", Policy::IntoApp, &whole).unwrap();
    assert!(to.path().join("new/inner/same").exists());
    unpacked(to.path(), "new", Policy::IntoApp, &whole).unwrap();
    assert!(to.path().join("new/src/file").exists());
    contents(to.path(), "other/", &whole);
    assert!(to.path().join("other/file").exists());
    contents(to.path(), "other", &packed(from.path(), "src/inner", "inner"));
    assert!(to.path().join("other/same").exists());
    unpacked(to.path(), "renamed", Policy::IntoApp, &packed(from.path(), "src/file", "file")).unwrap();
    assert_eq!(fs::read(to.path().join("renamed")).unwrap(), b"content");
    let error = unpacked(to.path(), "no/such/place", Policy::IntoApp, &whole).unwrap_err();
    assert!(matches!(error, ArchiveError::NoDirectory(_)), "{error}");
    let error = unpacked(to.path(), "missing/", Policy::IntoApp, &whole).unwrap_err();
    assert!(matches!(error, ArchiveError::NoDirectory(_)), "{error}");
}

#[test]
fn the_host_takes_no_devices_and_no_privileged_programs() {
    let (from, to) = (tree(), tempdir().unwrap());
    unpacked(to.path(), "/", asked("src"), &packed(from.path(), "src", "src")).unwrap();
    assert_eq!(fs::metadata(to.path().join("src/file")).unwrap().mode() & 0o7777, 0o751);
    let mut header = entry(EntryType::Block, 0);
    header.set_device_major(8).unwrap();
    header.set_device_minor(0).unwrap();
    let done = unpacked(to.path(), "/", asked("disk"), &stream(&[("disk", header, "")])).unwrap();
    assert_eq!((done.skipped, done.names), (1, vec![PathBuf::from("disk")]));
    assert!(!to.path().join("disk").exists());
}

fn entry(kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(nix::unistd::getuid().as_raw().into());
    header.set_gid(nix::unistd::getgid().as_raw().into());
    header.set_mtime(0);
    header.set_size(size);
    header
}

/// A stream of entries whose names are written as they are; a link's target is its content.
fn stream(entries: &[(&str, Header, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, header, content) in entries {
        let mut header = header.clone();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        let is_link = matches!(header.entry_type(), EntryType::Symlink | EntryType::Link);
        if is_link {
            header.as_gnu_mut().unwrap().linkname[..content.len()].copy_from_slice(content.as_bytes());
        }
        header.set_cksum();
        let content = if is_link { &[] } else { content.as_bytes() };
        builder.append(&header, content).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn no_name_and_no_link_leads_out() {
    let folder = tempdir().unwrap();
    let (inside, outside) = (folder.path().join("inside"), folder.path().join("outside"));
    fs::create_dir(&inside).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("kept"), "kept").unwrap();
    let regular = || entry(EntryType::Regular, 1);
    let link = |kind| entry(kind, 0);
    for entries in [
        vec![("../outside/x", regular(), "x")],
        vec![("/outside/x", regular(), "x")],
        vec![("a/../../outside/x", regular(), "x")],
        vec![("out", link(EntryType::Symlink), "../outside"), ("out/x", regular(), "x")],
        vec![("hard", link(EntryType::Link), "../outside/kept")],
        vec![("out", link(EntryType::Symlink), "../outside"), ("hard", link(EntryType::Link), "out/kept")],
    ] {
        let error = inside_of(&inside, &stream(&entries)).unwrap_err();
        assert!(matches!(error, ArchiveError::Name(_) | ArchiveError::NoDirectory(_)), "{error}");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    }
    // A link that a file then takes the place of is replaced, not followed.
    let entries = [("out", link(EntryType::Symlink), "../outside/kept"), ("out", regular(), "x")];
    inside_of(&inside, &stream(&entries)).unwrap();
    assert_eq!(fs::read(outside.join("kept")).unwrap(), b"kept");
    assert_eq!(fs::read(inside.join("out")).unwrap(), b"x");
    assert!(!inside.join("hard").exists());
}

#[test]
fn the_host_gets_no_name_that_was_not_asked_for() {
    let home = tempdir().unwrap();
    fs::create_dir(home.path().join(".ssh")).unwrap();
    fs::write(home.path().join(".bashrc"), "mine").unwrap();
    let regular = || entry(EntryType::Regular, 1);
    for entries in [
        vec![(".bashrc", regular(), "x")],
        vec![("./.ssh/authorized_keys", regular(), "x")],
        vec![("motd", entry(EntryType::Directory, 0), ""), (".ssh", entry(EntryType::Directory, 0), "")],
        vec![("motd", entry(EntryType::Link, 0), ".bashrc")],
        vec![(".", entry(EntryType::Directory, 0), "")],
    ] {
        let error = unpacked(home.path(), "/", asked("motd"), &stream(&entries)).unwrap_err();
        assert!(matches!(error, ArchiveError::Unasked { .. }), "{error}");
        assert!(error.to_string().contains("motd"), "{error}");
    }
    assert_eq!(fs::read(home.path().join(".bashrc")).unwrap(), b"mine");
    assert_eq!(fs::read_dir(home.path().join(".ssh")).unwrap().count(), 0);
    unpacked(home.path(), "/new", asked("motd"), &stream(&[("motd", regular(), "x")])).unwrap();
    assert_eq!(fs::read(home.path().join("new")).unwrap(), b"x");
}

#[test]
fn directories_of_the_host_keep_their_mode_and_new_ones_get_the_streams() {
    let home = tempdir().unwrap();
    let mode = |name: &str| fs::metadata(home.path().join(name)).unwrap().mode() & 0o7777;
    fs::create_dir(home.path().join("kept")).unwrap();
    fs::set_permissions(home.path().join("kept"), PermissionsExt::from_mode(0o700)).unwrap();
    let directory = |name| (name, entry(EntryType::Directory, 0), "");
    let bytes = stream(&[directory("srv"), directory("srv/kept"), directory("srv/new")]);
    let root = open_root(home.path()).unwrap();
    unpack(root.as_fd(), Path::new("/"), Destination::Contents, asked("srv"), bytes.as_slice()).unwrap();
    assert_eq!((mode("kept"), mode("new")), (0o700, 0o644));
}

#[test]
fn links_on_the_way_to_what_a_user_names_stay_inside_the_root() {
    let folder = tempdir().unwrap();
    let root = folder.path().join("root");
    fs::create_dir_all(root.join("etc")).unwrap();
    symlink("/etc", root.join("link")).unwrap();
    unpacked(&root, "/link/here", Policy::IntoApp, &stream(&[("f", entry(EntryType::Regular, 1), "x")])).unwrap();
    assert!(root.join("etc/here").exists());
    assert_eq!(packed(&root, "/link/here", "here"), packed(&root, "/etc/here", "here"));
}

#[test]
fn a_header_that_promises_a_name_without_end_is_refused() {
    let folder = tempdir().unwrap();
    let mut header = entry(EntryType::GNULongName, 1 << 40);
    header.set_cksum();
    let error = inside_of(folder.path(), header.as_bytes()).unwrap_err();
    assert!(matches!(error, ArchiveError::Header(_)), "{error}");
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic_or_write_outside(
        kind in any::<u8>(), name in "[a./]{1,12}", target in "[a./]{0,12}", noise in proptest::collection::vec(any::<u8>(), 0..64)
    ) {
        let folder = tempdir().unwrap();
        let inside = folder.path().join("inside");
        fs::create_dir(&inside).unwrap();
        let link = entry(EntryType::Symlink, 0);
        let mut bytes = stream(&[("a", link, &target), (&name, entry(EntryType::new(kind), 0), &target)]);
        bytes.truncate(bytes.len() - 1024);
        bytes.extend(&noise);
        let _ = inside_of(&inside, &bytes);
        prop_assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

#[test]
fn a_path_that_was_disturbed_is_looked_up_again_and_not_for_ever() {
    let mut attempts = 0;
    let third = super::until_undisturbed(|| {
        attempts += 1;
        if attempts < 3 { Err(Errno::AGAIN) } else { Ok(attempts) }
    });
    assert_eq!(third, Ok(3));
    assert_eq!(super::until_undisturbed(|| Err::<(), _>(Errno::AGAIN)), Err(Errno::AGAIN));
}
