//! Paths inside an app's root, walked one component at a time, so that no symbolic link of an image or a volume can lead
//! out of the root, even while another app changes it; what is missing is made on the way.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path};

use rustix::fs::{FileType, Mode, OFlags, fstat, mkdirat, open, openat, readlinkat};

/// Most symbolic links followed on one path, as in the kernel.
const MAX_LINKS: usize = 40;
/// Most components walked on one path, links included: a path of PATH_MAX has fewer.
const MAX_COMPONENTS: usize = 4096;

/// A directory that paths are taken to begin at, and never leave.
#[derive(Debug)]
pub struct Root(OwnedFd);

/// Where a path led.
#[derive(Debug)]
pub struct Place {
    /// The place, open with `O_PATH`.
    pub fd: OwnedFd,
    /// Whether it was missing and has been made.
    pub made: bool,
}

/// What is made when a path leads to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    Leave,
    MakeDirectory,
    MakeFile,
}

impl Root {
    /// The root at `path`, which is itself followed as usual.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?))
    }

    /// The directory at `path`; it and its parents are made when missing, with mode 0755.
    ///
    /// # Errors
    /// `ENOTDIR` when something else is there or on the way; `ELOOP` for too many links; else the system's own.
    pub fn directory(&self, path: &Path) -> io::Result<Place> {
        self.directory_by(path, MAX_LINKS)
    }

    fn directory_by(&self, path: &Path, most_links: usize) -> io::Result<Place> {
        let place = self.walk(path, Missing::MakeDirectory, most_links)?.ok_or(io::ErrorKind::NotFound)?;
        if file_type(place.fd.as_fd())? != FileType::Directory {
            return Err(io::Error::from_raw_os_error(libc::ENOTDIR));
        }
        Ok(place)
    }

    /// The directory at `path`, to mount something there; made as by [`Self::directory`]. It is never the root itself: what is mounted
    /// there would lie on top of the root, where no path into it leads, and would be what `..` leads to for the program.
    ///
    /// # Errors
    /// As [`Self::directory`]; that it is the root.
    pub fn mount_point(&self, path: &Path) -> io::Result<Place> {
        self.below_root(self.directory(path)?)
    }

    /// As [`Self::mount_point`], for a filesystem that must be nowhere else: no link is followed, to whatever it leads.
    ///
    /// # Errors
    /// As [`Self::mount_point`]; that there is a link.
    pub fn plain_mount_point(&self, path: &Path) -> io::Result<Place> {
        match self.directory_by(path, 0) {
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
                Err(io::Error::other("the image has a symbolic link there; make it a directory"))
            }
            other => self.below_root(other?),
        }
    }

    fn below_root(&self, place: Place) -> io::Result<Place> {
        if is_same(place.fd.as_fd(), self.as_fd())? {
            return Err(io::Error::other("it leads to the root itself, where nothing can be mounted"));
        }
        Ok(place)
    }

    /// The file at `path`; it is made when missing, empty and with mode 0644, as are its parents.
    ///
    /// # Errors
    /// As [`Self::directory`]; `EISDIR` when a directory is there.
    pub fn file(&self, path: &Path) -> io::Result<Place> {
        let place = self.walk(path, Missing::MakeFile, MAX_LINKS)?.ok_or(io::ErrorKind::NotFound)?;
        if file_type(place.fd.as_fd())? == FileType::Directory {
            return Err(io::Error::from_raw_os_error(libc::EISDIR));
        }
        Ok(place)
    }

    /// What is at `path`, if anything.
    ///
    /// # Errors
    /// `ELOOP` for too many links; else the system's own.
    pub fn existing(&self, path: &Path) -> io::Result<Option<OwnedFd>> {
        match self.walk(path, Missing::Leave, MAX_LINKS) {
            Ok(place) => Ok(place.map(|place| place.fd)),
            Err(error) if error.raw_os_error() == Some(libc::ENOTDIR) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The directory at `path`, if the root has one of its own there: not the root itself, and nothing that is mounted in it.
    ///
    /// # Errors
    /// As [`Self::existing`].
    pub fn content(&self, path: &Path) -> io::Result<Option<OwnedFd>> {
        let Some(found) = self.existing(path)? else { return Ok(None) };
        let (found_stat, own) = (fstat(&found)?, fstat(self)?);
        let is_directory = FileType::from_raw_mode(found_stat.st_mode) == FileType::Directory;
        let is_below = found_stat.st_dev == own.st_dev && found_stat.st_ino != own.st_ino;
        Ok(Some(found).filter(|_| is_directory && is_below))
    }

    fn walk(&self, path: &Path, missing: Missing, most_links: usize) -> io::Result<Option<Place>> {
        let mut pending: VecDeque<OsString> = components(path).map(OsStr::to_owned).collect();
        let mut above: Vec<OwnedFd> = Vec::new();
        let (mut made, mut links, mut steps) = (false, 0, 0);
        while let Some(name) = pending.pop_front() {
            steps += 1;
            if steps > MAX_COMPONENTS {
                return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
            }
            if name == ".." {
                above.pop();
                continue;
            }
            let here = above.last().unwrap_or(&self.0).as_fd();
            let next = match open_component(here, &name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    made = true;
                    match missing {
                        Missing::Leave => return Ok(None),
                        Missing::MakeFile if pending.is_empty() => make_file(here, &name)?,
                        Missing::MakeFile | Missing::MakeDirectory => make_directory(here, &name)?,
                    }
                    open_component(here, &name)?
                }
                other => other?,
            };
            match file_type(next.as_fd())? {
                FileType::Directory => above.push(next),
                FileType::Symlink => {
                    links += 1;
                    if links > most_links {
                        return Err(io::Error::from_raw_os_error(libc::ELOOP));
                    }
                    let target = OsString::from_vec(readlinkat(&next, "", Vec::new())?.into_bytes());
                    if target.as_bytes().starts_with(b"/") {
                        above.clear();
                    }
                    for name in components(Path::new(&target)).collect::<Vec<_>>().into_iter().rev() {
                        pending.push_front(name.to_owned());
                    }
                }
                _ if pending.is_empty() => return Ok(Some(Place { fd: next, made })),
                _ => return Err(io::Error::from_raw_os_error(libc::ENOTDIR)),
            }
        }
        let fd = match above.pop() {
            Some(fd) => fd,
            None => self.0.try_clone()?,
        };
        Ok(Some(Place { fd, made }))
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The names of a path, with `..` but without `.` and the root.
fn components(path: &Path) -> impl Iterator<Item = &OsStr> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name),
        Component::ParentDir => Some(OsStr::new("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

fn open_component(here: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    Ok(openat(here, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

fn make_directory(here: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match mkdirat(here, name, Mode::from_raw_mode(0o755)) {
        Err(rustix::io::Errno::EXIST) => Ok(()),
        other => Ok(other?),
    }
}

fn make_file(here: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(here, name, flags, Mode::from_raw_mode(0o644)) {
        Ok(_) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn file_type(fd: BorrowedFd<'_>) -> io::Result<FileType> {
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode))
}

fn is_same(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> io::Result<bool> {
    let (one, other) = (fstat(one)?, fstat(other)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;

    fn name_of(fd: &OwnedFd) -> PathBuf {
        use std::os::fd::AsRawFd;
        std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap()
    }

    fn sample() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("root/etc")).unwrap();
        std::fs::write(dir.path().join("secret"), "outside").unwrap();
        let root = Root::open(&dir.path().join("root")).unwrap();
        (dir, root)
    }

    #[test]
    fn links_and_dots_stay_within_the_root() {
        let (dir, root) = sample();
        let inside = dir.path().join("root");
        symlink("../../../secret", inside.join("relative")).unwrap();
        symlink("/etc", inside.join("absolute")).unwrap();
        assert!(root.existing(Path::new("/relative")).unwrap().is_none());
        assert!(root.existing(Path::new("/../../secret")).unwrap().is_none());
        assert_eq!(name_of(&root.directory(Path::new("/absolute/../..")).unwrap().fd), inside);
        assert_eq!(name_of(&root.directory(Path::new("absolute/x/y")).unwrap().fd), inside.join("etc/x/y"));
    }

    #[test]
    fn a_dangling_link_is_made_real_inside() {
        let (dir, root) = sample();
        let inside = dir.path().join("root");
        symlink("../run/resolve/stub.conf", inside.join("etc/resolv.conf")).unwrap();
        let place = root.file(Path::new("/etc/resolv.conf")).unwrap();
        assert!(place.made);
        assert_eq!(name_of(&place.fd), inside.join("run/resolve/stub.conf"));
        assert!(!root.file(Path::new("/etc/resolv.conf")).unwrap().made);
    }

    #[test]
    fn nothing_is_mounted_at_the_root_nor_where_a_link_leads() {
        let (dir, root) = sample();
        let inside = dir.path().join("root");
        for (name, target) in [("proc", "/"), ("sys", "."), ("dev", "etc/../..")] {
            symlink(target, inside.join(name)).unwrap();
            let error = root.mount_point(&Path::new("/").join(name)).unwrap_err();
            assert!(error.to_string().contains("the root itself"), "{error}");
        }
        assert!(root.mount_point(Path::new("/")).is_err());
        symlink("/etc", inside.join("link")).unwrap();
        assert_eq!(name_of(&root.mount_point(Path::new("/link")).unwrap().fd), inside.join("etc"));
        let error = root.plain_mount_point(Path::new("/link/pts")).unwrap_err();
        assert!(error.to_string().contains("symbolic link"), "{error}");
        assert!(!inside.join("etc/pts").exists());
        assert!(root.plain_mount_point(Path::new("/new/pts")).unwrap().made);
    }

    #[test]
    fn loops_and_files_on_the_way_are_errors() {
        let (dir, root) = sample();
        let inside = dir.path().join("root");
        symlink("b", inside.join("a")).unwrap();
        symlink("a", inside.join("b")).unwrap();
        std::fs::write(inside.join("file"), "").unwrap();
        assert_eq!(root.directory(Path::new("/a")).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        assert_eq!(root.directory(Path::new("/file/x")).unwrap_err().raw_os_error(), Some(libc::ENOTDIR));
        assert_eq!(root.directory(Path::new("/file")).unwrap_err().raw_os_error(), Some(libc::ENOTDIR));
        assert_eq!(root.file(Path::new("/etc")).unwrap_err().raw_os_error(), Some(libc::EISDIR));
        assert!(root.existing(Path::new("/file/x")).unwrap().is_none());
    }

    proptest! {
        #[test]
        fn no_path_and_no_link_leads_out(path in "[a./]{0,20}", target in "[a./]{1,12}") {
            let (dir, root) = sample();
            let inside = dir.path().join("root");
            symlink(&target, inside.join("a")).unwrap();
            for found in [root.directory(Path::new(&path)), root.file(Path::new(&path))].into_iter().flatten() {
                prop_assert!(name_of(&found.fd).starts_with(&inside), "{path} -> {target}");
            }
            prop_assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        }
    }
}
