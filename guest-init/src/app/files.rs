//! What a process does that packs or unpacks an app's files: it is in the app's mount namespace, where there is nothing but what
//! the app itself can see.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use podvm_pod::archive::{ArchiveError, Archived, Policy, first_name, open_root, pack, unpack};

use super::child::Pipes;
use crate::sys::mount::Detached;

/// Bytes read or written at a time.
const CHUNK: usize = 64 << 10;

/// Does what is asked; what goes wrong is said on the standard error. Returns the exit code.
pub fn run(what: &Archived, pipes: &Pipes) -> u8 {
    let Err(error) = try_run(what, pipes) else { return 0 };
    if let Some(stderr) = pipes.stderr.as_ref().and_then(|pipe| pipe.try_clone().ok()) {
        // Whoever does not listen sees the exit code.
        let _ = writeln!(File::from(stderr), "{error}");
    }
    1
}

fn try_run(what: &Archived, pipes: &Pipes) -> Result<(), ArchiveError> {
    let root = open_root(Path::new("/")).map_err(ArchiveError::Stream)?;
    let stream = |pipe: &Option<std::os::fd::OwnedFd>| {
        let pipe = pipe.as_ref().ok_or(std::io::ErrorKind::BrokenPipe)?;
        pipe.try_clone().map(File::from)
    };
    match what {
        Archived::Out(path) => {
            let name = Path::new(first_name(path));
            pack_to(root.as_fd(), path, name, stream(&pipes.stdout).map_err(ArchiveError::Stream)?)
        }
        Archived::Root => {
            // A mount of the root alone: what is mounted in it, such as volumes, is not of the image or the app.
            let bare = Detached::bind(root.as_fd(), false).map_err(ArchiveError::Stream)?;
            pack_to(bare.as_fd(), Path::new("/"), Path::new("."), stream(&pipes.stdout).map_err(ArchiveError::Stream)?)
        }
        Archived::In { path, destination } => {
            let stdin = BufReader::with_capacity(CHUNK, stream(&pipes.stdin).map_err(ArchiveError::Stream)?);
            unpack(root.as_fd(), path, *destination, Policy::IntoApp, stdin).map(drop)
        }
    }
}

fn pack_to(root: BorrowedFd<'_>, path: &Path, name: &Path, to: File) -> Result<(), ArchiveError> {
    let mut to = pack(root, path, name, BufWriter::with_capacity(CHUNK, to))?;
    to.flush().map_err(ArchiveError::Stream)
}
