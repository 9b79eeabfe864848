//! Extended attributes of an inode: names by prefix number, sorted, written behind the inode.

use std::collections::BTreeMap;

use super::ondisk::{XATTR_ENTRY_SIZE, XATTR_HEADER_SIZE};

/// Longest name without its prefix, and longest value: the format's fields are 8 and 16 bits.
const MAX_NAME: usize = u8::MAX as usize;
const MAX_VALUE: usize = u16::MAX as usize;
/// Most bytes of all attributes that one inode may have of its own: their count in fours is 16 bits, with [`OPAQUE_SIZE`].
const MAX_TOTAL: usize = XATTR_HEADER_SIZE + 4 * (u16::MAX as usize - 1) - OPAQUE_SIZE;

/// The prefixes that have a number (`EROFS_XATTR_INDEX_*`); the ACLs' are whole names.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// A file's capabilities (`security.capability`): number of the prefix, and what follows it.
pub const CAPABILITIES: (u8, &[u8]) = (6, b"capability");

/// The attributes by which overlayfs knows that a directory hides those of its name below: `trusted.overlay.opaque`, and
/// `user.overlay.opaque` where it is mounted in a user namespace, whose root may not see the first.
const OPAQUE: ([u8; 2], &[u8]) = ([4, 1], b"overlay.opaque");
const OPAQUE_VALUE: &[u8] = b"y";
/// Bytes that these take.
const OPAQUE_SIZE: usize = 2 * entry_size(OPAQUE.1, OPAQUE_VALUE);

/// What stands for a prefix's number.
pub fn prefix_of(index: u8) -> Option<&'static [u8]> {
    PREFIXES.iter().find(|(_, known)| *known == index).map(|(prefix, _)| *prefix)
}

/// Whether an attribute is one of those that [`Xattrs::set_opaque`] sets.
pub fn is_opaque_mark(index: u8, name: &[u8]) -> bool {
    OPAQUE.0.contains(&index) && name == OPAQUE.1
}

/// The attributes of one inode.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Xattrs(BTreeMap<Name, Box<[u8]>>);

/// Number of the prefix, and what follows it.
type Name = (u8, Box<[u8]>);

/// What became of an attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was kept.
    Kept,
    /// It has no form in EROFS or no meaning in an image, and was left out.
    Dropped,
}

impl Xattrs {
    /// Sets an attribute by its full name.
    ///
    /// Left out are namespaces that Linux does not have; overlayfs's own marks, which would let a layer redirect names
    /// in the layers below it; and SELinux's labels, which mean something only to the system that made the archive.
    pub fn set(&mut self, name: &[u8], value: &[u8]) -> Result<Outcome, &'static str> {
        let is_mark = name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
        if is_mark || name == b"security.selinux" {
            return Ok(Outcome::Dropped);
        }
        let known = PREFIXES.iter().find_map(|&(prefix, index)| {
            let rest = name.strip_prefix(prefix)?;
            // The ACLs are whole names, the others need one after their prefix.
            (rest.is_empty() != prefix.ends_with(b".")).then_some((index, rest))
        });
        let Some((index, rest)) = known else { return Ok(Outcome::Dropped) };
        if rest.len() > MAX_NAME || rest.contains(&0) {
            return Err("an extended attribute's name is longer than 255 bytes or holds a NUL");
        }
        if value.len() > MAX_VALUE {
            return Err("an extended attribute's value is longer than 65535 bytes");
        }
        self.0.insert((index, rest.into()), value.into());
        self.check_size()?;
        Ok(Outcome::Kept)
    }

    /// Sets all that `others` has.
    pub fn merge(&mut self, others: Self) -> Result<(), &'static str> {
        self.0.extend(others.0);
        self.check_size()
    }

    /// Takes an attribute away, if it is there.
    pub fn remove(&mut self, (index, name): (u8, &[u8])) {
        self.0.remove(&(index, name.into()));
    }

    fn check_size(&self) -> Result<(), &'static str> {
        if self.size() > MAX_TOTAL {
            return Err("the extended attributes are larger than 256 KiB together");
        }
        Ok(())
    }

    /// Marks a directory as hiding those of its name in the layers below.
    pub fn set_opaque(&mut self) {
        for index in OPAQUE.0 {
            self.0.insert((index, OPAQUE.1.into()), OPAQUE_VALUE.into());
        }
    }

    /// Bytes of all attributes with their header; zero when there are none.
    pub fn size(&self) -> usize {
        if self.0.is_empty() {
            return 0;
        }
        let entries = self.0.iter().map(|((_, name), value)| entry_size(name, value));
        XATTR_HEADER_SIZE + entries.sum::<usize>()
    }

    /// The attributes' bytes, [`Xattrs::size`] of them.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.size());
        if self.0.is_empty() {
            return bytes;
        }
        bytes.resize(XATTR_HEADER_SIZE, 0);
        for ((index, name), value) in &self.0 {
            bytes.extend([name.len() as u8, *index]);
            bytes.extend((value.len() as u16).to_le_bytes());
            bytes.extend_from_slice(name);
            bytes.extend_from_slice(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }
}

/// Bytes of one attribute.
const fn entry_size(name: &[u8], value: &[u8]) -> usize {
    (XATTR_ENTRY_SIZE + name.len() + value.len()).next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_without_a_form_and_overlay_marks_are_left_out() {
        let mut xattrs = Xattrs::default();
        for dropped in [
            &b"com.apple.quarantine"[..],
            b"system.nfs4_acl",
            b"system.posix_acl_accessx",
            b"user.",
            b"trusted.overlay.redirect",
            b"user.overlay.opaque",
            b"security.selinux",
        ] {
            assert_eq!(xattrs.set(dropped, b"v"), Ok(Outcome::Dropped));
        }
        assert_eq!(xattrs.size(), 0);
        assert!(xattrs.encode().is_empty());
    }

    #[test]
    fn the_last_value_wins_and_sizes_agree() {
        let mut xattrs = Xattrs::default();
        assert_eq!(xattrs.set(b"user.a", b"first"), Ok(Outcome::Kept));
        assert_eq!(xattrs.set(b"user.a", b"2"), Ok(Outcome::Kept));
        assert_eq!(xattrs.set(b"security.capability", &[1; 20]), Ok(Outcome::Kept));
        assert_eq!(xattrs.size(), 12 + 8 + 36);
        assert_eq!(xattrs.encode().len(), xattrs.size());
        assert_eq!(xattrs.encode()[12..20], [1, 1, 1, 0, b'a', b'2', 0, 0]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut xattrs = Xattrs::default();
        let long = [&b"user."[..], &[b'n'; 256]].concat();
        assert!(xattrs.set(&long, b"").is_err());
        assert!(xattrs.set(b"user.big", &[0; 65536]).is_err());
        let fill = (0..5).map(|i| xattrs.set(format!("user.{i}").as_bytes(), &[0; 65535]));
        assert!(fill.collect::<Vec<_>>().iter().any(Result::is_err));
    }

    #[test]
    fn a_mark_always_fits() {
        let mut xattrs = Xattrs::default();
        for number in 0..3 {
            xattrs.set(format!("user.{number}").as_bytes(), &[0; 65_525]).unwrap();
        }
        let most = (60_000..65_525).rev().find(|&size| xattrs.clone().set(b"user.3", &vec![0; size]).is_ok());
        xattrs.set(b"user.3", &vec![0; most.unwrap()]).unwrap();
        xattrs.set_opaque();
        assert_eq!(xattrs.size(), XATTR_HEADER_SIZE + 4 * (usize::from(u16::MAX) - 1), "to the last byte");
    }
}
