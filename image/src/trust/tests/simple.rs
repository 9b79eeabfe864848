//! Signatures by GPG keys that GnuPG has made (`fixtures/make-simple.sh`).

use proptest::prelude::*;

use super::super::message::SignedMessage;
use super::super::*;
use crate::digest::Digest;

/// When the fixtures' signatures are looked at: 2023-01-01, a year after they were made.
const NOW: u64 = 1_672_531_200;
/// After the key of `simple.key` has expired.
const LATER: u64 = NOW + 4 * 31_536_000;
const NAME: &str = "r.example/team/app:1";

macro_rules! fixture {
    ($name:literal) => {
        include_bytes!(concat!("../fixtures/", $name)).as_slice()
    };
}

const DOCUMENT: &[u8] = fixture!("simple.json");
const KEY: &[u8] = fixture!("simple.key");
const TWO_KEYS: &[u8] = fixture!("simple-two.gpg");

/// What the fixtures are signed for.
fn digest() -> Digest {
    Digest::from_hex(&"1".repeat(64)).unwrap()
}

/// Checks a signature at these moments for an image of this name.
fn check_at(keys: &[u8], signature: &[u8], digest: Digest, name: &str, moments: &[u64]) -> Result<(), String> {
    let keys = PublicKey::read_all(keys).unwrap();
    let image = Identity::of_registry(&name.parse().unwrap());
    let expected = Expected { digests: &[digest], called: &SignedIdentity::MatchRepoDigestOrExact {}, image: &image };
    let checked = SimpleSignature(signature.to_vec()).check(&keys, &expected, moments);
    checked.map_err(|error| error.to_string())
}

fn check(keys: &[u8], signature: &[u8]) -> Result<(), String> {
    check_at(keys, signature, digest(), NAME, &[NOW])
}

#[test]
fn good_signatures_count_in_every_form() {
    for (keys, signature) in [
        (KEY, fixture!("simple.sig")),
        (KEY, fixture!("simple.asc")),
        (KEY, fixture!("simple-plain.sig")),
        (KEY, fixture!("simple-zlib.sig")),
        (KEY, fixture!("simple-subkey.sig")),
        (TWO_KEYS, fixture!("simple-other.sig")),
        (TWO_KEYS, fixture!("simple-old.sig")),
    ] {
        check(keys, signature).unwrap();
    }
}

