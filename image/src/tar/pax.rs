//! Pax extended headers (POSIX.1-2001, pax, "Extended Header"): records of `LENGTH KEY=VALUE\n`.

use std::collections::BTreeMap;

use super::{MAX_ATTRIBUTE_BYTES, MAX_SPARSE_SEGMENTS, Timestamp};
use crate::acl;

/// The namespaces of extended attributes that Linux has (xattr(7)).
const NAMESPACES: [&[u8]; 4] = [b"user.", b"system.", b"trusted.", b"security."];
/// What an attribute counts beside its bytes.
const ATTRIBUTE_COST: usize = 64;

/// The records of one or more pax headers that matter here, later ones replacing earlier ones.
#[derive(Debug, Clone, Default)]
pub struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<Timestamp>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub unknown_attributes: u32,
    pub sparse: PaxSparse,
    /// Bytes that were put into `xattrs`, so that headers cannot pile them up.
    held: usize,
}

/// What the three GNU sparse formats in pax headers say.
#[derive(Debug, Clone, Default)]
pub struct PaxSparse {
    pub major: Option<u64>,
    pub minor: Option<u64>,
    pub name: Option<Vec<u8>>,
    pub real_size: Option<u64>,
    /// Format 0.1: `offset,length,…`.
    pub map: Option<Vec<u8>>,
    /// Format 0.0: the offsets and lengths in the order of their records.
    pub numbers: Vec<u64>,
}

/// One record, and the bytes after it.
struct Record<'a> {
    key: &'a [u8],
    value: &'a [u8],
    rest: &'a [u8],
}

impl PaxSparse {
    /// Whether any of the sparse formats is in use.
    pub fn is_used(&self) -> bool {
        self.major.is_some() || self.real_size.is_some() || self.map.is_some() || !self.numbers.is_empty()
    }
}

impl Pax {
    /// Takes in the records of one extended header.
    pub fn merge(&mut self, mut records: &[u8]) -> Result<(), &'static str> {
        while !records.is_empty() {
            let Record { key, value, rest } = split_record(records)?;
            self.apply(key, value)?;
            records = rest;
        }
        Ok(())
    }

    fn apply(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        // An empty value deletes the record, so that the header's own field holds again.
        let text = || (!value.is_empty()).then(|| value.to_vec());
        match key {
            b"path" => self.path = text(),
            b"linkpath" => self.link = text(),
            b"size" => self.size = number(value, "size")?,
            b"uid" => self.uid = number(value, "uid")?,
            b"gid" => self.gid = number(value, "gid")?,
            b"mtime" if value.is_empty() => self.mtime = None,
            b"mtime" => self.mtime = Some(parse_time(value).ok_or("mtime is not a time")?),
            b"SCHILY.acl.access" => self.acl(b"system.posix_acl_access", value)?,
            b"SCHILY.acl.default" => self.acl(b"system.posix_acl_default", value)?,
            b"GNU.sparse.major" => self.sparse.major = number(value, "GNU.sparse.major")?,
            b"GNU.sparse.minor" => self.sparse.minor = number(value, "GNU.sparse.minor")?,
            b"GNU.sparse.name" => self.sparse.name = text(),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.sparse.real_size = number(value, "GNU.sparse.size")?;
            }
            b"GNU.sparse.map" => self.sparse.map = Some(value.to_vec()),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                let n = number(value, "GNU.sparse.offset")?.ok_or("a sparse offset is empty")?;
                if self.sparse.numbers.len() >= 2 * MAX_SPARSE_SEGMENTS {
                    return Err("the sparse map has too many segments");
                }
                self.sparse.numbers.push(n);
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.set_xattr(name, value)?;
                }
            }
        }
        Ok(())
    }

    fn acl(&mut self, name: &[u8], text: &[u8]) -> Result<(), &'static str> {
        match acl::from_text(text) {
            // One that only repeats the mode is not kept as an attribute by the kernel either.
            Some(value) if name.ends_with(b"access") && acl::is_minimal(&value) => Ok(()),
            Some(value) if value.is_empty() => Ok(()),
            Some(value) => self.set_xattr(name, &value),
            None => {
                self.unknown_attributes += 1;
                Ok(())
            }
        }
    }

    fn set_xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), &'static str> {
        if !NAMESPACES.iter().any(|namespace| name.starts_with(namespace)) {
            // Of other systems, such as com.apple.quarantine.
            self.unknown_attributes = self.unknown_attributes.saturating_add(1);
            return Ok(());
        }
        self.held += name.len() + value.len() + ATTRIBUTE_COST;
        if self.held > MAX_ATTRIBUTE_BYTES {
            return Err("its extended attributes are too many or too large");
        }
        self.xattrs.insert(name.to_vec(), value.to_vec());
        Ok(())
    }
}

