//! Signatures that must be in a Rekor log, and what logs say of them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};

use super::super::sigstore::{Signers, SigstoreError, SigstoreKey, SigstoreSignature};
use super::super::*;
use crate::digest::Digest;

/// Begins every P-256 key in a `SubjectPublicKeyInfo`.
const P256: &str = "3059301306072a8648ce3d020106082a8648ce3d030107034200";

/// Who signs by a key of cosign's kind: somebody, or a log.
pub(crate) struct Signer(EcdsaKeyPair);

impl Signer {
    pub fn new() -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
        Self(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).unwrap())
    }

    /// The public key.
    pub fn pem(&self) -> String {
        let der = [hex::decode(P256).unwrap(), self.0.public_key().as_ref().to_vec()].concat();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
    }

    fn key(&self) -> SigstoreKey {
        SigstoreKey::parse(self.pem().as_bytes()).unwrap()
    }

    /// A signature in base64.
    pub fn sign(&self, bytes: &[u8]) -> String {
        STANDARD.encode(self.0.sign(&SystemRandom::new(), bytes).unwrap())
    }

    /// What a log has of this signer's signature over a document.
    pub fn entry(&self, document: &str, signature: &str) -> Value {
        let hash = Digest::of(document.as_bytes()).hex();
        let signature = json!({"content": signature, "publicKey": {"content": STANDARD.encode(self.pem())}});
        json!({
            "apiVersion": "0.0.1",
            "kind": "hashedrekord",
            "spec": {"data": {"hash": {"algorithm": "sha256", "value": hash}}, "signature": signature},
        })
    }

    /// A log's word that it has this entry.
    pub fn bundle(&self, entry: &Value) -> Value {
        let body = STANDARD.encode(entry.to_string());
        // The names of members in the order in which they are signed.
        let signed = format!(r#"{{"body":"{body}","integratedTime":1700000000,"logID":"c0d2","logIndex":123456789}}"#);
        let payload = json!({"logIndex": 123_456_789, "body": body, "integratedTime": 1_700_000_000, "logID": "c0d2"});
        json!({"SignedEntryTimestamp": self.sign(signed.as_bytes()), "Payload": payload})
    }
}

fn digest() -> Digest {
    Digest::of(b"an image")
}

/// A signed document in a log.
struct Scene {
    signer: Signer,
    log: Signer,
    document: String,
    signature: String,
}

impl Scene {
    fn new() -> Self {
        let (signer, log) = (Signer::new(), Signer::new());
        let critical = json!({
            "type": "cosign container image signature",
            "image": {"docker-manifest-digest": digest().to_string()},
            "identity": {"docker-reference": "r.example/app"},
        });
        let document = json!({"critical": critical, "optional": null}).to_string();
        let signature = signer.sign(document.as_bytes());
        Self { signer, log, document, signature }
    }

    /// What the log has of it.
    fn entry(&self) -> Value {
        self.signer.entry(&self.document, &self.signature)
    }

    fn check(&self, bundle: Option<&str>) -> Result<(), SigstoreError> {
        let (document, signature) = (self.document.clone(), self.signature.clone());
        let signature = SigstoreSignature { document, signature, bundle: bundle.map(str::to_owned) };
        let logs = vec![Signer::new().key(), self.log.key()];
        let signers = Signers { keys: vec![Signer::new().key(), self.signer.key()], logs: Some(logs) };
        let image = Identity::of_registry(&"r.example/app:1".parse().unwrap());
        let expected = Expected { digests: &[digest()], called: &SignedIdentity::MatchRepository {}, image: &image };
        signature.check(&signers, &expected)
    }

    fn error(&self, bundle: &Value) -> String {
        let error = self.check(Some(&bundle.to_string())).unwrap_err();
        assert!(matches!(error, SigstoreError::Log(_)), "{error}");
        error.to_string()
    }
}

#[test]
fn a_signature_counts_that_is_in_the_log() {
    let scene = Scene::new();
    scene.check(Some(&scene.log.bundle(&scene.entry()).to_string())).unwrap();
    let error = scene.check(None).unwrap_err();
    assert_eq!(error, SigstoreError::NotLogged);
}

#[test]
fn what_another_log_says_does_not_count() {
    let scene = Scene::new();
    assert!(scene.error(&Signer::new().bundle(&scene.entry())).contains("another log, or was changed"));
    let good = scene.log.bundle(&scene.entry());
    for (name, value) in [
        ("body", json!(STANDARD.encode(scene.entry().to_string() + " "))),
        ("integratedTime", json!(1)),
        ("logIndex", json!(123_456_788)),
        ("logID", json!("c0d3")),
    ] {
        let mut changed = good.clone();
        changed["Payload"][name] = value;
        assert!(scene.error(&changed).contains("another log, or was changed"), "{name}");
    }
    for (name, value) in [("more", json!(1)), ("logIndex", json!(-1)), ("logIndex", json!(1.5)), ("logID", json!(null))]
    {
        let mut changed = good.clone();
        changed["Payload"][name] = value;
        scene.error(&changed);
    }
    let mut large = good.clone();
    large["Payload"]["logIndex"] = json!(u64::MAX);
    assert!(scene.error(&large).contains("too large"));
    let mut changed = good;
    changed["SignedEntryTimestamp"] = json!("?");
    assert!(scene.error(&changed).contains("base64"));
}

#[test]
fn an_entry_is_for_one_signature_by_one_key_over_one_document() {
    let scene = Scene::new();
    let other = Scene::new();
    let hash = |value: &str| json!({"data": {"hash": {"algorithm": value, "value": "00"}}});
    for (place, value, part) in [
        ("/spec/signature/publicKey/content", json!(STANDARD.encode(other.signer.pem())), "another key"),
        ("/spec/signature/publicKey/content", json!(STANDARD.encode("certificate")), "its key"),
        ("/spec/signature/content", json!(other.signature), "another signature"),
        ("/spec/data/hash/value", json!(Digest::of(b"x").hex()), "another document"),
        ("/spec/data", hash("sha256")["data"].clone(), "another document"),
        ("/spec/data", hash("sha512")["data"].clone(), "another document"),
        ("/kind", json!("intoto"), "kind intoto 0.0.1"),
        ("/apiVersion", json!("0.0.2"), "kind hashedrekord 0.0.2"),
        ("/spec", json!({}), "missing field"),
    ] {
        let mut entry = scene.entry();
        *entry.pointer_mut(place).unwrap() = value;
        let error = scene.error(&scene.log.bundle(&entry));
        assert!(error.contains(part), "{place}: {error}");
    }
    // In the log, but by a key that nobody trusts.
    let signature = other.signature.clone();
    let untrusted = Scene { signature, ..scene };
    let bundle = untrusted.log.bundle(&untrusted.entry()).to_string();
    assert_eq!(untrusted.check(Some(&bundle)), Err(SigstoreError::Key));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_bundle_is_answered_without_panic(text in ".{0,60}", number in any::<i64>()) {
        let scene = Scene::new();
        let near = json!({"SignedEntryTimestamp": "", "Payload": {"body": text, "integratedTime": number, "logIndex": 1, "logID": ""}});
        for bundle in [text.clone(), near.to_string()] {
            prop_assert!(scene.check(Some(&bundle)).is_err());
        }
    }
}
