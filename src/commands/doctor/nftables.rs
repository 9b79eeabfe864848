//! Whether the kernel has nftables: asks it for the number of its rule set's generation (linux/netfilter/nf_tables.h,
//! NFT_MSG_GETGEN), the smallest question there is.

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket};

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_GETGEN: u16 = 16;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
/// Length of a message's header (struct nlmsghdr) and of netfilter's own behind it (struct nfgenmsg).
const HEADER_BYTES: usize = 16;
const NFGENMSG_BYTES: usize = 4;

/// Asks the kernel.
///
/// # Errors
/// What is missing, and what helps.
pub fn check() -> Result<(), String> {
    ask()
        .map_err(|errno| format!("the kernel has no nftables for us ({errno}); load the module nf_tables, and be root"))
}

fn ask() -> Result<(), Errno> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
    sendto(socket.as_raw_fd(), &question(), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = [0; 512];
    // The kernel answers before sendto returns.
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)?;
    error_in(&answer[..length]).map_or(Ok(()), Err)
}

fn question() -> Vec<u8> {
    let length = (HEADER_BYTES + NFGENMSG_BYTES) as u32;
    let mut message = Vec::new();
    message.extend(length.to_ne_bytes());
    message.extend((NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN).to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence number and port, both of no use here; then family, version and resource.
    message.extend([0; 8]);
    message.extend([0; NFGENMSG_BYTES]);
    message
}

/// The error in an answer; none when it is another message.
fn error_in(answer: &[u8]) -> Option<Errno> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let code = i32::from_ne_bytes(answer.get(HEADER_BYTES..HEADER_BYTES + 4)?.try_into().ok()?);
    (kind == NLMSG_ERROR && code != 0).then(|| Errno::from_raw(code.saturating_neg()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_from_an_answer() {
        let mut answer = [0; 20];
        answer[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        answer[16..20].copy_from_slice(&(-1_i32).to_ne_bytes());
        assert_eq!(error_in(&answer), Some(Errno::EPERM));
        answer[4..6].copy_from_slice(&(NFNL_SUBSYS_NFTABLES << 8).to_ne_bytes());
        assert_eq!(error_in(&answer), None);
        assert_eq!(error_in(&[]), None);
    }
}
