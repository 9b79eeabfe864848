//! Unpacks a layer on a thread of its own, so that reading, hashing and decompressing overlap with writing.

use std::io::{self, BufReader, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use crate::decode::{Compression, decode};
use crate::digest::{Digest, HashingReader};

/// Size of the pieces handed over, and how many may wait.
const PIECE: usize = 256 * 1024;
const WAITING: usize = 8;

/// What came by.
#[derive(Debug)]
pub struct Passed {
    /// The digest of the packed bytes; none when it was not worth the while to read all of them.
    pub packed: Option<Digest>,
    /// The digest of the plain bytes, when all of them could be unpacked.
    pub plain: Option<Digest>,
}

/// The reading end: plain bytes of the layer.
struct Pieces {
    receiver: Receiver<io::Result<Vec<u8>>>,
    piece: io::Cursor<Vec<u8>>,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let n = self.piece.read(buffer)?;
            if n > 0 || buffer.is_empty() {
                return Ok(n);
            }
            match self.receiver.recv() {
                Ok(piece) => self.piece = io::Cursor::new(piece?),
                Err(_) => return Ok(0),
            }
        }
    }
}

/// Calls `count` with the number of bytes of every read.
struct Counting<R, F> {
    inner: R,
    count: F,
}

impl<R: Read, F: Fn(u64)> Read for Counting<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        (self.count)(n as u64);
        Ok(n)
    }
}

/// Gives `consume` the plain bytes of `packed`, and then tells the digests of both.
///
/// When `consume` stops early, the rest is not unpacked but still hashed, if it is no more than `rest`
/// bytes: a wrong digest explains most failures. `count` hears how many packed bytes have been read.
pub fn unpack<T>(
    packed: impl Read + Send,
    rest: u64,
    count: impl Fn(u64) + Send,
    consume: impl FnOnce(&mut dyn Read) -> T,
) -> (T, io::Result<Passed>) {
    let (sender, receiver) = sync_channel(WAITING);
    thread::scope(|scope| {
        let producer = scope.spawn(move || produce(Counting { inner: packed, count }, rest, &sender));
        let mut pieces = Pieces { receiver, piece: io::Cursor::default() };
        let result = consume(&mut pieces);
        drop(pieces);
        let passed = producer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (result, passed)
    })
}

fn produce(packed: impl Read, rest: u64, sender: &SyncSender<io::Result<Vec<u8>>>) -> io::Result<Passed> {
    let mut packed = HashingReader::new(packed);
    let mut buffered = BufReader::with_capacity(PIECE, &mut packed);
    let start = io::BufRead::fill_buf(&mut buffered)?;
    let is_plain = Compression::of(start) == Compression::None;
    let plain = if is_plain {
        send_all(&mut buffered, sender);
        None
    } else {
        let mut plain = HashingReader::new(decode(buffered)?);
        let whole = send_all(&mut plain, sender);
        whole.then(|| plain.finish().0)
    };
    let is_whole = io::copy(&mut packed.by_ref().take(rest), &mut io::sink())? < rest;
    let packed = is_whole.then(|| packed.finish().0);
    // Plain bytes need no second look.
    Ok(Passed { packed, plain: if is_plain { packed } else { plain } })
}

/// Sends all there is to read. True when it ended well and all was taken.
fn send_all(plain: &mut impl Read, sender: &SyncSender<io::Result<Vec<u8>>>) -> bool {
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        let result = plain.by_ref().take(PIECE as u64).read_to_end(&mut piece);
        let last = piece.is_empty();
        if !last && sender.send(Ok(piece)).is_err() {
            return false;
        }
        match result {
            Ok(_) if last => return true,
            Ok(_) => {}
            Err(error) => {
                // Whether it is heard or not, the stream is over.
                let _ = sender.send(Err(error));
                return false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(packed: &[u8]) -> (io::Result<Vec<u8>>, Passed) {
        let (result, passed) = unpack(
            packed,
            u64::MAX,
            |_| {},
            |plain| {
                let mut all = Vec::new();
                plain.read_to_end(&mut all).map(|_| all)
            },
        );
        (result, passed.unwrap())
    }

    #[test]
    fn both_digests_are_told_however_the_layer_is_packed() {
        let plain: Vec<u8> = (0..3_000_000u32).map(|i| (i / 7) as u8).collect();
        let zstd = zstd::encode_all(&plain[..], 1).unwrap();
        for packed in [&plain, &zstd] {
            let (result, passed) = read_all(packed);
            assert_eq!(result.unwrap(), plain);
            assert_eq!(passed.packed, Some(Digest::of(packed)));
            assert_eq!(passed.plain, Some(Digest::of(&plain)));
        }
    }

    #[test]
    fn a_broken_stream_is_still_hashed_to_its_end() {
        let plain = vec![7; 3_000_000];
        let mut zstd = zstd::encode_all(&plain[..], 1).unwrap();
        let at = zstd.len() / 2;
        zstd[at] ^= 0xff;
        let (result, passed) = read_all(&zstd);
        assert!(result.is_err());
        assert_eq!((passed.packed, passed.plain), (Some(Digest::of(&zstd)), None));
    }

    #[test]
    fn a_reader_that_stops_does_not_unpack_the_rest() {
        let plain = vec![0; 200 << 20];
        let zstd = zstd::encode_all(&plain[..], 1).unwrap();
        let ((), passed) = unpack(
            &zstd[..],
            u64::MAX,
            |_| {},
            |plain| {
                plain.read_exact(&mut [0; 10]).unwrap();
            },
        );
        let passed = passed.unwrap();
        assert_eq!((passed.packed, passed.plain), (Some(Digest::of(&zstd)), None));
    }

    #[test]
    fn a_long_rest_is_not_read() {
        let zstd = zstd::encode_all(&vec![0; 2000][..], 1).unwrap();
        let stream = (&zstd[..]).chain(io::repeat(0));
        let ((), passed) = unpack(stream, 10_000, |_| {}, |_| ());
        assert_eq!(passed.unwrap().packed, None);
    }
}
