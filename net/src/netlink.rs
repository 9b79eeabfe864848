//! netlink(7), as much of it as this crate needs: a writer of messages and attributes, and a socket that sends a batch of
//! messages in one system call and collects the answers.
//!
//! rtnetlink ([`crate::link`], [`crate::tap`]) and nfnetlink ([`crate::nft`]) both stand on it. A netlink socket belongs to the
//! network namespace it was opened in, whatever namespace its holder moves to afterwards: that is how one thread configures
//! the host's side and the pod's side in turn.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recvfrom, send, sendmsg,
    setsockopt, socket, socketpair, sockopt,
};
use nix::sys::time::TimeVal;

/// Length of `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;
/// Length of `struct nlattr`.
const ATTRIBUTE_HEADER_BYTES: usize = 4;
/// The kernel answers at once; one that does not for so long is broken, and waiting longer would hang the pod's start.
const ANSWER_TIMEOUT_SECONDS: i64 = 10;
/// More than the kernel puts into one datagram (`NLMSG_GOODSIZE` and dumps: at most 32 KiB).
const RECEIVE_BYTES: usize = 64 * 1024;
/// `NLMSGERR_ATTR_MSG`: the kernel's own words about an error (linux/netlink.h).
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Why the kernel did not do what a message asked for.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}{}", hint_text(.hint.as_deref()))]
pub struct NetlinkError {
    /// What was asked for, such as "create the veth pair".
    pub what: &'static str,
    /// The kernel's own explanation, when it gave one.
    pub hint: Option<String>,
    /// The error number.
    pub source: io::Error,
}

fn hint_text(hint: Option<&str>) -> String {
    hint.map(|hint| format!(" ({hint})")).unwrap_or_default()
}

impl NetlinkError {
    fn new(what: &'static str, source: impl Into<io::Error>) -> Self {
        Self { what, hint: None, source: source.into() }
    }

    /// Whether the kernel answered with this error number.
    pub(crate) fn is(&self, errno: i32) -> bool {
        self.source.raw_os_error() == Some(errno)
    }
}

/// Messages that are sent together and answered together.
#[derive(Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    /// What each message asks for; message n has the sequence number n + 1.
    asks: Vec<&'static str>,
    /// Where the last message begins.
    last: usize,
}

impl Batch {
    /// Adds a message: `header` is the family's fixed part (such as `struct ifinfomsg`), `write` adds the attributes.
    pub(crate) fn push(
        &mut self,
        what: &'static str,
        kind: u16,
        flags: i32,
        header: &[u8],
        write: impl FnOnce(&mut Attributes<'_>),
    ) {
        self.last = self.bytes.len();
        self.asks.push(what);
        let sequence = self.asks.len() as u32;
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend(header);
        align(&mut self.bytes);
        write(&mut Attributes(&mut self.bytes));
        let length = (self.bytes.len() - self.last) as u32;
        self.bytes[self.last..self.last + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Asks for an answer to the message added last, even if all is well.
    pub(crate) fn acknowledge_last(&mut self) {
        let at = self.last + 6;
        let flags = u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]]) | libc::NLM_F_ACK as u16;
        self.bytes[at..at + 2].copy_from_slice(&flags.to_ne_bytes());
    }
}

fn align(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// Where a message's attributes are written. Integers are in the host's order unless the name says otherwise.
pub(crate) struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    pub(crate) fn put(&mut self, kind: u16, value: &[u8]) {
        let length = (ATTRIBUTE_HEADER_BYTES + value.len()) as u16;
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        align(self.0);
    }

    pub(crate) fn put_u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_ne_bytes());
    }

    pub(crate) fn put_be32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }

    /// A string with its closing NUL.
    pub(crate) fn put_string(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes);
    }

    pub(crate) fn put_address(&mut self, kind: u16, address: IpAddr) {
        self.put(kind, &address_bytes(address));
    }

    /// An attribute that holds attributes.
    pub(crate) fn nest(&mut self, kind: u16, write: impl FnOnce(&mut Attributes<'_>)) {
        self.nest_after(kind, &[], write);
    }

    /// An attribute that holds a fixed part and then attributes.
    pub(crate) fn nest_after(&mut self, kind: u16, header: &[u8], write: impl FnOnce(&mut Attributes<'_>)) {
        let start = self.0.len();
        self.put(kind | libc::NLA_F_NESTED as u16, header);
        write(&mut Attributes(self.0));
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// Attributes that were written elsewhere with [`Attributes::detached`].
    pub(crate) fn put_written(&mut self, attributes: &[u8]) {
        self.0.extend(attributes);
    }

    /// A writer into a buffer of the caller's, for attributes that are put into a message later.
    pub(crate) fn detached(buffer: &mut Vec<u8>) -> Attributes<'_> {
        Attributes(buffer)
    }
}

/// An address as it is on the wire.
pub(crate) fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A message that the kernel sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) kind: u16,
    pub(crate) sequence: u32,
    pub(crate) payload: Vec<u8>,
}

