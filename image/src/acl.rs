//! POSIX ACLs: from the text that archives carry (acl(5), "ACL TEXT FORMS") to the kernel's xattr form
//! (`include/uapi/linux/posix_acl_xattr.h`).

/// `POSIX_ACL_XATTR_VERSION`.
const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
/// The id of entries that have none.
const UNDEFINED_ID: u32 = u32::MAX;

/// The xattr value of an ACL in text form; empty for an empty text.
///
/// `None` when it is not an ACL, or names a user or group without its number: whom a name means is
/// known only inside the image.
pub fn from_text(text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    let mut entries = Vec::new();
    for entry in text.split([',', '\n']) {
        let entry = entry.split('#').next().unwrap_or_default().trim();
        if !entry.is_empty() {
            entries.push(parse_entry(entry)?);
        }
    }
    if entries.is_empty() {
        return Some(Vec::new());
    }
    // The kernel wants them ordered by tag, then id.
    entries.sort_by_key(|&(tag, _, id)| (tag, id));
    let mut value = VERSION.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    Some(value)
}

/// Whether an ACL in xattr form says no more than the mode does: its owner, group and others.
pub fn is_minimal(value: &[u8]) -> bool {
    let tags = value.get(4..).unwrap_or_default().chunks_exact(8).map(|entry| u16::from_le_bytes([entry[0], entry[1]]));
    tags.eq([USER_OBJ, GROUP_OBJ, OTHER])
}

/// One entry, `tag:qualifier:permissions[:id]`, as tag, permissions and id.
fn parse_entry(entry: &str) -> Option<(u16, u16, u32)> {
    let mut fields = entry.split(':').map(str::trim);
    let (tag, qualifier, permissions) = (fields.next()?, fields.next()?, fields.next()?);
    let id = fields.next();
    let (object, named) = match tag {
        "user" | "u" => (USER_OBJ, Some(USER)),
        "group" | "g" => (GROUP_OBJ, Some(GROUP)),
        "mask" | "m" => (MASK, None),
        "other" | "o" => (OTHER, None),
        _ => return None,
    };
    let permissions = permissions.bytes().try_fold(0u16, |bits, letter| match letter {
        b'r' => Some(bits | 4),
        b'w' => Some(bits | 2),
        b'x' => Some(bits | 1),
        b'-' => Some(bits),
        _ => None,
    })?;
    if qualifier.is_empty() {
        return Some((object, permissions, UNDEFINED_ID));
    }
    let id = id.unwrap_or(qualifier).parse().ok()?;
    Some((named?, permissions, id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_becomes_the_kernels_form() {
        let value = from_text(b"user::rw-,other::r--,user:1000:r-x,group::r--,mask::rwx").unwrap();
        let mut expected = vec![2, 0, 0, 0];
        for (tag, permissions, id) in
            [(1u8, 6u8, u32::MAX), (2, 5, 1000), (4, 4, u32::MAX), (0x10, 7, u32::MAX), (0x20, 4, u32::MAX)]
        {
            expected.extend([tag, 0, permissions, 0]);
            expected.extend(id.to_le_bytes());
        }
        assert_eq!(value, expected);
        assert_eq!(from_text(b"user::rwx\nuser:joe:r--:1000\n"), from_text(b"u::rwx,u:1000:r"));
        assert_eq!(from_text(b""), Some(vec![]));
    }

    #[test]
    fn a_user_without_a_number_is_not_guessed() {
        for bad in [&b"user:joe:rwx"[..], b"mask:1:rwx", b"user::rwz", b"user", b"\xff"] {
            assert_eq!(from_text(bad), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_without_panic(bytes: Vec<u8>) {
            let _ = from_text(&bytes);
        }
    }
}
