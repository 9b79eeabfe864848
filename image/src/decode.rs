//! Compressed streams: gzip and zstd, told from plain ones by their first bytes.
//!
//! Media types are not asked: they lie now and then, and digests already say whether the bytes are the right ones.

use std::io::{self, BufRead, Read};

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// A frame that zstd decoders pass over; some compressors begin with one (RFC 8878, section 3.1.2).
const ZSTD_SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];
/// Largest window of a zstd stream, as a power of two: 128 MiB, what `zstd` itself accepts unasked.
const ZSTD_WINDOW: u32 = 27;

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// By a stream's first bytes, at least four of them if there are so many.
    pub fn of(start: &[u8]) -> Self {
        if start.starts_with(&GZIP) {
            Self::Gzip
        } else if start.starts_with(&ZSTD)
            || (start.len() >= 4 && start[0] & 0xf0 == 0x50 && start[1..4] == ZSTD_SKIPPABLE)
        {
            Self::Zstd
        } else {
            Self::None
        }
    }
}

/// The plain bytes of `stream`, whatever it is compressed with.
pub fn decode<'a>(mut stream: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match Compression::of(stream.fill_buf()?) {
        Compression::None => Box::new(stream),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(stream)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(stream)?;
            decoder.window_log_max(ZSTD_WINDOW)?;
            Box::new(decoder)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn plain(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decode(bytes)?.take(1 << 20).read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn all_three_forms_and_joined_streams_are_read() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"text").unwrap();
        let gzip = gzip.finish().unwrap();
        let zstd = zstd::encode_all(&b"text"[..], 1).unwrap();
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9][..], &zstd].concat();
        assert_eq!(plain(b"text").unwrap(), b"text");
        assert_eq!(plain(b"").unwrap(), b"");
        for twice in [[&gzip[..], &gzip].concat(), [&zstd[..], &zstd].concat()] {
            assert_eq!(plain(&twice).unwrap(), b"texttext");
            assert!(plain(&twice[..twice.len() - 3]).is_err());
        }
        assert_eq!(plain(&skippable).unwrap(), b"text");
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_without_panic(magic in 0..3usize, bytes: Vec<u8>) {
            let magic: &[u8] = [&GZIP[..], &ZSTD, &[]][magic];
            let _ = plain(&[magic, &bytes].concat());
        }
    }
}
