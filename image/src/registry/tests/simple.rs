//! Images that must be signed by a GPG key, and the places where signatures are.

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;

use pgp::composed::{KeyType, MessageBuilder, SecretKeyParamsBuilder, SignedSecretKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::ser::Serialize;
use pgp::types::{CompressionAlgorithm, Password};

use super::trust::{Signer as CosignSigner, serve};
use super::*;
use crate::store::ImportOptions;

/// Who signs.
struct Signer(SignedSecretKey);

impl Signer {
    fn new() -> Self {
        let mut builder = SecretKeyParamsBuilder::default();
        let builder = builder.key_type(KeyType::Ed25519Legacy).can_sign(true).can_certify(true);
        let parameters = builder.primary_user_id("Release <release@example.com>".to_owned()).build().unwrap();
        Self(parameters.generate(rand::thread_rng()).unwrap())
    }

    fn key(&self) -> Vec<u8> {
        self.0.to_public_key().to_bytes().unwrap()
    }

    fn sign(&self, digest: Digest, name: &str) -> Vec<u8> {
        let document = format!(
            r#"{{"critical":{{"identity":{{"docker-reference":"{name}"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"atomic container signature"}},"optional":{{}}}}"#
        );
        let mut message = MessageBuilder::from_bytes("", document.into_bytes());
        message.compression(CompressionAlgorithm::ZIP);
        message.sign(&self.0.primary_key, Password::empty(), HashAlgorithm::Sha256);
        message.to_vec(rand::thread_rng()).unwrap()
    }
}

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Requires signatures by this key of all images, wherever from; `more` follows the requirement.
    fn requiring_gpg(&mut self, signer: &Signer, more: &str) {
        let key = self.path("key.gpg");
        fs::write(&key, signer.key()).unwrap();
        let key = key.display();
        self.trusting(&format!(r#"{{"default":[{{"type":"signedBy","keyType":"GPGKeys","keyPath":"{key}"}}{more}]}}"#));
    }

    /// Configures where signatures are.
    fn look_at(&mut self, place: &str) {
        let folder = self.path("registries.d");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("test.yaml"), format!("default-docker:\n  lookaside: {place}\n")).unwrap();
        self.lookaside = Lookaside { folders: vec![folder], is_required: true, default: None };
    }

    /// Puts a signature into a folder of signatures, and configures that.
    fn put(&mut self, number: u32, digest: Digest, signature: &[u8]) {
        let folder = self.path("signatures").join(format!("team/app@sha256={}", digest.hex()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(format!("signature-{number}")), signature).unwrap();
        self.look_at(&format!("file://{}", self.path("signatures").display()));
    }
}

/// A registry with one image.
fn registry() -> (Server, Arc<Mutex<Content>>, Digest, String) {
    let (content, _) = Content::image(Packing::Gzip, &[layer("x")]);
    let digest = content.tags["latest"];
    let (server, content) = serve(content);
    let name = format!("{}/team/app", server.host());
    (server, content, digest, name)
}

#[test]
fn a_signed_image_is_taken_and_no_other() {
    let (server, _, digest, name) = registry();
    let (mut place, signer) = (Place::new(), Signer::new());
    place.requiring_gpg(&signer, "");
    // Nothing says where signatures are; there are none; they are others'.
    assert!(place.error(&name).contains("containers-registries.d(5)"));
    place.put(1, Digest::of(b"another image"), &signer.sign(digest, &name));
    assert!(place.error(&name).contains("by a GPG key is required, and there is none"));
    assert_eq!(server.count("/blobs/"), 2, "no layer was read: {:?}", server.seen());
    place.put(1, digest, &Signer::new().sign(digest, &name));
    assert!(place.error(&name).contains("not among the trusted keys"));
    place.put(1, digest, &signer.sign(digest, "other.example/app:latest"));
    assert!(place.error(&name).contains("called other.example/app:latest"));
    place.put(1, digest, &signer.sign(Digest::of(b"x"), &name));
    assert!(place.error(&name).contains("for another image"));
    place.put(1, digest, b"-----BEGIN PGP MESSAGE-----");
    assert!(place.error(&name).contains("no OpenPGP signed message"));

    // Behind others that do not count.
    place.put(2, digest, &signer.sign(digest, &format!("{name}:latest")));
    let imported = place.fetch(&name).unwrap();
    place.assert_clean();
    drop(server);
    fs::remove_dir_all(place.path("signatures")).unwrap();
    for wanted in [&name, &imported.id.to_string()] {
        place.store.resolve(wanted).unwrap();
    }
    // The key is no longer the right one: what is stored does not run any more.
    fs::write(place.path("key.gpg"), Signer::new().key()).unwrap();
    for wanted in [&name, &imported.id.to_string()] {
        let error = place.unfit(wanted);
        assert!(error.contains("not among the trusted keys") && error.contains("--insecure-options=image"), "{error}");
    }
    fs::write(place.path("key.gpg"), "no key").unwrap();
    assert!(place.unfit(&name).contains("key.gpg: it holds no OpenPGP key"));
    fs::remove_file(place.path("key.gpg")).unwrap();
    assert!(place.unfit(&name).contains("key.gpg"));
}

/// A server of signatures; `answer` is asked for the one of a number.
fn web(digest: Digest, answer: impl Fn(usize) -> Reply + Send + Sync + 'static) -> Server {
    let start = format!("/store/team/app@sha256={}/signature-", digest.hex());
    Server::start(move |seen| match seen.path.strip_prefix(&start).and_then(|number| number.parse().ok()) {
        Some(number) => answer(number),
        None => Reply::new(404, ""),
    })
}

#[test]
fn signatures_come_from_web_servers_too() {
    let (_server, _, digest, name) = registry();
    let (mut place, signer) = (Place::new(), Signer::new());
    place.requiring_gpg(&signer, "");
    let signatures =
        [Signer::new().sign(digest, &format!("{name}:latest")), signer.sign(digest, &format!("{name}:latest"))];
    let server = web(digest, move |number| {
        signatures.get(number - 1).map_or_else(|| Reply::new(404, "none"), |bytes| Reply::new(200, bytes.clone()))
    });
    // Without TLS, which was allowed for nobody but the registry.
    place.host(name.split('/').next().unwrap()).insecure = vec![Insecure::Http];
    place.insecure.clear();
    place.look_at(&format!("http://{}/store/", server.host()));
    place.fetch(&name).unwrap();
    let paths: Vec<String> = server.seen().iter().map(|seen| seen.path.clone()).collect();
    assert_eq!(paths.len(), 3, "{paths:?}");
    assert!(paths[2].ends_with("/signature-3"));
    place.store.resolve(&name).unwrap();
}

#[test]
fn a_server_that_does_not_answer_as_it_should_lets_nothing_in() {
    let (_server, _, digest, name) = registry();
    let (mut place, signer) = (Place::new(), Signer::new());
    place.requiring_gpg(&signer, "");
    let mut error = |answer: fn() -> Reply| {
        let server = web(digest, move |_| answer());
        place.look_at(&format!("http://{}/store", server.host()));
        (place.error(&name), server.seen().len())
    };
    let (message, _) = error(|| Reply::new(403, ""));
    assert!(message.contains("/signature-1: the server answers 403"), "{message}");
    let (message, _) = error(|| Reply { endless: true, ..Reply::new(200, vec![0; 1 << 16]) });
    assert!(message.contains("larger than 262144 bytes"), "{message}");
    // Signatures without end.
    let (message, asked) = error(|| Reply::new(200, "<html>"));
    assert!(message.contains("no OpenPGP signed message"), "{message}");
    assert_eq!(asked, 64);
}

#[test]
fn signatures_are_looked_for_only_where_the_policy_wants_them() {
    let (_server, content, digest, name) = registry();
    let (mut place, signer) = (Place::new(), Signer::new());
    // Broken, but nobody asks.
    place.look_at("nowhere");
    place.fetch(&name).unwrap();
    place.requiring_gpg(&signer, "");
    let error = place.error_of(&name);
    assert!(error.contains("test.yaml") && error.contains("\"nowhere\" of default-docker"), "{error}");
    place.put(1, digest, &signer.sign(digest, &format!("{name}:latest")));
    place.fetch(&name).unwrap();
    place.store.resolve(&name).unwrap();

    // Both forms at once.
    let cosign = CosignSigner::new();
    let key = cosign.key(&place, "key.pub");
    place.requiring_gpg(&signer, &format!(r#",{{"type":"sigstoreSigned","keyPath":"{}"}}"#, key.display()));
    for error in [place.unfit(&name), place.error_of(&name)] {
        assert!(error.contains("a signature is required, and there is none"), "{error}");
    }
    cosign.sign(&mut content.lock().unwrap(), digest, &format!("{name}:latest"));
    place.fetch(&name).unwrap();
    place.store.resolve(&name).unwrap();
}

#[test]
fn what_cannot_be_signed_is_told() {
    let layout = crate::oci::fixture::layout("app:1", Packing::Gzip, &[layer("x")]);
    let mut place = Place::new();
    let path = place.path("layout");
    layout.write(&path);
    place.requiring_gpg(&Signer::new(), "");
    let error = place.store.import(&path, &ImportOptions::default(), &Silent).unwrap_err().to_string();
    assert!(error.contains("images of the transport oci have none") && error.contains("registry"), "{error}");
    assert!(place.images().is_empty());
}

const KEY: &[u8] = include_bytes!("../../trust/fixtures/simple.key");
const SIGNATURE: &[u8] = include_bytes!("../../trust/fixtures/simple.sig");

#[test]
fn what_was_good_when_it_came_stays_good_when_the_key_expires() {
    use base64::Engine;
    let (_server, _, _, name) = registry();
    let mut place = Place::new();
    let id = place.fetch(&name).unwrap().id;
    let key = place.path("key.gpg");
    fs::write(&key, KEY).unwrap();
    let (key, identity) = (key.display(), r#"{"type":"exactRepository","dockerRepository":"r.example/team/app"}"#);
    place.trusting(&format!(
        r#"{{"default":[{{"type":"signedBy","keyType":"GPGKeys","keyPath":"{key}","signedIdentity":{identity}}}]}}"#
    ));
    // As it was kept in 2023; the key has expired in 2025.
    let record = place.store.root().join("images").join(id.hex()).join("origins.json");
    let mut origins: serde_json::Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    let origin = &mut origins["origins"][0];
    origin["digests"] = serde_json::json!([format!("sha256:{}", "1".repeat(64))]);
    origin["simple_signatures"] = serde_json::json!([base64::engine::general_purpose::STANDARD.encode(SIGNATURE)]);
    let keep = |origins: &serde_json::Value| {
        fs::remove_file(&record).unwrap();
        fs::write(&record, origins.to_string()).unwrap();
    };
    keep(&origins);
    assert!(place.unfit(&name).contains("has expired on 2025-01-01"));
    origins["origins"][0]["accepted"] = serde_json::json!(1_672_531_200);
    keep(&origins);
    place.store.resolve(&name).unwrap();
    // As podvm kept it before it knew of GPG keys.
    let origin = origins["origins"][0].as_object_mut().unwrap();
    origin.remove("accepted");
    origin.remove("simple_signatures");
    keep(&origins);
    assert!(place.unfit(&name).contains("there is none"));
    place.assert_clean();
}
