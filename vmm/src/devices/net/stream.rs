//! A stream socket as the card's network: each frame behind its length, as QEMU's `-netdev stream` and passt(1) write them.
//!
//! There is no virtio-net header on the way, and nothing is left to the other side: a frame is what a wire carries. Frames are
//! copied, since a stream gives and takes parts of them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};

use super::LARGEST_FRAME;
use super::tap::Moved;
use crate::virtio::chain::Buffers;

/// The length before each frame, in network byte order.
const LENGTH_BYTES: usize = 4;

/// The socket. It does not block. One whose other end is gone, or makes no sense, is a cable that is pulled out.
#[derive(Debug)]
pub(super) struct Stream {
    socket: File,
    /// What was read; frames from `first` on are yet to be received.
    incoming: Vec<u8>,
    first: usize,
    /// A frame of which the other side has taken `sent` bytes.
    outgoing: Vec<u8>,
    sent: usize,
    is_over: bool,
}

impl Stream {
    /// Takes a connected stream socket over.
    pub fn new(socket: File) -> io::Result<Self> {
        // SAFETY: fcntl with these commands takes and gives plain flags.
        let done = unsafe {
            let status = libc::fcntl(socket.as_raw_fd(), libc::F_GETFL);
            if status < 0 { status } else { libc::fcntl(socket.as_raw_fd(), libc::F_SETFL, status | libc::O_NONBLOCK) }
        };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { socket, incoming: Vec::new(), first: 0, outgoing: Vec::new(), sent: 0, is_over: false })
    }

    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// The next frame, if all of it has arrived.
    pub fn receive(&mut self) -> Option<&[u8]> {
        loop {
            if let Some(length) = self.next_length() {
                if length > LARGEST_FRAME {
                    self.is_over = true;
                    return None;
                }
                let start = self.first + LENGTH_BYTES;
                if self.incoming.len() >= start + length {
                    self.first = start + length;
                    return self.incoming.get(start..start + length);
                }
            }
            if !self.read_more() {
                return None;
            }
        }
    }

    fn next_length(&self) -> Option<usize> {
        let length = self.incoming.get(self.first..)?.first_chunk::<LENGTH_BYTES>()?;
        usize::try_from(u32::from_be_bytes(*length)).ok()
    }

    /// Reads what is there, as far as there is room for it.
    fn read_more(&mut self) -> bool {
        if self.is_over {
            return false;
        }
        self.incoming.drain(..self.first);
        self.first = 0;
        let length = self.incoming.len();
        self.incoming.resize(LENGTH_BYTES + LARGEST_FRAME, 0);
        let count = uninterrupted(|| self.socket.read(&mut self.incoming[length..]));
        self.incoming.truncate(length + count.as_ref().copied().unwrap_or(0));
        self.is_over = !matches!(count, Ok(1..)) && !is_not_now(&count);
        matches!(count, Ok(1..))
    }

    /// Sends a frame. What the other side does not take at once follows by [`Self::flush`].
    pub fn send(&mut self, frame: &Buffers<'_>) -> Moved {
        if !self.flush() {
            return Moved::NotNow;
        }
        // The length was checked against the largest frame's.
        self.outgoing.extend((frame.len() as u32).to_be_bytes());
        self.outgoing.resize(LENGTH_BYTES + frame.len(), 0);
        frame.copy_to(&mut self.outgoing[LENGTH_BYTES..]);
        self.flush();
        Moved::Bytes(frame.len())
    }

    /// Sends what is left of the last frame; whether nothing is left now.
    pub fn flush(&mut self) -> bool {
        while self.sent < self.outgoing.len() && !self.is_over {
            match uninterrupted(|| self.socket.write(&self.outgoing[self.sent..])) {
                Ok(count @ 1..) => self.sent += count,
                other if is_not_now(&other) => return false,
                _ => self.is_over = true,
            }
        }
        self.outgoing.clear();
        self.sent = 0;
        true
    }
}

