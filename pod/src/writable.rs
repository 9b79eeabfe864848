//! The pod's writable disk: a sparse file with an empty ext4 filesystem, as large as the pod may grow.
//!
//! Making the filesystem takes mkfs.ext4(8) longer than a VM takes to boot, so it is done once for each size: the result is
//! kept as a template under `<root>/templates/` and its few written blocks are copied for each pod. There is no journal: a
//! pod's writable layer does not outlive its VM.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::draft::Draft;
use crate::fault::{FaultPoint, reach};
use crate::manifest::ByteSize;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek64};

/// Smallest disk that is worth a filesystem.
pub const MIN_DISK: ByteSize = ByteSize::mib(16);
/// Largest disk that a file of any usual filesystem can be.
pub const MAX_DISK: ByteSize = ByteSize::mib(8 << 20);
/// Size of a disk for which none was asked for.
pub const DEFAULT_DISK: ByteSize = ByteSize::mib(10 << 10);
/// Changes when templates are made in another way; old ones are then left unused.
const TEMPLATE_VERSION: u32 = 1;
/// Where system programs are; an ordinary user's PATH leaves these out on some distributions.
const SYSTEM_FOLDERS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Why the writable disk could not be made.
#[derive(Debug, thiserror::Error)]
pub enum WritableError {
    /// Too small for a filesystem.
    #[error("a writable layer of {0} is too small; give at least {MIN_DISK}")]
    TooSmall(ByteSize),
    /// mkfs.ext4 is missing.
    #[error("mkfs.ext4 is not installed, and podvm needs it to make a pod's writable disk; install e2fsprogs")]
    NoMkfs,
    /// mkfs.ext4 failed.
    #[error("mkfs.ext4 could not make a disk of {size}: {message}")]
    Mkfs {
        /// The disk's size.
        size: ByteSize,
        /// What it printed.
        message: String,
    },
    /// A file operation failed.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> WritableError + '_ {
    move |source| WritableError::Io { path: path.into(), source }
}

/// Makes a disk of this size at `path`, which must not exist, with templates kept in `templates`.
///
/// # Errors
/// [`WritableError`]; nothing is left at `path` then.
pub fn create(path: &Path, size: ByteSize, templates: &Path) -> Result<File, WritableError> {
    let template = template(size, templates)?;
    let disk = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
    let disk = disk.map_err(io_error(path))?;
    reach(FaultPoint::WritableCreated);
    match copy_written_blocks(&template, &disk, size.bytes()) {
        Ok(()) => {
            reach(FaultPoint::WritableMade);
            Ok(disk)
        }
        Err(error) => {
            let _ = fs::remove_file(path);
            Err(io_error(path)(error))
        }
    }
}

/// Opens the template for this size, made now if it is the first time.
fn template(size: ByteSize, templates: &Path) -> Result<File, WritableError> {
    if size < MIN_DISK {
        return Err(WritableError::TooSmall(size));
    }
    let path = templates.join(format!("ext4-v{TEMPLATE_VERSION}-{}", size.bytes()));
    match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other.map_err(io_error(&path)),
    }
    fs::create_dir_all(templates).map_err(io_error(templates))?;
    // Two first pods at once each make one; whichever is named last stays, and both are the same.
    let draft = Draft::new(templates, 0o600).map_err(io_error(templates))?;
    make_filesystem(&draft, size)?;
    let template = draft.file().try_clone().map_err(io_error(&path))?;
    draft.keep(&path).map_err(io_error(&path))?;
    reach(FaultPoint::TemplateMade);
    Ok(template)
}

/// Where mkfs.ext4(8) is, if it is installed: in PATH, or among the system's programs.
pub fn mkfs() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(SYSTEM_FOLDERS.map(PathBuf::from));
    folders.map(|folder| folder.join("mkfs.ext4")).find(|program| program.is_file())
}

fn make_filesystem(draft: &Draft, size: ByteSize) -> Result<(), WritableError> {
    let (file, path) = (draft.file(), &draft.path());
    file.set_len(size.bytes()).map_err(io_error(path))?;
    reach(FaultPoint::TemplateMaking);
    let program = mkfs().ok_or(WritableError::NoMkfs)?;
    let mkfs = |extended: &str| {
        Command::new(&program)
            .args(["-q", "-F", "-m", "0", "-O", "^has_journal,^resize_inode", "-E", extended])
            .arg(path)
            .output()
            .map_err(io_error(&program))
    };
    // A sparse file reads as zeroes, so nothing need be zeroed, neither now nor by the guest later; mkfs.ext4 before 1.47
    // cannot be told so.
    let mut output = mkfs("assume_storage_prezeroed=1,root_owner=0:0")?;
    if !output.status.success() {
        output = mkfs("lazy_itable_init=1,root_owner=0:0")?;
    }
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(WritableError::Mkfs { size, message });
    }
    file.sync_all().map_err(io_error(path))
}

/// Copies what is written of a sparse file; shares the blocks where the filesystem can.
fn copy_written_blocks(from: &File, to: &File, size: u64) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    to.set_len(size)?;
    let mut buffer = vec![0; 256 << 10];
    let mut position = 0;
    loop {
        let data = match lseek64(from, position, Whence::SeekData) {
            Err(Errno::ENXIO) => return Ok(()),
            other => other?,
        };
        let hole = lseek64(from, data, Whence::SeekHole)?;
        let mut at = data as u64;
        while at < hole as u64 {
            let wanted = buffer.len().min((hole as u64 - at) as usize);
            let got = from.read_at(&mut buffer[..wanted], at)?;
            if got == 0 {
                return Ok(());
            }
            to.write_all_at(&buffer[..got], at)?;
            at += got as u64;
        }
        position = hole;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_disk_is_a_sound_filesystem_and_takes_little_room() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("writable.img");
        let disk = match create(&path, ByteSize::mib(1024), &folder.path().join("templates")) {
            Err(WritableError::NoMkfs) => {
                eprintln!("skipped: mkfs.ext4 is not installed");
                return;
            }
            other => other.unwrap(),
        };
        let metadata = disk.metadata().unwrap();
        assert_eq!(metadata.len(), 1 << 30);
        assert!(metadata.blocks() * 512 < 8 << 20, "{} bytes are allocated", metadata.blocks() * 512);
        let check = Command::new("fsck.ext4").args(["-f", "-n"]).arg(&path).output().unwrap();
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    }

    #[test]
    fn a_disk_too_small_names_the_least() {
        let folder = tempfile::tempdir().unwrap();
        let error = create(&folder.path().join("x"), ByteSize::mib(1), folder.path()).unwrap_err().to_string();
        assert!(error.contains("1 MiB") && error.contains("16 MiB"), "{error}");
    }
}
