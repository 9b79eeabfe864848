//! Images that the host's policy takes, and those that it does not.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::*;
use crate::store::ImportOptions;
use crate::trust::tests::rekor::Signer as KeyPair;
use crate::trust::{Keyring, PolicyFile};

/// Who signs.
pub struct Signer(KeyPair);

impl Signer {
    pub fn new() -> Self {
        Self(KeyPair::new())
    }

    /// The public key, written beside the store.
    pub fn key(&self, place: &Place, name: &str) -> PathBuf {
        let path = place.directory.path().join(name);
        fs::write(&path, self.0.pem()).unwrap();
        path
    }

    /// Puts a signature over `digest` beside it, as cosign does.
    pub fn sign(&self, content: &mut Content, digest: Digest, name: &str) {
        self.sign_logged(content, digest, name, None);
    }

    /// As [`Signer::sign`], with this log's word that it has the signature.
    fn sign_logged(&self, content: &mut Content, digest: Digest, name: &str, log: Option<&Self>) {
        let document = format!(
            r#"{{"critical":{{"identity":{{"docker-reference":"{name}"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"cosign container image signature"}},"optional":null}}"#
        );
        let signature = self.0.sign(document.as_bytes());
        let mut annotations = serde_json::json!({"dev.cosignproject.cosign/signature": signature});
        if let Some(log) = log {
            let bundle = log.0.bundle(&self.0.entry(&document, &signature));
            annotations["dev.sigstore.cosign/bundle"] = bundle.to_string().into();
        }
        let layer = Digest::of(document.as_bytes());
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(b"{}").to_string(), "size": 2},
            "layers": [{
                "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
                "digest": layer.to_string(),
                "size": document.len(),
                "annotations": annotations,
            }],
        });
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let mut blobs = (*content.blobs).clone();
        content.tags.insert(format!("sha256-{}.sig", digest.hex()), Digest::of(&manifest));
        blobs.insert(Digest::of(&manifest), manifest);
        blobs.insert(layer, document.into_bytes());
        content.blobs = Arc::new(blobs);
    }
}

impl Place {
    /// The store, held against this policy from now on.
    pub fn trusting(&mut self, policy: &str) {
        let path = self.directory.path().join("policy.json");
        fs::write(&path, policy).unwrap();
        let store = Store::open(self.directory.path().join("images")).unwrap();
        self.store = store.trusting(PolicyFile { paths: vec![path], is_required: true }, Keyring::new(Vec::new()));
    }

    /// Requires signatures by a key of all images from `scope`, and lets nothing else in.
    fn requiring(&mut self, scope: &str, key: &Path, identity: &str) {
        self.trusting(&format!(
            r#"{{"default":[{{"type":"reject"}}],"transports":{{"docker":{{"{scope}":[{{"type":"sigstoreSigned","keyPath":"{}","signedIdentity":{{"type":"{identity}"}}}}]}}}}}}"#,
            key.display()
        ));
    }

    /// The message about a stored image that must not run.
    pub fn unfit(&self, wanted: &str) -> String {
        self.store.resolve(wanted).map(|image| image.id).expect_err("it is refused").to_string()
    }
}

/// A registry whose content changes.
pub fn serve(content: Content) -> (Server, Arc<Mutex<Content>>) {
    let shared = Arc::new(Mutex::new(content));
    let served = Arc::clone(&shared);
    (Server::start(move |seen| served.lock().unwrap().answer(seen)), shared)
}

