//! Keys and signatures that GnuPG has made (`fixtures/make.sh`).

use std::fs;
use std::io::{self, Read};
use std::path::PathBuf;

use proptest::prelude::*;

use super::super::certificate::PublicKey;
use super::super::signature::SignatureError;
use super::super::*;

/// When the fixtures' signatures are looked at: 2023-01-01, a year after most were made.
const NOW: u64 = 1_672_531_200;
/// An image of Alice's.
const NAME: &str = "example.com/team/app";

macro_rules! fixture {
    ($name:literal) => {
        include_bytes!(concat!("../fixtures/", $name)).as_slice()
    };
}

const CONTENT: &[u8] = fixture!("content");

fn key(file: &[u8]) -> PublicKey {
    PublicKey::read_all(file).unwrap().remove(0)
}

fn prefix(text: &str) -> Scope {
    Scope::Prefix(text.parse().unwrap())
}

/// A keyring of two folders, the second of which is written to.
fn keyring() -> (tempfile::TempDir, Keyring) {
    let directory = tempfile::tempdir().unwrap();
    let folders = ["system", "own"].map(|name| directory.path().join(name)).to_vec();
    (directory, Keyring::new(folders))
}

fn trusting(scope: &Scope, file: &[u8]) -> (tempfile::TempDir, Keyring) {
    let (directory, keyring) = keyring();
    keyring.add(scope, &key(file)).unwrap();
    (directory, keyring)
}

/// The message about a signature of one who is trusted with this key.
fn refused(file: &[u8], signature: &[u8], now: u64) -> String {
    let (_directory, keyring) = trusting(&prefix("example.com"), file);
    keyring.check_at(NAME, signature, CONTENT, now).unwrap_err().to_string()
}

#[test]
fn good_signatures_count_in_every_form() {
    for (file, signature) in [
        (fixture!("alice.key"), fixture!("alice.sig")),
        (fixture!("alice.gpg"), fixture!("alice.asc")),
        (fixture!("alice.key"), fixture!("subkey.sig")),
        (fixture!("alice.key"), fixture!("both.sig")),
        (fixture!("mallory.key"), fixture!("both.sig")),
        (fixture!("rsa.key"), fixture!("rsa.sig")),
        (fixture!("shorty.key"), fixture!("shorty.sig")),
    ] {
        let (_directory, keyring) = trusting(&prefix("example.com"), file);
        let signer = keyring.check_at(NAME, signature, CONTENT, NOW).unwrap();
        assert_eq!(signer.fingerprint, key(file).fingerprint());
        assert!(signer.user_id.unwrap().contains("@example."));
    }
}

#[test]
fn changed_bytes_are_found_wherever_they_are() {
    let (_directory, keyring) = trusting(&Scope::Root, fixture!("alice.key"));
    for at in 0..CONTENT.len() {
        let mut changed = CONTENT.to_vec();
        changed[at] ^= 1;
        let error = keyring.check_at(NAME, fixture!("alice.sig"), changed.as_slice(), NOW).unwrap_err().to_string();
        assert!(error.contains("not what was signed"), "{error}");
    }
    for content in [&CONTENT[1..], &CONTENT[..CONTENT.len() - 1], b""] {
        assert!(keyring.check_at(NAME, fixture!("alice.sig"), content, NOW).is_err());
    }
}

