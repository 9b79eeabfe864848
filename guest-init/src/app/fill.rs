//! What an image has where an empty volume is mounted: copied into the volume before the pod's apps run, as docker and podman do.
//!
//! Both sides are walked by descriptors, a name at a time, and no symbolic link is followed: the tree is the image's, which
//! chooses every name in it. Owners, modes, times, extended attributes and hard links are kept.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod,
    fchown, fgetxattr, flistxattr, fsetxattr, fstat, futimens, linkat, mkdirat, mknodat, openat, readlinkat, symlinkat,
    utimensat,
};
use rustix::io::Errno;

/// Most levels of directories: each takes two descriptors and some stack while it is walked.
const MAX_DEPTH: usize = 400;
/// Longest list of attributes' names, and longest attribute, of a file (xattr(7)).
const MAX_ATTRIBUTE: usize = 64 << 10;
/// The attribute of SELinux, which is the host's to give.
const LABEL: &[u8] = b"security.selinux";
/// Modes that lend a file's user or group to who runs it.
const LENDING_MODES: u32 = 0o6000;

/// What could not be copied.
#[derive(Debug, thiserror::Error)]
#[error("copy the image's {path} into it: {source}", path = .path.display())]
pub struct FillError {
    /// Path below the volume.
    path: PathBuf,
    /// Why.
    source: io::Error,
}

impl From<FillError> for io::Error {
    fn from(error: FillError) -> Self {
        Self::new(error.source.kind(), error.to_string())
    }
}

fn at(path: &Path) -> impl Fn(Errno) -> FillError + '_ {
    move |errno| FillError { path: path.into(), source: errno.into() }
}

/// Gives the directory `volume`, which has just been made, the content, owner and attributes of the directory `image`. What is
/// mounted in the image's directory is not the image's, and is not copied. Names that the volume has already stay: another app
/// may have made places for what is mounted in the volume.
///
/// # Errors
/// [`FillError`]; what was copied before stays.
pub fn fill(image: BorrowedFd<'_>, volume: &Path) -> Result<(), FillError> {
    let top = Path::new(".");
    let open = || {
        let image = open_directory(image, c".")?;
        let volume = rustix::fs::open(volume, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok((fstat(&image)?, image, volume))
    };
    let (stat, image, volume) = open().map_err(at(top))?;
    let mut filler = Filler { volume: volume.as_fd(), device: stat.st_dev, linked: HashMap::new() };
    filler.directory(image.as_fd(), volume.as_fd(), &stat, top, 0)
}

struct Filler<'a> {
    /// The volume's root, which [`Self::linked`] begins at.
    volume: BorrowedFd<'a>,
    /// The filesystem of the image's directories.
    device: u64,
    /// Where files with several names were copied first, by device and inode.
    linked: HashMap<(u64, u64), PathBuf>,
}

impl Filler<'_> {
    fn directory(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        stat: &Stat,
        path: &Path,
        depth: usize,
    ) -> Result<(), FillError> {
        if depth > MAX_DEPTH {
            return Err(at(path)(Errno::LOOP));
        }
        for name in names(from).map_err(at(path))? {
            let inner = path.join(OsStr::from_bytes(name.to_bytes()));
            self.entry(from, to, &name, &inner, depth + 1)?;
        }
        give(from, to, stat).map_err(at(path))
    }

    fn entry(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &CStr,
        path: &Path,
        depth: usize,
    ) -> Result<(), FillError> {
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW).map_err(at(path))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            return self.inner_directory(from, to, name, path, depth);
        }
        let made = match self.first_name(&stat, path) {
            Some(first) => linkat(self.volume, &first, to, name, AtFlags::empty()),
            None => make(from, to, name, &stat),
        };
        match made {
            // Made by another app, or a device file, which cannot be used on a volume anyway, in a pod that may make none.
            Err(Errno::EXIST) => Ok(()),
            Err(Errno::PERM) if matches!(kind, FileType::CharacterDevice | FileType::BlockDevice) => Ok(()),
            other => other.map_err(at(path)),
        }
    }

    fn inner_directory(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &CStr,
        path: &Path,
        depth: usize,
    ) -> Result<(), FillError> {
        let open = || {
            let inner = open_directory(from, name)?;
            Ok((fstat(&inner)?, inner))
        };
        let (stat, inner) = open().map_err(at(path))?;
        if stat.st_dev != self.device {
            return Ok(());
        }
        let made = match mkdirat(to, name, Mode::RWXU) {
            Err(Errno::EXIST) => open_directory(to, name),
            other => other.and_then(|()| open_directory(to, name)),
        };
        self.directory(inner.as_fd(), made.map_err(at(path))?.as_fd(), &stat, path, depth)
    }

    /// The first path of a file with several names, unless this one is.
    fn first_name(&mut self, stat: &Stat, path: &Path) -> Option<PathBuf> {
        if stat.st_nlink < 2 {
            return None;
        }
        let first = self.linked.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| path.into());
        (first != path).then(|| first.clone())
    }
}