/// A netlink socket of the network namespace that it was opened in.
pub(crate) struct Socket(OwnedFd);

impl Socket {
    /// A socket for links, addresses, routes and traffic control.
    pub(crate) fn route() -> Result<Self, NetlinkError> {
        Self::open(SockProtocol::NetlinkRoute)
    }

    /// A socket for nftables.
    pub(crate) fn netfilter() -> Result<Self, NetlinkError> {
        Self::open(SockProtocol::NetlinkNetFilter)
    }

    fn open(protocol: SockProtocol) -> Result<Self, NetlinkError> {
        let error = |errno| NetlinkError::new("open a netlink socket", errno);
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).map_err(error)?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_TIMEOUT_SECONDS, 0)).map_err(error)?;
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK, libc::NETLINK_GET_STRICT_CHK] {
            enable(&fd, option).map_err(|source| NetlinkError::new("open a netlink socket", source))?;
        }
        Ok(Self(fd))
    }

    /// Sends the batch and collects what the kernel answers, until the last message is answered.
    ///
    /// Errors are reported for every message that fails; the first one is returned. nfnetlink undoes the whole batch then,
    /// rtnetlink does not.
    pub(crate) fn transact(&self, mut batch: Batch) -> Result<Vec<Reply>, NetlinkError> {
        batch.acknowledge_last();
        self.exchange(&batch, batch.asks.len() as u32)
    }

    /// As [`Socket::transact`] for a batch whose acknowledged message is not the last one.
    pub(crate) fn exchange(&self, batch: &Batch, until: u32) -> Result<Vec<Reply>, NetlinkError> {
        let asked = |sequence: u32| {
            batch.asks.get((sequence as usize).wrapping_sub(1)).copied().unwrap_or("apply a netlink batch")
        };
        let what = asked(until);
        send(self.0.as_raw_fd(), &batch.bytes, MsgFlags::empty()).map_err(|errno| NetlinkError::new(what, errno))?;
        let mut answers = Vec::new();
        let mut first_error = None;
        let mut buffer = vec![0; RECEIVE_BYTES];
        loop {
            let (length, sender) = match recvfrom::<NetlinkAddr>(self.0.as_raw_fd(), &mut buffer) {
                Err(nix::Error::EINTR) => continue,
                other => other.map_err(|errno| NetlinkError::new(what, errno))?,
            };
            if sender.is_none_or(|sender| sender.pid() != 0) {
                continue;
            }
            for reply in parse_replies(&buffer[..length]) {
                let (number, last) = (reply.sequence, reply.sequence == until);
                match outcome(&reply) {
                    None => answers.push(reply),
                    Some(Ok(())) if last => return first_error.map_or(Ok(answers), Err),
                    Some(Ok(())) => {}
                    Some(Err((source, hint))) => {
                        let error = first_error.take().unwrap_or(NetlinkError { what: asked(number), hint, source });
                        if last {
                            return Err(error);
                        }
                        first_error = Some(error);
                    }
                }
            }
        }
    }

    /// Closes the socket without waiting for what the kernel does at its close (for nfnetlink: several milliseconds of waiting
    /// until no processor uses deleted rules any more).
    ///
    /// The socket is put into the queue of a Unix socket that is put into its own queue. When both are in nobody's hands any more, the
    /// kernel's garbage collector for such cycles closes them, since Linux 6.8 in the background; older kernels have the
    /// process wait as at any close.
    pub(crate) fn close_in_background(self) -> io::Result<()> {
        let (sender, queue) = socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::SOCK_CLOEXEC)?;
        let both = [queue.as_raw_fd(), self.0.as_raw_fd()];
        let parcel = [ControlMessage::ScmRights(&both)];
        sendmsg::<()>(sender.as_raw_fd(), &[IoSlice::new(&[0])], &parcel, MsgFlags::empty(), None)?;
        // It is the sender's close that calls the collector, so that it must be the last.
        drop(self);
        drop(queue);
        drop(sender);
        Ok(())
    }
}