#[test]
fn a_signed_image_is_taken_and_no_other() {
    let (content, _) = Content::image(Packing::Gzip, &[layer("x")]);
    let digest = content.tags["latest"];
    let (server, content) = serve(content);
    let (mut place, signer) = (Place::new(), Signer::new());
    let key = signer.key(&place, "key.pub");
    let name = format!("{}/team/app", server.host());
    place.requiring(&server.host(), &key, "matchRepository");
    let error = place.error(&name);
    assert!(error.contains("a signature is required, and there is none") && error.contains("policy.json"), "{error}");
    assert_eq!(server.count("/blobs/"), 1, "only the configuration was read: {:?}", server.seen());

    Signer::new().sign(&mut content.lock().unwrap(), digest, &name);
    assert!(place.error(&name).contains("by another key"));
    signer.sign(&mut content.lock().unwrap(), digest, "other.example/app");
    assert!(place.error(&name).contains("called other.example/app"));
    signer.sign(&mut content.lock().unwrap(), digest, &name);
    let imported = place.fetch(&name).unwrap();
    place.assert_clean();
    for wanted in [&name, &imported.id.to_string()] {
        place.store.resolve(wanted).unwrap();
    }
    assert!(place.error_of("elsewhere.example/app").contains("rejected"));

    // The key is no longer the right one: what is stored does not run any more.
    Signer::new().key(&place, "key.pub");
    for wanted in [&name, &imported.id.to_string()] {
        let error = place.unfit(wanted);
        assert!(error.contains("by another key") && error.contains("--insecure-options=image"), "{error}");
    }
    fs::remove_file(&key).unwrap();
    assert!(place.unfit(&name).contains("key.pub"));
}

impl Place {
    /// The message of a fetch that must fail, whatever is stored already.
    pub fn error_of(&self, name: &str) -> String {
        self.fetch(name).expect_err("the fetch is refused").to_string()
    }
}

#[test]
fn a_signature_must_be_in_a_log_when_the_policy_says_so() {
    let (content, _) = Content::image(Packing::Gzip, &[layer("x")]);
    let digest = content.tags["latest"];
    let (server, content) = serve(content);
    let (mut place, signer, log) = (Place::new(), Signer::new(), Signer::new());
    let name = format!("{}/app", server.host());
    let (key, log_key) = (signer.key(&place, "key.pub"), log.key(&place, "log.pub"));
    place.trusting(&format!(
        r#"{{"default":[{{"type":"sigstoreSigned","keyPath":"{}","rekorPublicKeyPath":"{}","signedIdentity":{{"type":"matchRepository"}}}}]}}"#,
        key.display(),
        log_key.display()
    ));
    signer.sign(&mut content.lock().unwrap(), digest, &name);
    assert!(place.error(&name).contains("no entry in a Rekor log"));
    signer.sign_logged(&mut content.lock().unwrap(), digest, &name, Some(&Signer::new()));
    assert!(place.error(&name).contains("signed by another log"));
    signer.sign_logged(&mut content.lock().unwrap(), digest, &name, Some(&log));
    place.fetch(&name).unwrap();
    // By what was kept.
    drop(server);
    place.store.resolve(&name).unwrap();
    Signer::new().key(&place, "log.pub");
    assert!(place.unfit(&name).contains("signed by another log"));
}

#[test]
fn a_tag_that_was_signed_is_not_another_tag() {
    let (mut content, _) = Content::image(Packing::Gzip, &[layer("x")]);
    let digest = content.tags["latest"];
    content.tags.insert("1".to_owned(), digest);
    let (server, content) = serve(content);
    let (mut place, signer) = (Place::new(), Signer::new());
    let name = format!("{}/app", server.host());
    place.requiring(&server.host(), &signer.key(&place, "key.pub"), "matchRepoDigestOrExact");
    signer.sign(&mut content.lock().unwrap(), digest, &format!("{name}:1"));
    assert!(place.error(&name).contains(&format!("called {name}:1")));
    place.fetch(&format!("{name}:1")).unwrap();
    place.fetch(&format!("{name}@{digest}")).unwrap();
    assert!(place.store.resolve(&name).is_err(), "it was never taken as latest");
}

#[test]
fn an_index_that_was_signed_stands_for_its_images() {
    let (mut content, _) = Content::image(Packing::Gzip, &[layer("x")]);
    let manifest = content.tags["latest"];
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": manifest.to_string(),
        "size": content.blobs[&manifest].len(),
        "platform": {"os": "linux", "architecture": crate::oci::host_architecture()},
    }]});
    let index = serde_json::to_vec(&index).unwrap();
    let top = Digest::of(&index);
    let mut blobs = (*content.blobs).clone();
    blobs.insert(top, index);
    content.blobs = Arc::new(blobs);
    content.tags.insert("latest".to_owned(), top);
    for signed in [manifest, top] {
        let (server, content) = serve(content.clone());
        let (mut place, signer) = (Place::new(), Signer::new());
        let name = format!("{}/app", server.host());
        place.requiring(&server.host(), &signer.key(&place, "key.pub"), "matchRepository");
        signer.sign(&mut content.lock().unwrap(), signed, &name);
        place.fetch(&name).unwrap();
        place.store.resolve(&name).unwrap();
    }
}

