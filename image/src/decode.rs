//! Compressed streams: gzip, zstd, xz and bzip2, told from plain ones by their first bytes.
//!
//! Media types are not asked: they lie now and then, and digests already say whether the bytes are the right ones.

use std::cell::Cell;
use std::io::{self, BufRead, Read};
use std::rc::Rc;

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const XZ: [u8; 6] = [0xfd, b'7', b'z', b'X', b'Z', 0];
const BZIP2: [u8; 3] = *b"BZh";
/// A frame that zstd decoders pass over; some compressors begin with one (RFC 8878, section 3.1.2).
const ZSTD_SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];
/// Largest window of a zstd stream, as a power of two: 128 MiB, what `zstd` itself accepts unasked.
const ZSTD_WINDOW: u32 = 27;
/// How many times its packed size a stream may have, once it is larger than [`FREE`]. Zeros apart, what is in images never
/// comes near: gzip itself cannot do more than a thousand, zstd can do a hundred thousand.
const MOST_TIMES: u64 = 250;
/// What any stream may unpack to.
const FREE: u64 = 1 << 30;
/// Most memory for an xz stream, in KiB: twice what `xz -9` needs.
const XZ_MEMORY: u32 = 130 << 10;

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
    Xz,
    Bzip2,
}

impl Compression {
    /// By a stream's first bytes, at least six of them if there are so many.
    pub fn of(start: &[u8]) -> Self {
        if start.starts_with(&GZIP) {
            Self::Gzip
        } else if start.starts_with(&ZSTD)
            || (start.len() >= 4 && start[0] & 0xf0 == 0x50 && start[1..4] == ZSTD_SKIPPABLE)
        {
            Self::Zstd
        } else if start.starts_with(&XZ) {
            Self::Xz
        } else if start.starts_with(&BZIP2) && start.get(3).is_some_and(|level| (b'1'..=b'9').contains(level)) {
            Self::Bzip2
        } else {
            Self::None
        }
    }
}

/// The plain bytes of `stream`, whatever it is compressed with. A stream that is there to fill disks is an error.
pub fn decode<'a>(stream: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    decode_up_to(stream, FREE)
}

fn decode_up_to<'a>(mut stream: impl BufRead + 'a, free: u64) -> io::Result<Box<dyn Read + 'a>> {
    let packed = Rc::new(Cell::new(0));
    let compression = Compression::of(stream.fill_buf()?);
    let stream = Counted { inner: stream, count: Rc::clone(&packed) };
    let inner: Box<dyn Read + 'a> = match compression {
        Compression::None => return Ok(Box::new(stream)),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(stream)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(stream)?;
            decoder.window_log_max(ZSTD_WINDOW)?;
            Box::new(decoder)
        }
        Compression::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(stream, true, XZ_MEMORY)),
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(stream)),
    };
    Ok(Box::new(Guarded { inner, packed, plain: 0, free }))
}

/// Counts the bytes that are taken.
struct Counted<R> {
    inner: R,
    count: Rc<Cell<u64>>,
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.count.set(self.count.get() + n as u64);
        Ok(n)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.count.set(self.count.get() + amount as u64);
        self.inner.consume(amount);
    }
}

/// Ends a stream that grows beyond all measure.
struct Guarded<R> {
    inner: R,
    packed: Rc<Cell<u64>>,
    plain: u64,
    /// See [`FREE`].
    free: u64,
}

impl<R: Read> Read for Guarded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.plain += n as u64;
        if self.plain > self.free && self.plain / MOST_TIMES > self.packed.get() {
            return Err(io::Error::other(format!(
                "it unpacks to more than {MOST_TIMES} times its size; if that is meant, pack it without compression"
            )));
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    /// What `xz` makes of `text`.
    const XZ_TEXT: &[u8] = &[
        0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x04, 0xe6, 0xd6, 0xb4, 0x46, 0x02, 0x00, 0x21, 0x01, 0x16, 0x00,
        0x00, 0x00, 0x74, 0x2f, 0xe5, 0xa3, 0x01, 0x00, 0x03, 0x74, 0x65, 0x78, 0x74, 0x00, 0x55, 0xcd, 0xe8, 0x33,
        0xff, 0x4a, 0x0c, 0x17, 0x00, 0x01, 0x1c, 0x04, 0x6f, 0x2c, 0x9c, 0xc1, 0x1f, 0xb6, 0xf3, 0x7d, 0x01, 0x00,
        0x00, 0x00, 0x00, 0x04, 0x59, 0x5a,
    ];

    fn plain(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decode(bytes)?.take(1 << 20).read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn all_forms_and_joined_streams_are_read() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"text").unwrap();
        let gzip = gzip.finish().unwrap();
        let zstd = zstd::encode_all(&b"text"[..], 1).unwrap();
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9][..], &zstd].concat();
        assert_eq!(plain(b"text").unwrap(), b"text");
        assert_eq!(plain(b"").unwrap(), b"");
        let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bzip2.write_all(b"text").unwrap();
        let bzip2 = bzip2.finish().unwrap();
        for form in [&gzip, &zstd, &bzip2, &XZ_TEXT.to_vec()] {
            let twice = [&form[..], form].concat();
            assert_eq!(plain(&twice).unwrap(), b"texttext");
            assert!(plain(&twice[..twice.len() - 3]).is_err());
        }
        assert_eq!(plain(&skippable).unwrap(), b"text");
    }

    #[test]
    fn a_stream_that_grows_beyond_all_measure_is_ended() {
        let zeros = vec![0; 8 << 20];
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(&zeros).unwrap();
        for bomb in [gzip.finish().unwrap(), zstd::encode_all(&zeros[..], 1).unwrap()] {
            let read = |free| io::copy(&mut decode_up_to(&bomb[..], free).unwrap(), &mut io::sink());
            assert!(read(1 << 20).unwrap_err().to_string().contains("more than 250 times its size"));
            assert_eq!(read(8 << 20).unwrap(), 8 << 20, "a small one is nobody's harm");
        }
        let noise: Vec<u8> =
            (0..4u32 << 20).flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()).collect();
        let packed = zstd::encode_all(&noise[..], 1).unwrap();
        assert_eq!(io::copy(&mut decode_up_to(&packed[..], 1).unwrap(), &mut io::sink()).unwrap(), 16 << 20);
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_without_panic(magic in 0..5usize, bytes: Vec<u8>) {
            let magic: &[u8] = [&GZIP[..], &ZSTD, &[], &XZ, b"BZh9"][magic];
            let _ = plain(&[magic, &bytes].concat());
        }
    }
}