fn enable(fd: &OwnedFd, option: i32) -> io::Result<()> {
    let on: i32 = 1;
    let length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: `on` is alive for the call and `length` is its size.
    let result = unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_NETLINK, option, (&raw const on).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What a reply says of a message's success; none when it carries data instead.
fn outcome(reply: &Reply) -> Option<Result<(), (io::Error, Option<String>)>> {
    let code = match i32::from(reply.kind) {
        libc::NLMSG_DONE => return Some(Ok(())),
        libc::NLMSG_ERROR => reply.payload.first_chunk().map_or(-libc::EBADMSG, |bytes| i32::from_ne_bytes(*bytes)),
        _ => return None,
    };
    if code == 0 {
        return Some(Ok(()));
    }
    // The error number is followed by the header of the message it is about, and then attributes.
    let attributes = reply.payload.get(4 + HEADER_BYTES..).unwrap_or_default();
    let hint = find_attribute(attributes, NLMSGERR_ATTR_MSG)
        .map(|text| String::from_utf8_lossy(text).trim_end_matches('\0').to_string());
    Some(Err((io::Error::from_raw_os_error(code.saturating_neg()), hint)))
}

/// Takes a datagram apart into messages; what does not add up ends the list.
fn parse_replies(mut bytes: &[u8]) -> Vec<Reply> {
    let mut replies = Vec::new();
    while let Some(header) = bytes.first_chunk::<HEADER_BYTES>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let Some(payload) = bytes.get(HEADER_BYTES..length) else { break };
        replies.push(Reply {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            sequence: u32::from_ne_bytes([header[8], header[9], header[10], header[11]]),
            payload: payload.to_vec(),
        });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    replies
}

/// The value of the first attribute of this kind.
pub(crate) fn find_attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let Some(header) = bytes.first_chunk::<ATTRIBUTE_HEADER_BYTES>() {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & !(libc::NLA_F_NESTED as u16);
        let value = bytes.get(ATTRIBUTE_HEADER_BYTES..length)?;
        if kind == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attributes_are_found_as_they_were_written() {
        let mut bytes = Vec::new();
        let mut attributes = Attributes::detached(&mut bytes);
        attributes.put_string(3, "eth0");
        attributes.nest(7, |inner| inner.put_u32(1, 42));
        assert_eq!(bytes.len(), 12 + 4 + 8);
        assert_eq!(find_attribute(&bytes, 3), Some(&b"eth0\0"[..]));
        let nested = find_attribute(&bytes, 7).unwrap();
        assert_eq!(find_attribute(nested, 1), Some(&42_u32.to_ne_bytes()[..]));
        assert_eq!(find_attribute(&bytes, 1), None);
    }

    #[test]
    fn a_batch_reads_back_as_messages_in_order() {
        let mut batch = Batch::default();
        batch.push("one", 16, 0, &[1, 2], |_| {});
        batch.push("two", 18, 0, &[3; 4], |attributes| attributes.put_u32(1, 9));
        let replies = parse_replies(&batch.bytes);
        assert_eq!(replies.iter().map(|r| (r.kind, r.sequence)).collect::<Vec<_>>(), [(16, 1), (18, 2)]);
        assert_eq!(replies[1].payload.len(), 12);
    }

    #[test]
    fn an_unknown_link_is_reported_with_what_was_asked() {
        let mut batch = Batch::default();
        let index_nobody_has = [[0; 4], i32::MAX.to_ne_bytes(), [0; 4], [0; 4]].concat();
        batch.push("look at a link", libc::RTM_GETLINK, 0, &index_nobody_has, |_| {});
        let error = Socket::route().unwrap().transact(batch).unwrap_err();
        assert!(error.is(libc::ENODEV), "{error}");
        assert!(error.to_string().starts_with("look at a link: "), "{error}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256), kind: u16) {
            for reply in parse_replies(&bytes) {
                let _ = outcome(&reply);
            }
            let _ = find_attribute(&bytes, kind);
        }
    }
}