fn uninterrupted(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn is_not_now(result: &io::Result<usize>) -> bool {
    matches!(result, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use proptest::prelude::*;

    use super::super::{HEADER_BYTES, Net, NetConfig, NetworkEnd, RX, TX};
    use super::*;
    use crate::devices::VirtioDevice;
    use crate::devices::testing::{Bench, Buffer, survives_hostile_rings};

    fn card() -> (Net, UnixStream) {
        let (ours, network) = UnixStream::pair().unwrap();
        let end = NetworkEnd::Stream(File::from(OwnedFd::from(ours)));
        (Net::new(NetConfig { network: end, mac: [2, 0, 0, 0, 0, 3], mtu: Some(1500) }).unwrap(), network)
    }

    fn start() -> (Bench<Net>, UnixStream) {
        let (card, network) = card();
        (Bench::start(card), network)
    }

    fn on_the_wire(frame: &[u8]) -> Vec<u8> {
        [&(frame.len() as u32).to_be_bytes()[..], frame].concat()
    }

    fn frame(length: usize, seed: u8) -> Vec<u8> {
        (0..length).map(|i| (i as u8).wrapping_mul(29).wrapping_add(seed)).collect()
    }

    fn received(bench: &mut Bench<Net>) -> Vec<Vec<u8>> {
        bench.run();
        let used = bench.used(RX);
        used.iter().map(|&(head, length)| bench.written(RX, head)[HEADER_BYTES..length as usize].to_vec()).collect()
    }

    #[test]
    fn nothing_is_left_to_a_network_that_finishes_no_frames() {
        let (card, _network) = card();
        assert_eq!(card.features(), 1 << 3 | 1 << 5 | 1 << 15);
    }

    #[test]
    fn a_length_that_no_frame_has_pulls_the_cable_out() {
        let (mut bench, mut network) = start();
        bench.add_chain(RX, &[Buffer::writable(70_000)]);
        bench.kick(RX);
        network.write_all(&u32::MAX.to_be_bytes()).unwrap();
        network.write_all(&on_the_wire(&frame(60, 1))).unwrap();
        assert!(received(&mut bench).is_empty());
        bench.add_chain(TX, &[Buffer::readable(&[0; HEADER_BYTES + 60])]);
        bench.kick(TX);
        assert_eq!(bench.used(TX).len(), 1, "what is sent is lost");
    }

    #[test]
    fn a_card_outlives_its_network() {
        let (mut bench, network) = start();
        drop(network);
        for _ in 0..3 {
            bench.add_chain(TX, &[Buffer::readable(&[0; HEADER_BYTES + 60])]);
            bench.kick(TX);
        }
        assert_eq!(bench.used(TX).len(), 3);
    }

    #[test]
    fn what_a_full_socket_does_not_take_follows_when_it_does() {
        let (mut bench, mut network) = start();
        let sent: Vec<_> = (0..200).map(|seed| frame(60_000, seed)).collect();
        let expected: Vec<u8> = sent.iter().flat_map(|frame| on_the_wire(frame)).collect();
        for frame in &sent {
            bench.add_chain(TX, &[Buffer::readable(&[&[0; HEADER_BYTES], &frame[..]].concat())]);
        }
        bench.kick(TX);
        let at_first = bench.used(TX).len();
        assert!((1..sent.len()).contains(&at_first), "{at_first}");
        network.set_nonblocking(true).unwrap();
        let mut arrived = Vec::<u8>::new();
        while arrived.len() < expected.len() {
            let mut buffer = vec![0; 1 << 20];
            match network.read(&mut buffer) {
                Ok(count) => arrived.extend(&buffer[..count]),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            bench.run();
        }
        assert!(arrived == expected);
        assert_eq!(at_first + bench.used(TX).len(), sent.len());
    }

    #[test]
    fn hostile_rings_only_stop_the_card() {
        survives_hostile_rings(|| {
            let (card, mut network) = card();
            network.write_all(&on_the_wire(&frame(700, 0))).unwrap();
            std::mem::forget(network);
            card
        });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn frames_arrive_whole_however_the_stream_is_cut(
            sizes in prop::collection::vec(prop_oneof![14_usize..200, 14_usize..65_000], 1..8),
            cuts in prop::collection::vec(1_usize..70_000, 1..20),
        ) {
            let (mut bench, mut network) = start();
            let frames: Vec<_> = sizes.iter().enumerate().map(|(i, &size)| frame(size, i as u8)).collect();
            for _ in &frames {
                bench.add_chain(RX, &[Buffer::writable(66_000)]);
            }
            bench.kick(RX);
            let wire: Vec<u8> = frames.iter().flat_map(|frame| on_the_wire(frame)).collect();
            let (mut left, mut arrived) = (&wire[..], Vec::new());
            for cut in cuts.iter().cycle() {
                let (now, rest) = left.split_at((*cut).min(left.len()));
                network.write_all(now).unwrap();
                arrived.extend(received(&mut bench));
                left = rest;
                if left.is_empty() {
                    break;
                }
            }
            prop_assert!(arrived == frames);
        }
    }
}
