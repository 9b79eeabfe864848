//! How the pod's process hands the parts of the pod's tree to the supervisor's process: mounts in no place yet, one by one,
//! over a socket (unix(7), `SCM_RIGHTS`). In the other direction comes what kept the supervisor from starting; the socket's
//! end without a word says that it did start.

use std::ffi::OsStr;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recv, recvmsg, send, sendmsg,
    socketpair,
};

/// Longest message.
const MAX_BYTES: usize = 4096;
/// The message after the last part.
const COMPLETE: &[u8] = b"complete";
/// What the messages of parts begin with.
const DIRECTORY: u8 = b'd';
const FILE: u8 = b'f';

/// A mount, and its place in the pod's tree.
#[derive(Debug)]
pub struct Part {
    /// An absolute path, not below another part's.
    pub place: PathBuf,
    /// Whether the place is a file.
    pub is_file: bool,
    /// The mount.
    pub mount: OwnedFd,
}

impl Part {
    /// A mount of a directory.
    pub fn directory(place: impl Into<PathBuf>, mount: OwnedFd) -> Self {
        Self { place: place.into(), is_file: false, mount }
    }

    /// A mount of a single file.
    pub fn file(place: impl Into<PathBuf>, mount: OwnedFd) -> Self {
        Self { place: place.into(), is_file: true, mount }
    }
}

/// One end of the socket.
#[derive(Debug)]
pub struct Handover(OwnedFd);

impl Handover {
    /// Both ends.
    ///
    /// # Errors
    /// Those of socketpair(2).
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(io::Error::from)?;
        Ok((Self(one), Self(other)))
    }

    /// Another descriptor of the same end, not below that number.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub fn moved_beyond(&self, number: RawFd) -> io::Result<Self> {
        Ok(Self(rustix::io::fcntl_dupfd_cloexec(&self.0, number)?))
    }

    /// Hands a part over.
    ///
    /// # Errors
    /// Those of sendmsg(2); a broken pipe when the other process has ended.
    pub fn give(&self, part: &Part) -> io::Result<()> {
        let mut bytes = vec![if part.is_file { FILE } else { DIRECTORY }];
        bytes.extend(part.place.as_os_str().as_encoded_bytes());
        let fds = [part.mount.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(&bytes)], &control, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }

    /// Says that all parts were given.
    ///
    /// # Errors
    /// As [`Self::give`].
    pub fn complete(&self) -> io::Result<()> {
        send(self.0.as_raw_fd(), COMPLETE, MsgFlags::MSG_NOSIGNAL)?;
        Ok(())
    }

    /// Takes the next part; none when all were given.
    ///
    /// # Errors
    /// Those of recvmsg(2); an unexpected end when the other process has ended.
    pub fn take(&self) -> io::Result<Option<Part>> {
        let mut bytes = [0; MAX_BYTES];
        let mut space = nix::cmsg_space!([RawFd; 1]);
        let (length, mount) = {
            let mut slices = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let message = recvmsg::<()>(self.0.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
            let mut mount = None;
            for control in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(fds) = control {
                    // SAFETY: the kernel has just made these descriptors for this process.
                    mount = fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).next();
                }
            }
            (message.bytes, mount)
        };
        match (&bytes[..length], mount) {
            (COMPLETE, None) => Ok(None),
            ([kind @ (DIRECTORY | FILE), place @ ..], Some(mount)) => {
                let place = Path::new(OsStr::from_bytes(place));
                Ok(Some(Part { place: place.into(), is_file: *kind == FILE, mount }))
            }
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Says why the supervisor cannot start.
    pub fn fail(&self, failure: &str) {
        // Nobody is left to hear it when that fails.
        let _ = send(self.0.as_raw_fd(), &failure.as_bytes()[..failure.len().min(MAX_BYTES)], MsgFlags::MSG_NOSIGNAL);
    }

    /// Waits until the supervisor has started, or has said why it cannot.
    pub fn failure(&self) -> Option<String> {
        let mut bytes = [0; MAX_BYTES];
        match recv(self.0.as_fd().as_raw_fd(), &mut bytes, MsgFlags::empty()) {
            Ok(0) | Err(_) => None,
            Ok(length) => Some(String::from_utf8_lossy(&bytes[..length]).into_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_arrive_with_their_places_and_then_the_end() {
        let (give, take) = Handover::pair().unwrap();
        let file = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        give.give(&Part::directory("/layers/0", file())).unwrap();
        give.give(&Part::file("/dev/null", file())).unwrap();
        give.complete().unwrap();
        let first = take.take().unwrap().unwrap();
        assert_eq!((first.place.to_str(), first.is_file), (Some("/layers/0"), false));
        assert!(take.take().unwrap().unwrap().is_file);
        assert!(take.take().unwrap().is_none());
        take.fail("no");
        assert_eq!(give.failure().as_deref(), Some("no"));
        drop(take);
        assert_eq!(give.failure(), None);
        assert!(give.complete().is_err());
    }

    #[test]
    fn a_giver_that_ends_early_is_noticed() {
        let (give, take) = Handover::pair().unwrap();
        drop(give);
        assert!(take.take().is_err());
    }
}