#[test]
fn every_reason_to_refuse_a_signature_has_its_own_message() {
    let alice = fixture!("alice.key");
    for (file, signature, now, part) in [
        (alice, fixture!("mallory.sig"), NOW, "is not among the trusted keys"),
        (alice, fixture!("text.sig"), NOW, "a signature over a text"),
        (alice, fixture!("short-lived.sig"), NOW, "it has expired on 2022-01-31"),
        (alice, fixture!("future.sig"), NOW, "from the future (2099-01-01)"),
        (alice, fixture!("revoked-subkey.sig"), NOW, "its owner has revoked"),
        (fixture!("revoked.key"), fixture!("alice.sig"), NOW, "its owner has revoked"),
        (fixture!("revoked.key"), fixture!("subkey.sig"), NOW, "its owner has revoked"),
        (fixture!("shorty.key"), fixture!("shorty.sig"), NOW + 4 * 31_536_000, "has expired on 2025-01-01"),
        (fixture!("rsa.key"), fixture!("sha1.sig"), NOW, "SHA1, which can be forged"),
        (alice, CONTENT, NOW, "no detached OpenPGP signature"),
        (alice, b"", NOW, "no detached OpenPGP signature"),
        (alice, fixture!("alice.gpg"), NOW, "no detached OpenPGP signature"),
    ] {
        let error = refused(file, signature, now);
        assert!(error.contains(part) && error.contains(NAME), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    let many = fixture!("alice.sig").repeat(17);
    assert!(refused(alice, &many, NOW).contains("more than 16"));
}

#[test]
fn a_key_counts_for_its_prefix_only() {
    let check = |keyring: &Keyring, name: &str| keyring.check_at(name, fixture!("alice.sig"), CONTENT, NOW);
    let (_directory, keyring) = trusting(&prefix("example.com/team"), fixture!("alice.key"));
    for name in ["example.com/team", "example.com/team/app", "example.com/team/a/b"] {
        check(&keyring, name).unwrap();
    }
    for name in ["example.com", "example.com/teams", "example.com/other", "other.example/example.com/team"] {
        let error = check(&keyring, name).unwrap_err();
        assert!(matches!(error, TrustError::NoKey { .. }), "{error}");
        assert!(error.to_string().contains(&format!("podvm trust add --prefix {name}")), "{error}");
    }
    keyring.add(&prefix("example.com/other"), &key(fixture!("mallory.key"))).unwrap();
    let error = check(&keyring, "example.com/other").unwrap_err().to_string();
    assert!(error.contains("trusted for example.com/team only"), "{error}");
    keyring.add(&Scope::Root, &key(fixture!("alice.key"))).unwrap();
    check(&keyring, "anything").unwrap();
}

#[test]
fn keys_are_added_listed_and_removed() {
    let (directory, keyring) = keyring();
    assert_eq!(keyring.list().unwrap(), []);
    let alice = key(fixture!("alice.key"));
    let path = keyring.add(&prefix("example.com/team"), &alice).unwrap();
    let fingerprint = alice.fingerprint();
    let expected = format!("own/prefix.d/example.com/team/{}", fingerprint.to_ascii_lowercase());
    assert_eq!(path, directory.path().join(expected));
    keyring.add(&prefix("example.com/team"), &alice).unwrap();
    keyring.add(&Scope::Root, &key(fixture!("rsa.key"))).unwrap();
    let listed = keyring.list().unwrap();
    assert_eq!(listed.len(), 2);
    assert_eq!(listed[0].scope, Scope::Root);
    assert_eq!(listed[1].key, alice.describe());
    let other = keyring.remove(&Scope::Root, &fingerprint).unwrap_err().to_string();
    assert!(other.contains("all images") && other.contains("podvm trust list"), "{other}");
    assert_eq!(keyring.remove(&prefix("example.com/team"), &fingerprint).unwrap(), path);
    assert!(!path.exists());
    assert_eq!(keyring.list().unwrap().len(), 1);
    assert_eq!(fs::read_dir(directory.path().join("own/tmp")).unwrap().count(), 0);
}

#[test]
fn a_key_of_the_system_is_taken_out_by_an_empty_file() {
    let (directory, keyring) = keyring();
    let system = Keyring::new(vec![directory.path().join("system")]);
    let alice = key(fixture!("alice.key"));
    let theirs = system.add(&Scope::Root, &alice).unwrap();
    keyring.check_at(NAME, fixture!("alice.sig"), CONTENT, NOW).unwrap();
    let hidden = keyring.remove(&Scope::Root, &alice.fingerprint()).unwrap();
    assert!(theirs.exists() && fs::read(&hidden).unwrap().is_empty());
    assert!(matches!(keyring.check_at(NAME, fixture!("alice.sig"), CONTENT, NOW), Err(TrustError::NoKey { .. })));
    assert!(keyring.remove(&Scope::Root, &alice.fingerprint()).is_err());
    keyring.add(&Scope::Root, &alice).unwrap();
    keyring.check_at(NAME, fixture!("alice.sig"), CONTENT, NOW).unwrap();
    // With a copy of its own, too, the key goes.
    keyring.remove(&Scope::Root, &alice.fingerprint()).unwrap();
    assert_eq!(keyring.list().unwrap(), []);
}

#[test]
fn a_signer_is_trusted_as_long_as_the_key_is() {
    let (_directory, keyring) = trusting(&prefix("example.com/team"), fixture!("alice.key"));
    let fingerprint = key(fixture!("alice.key")).fingerprint();
    keyring.check_signer(NAME, &fingerprint).unwrap();
    assert!(keyring.check_signer("example.com/other", &fingerprint).is_err());
    keyring.add(&Scope::Root, &key(fixture!("revoked.key"))).unwrap();
    let error = keyring.check_signer(NAME, &fingerprint).unwrap_err().to_string();
    assert!(error.contains("no longer trusted") && error.contains(&fingerprint), "{error}");
    keyring.remove(&Scope::Root, &fingerprint).unwrap();
    keyring.check_signer(NAME, &fingerprint).unwrap();
    keyring.remove(&prefix("example.com/team"), &fingerprint).unwrap();
    assert!(keyring.check_signer(NAME, &fingerprint).is_err());
}

#[test]
fn a_damaged_file_of_a_key_is_named() {
    let (_directory, keyring) = keyring();
    let path = keyring.add(&Scope::Root, &key(fixture!("alice.key"))).unwrap();
    let error = |bytes: &[u8]| {
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        keyring.check_at(NAME, fixture!("alice.sig"), CONTENT, NOW).unwrap_err().to_string()
    };
    let shown = path.display().to_string();
    let damaged = error(b"no key");
    assert!(damaged.contains(&shown) && damaged.contains("add the key anew"), "{damaged}");
    let other = error(fixture!("mallory.key"));
    assert!(other.contains(&shown) && other.contains(&key(fixture!("mallory.key")).fingerprint()), "{other}");
}

#[test]
fn keys_describe_themselves_for_review() {
    let alice = key(fixture!("alice.key")).describe();
    assert_eq!(alice.user_ids, ["Alice <alice@example.com>"]);
    assert_eq!((date(alice.created), alice.expires, alice.is_revoked), ("2020-01-01".to_owned(), None, false));
    let subkeys: Vec<_> = alice.subkeys.iter().map(|subkey| (subkey.can_sign, subkey.is_revoked)).collect();
    assert_eq!(subkeys, [(true, false), (true, true), (false, false)]);
    assert_eq!(date(key(fixture!("shorty.key")).describe().expires.unwrap()), "2025-01-01");
    assert!(key(fixture!("revoked.key")).describe().is_revoked);
    let two: Vec<_> = PublicKey::read_all(fixture!("two.key")).unwrap();
    assert_eq!(two.len(), 2);
    assert_eq!(two[0].describe().user_ids, ["Mallory <mallory@example.net>"]);
}

#[test]
fn what_is_no_key_is_told() {
    for (file, part) in [
        (b"".as_slice(), "no OpenPGP key"),
        (b"what is this", "no OpenPGP key"),
        (b"-----BEGIN PGP PRIVATE KEY BLOCK-----\n", "secret key"),
        (b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nnonsense", "no file of OpenPGP keys"),
        (fixture!("alice.sig"), "no OpenPGP key"),
        (&fixture!("alice.gpg")[..30], "OpenPGP"),
    ] {
        let error = PublicKey::read_all(file).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("gpg --export"), "{error}");
    }
}

#[test]
fn another_persons_subkey_cannot_be_claimed() {
    // Mallory's key with Alice's subkey and its binding behind it: neither is Mallory's.
    let alice = pgp_packets(fixture!("alice.gpg"));
    let mallory = PublicKey::read_all(fixture!("mallory.key")).unwrap().remove(0).to_bytes().unwrap();
    let at = alice.iter().position(|(tag, _)| *tag == 14).unwrap();
    let claimed = [mallory, alice[at].1.clone(), alice[at + 1].1.clone()].concat();
    let error = refused(&claimed, fixture!("subkey.sig"), NOW);
    assert!(error.contains("does not belong to its primary key"), "{error}");
}

/// The packets of a binary file in the old form, as GnuPG writes them, by tag.
fn pgp_packets(mut file: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut packets = Vec::new();
    while let Some(first) = file.first() {
        let (header, length) = match first & 3 {
            0 => (2, usize::from(file[1])),
            _ => (3, usize::from(u16::from_be_bytes([file[1], file[2]]))),
        };
        packets.push(((first >> 2) & 15, file[..header + length].to_vec()));
        file = &file[header + length..];
    }
    packets
}

#[test]
fn content_is_streamed() {
    /// Gives zeros, and cannot be held in memory.
    struct Zeros(u64);
    impl Read for Zeros {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            assert!(buffer.len() <= 1 << 20, "it is read in pieces");
            let n = self.0.min(buffer.len() as u64);
            buffer[..n as usize].fill(0);
            self.0 -= n;
            Ok(n as usize)
        }
    }
    let (_directory, keyring) = trusting(&Scope::Root, fixture!("alice.key"));
    let error = keyring.check_at(NAME, fixture!("alice.sig"), Zeros(16 << 20), NOW).unwrap_err();
    assert!(matches!(error, TrustError::Signature { source: SignatureError::Mismatch { .. }, .. }), "{error}");
}

#[test]
fn prefixes_are_names_of_images() {
    for text in ["example.com", "example.com/team", "a", "coreos.com/etcd-2~x_y"] {
        assert_eq!(text.parse::<Prefix>().unwrap().as_str(), text);
    }
    for text in ["", "/", "a/", "/a", "a//b", "..", "a/../b", "a/./b", "A", "a b", "a:1", &"a/".repeat(40)] {
        assert!(text.parse::<Prefix>().is_err(), "{text}");
    }
}

#[test]
fn days_are_told_from_seconds() {
    for (seconds, expected) in
        [(0, "1970-01-01"), (951_782_400, "2000-02-29"), (1_456_704_000, "2016-02-29"), (4_102_444_799, "2099-12-31")]
    {
        assert_eq!(date(seconds), expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_bytes_are_answered_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = PublicKey::read_all(&bytes);
        let _ = crate::trust::signature::check(&[key(fixture!("alice.key"))], &bytes, CONTENT, NOW);
    }

    #[test]
    fn damaged_keys_and_signatures_never_count_for_more(at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let flip = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            bytes
        };
        if let Ok(keys) = PublicKey::read_all(&flip(fixture!("alice.gpg"))) {
            for key in &keys {
                let _ = key.describe();
            }
            // A signature by Mallory, or over something else, is not Alice's however her key is damaged.
            prop_assert!(crate::trust::signature::check(&keys, fixture!("mallory.sig"), CONTENT, NOW).is_err());
            prop_assert!(crate::trust::signature::check(&keys, fixture!("alice.sig"), &CONTENT[1..], NOW).is_err());
        }
        let alice = [key(fixture!("alice.key"))];
        prop_assert!(crate::trust::signature::check(&alice, &flip(fixture!("alice.sig")), &CONTENT[1..], NOW).is_err());
    }

    #[test]
    fn a_prefix_that_is_accepted_stays_in_its_folder(text in "[a-z./~_-]{0,12}") {
        if let Ok(prefix) = text.parse::<Prefix>() {
            prop_assert!(PathBuf::from(prefix.as_str()).components().all(|part| matches!(part, std::path::Component::Normal(_))));
        }
    }
}