#[test]
fn every_reason_to_refuse_a_signature_has_its_own_message() {
    for (keys, signature, part) in [
        (KEY, fixture!("simple-other.sig"), "is not among the trusted keys"),
        (TWO_KEYS, fixture!("simple.sig"), "is not among the trusted keys"),
        (TWO_KEYS, fixture!("simple-sha1.sig"), "SHA1, which can be forged"),
        (KEY, fixture!("simple-text.sig"), "a signature over a text"),
        (KEY, fixture!("simple-short-lived.sig"), "it has expired on 2022-01-31"),
        (KEY, fixture!("simple-two.sig"), "several signatures"),
        (KEY, fixture!("simple-detached.sig"), "no content"),
        (KEY, fixture!("simple-clear.asc"), "SIGNED MESSAGE"),
        (KEY, fixture!("simple-unsigned.sig"), "nobody has signed it"),
        (KEY, fixture!("simple-secret.sig"), "something else in it"),
        (KEY, fixture!("simple-bzip2.sig"), "BZip2"),
        (KEY, DOCUMENT, "no OpenPGP signed message"),
        (KEY, b"", "no OpenPGP signed message"),
        (KEY, KEY, "PUBLIC KEY"),
        (KEY, TWO_KEYS, "something else in it"),
    ] {
        let error = check(keys, signature).unwrap_err();
        assert!(error.contains(part), "{part}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn a_signature_is_for_one_image_under_one_name() {
    let check = |digest, name| check_at(KEY, fixture!("simple.sig"), digest, name, &[NOW]);
    assert!(check(Digest::of(b"other"), NAME).unwrap_err().contains("for another image, sha256:1111"));
    let error = check(digest(), "r.example/team/app:2").unwrap_err();
    assert!(error.contains("called r.example/team/app:1"), "{error}");
}

#[test]
fn a_key_that_has_expired_since_was_good_once() {
    let check = |moments: &[u64]| check_at(KEY, fixture!("simple.sig"), digest(), NAME, moments);
    let error = check(&[LATER]).unwrap_err();
    assert!(error.contains("has expired on 2025-01-01"), "{error}");
    check(&[LATER, NOW]).unwrap();
    // Before the signature was made.
    assert!(check(&[1_609_459_200]).unwrap_err().contains("from the future"));
}

#[test]
fn what_is_in_a_message_but_was_not_signed_does_not_count() {
    let plain = fixture!("simple-plain.sig");
    let at = plain.windows(4).position(|word| word == b"1111").unwrap();
    for change in [at, plain.windows(5).position(|word| word == b"app:1").unwrap() + 4] {
        let mut changed = plain.to_vec();
        changed[change] ^= 3;
        assert!(check(KEY, &changed).unwrap_err().contains("not what was signed"));
    }
    // Another content before or behind the signed one.
    let unsigned = SignedMessage::parse(fixture!("simple-unsigned.sig")).unwrap_err();
    assert!(unsigned.contains("nobody"));
    for message in [[plain, plain].concat(), [plain, b"x"].concat(), [fixture!("simple-detached.sig"), plain].concat()]
    {
        assert!(check(KEY, &message).is_err());
    }
}

#[test]
fn a_document_is_read_strictly() {
    let image = Identity::of_registry(&NAME.parse().unwrap());
    let expected = Expected { digests: &[digest()], called: &SignedIdentity::MatchRepoDigestOrExact {}, image: &image };
    let check = |from: &str, to: &str, form: SignatureForm| {
        let document = std::str::from_utf8(DOCUMENT).unwrap();
        assert!(document.contains(from), "{from}");
        expected.check(document.replacen(from, to, 1).as_bytes(), form)
    };
    check("1", "1", SignatureForm::Simple).unwrap();
    check("\"creator\":", "\"more\":[],\"creator\":", SignatureForm::Simple).unwrap();
    for (from, to) in [
        ("atomic container", "cosign container image"),
        ("\"critical\":{", "\"critical\":{\"more\":1,"),
        ("\"image\":{", "\"image\":{\"more\":1,"),
        ("\"identity\":{", "\"identity\":{\"more\":1,"),
        ("\"critical\":{", "\"more\":1,\"critical\":{"),
        ("\"critical\":{", "\"critical\":{\"type\":\"atomic container signature\","),
        ("{\"creator\":\"a test\",\"timestamp\":1}", "null"),
        ("{\"creator\":\"a test\",\"timestamp\":1}", "1"),
        ("{\"critical\"", "[{\"critical\""),
        ("\"docker-reference\":\"r.example/team/app:1\"", ""),
    ] {
        let error = check(from, to, SignatureForm::Simple).unwrap_err();
        assert!(matches!(error, DocumentError::Form(_)), "{to}: {error}");
    }
    assert!(check("1", "1", SignatureForm::Sigstore).is_err());
}

/// A packet of data compressed by ZIP.
fn compressed(content: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut packer = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    packer.write_all(content).unwrap();
    let body = packer.finish().unwrap();
    let length = u32::try_from(body.len() + 1).unwrap();
    [&[0xc8, 0xff][..], &length.to_be_bytes(), &[1], &body].concat()
}

#[test]
fn what_grows_when_it_is_unpacked_is_given_up() {
    check(KEY, &compressed(fixture!("simple-plain.sig"))).unwrap();
    let deep = (0..4).fold(fixture!("simple-plain.sig").to_vec(), |message, _| compressed(&message));
    assert!(check(KEY, &deep).unwrap_err().contains("again and again"));
    let bomb = compressed(&vec![0xd2; 64 << 20]);
    assert!(bomb.len() < 256 << 10);
    assert!(check(KEY, &bomb).unwrap_err().contains("larger than"));
}

#[test]
fn a_signature_is_kept_as_it_came() {
    let signature = SimpleSignature(fixture!("simple.sig").to_vec());
    let text = serde_json::to_string(&signature).unwrap();
    assert_eq!(serde_json::from_str::<SimpleSignature>(&text).unwrap(), signature);
    assert!(serde_json::from_str::<SimpleSignature>("\"?\"").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_bytes_are_answered_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in ".{0,60}") {
        let _ = SignedMessage::parse(&bytes);
        let _ = SignedMessage::parse(text.as_bytes());
        let _ = SignedMessage::parse(format!("-----BEGIN PGP MESSAGE-----\n\n{text}\n-----END PGP MESSAGE-----\n").as_bytes());
        let _ = SignedMessage::parse(&compressed(&bytes));
    }

    #[test]
    fn damaged_signatures_never_count_for_more(at in any::<prop::sample::Index>(), bit in 0..8u8) {
        for signature in [fixture!("simple-plain.sig"), fixture!("simple.sig"), fixture!("simple.asc")] {
            let mut damaged = signature.to_vec();
            let at = at.index(damaged.len());
            damaged[at] ^= 1 << bit;
            if let Ok(message) = SignedMessage::parse(&damaged) && check(KEY, &damaged).is_ok() {
                // What announces a signature, a file's name and what is not hashed are not signed.
                prop_assert_eq!(&message.content, DOCUMENT);
            }
            prop_assert!(check_at(KEY, &damaged, Digest::of(b"other"), NAME, &[NOW]).is_err());
        }
    }
}
