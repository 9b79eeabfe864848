//! Image IDs of appc: `sha512-` and the digest of the uncompressed archive (App Container specification, types.md).

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha512};

/// What every ID begins with: no other algorithm is allowed.
pub const PREFIX: &str = "sha512-";

/// The ID of an appc image.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageId([u8; 64]);

/// Not an ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no image ID of appc: that is {PREFIX} and 128 lower-case hex digits")]
pub struct ImageIdError(pub String);

impl ImageId {
    /// The ID of an archive.
    pub fn of(archive: &[u8]) -> Self {
        Self(Sha512::digest(archive).into())
    }

    /// How lists show it: the beginning, enough to be found by.
    pub fn short(&self) -> String {
        format!("{PREFIX}{}", hex::encode(&self.0[..6]))
    }
}

impl FromStr for ImageId {
    type Err = ImageIdError;

    fn from_str(text: &str) -> Result<Self, ImageIdError> {
        let wrong = || ImageIdError(text.to_owned());
        let digits = text.strip_prefix(PREFIX).ok_or_else(wrong)?;
        let lower = digits.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        let mut bytes = [0; 64];
        if !lower || hex::decode_to_slice(digits, &mut bytes).is_err() {
            return Err(wrong());
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", hex::encode(self.0))
    }
}

impl fmt::Debug for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for ImageId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ImageId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Passes an archive's plain bytes through and computes its ID.
pub(crate) struct Identifying<R> {
    inner: R,
    hasher: Sha512,
}

impl<R: Read> Identifying<R> {
    pub fn new(inner: R) -> Self {
        Self { inner, hasher: Sha512::new() }
    }

    /// The ID of all bytes read so far.
    pub fn finish(self) -> ImageId {
        ImageId(self.hasher.finalize().into())
    }
}

impl<R: Read> Read for Identifying<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_id_is_that_of_the_bytes_that_passed() {
        let mut reader = Identifying::new(&b"archive"[..]);
        io::copy(&mut reader, &mut io::sink()).unwrap();
        let id = reader.finish();
        assert_eq!(id, ImageId::of(b"archive"));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(id.to_string().starts_with(&id.short()));
    }

    proptest! {
        #[test]
        fn any_text_is_answered_without_panic(text in "(sha512-)?[0-9a-fA-F]{0,130}") {
            if let Ok(id) = text.parse::<ImageId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
