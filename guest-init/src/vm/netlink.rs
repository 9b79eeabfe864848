//! As much of rtnetlink(7) as a pod's network takes: requests with attributes, answered one by one.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

/// Largest answer taken at once; the kernel sends a dump in pieces no longer than this (netlink(7)).
const ANSWER_SIZE: usize = 32 << 10;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// A request: its header, a fixed part, and attributes.
#[derive(Debug)]
pub struct Request(Vec<u8>);

impl Request {
    /// A request of this type, with flags beside `NLM_F_REQUEST`, and its fixed part.
    pub fn new(kind: u16, flags: libc::c_int, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        bytes.extend(fixed);
        Self(bytes).padded()
    }

    /// Adds an attribute.
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend(((value.len() + 4) as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.padded()
    }

    fn padded(mut self) -> Self {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
}

/// A message of an answer, without its header.
pub type Message = Vec<u8>;

/// A connection to the kernel's routing tables.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens a connection.
    ///
    /// # Errors
    /// Those of the system.
    pub fn open() -> io::Result<Self> {
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends a request and waits until it is done.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn change(&mut self, request: Request) -> io::Result<()> {
        self.transact(request, libc::NLM_F_ACK).map(drop)
    }

    /// Sends a request for a list.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn list(&mut self, request: Request) -> io::Result<Vec<Message>> {
        self.transact(request, libc::NLM_F_DUMP)
    }

    fn transact(&mut self, request: Request, flags: libc::c_int) -> io::Result<Vec<Message>> {
        let Request(mut bytes) = request;
        self.sequence += 1;
        let length = bytes.len() as u32;
        bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        let flags = u16::from_ne_bytes([bytes[6], bytes[7]]) | flags as u16;
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        let mut messages = Vec::new();
        let mut answer = vec![0; ANSWER_SIZE];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
            for (kind, sequence, body) in Parts(&answer[..length]) {
                if sequence != self.sequence {
                    continue;
                }
                match i32::from(kind) {
                    libc::NLMSG_ERROR => {
                        return match error_code(body) {
                            0 => Ok(messages),
                            code => Err(io::Error::from_raw_os_error(-code)),
                        };
                    }
                    libc::NLMSG_DONE => return Ok(messages),
                    _ => messages.push(body.to_vec()),
                }
            }
        }
    }
}

fn error_code(body: &[u8]) -> i32 {
    body.first_chunk::<4>().map_or(-libc::EBADMSG, |code| i32::from_ne_bytes(*code))
}

/// The messages of an answer: type, sequence number, and the rest.
struct Parts<'a>(&'a [u8]);

impl<'a> Iterator for Parts<'a> {
    type Item = (u16, u32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.first_chunk::<HEADER>()?;
        let length = u32::from_ne_bytes(*header.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let sequence = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
        let body = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, sequence, body))
    }
}

/// The value of the first attribute of this type, after a fixed part of `fixed` bytes.
pub fn attribute(message: &[u8], fixed: usize, kind: u16) -> Option<&[u8]> {
    let mut rest = message.get(fixed..)?;
    loop {
        let header = rest.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = rest.get(4..length)?;
        if u16::from_ne_bytes([header[2], header[3]]) == kind {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attributes_are_found_after_the_fixed_part() {
        let Request(bytes) = Request::new(1, 0, &[0; 6]).with(3, b"abc").with(5, &[1, 2, 3, 4]);
        let message = &bytes[HEADER..];
        assert_eq!(attribute(message, 8, 3), Some(&b"abc"[..]));
        assert_eq!(attribute(message, 8, 5), Some(&[1, 2, 3, 4][..]));
        assert_eq!(attribute(message, 8, 7), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic_or_loop(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Parts(&bytes).count() < 200);
            let _ = attribute(&bytes, 4, 1);
        }
    }

    #[test]
    fn the_kernel_lists_loopback() {
        let mut netlink = Netlink::open().unwrap();
        let links = netlink.list(Request::new(libc::RTM_GETLINK, 0, &[0; 16])).unwrap();
        let names: Vec<_> = links.iter().filter_map(|link| attribute(link, 16, libc::IFLA_IFNAME)).collect();
        assert!(names.contains(&&b"lo\0"[..]), "{names:?}");
    }
}
