//! The header of a vsock packet (virtio 1.2, section 5.10.6).
//!
//! The virtio-vsock crate is not used: it takes a payload of one descriptor only, while Linux sends pages of
//! a zero-copy write as many.

/// Bytes of a header on the ring.
pub(super) const HEADER_BYTES: usize = 44;

/// The host's own CID (virtio 1.2, section 5.10.4).
pub(super) const HOST_CID: u64 = 2;

/// Socket type of a byte stream, the only one served.
pub(super) const TYPE_STREAM: u16 = 1;

/// In the flags of [`Op::Shutdown`]: the sender will receive no more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// In the flags of [`Op::Shutdown`]: the sender will send no more.
pub(super) const SHUTDOWN_SEND: u32 = 2;
/// Both directions are over.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Op {
    /// Asks for a connection.
    Request = 1,
    /// Accepts it.
    Response = 2,
    /// Refuses or ends a connection at once.
    Reset = 3,
    /// Says that the sender will send or receive no more; see the flags.
    Shutdown = 4,
    /// Carries data.
    ReadWrite = 5,
    /// Tells how much buffer the sender has free.
    CreditUpdate = 6,
    /// Asks for a [`Op::CreditUpdate`].
    CreditRequest = 7,
}

impl Op {
    /// The operation of a number, if there is one.
    pub fn from_number(number: u16) -> Option<Self> {
        const ALL: [Op; 7] =
            [Op::Request, Op::Response, Op::Reset, Op::Shutdown, Op::ReadWrite, Op::CreditUpdate, Op::CreditRequest];
        ALL.into_iter().find(|op| *op as u16 == number)
    }
}

/// A packet's header. `op` and `socket_type` are as sent: any number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    /// Bytes of data behind the header.
    pub length: u32,
    pub socket_type: u16,
    pub op: u16,
    pub flags: u32,
    /// Size of the sender's receive buffer.
    pub buf_alloc: u32,
    /// Bytes that the sender has taken out of that buffer since the connection began, wrapping.
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads a header.
    pub fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Self {
        let mut fields = Fields(bytes);
        Self {
            src_cid: u64::from_le_bytes(fields.next()),
            dst_cid: u64::from_le_bytes(fields.next()),
            src_port: u32::from_le_bytes(fields.next()),
            dst_port: u32::from_le_bytes(fields.next()),
            length: u32::from_le_bytes(fields.next()),
            socket_type: u16::from_le_bytes(fields.next()),
            op: u16::from_le_bytes(fields.next()),
            flags: u32::from_le_bytes(fields.next()),
            buf_alloc: u32::from_le_bytes(fields.next()),
            fwd_cnt: u32::from_le_bytes(fields.next()),
        }
    }

    /// The header as it stands on the ring.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.length.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.socket_type.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }
}

/// Takes the fields of a header one by one.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    /// The next field; zeroes beyond the end, which a whole header never meets.
    fn next<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk::<N>() {
            Some((field, rest)) => {
                self.0 = rest;
                *field
            }
            None => [0; N],
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn operations_have_the_numbers_of_the_specification() {
        assert_eq!(Op::from_number(0), None);
        assert_eq!(Op::from_number(3), Some(Op::Reset));
        assert_eq!(Op::from_number(7), Some(Op::CreditRequest));
        assert_eq!(Op::from_number(8), None);
    }

    proptest! {
        #[test]
        fn any_header_survives_the_round_trip(bytes: [u8; 32], rest: [u8; 12]) {
            let mut whole = [0; HEADER_BYTES];
            whole[..32].copy_from_slice(&bytes);
            whole[32..].copy_from_slice(&rest);
            prop_assert_eq!(Header::from_bytes(&whole).to_bytes(), whole);
        }
    }
}
