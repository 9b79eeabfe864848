//! All that can be seen of the files below a directory, so that two directories can be held against each other.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
use sha2::{Digest, Sha256};

/// Files by their path below the root, which itself is the empty path.
pub type Tree = BTreeMap<PathBuf, String>;

/// What is said of a mount point.
pub const MOUNTED: &str = "mount point";

/// Describes all files below `root` in a line each: kind, mode, owner, size, time, extended attributes, content, link target,
/// device number, and the first of its names. What something is mounted on is [`MOUNTED`], without what is below.
pub fn describe(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut first_names = HashMap::new();
    // Sorted, so that the first name of a file is the same everywhere.
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let line = line(&root.join(&path), &path, &mut first_names);
        let (text, is_directory) = line.unwrap_or_else(|error| panic!("{}: {error}", root.join(&path).display()));
        tree.insert(path.clone(), text);
        if is_directory {
            let entries = fs::read_dir(root.join(&path)).expect("a directory can be read");
            let names = entries.map(|entry| path.join(entry.expect("a directory can be read").file_name()));
            let (mounted, mut inside): (Vec<_>, Vec<_>) = names.partition(|path| is_mounted_on(&root.join(path)));
            tree.extend(mounted.into_iter().map(|path| (path, MOUNTED.to_owned())));
            inside.sort_by(|a, b| b.cmp(a));
            pending.append(&mut inside);
        }
    }
    tree
}

/// What two trees differ in, a line for each file, without those that `is_known` says may differ.
pub fn differences(ours: &Tree, theirs: &Tree, is_known: impl Fn(&Path) -> bool) -> String {
    let mut text = String::new();
    let mut tell = |path: &Path, what: String| {
        if !is_known(path) {
            text.push_str(&format!("{}: {what}\n", path.as_os_str().as_bytes().escape_ascii()));
        }
    };
    for (path, own) in ours {
        match theirs.get(path) {
            None => tell(path, format!("only here: {own}")),
            Some(other) if other != own => tell(path, format!("here  {own}\n    there {other}")),
            Some(_) => {}
        }
    }
    for (path, other) in theirs.iter().filter(|(path, _)| !ours.contains_key(*path)) {
        tell(path, format!("only there: {other}"));
    }
    text
}

fn is_mounted_on(path: &Path) -> bool {
    rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty())
        .is_ok_and(|status| status.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

fn line(at: &Path, path: &Path, first_names: &mut HashMap<(u64, u64), PathBuf>) -> io::Result<(String, bool)> {
    let status = fs::symlink_metadata(at)?;
    let kind = status.file_type();
    let what = if kind.is_dir() {
        "directory".to_owned()
    } else if kind.is_file() {
        format!("file of {} bytes {}", status.size(), content(at)?)
    } else if kind.is_symlink() {
        format!("link to {}", fs::read_link(at)?.as_os_str().as_bytes().escape_ascii())
    } else if kind.is_fifo() {
        "pipe".to_owned()
    } else {
        let device = status.rdev();
        let kind = if kind.is_char_device() { "character" } else { "block" };
        format!("{kind} device {}:{}", rustix::fs::major(device), rustix::fs::minor(device))
    };
    let mut line = format!(
        "{what}, {:o} {}:{} {}.{:09}",
        status.mode() & 0o7777,
        status.uid(),
        status.gid(),
        status.mtime(),
        status.mtime_nsec()
    );
    if !kind.is_dir() && status.nlink() > 1 {
        let first = first_names.entry((status.dev(), status.ino())).or_insert_with(|| path.to_owned());
        line.push_str(&format!(", the same as {}", first.as_os_str().as_bytes().escape_ascii()));
    }
    for (name, value) in attributes(at)? {
        line.push_str(&format!(", {}={}", name.escape_ascii(), value.escape_ascii()));
    }
    Ok((line, kind.is_dir()))
}

fn content(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Extended attributes by name. Overlayfs's own are not those of files.
fn attributes(path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut buffer = vec![0; 1 << 16];
    let length = match rustix::fs::llistxattr(path, &mut buffer[..]) {
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        other => other?,
    };
    let mut all = BTreeMap::new();
    for name in buffer[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        if name.starts_with(b"trusted.overlay.") {
            continue;
        }
        let mut value = vec![0; 1 << 16];
        let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..])?;
        value.truncate(length);
        all.insert(name.to_vec(), value);
    }
    Ok(all)
}