fn open_directory(directory: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(directory, name, flags, Mode::empty())
}

fn names(directory: BorrowedFd<'_>) -> Result<Vec<std::ffi::CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::new(open_directory(directory, c".")?)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

/// Makes a copy of what is no directory.
fn make(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<(), Errno> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => return copy_file(from, to, name),
        FileType::Symlink => symlinkat(readlinkat(from, name, Vec::new())?, to, name)?,
        kind => mknodat(to, name, kind, Mode::RUSR, stat.st_rdev)?,
    }
    let (uid, gid) = owner(stat);
    let is_given = accept_stranger(chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        // It was made here, and no link.
        chmodat(to, name, mode(stat, is_given), AtFlags::empty())?;
    }
    utimensat(to, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)
}

fn copy_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let mut source = File::from(openat(from, name, flags, Mode::empty())?);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut copy = File::from(openat(to, name, flags, Mode::RUSR | Mode::WUSR)?);
    io::copy(&mut source, &mut copy).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let stat = fstat(&source)?;
    give(source.as_fd(), copy.as_fd(), &stat)
}

/// Gives an open file or directory what `stat` says and the attributes of `from`: the owner first, since a change of it takes away
/// modes and capabilities.
fn give(from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> Result<(), Errno> {
    let (uid, gid) = owner(stat);
    let is_given = accept_stranger(fchown(to, Some(uid), Some(gid)))?;
    fchmod(to, mode(stat, is_given))?;
    give_attributes(from, to)?;
    futimens(to, &times(stat))
}

/// Extended attributes that the volume's filesystem, or this pod's users, cannot have are left out.
fn give_attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut list = vec![0; MAX_ATTRIBUTE];
    let length = match flistxattr(from, &mut list) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok(()),
        other => other?,
    };
    let mut value = vec![0; MAX_ATTRIBUTE];
    for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty() && *name != LABEL) {
        let length = match fgetxattr(from, name, &mut value) {
            Err(Errno::NODATA | Errno::NOTSUP) => continue,
            other => other?,
        };
        match fsetxattr(to, name, &value[..length], XattrFlags::empty()) {
            Ok(()) | Err(Errno::NOTSUP | Errno::PERM | Errno::INVAL) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// An owner that this pod's users do not have shows as nobody, and nobody else's a file cannot be made. Says whether it was.
fn accept_stranger(given: Result<(), Errno>) -> Result<bool, Errno> {
    match given {
        Err(Errno::INVAL) => Ok(false),
        other => other.map(|()| true),
    }
}

fn owner(stat: &Stat) -> (Uid, Gid) {
    (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid))
}

/// A file that is not its owner's lends nobody's privileges.
fn mode(stat: &Stat, is_owners: bool) -> Mode {
    Mode::from_raw_mode(stat.st_mode & 0o7777 & if is_owners { 0o7777 } else { !LENDING_MODES })
}

fn times(stat: &Stat) -> Timestamps {
    // Never above a billion.
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn sample() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (image, volume) = (dir.path().join("image"), dir.path().join("volume"));
        fs::create_dir_all(image.join("inner")).unwrap();
        fs::create_dir(&volume).unwrap();
        (dir, image, volume)
    }

    fn fill_from(image: &Path, volume: &Path) -> Result<(), FillError> {
        fill(File::open(image).unwrap().as_fd(), volume)
    }

    #[test]
    fn content_modes_times_links_and_attributes_are_those_of_the_image() {
        let (_dir, image, volume) = sample();
        let file = image.join("inner/file");
        fs::write(&file, vec![b'x'; 1 << 20]).unwrap();
        fs::hard_link(&file, image.join("other")).unwrap();
        symlink("/etc/passwd", image.join("link")).unwrap();
        fs::set_permissions(&file, PermissionsExt::from_mode(0o4751)).unwrap();
        fs::set_permissions(image.join("inner"), PermissionsExt::from_mode(0o1703)).unwrap();
        fs::set_permissions(&image, PermissionsExt::from_mode(0o2770)).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, image.join("fifo"), Mode::RUSR | Mode::WOTH).unwrap();
        let has_attributes = rustix::fs::setxattr(&file, "user.note", b"of the image", XattrFlags::empty()).is_ok();
        let old = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000, 7));
        for path in [&file, &image.join("inner"), &image] {
            File::open(path).unwrap().set_times(old).unwrap();
        }

        fill_from(&image, &volume).unwrap();
        for path in ["", "inner", "inner/file", "other", "link", "fifo"] {
            let (theirs, ours) = (image.join(path).symlink_metadata(), volume.join(path).symlink_metadata());
            let (theirs, ours) = (theirs.unwrap(), ours.unwrap());
            let told =
                |file: &fs::Metadata| (file.mode(), file.uid(), file.gid(), file.nlink(), file.modified().unwrap());
            assert_eq!(told(&ours), told(&theirs), "{path}");
        }
        assert_eq!(fs::read(volume.join("other")).unwrap(), vec![b'x'; 1 << 20]);
        assert_eq!(fs::read_link(volume.join("link")).unwrap(), Path::new("/etc/passwd"));
        let ino = |path| fs::metadata(volume.join(path)).unwrap().ino();
        assert_eq!(ino("inner/file"), ino("other"));
        if has_attributes {
            let mut value = [0; 32];
            let length = rustix::fs::getxattr(volume.join("other"), "user.note", &mut value).unwrap();
            assert_eq!(&value[..length], b"of the image");
        }
    }

    #[test]
    fn nothing_is_read_or_written_through_a_link() {
        let (dir, image, volume) = sample();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), "").unwrap();
        symlink(&outside, image.join("directory")).unwrap();
        fs::write(image.join("inner/file"), "").unwrap();
        symlink(&outside, volume.join("inner")).unwrap();
        let error = fill_from(&image, &volume).unwrap_err();
        assert!(error.to_string().contains("inner"), "{error}");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        fs::remove_file(volume.join("inner")).unwrap();
        fill_from(&image, &volume).unwrap();
        assert_eq!(fs::read_link(volume.join("directory")).unwrap(), outside);
    }

    #[test]
    fn what_another_app_has_made_in_the_volume_stays() {
        let (_dir, image, volume) = sample();
        fs::write(image.join("inner/file"), "the image's").unwrap();
        fs::write(image.join("hosts"), "the image's").unwrap();
        fs::create_dir(volume.join("inner")).unwrap();
        fs::write(volume.join("hosts"), "").unwrap();
        fill_from(&image, &volume).unwrap();
        assert_eq!(fs::read_to_string(volume.join("inner/file")).unwrap(), "the image's");
        assert_eq!(fs::read_to_string(volume.join("hosts")).unwrap(), "");
    }

    #[test]
    fn a_tree_that_is_too_deep_is_an_error() {
        let (_dir, image, volume) = sample();
        let mut here: OwnedFd = File::open(&image).unwrap().into();
        for _ in 0..MAX_DEPTH + 1 {
            mkdirat(&here, "d", Mode::RWXU).unwrap();
            here = open_directory(here.as_fd(), c"d").unwrap();
        }
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        rustix::process::setrlimit(
            rustix::process::Resource::Nofile,
            rustix::process::Rlimit { current: limit.maximum, ..limit },
        )
        .unwrap();
        let error = fill_from(&image, &volume).unwrap_err();
        assert_eq!(error.source.raw_os_error(), Some(Errno::LOOP.raw_os_error()), "{error}");
    }
}