/// Takes the first record off.
fn split_record(records: &[u8]) -> Result<Record<'_>, &'static str> {
    let space = records.iter().take(21).position(|&b| b == b' ').ok_or("a record has no length")?;
    let length = number(&records[..space], "a record's length")?.ok_or("a record has no length")?;
    let length = usize::try_from(length).map_err(|_| "a record is longer than its header")?;
    if length > records.len() {
        return Err("a record is longer than its header");
    }
    let (record, rest) = records.split_at(length);
    let body = record.get(space + 1..).and_then(|body| body.strip_suffix(b"\n"));
    let body = body.ok_or("a record does not end with its line")?;
    let equals = body.iter().position(|&b| b == b'=').ok_or("a record has no value")?;
    Ok(Record { key: &body[..equals], value: &body[equals + 1..], rest })
}

/// A decimal number; nothing is `None`.
fn number(text: &[u8], what: &'static str) -> Result<Option<u64>, &'static str> {
    if text.is_empty() {
        return Ok(None);
    }
    parse_decimal(text).map(Some).ok_or(match what {
        "size" => "size is not a number",
        "uid" => "uid is not a number",
        "gid" => "gid is not a number",
        "a record's length" => "a record's length is not a number",
        _ => "a sparse field is not a number",
    })
}

/// Decimal digits only.
pub fn parse_decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 20 {
        return None;
    }
    text.iter().try_fold(0u64, |value, &digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// Seconds since 1970 with an optional sign and fraction, kept to the nanosecond, rounded down.
pub fn parse_time(text: &[u8]) -> Option<Timestamp> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|&b| b == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &b""[..]),
    };
    let seconds = i64::try_from(parse_decimal(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |i: usize| fraction.get(i).map_or(0, |b| u32::from(b - b'0'));
    let nanos = (0..9).fold(0u32, |value, i| value * 10 + digit(i));
    let finer = fraction.iter().skip(9).any(|&b| b != b'0');
    if !negative {
        return Some(Timestamp { seconds, nanos });
    }
    // -1.25 s is 0.75 s after second -2.
    let below = u64::from(nanos) + u64::from(finer);
    Some(match below {
        0 => Timestamp { seconds: -seconds, nanos: 0 },
        _ => Timestamp { seconds: -seconds - 1, nanos: (1_000_000_000 - below) as u32 },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let mut length = key.len() + value.len() + 3;
        while length != key.len() + value.len() + 3 + length.to_string().len() {
            length = key.len() + value.len() + 3 + length.to_string().len();
        }
        [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
    }

    #[test]
    fn times_before_1970_and_fractions_are_exact() {
        let time = |seconds, nanos| Some(Timestamp { seconds, nanos });
        assert_eq!(parse_time(b"0"), time(0, 0));
        assert_eq!(parse_time(b"1.5"), time(1, 500_000_000));
        assert_eq!(parse_time(b"-1.25"), time(-2, 750_000_000));
        assert_eq!(parse_time(b"-3"), time(-3, 0));
        assert_eq!(parse_time(b"12.1234567899"), time(12, 123_456_789));
        assert_eq!(parse_time(b"-0.0000000001"), time(-1, 999_999_999));
        for bad in [&b""[..], b"x", b"1.x", b"--1", b"99999999999999999999"] {
            assert_eq!(parse_time(bad), None);
        }
    }

    #[test]
    fn later_records_replace_earlier_ones_and_empty_ones_delete() {
        let mut pax = Pax::default();
        let records = [record("path", b"a"), record("path", b"b"), record("uid", b"4294967294")];
        pax.merge(&records.concat()).unwrap();
        assert_eq!((pax.path.as_deref(), pax.uid), (Some(&b"b"[..]), Some(4294967294)));
        pax.merge(&record("path", b"")).unwrap();
        assert_eq!(pax.path, None);
        pax.merge(&record("SCHILY.xattr.user.x", b"1\n=\0")).unwrap();
        pax.merge(&record("SCHILY.xattr.user.x", b"2")).unwrap();
        assert_eq!(pax.xattrs, [(b"user.x".to_vec(), b"2".to_vec())].into());
    }

    #[test]
    fn lying_lengths_are_refused() {
        for bad in [&b"99 path=x\n"[..], b"3 path=x\n", b"x path=x\n", b"7 path\n", b"0 \n", b"path", b"1 "] {
            assert!(Pax::default().merge(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_without_panic(bytes: Vec<u8>) {
            let _ = Pax::default().merge(&bytes);
            let _ = parse_time(&bytes);
        }

        #[test]
        fn values_may_hold_any_bytes(value in proptest::collection::vec(any::<u8>(), 1..200)) {
            let mut pax = Pax::default();
            pax.merge(&record("SCHILY.xattr.user.any", &value)).unwrap();
            prop_assert_eq!(pax.xattrs.first_key_value().unwrap().1, &value);
        }
    }
}