#[test]
fn what_was_stored_before_is_held_against_a_new_policy() {
    let (content, _) = Content::image(Packing::Gzip, &[layer("x")]);
    let digest = content.tags["latest"];
    let (server, content) = serve(content);
    let (mut place, signer) = (Place::new(), Signer::new());
    let name = format!("{}/app", server.host());
    let id = place.fetch(&name).unwrap().id.to_string();
    place.store.resolve(&name).unwrap();
    place.requiring(&server.host(), &signer.key(&place, "key.pub"), "matchRepository");
    for wanted in [&name, &id] {
        assert!(place.unfit(wanted).contains("there is none"));
    }
    assert!(place.error_of(&name).contains("there is none"));
    signer.sign(&mut content.lock().unwrap(), digest, &name);
    let fetched = place.fetch(&name).unwrap();
    assert_eq!(fetched.present, fetched.layers);
    for wanted in [&name, &id] {
        place.store.resolve(wanted).unwrap();
    }
    // Without the check, everything runs.
    let unchecked = Store::open(place.store.root()).unwrap();
    place.requiring("nowhere.example", Path::new("/nonexistent"), "matchExact");
    assert!(place.unfit(&name).contains("rejected"));
    unchecked.resolve(&name).unwrap();
}

#[test]
fn a_signature_for_one_name_does_not_lend_itself_to_another() {
    let (content, _) = Content::image(Packing::Gzip, &[layer("x")]);
    let digest = content.tags["latest"];
    let (server, content) = serve(content);
    let (mut place, signer) = (Place::new(), Signer::new());
    let [signed, other] = ["signed", "other"].map(|path| format!("{}/{path}", server.host()));
    // The same image under another name, from before there was a policy.
    place.fetch(&other).unwrap();
    place.requiring(&server.host(), &signer.key(&place, "key.pub"), "matchRepository");
    signer.sign(&mut content.lock().unwrap(), digest, &signed);
    let id = place.fetch(&signed).unwrap().id.to_string();
    place.store.resolve(&signed).unwrap();
    place.store.resolve(&id).unwrap();
    assert!(place.unfit(&other).contains("there is none"));
}

#[test]
fn images_at_paths_are_held_against_the_policy_by_their_paths() {
    let layout = crate::oci::fixture::layout("app:1", Packing::Gzip, &[layer("x")]);
    let mut place = Place::new();
    let path = place.directory.path().canonicalize().unwrap().join("layout");
    layout.write(&path);
    let import = |place: &Place| place.store.import(&path, &ImportOptions::default(), &Silent);
    let in_folder = |kind: &str| {
        let parent = path.parent().unwrap().display();
        format!(r#"{{"default":[{{"type":"reject"}}],"transports":{{"oci":{{"{parent}":[{{"type":"{kind}"}}]}}}}}}"#)
    };
    place.trusting(&in_folder("reject"));
    let error = import(&place).unwrap_err().to_string();
    assert!(error.contains("rejected") && error.contains("layout"), "{error}");
    assert!(place.images().is_empty());
    place.trusting(&in_folder("insecureAcceptAnything"));
    let imported = import(&place).unwrap();
    for wanted in [imported.id.to_string(), imported.names[0].to_string()] {
        place.store.resolve(&wanted).unwrap();
    }
    place.trusting(&in_folder("reject"));
    assert!(place.unfit(&imported.id.to_string()).contains("rejected"));
    place.assert_clean();
}

#[test]
fn a_broken_policy_lets_nothing_in() {
    let (content, _) = Content::image(Packing::Gzip, &[layer("x")]);
    let server = content.serve();
    let mut place = Place::new();
    let name = format!("{}/app", server.host());
    place.fetch(&name).unwrap();
    place.trusting("{\"default\":[{\"type\":\"trustMe\"}]}");
    for error in [place.error_of(&name), place.unfit(&name)] {
        assert!(error.contains("policy.json") && error.contains("trustMe"), "{error}");
    }
}
