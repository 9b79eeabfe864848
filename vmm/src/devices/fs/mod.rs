//! virtio-fs: a directory of the host, shared with the guest (virtio 1.2, section 5.11).
//!
//! The guest's FUSE requests are served by fuse-backend-rs within the device's own thread. What keeps the guest inside its
//! directory is the host's kernel, not the server's care: [`SharedDirectory::open`] clones the directory's mount, with all
//! mounts below it, into a tree of its own (open_tree(2)). From inside that tree there is no way up, device files cannot be
//! opened, and set-user-ID bits mean nothing. A read-only share is a read-only mount.
//!
//! The thread acts as the user that the guest's process has, so files get the owners they should; for this it keeps the
//! file capabilities that the other threads give up.

mod directory;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use fuse_backend_rs::api::filesystem::FileSystem;
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::passthrough::{CachePolicy, Config, PassthroughFs};
use fuse_backend_rs::transport::{Reader, VirtioFsWriter, Writer};
use serde::{Deserialize, Serialize};

pub use directory::{DirectoryError, SharedDirectory};

use super::{Context, DeviceError, DeviceKind, VirtioDevice, Watches};
use crate::persist::{Persist, PersistError};
use crate::virtio::chain::DescriptorChain;

/// Longest tag in bytes (virtio 1.2, section 5.11.4).
pub const MAX_TAG_BYTES: usize = 36;

/// Queue of requests that must not wait behind others (forget, interrupt).
const HIGH_PRIORITY_QUEUE: u16 = 128;
/// Queue of all other requests. Linux sends requests of as many pages as the queue has entries.
const REQUEST_QUEUE: u16 = 1024;

/// How long the guest may believe what it knows of names and attributes, for the host may change them too.
const CACHE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a directory cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The tag has no room in the device's configuration.
    #[error("the tag {tag:?} must be 1 to {MAX_TAG_BYTES} bytes long")]
    Tag {
        /// The tag.
        tag: String,
    },
    /// The server could not be set up.
    #[error("the file server for {tag:?} cannot start; is /proc mounted?")]
    Server {
        /// The share's tag.
        tag: String,
        /// The host's error.
        #[source]
        source: io::Error,
    },
}

/// The shared directory as a device.
pub struct Fs {
    tag: String,
    root: SharedDirectory,
    files: Arc<PassthroughFs>,
    server: Server<Arc<PassthroughFs>>,
    /// Whether the thread has made the directory its working directory.
    entered: bool,
}

impl Fs {
    /// Shares `root` under `tag`, the name that the guest mounts it by.
    ///
    /// # Errors
    /// [`FsError`].
    pub fn new(tag: &str, root: SharedDirectory) -> Result<Self, FsError> {
        if tag.is_empty() || tag.len() > MAX_TAG_BYTES {
            return Err(FsError::Tag { tag: tag.into() });
        }
        let config = Config {
            // The server opens its root when the guest mounts it. The thread's working directory is the root by then, so
            // this works without any path of the host.
            root_dir: ".".into(),
            cache_policy: CachePolicy::Auto,
            entry_timeout: CACHE_TIMEOUT,
            attr_timeout: CACHE_TIMEOUT,
            xattr: true,
            ..Config::default()
        };
        let files = PassthroughFs::new(config).map_err(|source| FsError::Server { tag: tag.into(), source })?;
        let files = Arc::new(files);
        let server = Server::new(Arc::clone(&files));
        Ok(Self { tag: tag.into(), root, files, server, entered: false })
    }
}

impl VirtioDevice for Fs {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Fs
    }

    fn queue_sizes(&self) -> &[u16] {
        &[HIGH_PRIORITY_QUEUE, REQUEST_QUEUE]
    }

    fn features(&self) -> u64 {
        0
    }

    /// The tag, padded with zeroes, and the number of request queues.
    fn config(&self) -> Vec<u8> {
        let mut config = self.tag.clone().into_bytes();
        config.resize(MAX_TAG_BYTES, 0);
        config.extend(1_u32.to_le_bytes());
        config
    }

    fn activate(&mut self, _features: u64, _context: &mut Context<'_, '_>) -> Result<(), DeviceError> {
        if !self.entered {
            enter(&self.root).map_err(|source| DeviceError::Host { what: "entering the shared directory", source })?;
            self.entered = true;
        }
        Ok(())
    }

    fn process_queue(&mut self, index: usize, context: &mut Context<'_, '_>) -> Result<(), DeviceError> {
        let Some(queue) = context.queues.get_mut(index) else { return Ok(()) };
        let memory = queue.memory().clone();
        let server = &self.server;
        queue.serve(|chain: &DescriptorChain| {
            // The library walks the chain itself and refuses what is wrong with it. A request that it cannot
            // even begin to answer is given back empty; the guest's driver fails it.
            let reader = Reader::from_descriptor_chain(memory.readable(), chain.raw());
            let writer = VirtioFsWriter::new(&*memory, chain.raw());
            let (Ok(reader), Ok(writer)) = (reader, writer) else { return Ok(0) };
            let answered = server.handle_message(reader, Writer::VirtioFs(writer), None, None);
            Ok::<u32, DeviceError>(answered.map_or(0, |bytes| u32::try_from(bytes).unwrap_or(u32::MAX)))
        })
    }

    fn reset(&mut self, _watches: &mut Watches<'_, '_>) {
        // Open files and looked-up names belong to the driver's session: the next one begins with none. The server opens
        // its root again at once, which must be the share and nothing else.
        if self.entered {
            self.files.destroy();
        }
    }
}

/// Makes the shared directory the working directory of this thread alone, with no umask: the guest applies its own.
fn enter(root: &SharedDirectory) -> io::Result<()> {
    // SAFETY: these calls take no pointers; from here on the thread has a working directory and umask of its own.
    let failed = unsafe { libc::unshare(libc::CLONE_FS) != 0 || libc::fchdir(root.as_raw_fd()) != 0 };
    if failed {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: umask cannot fail, and concerns this thread only.
    unsafe { libc::umask(0) };
    Ok(())
}

/// The device's saved state. Open files are not part of it: a guest must mount the share after a restore, not before.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsState {
    tag: String,
}

impl Persist for Fs {
    type State = FsState;
    type Args = SharedDirectory;

    fn save(&self) -> FsState {
        FsState { tag: self.tag.clone() }
    }

    fn restore(root: SharedDirectory, state: FsState) -> Result<Self, PersistError> {
        Self::new(&state.tag, root)
            .map_err(|error| PersistError::Invalid { what: "a shared directory", why: error.to_string() })
    }
}

#[cfg(test)]
mod tests;
