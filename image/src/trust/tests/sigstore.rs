//! Keys and signatures that OpenSSL has made (`fixtures/make-sigstore.sh`).

use proptest::prelude::*;

use super::super::sigstore::{SigstoreError, SigstoreKey, SigstoreKeyError, SigstoreSignature};
use super::super::*;
use crate::digest::Digest;

const DOCUMENT: &str = include_str!("../fixtures/sigstore.json");
const P256: (&[u8], &str) =
    (include_bytes!("../fixtures/sigstore-p256.pub"), include_str!("../fixtures/sigstore-p256.sig"));
const P384: (&[u8], &str) =
    (include_bytes!("../fixtures/sigstore-p384.pub"), include_str!("../fixtures/sigstore-p384.sig"));
const RSA: (&[u8], &str) =
    (include_bytes!("../fixtures/sigstore-rsa.pub"), include_str!("../fixtures/sigstore-rsa.sig"));
const ED25519: (&[u8], &str) =
    (include_bytes!("../fixtures/sigstore-ed25519.pub"), include_str!("../fixtures/sigstore-ed25519.sig"));

/// What the fixtures are signed for.
fn digest() -> Digest {
    Digest::from_hex(&"1".repeat(64)).unwrap()
}

fn check(key: &[u8], document: &str, signature: &str, digest: Digest, name: &str) -> Result<(), SigstoreError> {
    let signature = SigstoreSignature { document: document.to_owned(), signature: signature.to_owned(), bundle: None };
    let signers = Signers { keys: vec![SigstoreKey::parse(key).unwrap()], logs: None };
    let image = Identity::of_registry(&name.parse().unwrap());
    let called = &SignedIdentity::MatchRepoDigestOrExact {};
    signature.check(&signers, &Expected { digests: &[digest], called, image: &image })
}

#[test]
fn every_kind_of_key_signs() {
    for (key, signature) in [P256, P384, RSA, ED25519] {
        check(key, DOCUMENT, signature, digest(), "r.example/team/app:1").unwrap();
    }
}

#[test]
fn what_is_not_this_images_signature_does_not_count() {
    let (key, signature) = P256;
    let name = "r.example/team/app:1";
    for (other, _) in [P384, RSA, ED25519] {
        assert_eq!(check(other, DOCUMENT, signature, digest(), name), Err(SigstoreError::Key));
    }
    let changed = DOCUMENT.replace("app:1", "app:2");
    assert_eq!(check(key, &changed, signature, digest(), "r.example/team/app:2"), Err(SigstoreError::Key));
    assert_eq!(check(key, DOCUMENT, "no base64", digest(), name), Err(SigstoreError::Key));
    let other = check(key, DOCUMENT, signature, Digest::of(b"other"), name).unwrap_err();
    let SigstoreError::Document(DocumentError::OtherImage(actual)) = &other else { panic!("{other}") };
    assert!(actual.starts_with("sha256:1111"), "{other}");
    let other = check(key, DOCUMENT, signature, digest(), "r.example/team/app:2").unwrap_err();
    assert_eq!(other, DocumentError::OtherName("r.example/team/app:1".into()).into());
}

#[test]
fn keys_of_other_kinds_are_told() {
    let p521 = include_bytes!("../fixtures/sigstore-p521.pub");
    assert_eq!(SigstoreKey::parse(p521).unwrap_err(), SigstoreKeyError::Kind);
    for text in
        ["", "key", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "-----BEGIN PUBLIC KEY-----"]
    {
        assert_eq!(SigstoreKey::parse(text.as_bytes()).unwrap_err(), SigstoreKeyError::Broken, "{text}");
    }
}

proptest! {
    #[test]
    fn any_key_and_document_are_answered_without_panic(der in proptest::collection::vec(any::<u8>(), 0..60), text in ".{0,60}") {
        use base64::Engine;
        let body = base64::engine::general_purpose::STANDARD.encode(&der);
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n");
        let _ = SigstoreKey::parse(pem.as_bytes());
        let _ = SigstoreKey::parse(text.as_bytes());
        prop_assert!(check(P256.0, &text, P256.1, digest(), "a.example/b").is_err());
    }

    #[test]
    fn damaged_keys_verify_nothing(at in any::<prop::sample::Index>(), bit in 0..7u8) {
        let mut pem = P256.0.to_vec();
        let at = at.index(pem.len());
        pem[at] ^= 1 << bit;
        if let Ok(key) = SigstoreKey::parse(&pem) {
            prop_assert!(!key.verify(b"other", P256.1.as_bytes()));
        }
    }
}
