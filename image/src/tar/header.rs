//! The 512-byte header block: fields and number forms of v7, ustar, star and GNU tar.

use super::{BLOCK, Timestamp};

/// A header block whose checksum is right.
pub struct Header<'a>(&'a [u8; BLOCK]);

/// Which dialect a header is written in; it decides what the bytes past 345 mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// One field of a header, as offset and length.
type Field = (usize, usize);

const NAME: Field = (0, 100);
const MODE: Field = (100, 8);
const UID: Field = (108, 8);
const GID: Field = (116, 8);
const SIZE: Field = (124, 12);
const MTIME: Field = (136, 12);
const CHECKSUM: Field = (148, 8);
const TYPE: usize = 156;
const LINK: Field = (157, 100);
const MAJOR: Field = (329, 8);
const MINOR: Field = (337, 8);
const PREFIX: Field = (345, 155);
/// star keeps access and change times in the last part of the prefix.
const STAR_PREFIX: Field = (345, 131);

impl<'a> Header<'a> {
    /// Checks the checksum, which old tars computed over signed bytes.
    pub fn new(block: &'a [u8; BLOCK]) -> Result<Self, &'static str> {
        let header = Self(block);
        let stored = header.number(CHECKSUM).ok_or("its checksum is not a number")?;
        let (mut unsigned, mut signed) = (0i64, 0i64);
        for (i, &byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&i) { b' ' } else { byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        if stored != unsigned && stored != signed {
            return Err("its checksum is wrong");
        }
        Ok(header)
    }

    fn field(&self, (offset, length): Field) -> &'a [u8] {
        &self.0[offset..offset + length]
    }

    /// A text field: up to the first NUL or the field's end.
    fn text(&self, field: Field) -> &'a [u8] {
        let bytes = self.field(field);
        let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
        &bytes[..end]
    }

    fn number(&self, field: Field) -> Option<i64> {
        parse_number(self.field(field))
    }

    fn dialect(&self) -> Dialect {
        match &self.0[257..265] {
            b"ustar  \0" => Dialect::Gnu,
            [b'u', b's', b't', b'a', b'r', 0, ..] if &self.0[508..512] == b"tar\0" => Dialect::Star,
            [b'u', b's', b't', b'a', b'r', 0, ..] => Dialect::Ustar,
            _ => Dialect::V7,
        }
    }

    pub fn kind(&self) -> u8 {
        self.0[TYPE]
    }

    /// The name, with the prefix that ustar splits long names into.
    pub fn path(&self) -> Vec<u8> {
        let name = self.text(NAME);
        let prefix = match self.dialect() {
            Dialect::Ustar => self.text(PREFIX),
            Dialect::Star => self.text(STAR_PREFIX),
            Dialect::V7 | Dialect::Gnu => b"",
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub fn link(&self) -> Vec<u8> {
        self.text(LINK).to_vec()
    }

    pub fn mode(&self) -> Option<u32> {
        // Some archivers put the file type in too; only the permission bits are meant.
        self.number(MODE).map(|mode| (mode & 0o7777) as u32)
    }

    pub fn uid(&self) -> Option<u64> {
        self.number(UID).and_then(|n| u64::try_from(n).ok())
    }

    pub fn gid(&self) -> Option<u64> {
        self.number(GID).and_then(|n| u64::try_from(n).ok())
    }

    pub fn size(&self) -> Option<u64> {
        self.number(SIZE).and_then(|n| u64::try_from(n).ok())
    }

    pub fn mtime(&self) -> Option<Timestamp> {
        self.number(MTIME).map(|seconds| Timestamp { seconds, nanos: 0 })
    }

    /// Major and minor number; v7 headers have none.
    pub fn device(&self) -> Option<(u32, u32)> {
        if self.dialect() == Dialect::V7 {
            return Some((0, 0));
        }
        let major = u32::try_from(self.number(MAJOR)?).ok()?;
        let minor = u32::try_from(self.number(MINOR)?).ok()?;
        Some((major, minor))
    }

    /// The four offset and length pairs of GNU's old sparse format, whether more follow, and the real size.
    pub fn old_sparse(&self) -> Option<(&'a [u8], bool, u64)> {
        let real_size = u64::try_from(parse_number(&self.0[483..495])?).ok()?;
        Some((&self.0[386..482], self.0[482] != 0, real_size))
    }
}

/// A number: octal digits between blanks, or GNU's and star's base 256 with the first bit set.
///
/// An empty field is zero. `None` when it is neither form or does not fit.
pub fn parse_number(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => parse_base256(field),
        _ => {
            let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
            let digits = field[..end].trim_ascii();
            digits.iter().try_fold(0i64, |value, &digit| match digit {
                b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
                _ => None,
            })
        }
    }
}

/// Big-endian two's complement; the field's first bit only marks the form.
fn parse_base256(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    let negative = first & 0x40 != 0;
    let start = if negative { -1i128 } else { 0 };
    let head = if negative { first | 0x80 } else { first & 0x7f };
    let value = field[1..].iter().fold(
        (start << 8) | i128::from(head),
        // Twelve bytes are the longest field, so that 128 bits never overflow.
        |value, &byte| (value << 8) | i128::from(byte),
    );
    i64::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_number_forms_are_read() {
        assert_eq!(parse_number(b"0000644\0"), Some(0o644));
        assert_eq!(parse_number(b"   644 \0"), Some(0o644));
        assert_eq!(parse_number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(parse_number(b"77777777"), Some(0o77777777));
        assert_eq!(parse_number(b"08\0"), None);
        assert_eq!(parse_number(b"-1\0"), None);
        assert_eq!(parse_number(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]), Some(0xffff_ffff));
        assert_eq!(parse_number(&[0xff; 12]), Some(-1));
        assert_eq!(parse_number(&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0]), None);
    }

    proptest! {
        #[test]
        fn base256_gives_back_any_number(value: i64) {
            let mut field = [if value < 0 { 0xff } else { 0 }; 12];
            field[4..].copy_from_slice(&value.to_be_bytes());
            field[0] |= 0x80;
            prop_assert_eq!(parse_number(&field), Some(value));
        }

        #[test]
        fn any_block_is_answered_without_panic(bytes in proptest::collection::vec(any::<u8>(), BLOCK)) {
            let block: [u8; BLOCK] = bytes.try_into().unwrap();
            // Past the checksum, which random bytes never pass.
            let header = Header(&block);
            let _ = (header.path(), header.link(), header.mode(), header.uid(), header.device());
            let _ = (header.size(), header.mtime(), header.old_sparse(), Header::new(&block).is_ok());
        }
    }
}
