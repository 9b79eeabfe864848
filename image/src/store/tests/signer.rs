//! Stored images of appc, and whether those who have signed them are still trusted.

use super::super::{AppcFetch, AppcOptions};
use super::*;
use crate::appc::archive::tests::{aci, manifest};
use crate::erofs::Limits;
use crate::registry::{Credentials, Patience, Registries, RegistrySettings};
use crate::tar::builder::Member;
use crate::trust::{Keyring, PolicyFile, PublicKey, Scope};

const ALICE: &[u8] = include_bytes!("../../trust/fixtures/alice.key");

#[test]
fn an_image_runs_as_long_as_its_signer_is_trusted() {
    let place = Place::new();
    let keyring = Keyring::new(vec![place.path("keys")]);
    let alice = PublicKey::read_all(ALICE).unwrap().remove(0);
    let prefix = Scope::Prefix("example.com".parse().unwrap());
    keyring.add(&prefix, &alice).unwrap();
    let store = Store::open(place.store.root()).unwrap().trusting(PolicyFile::default(), keyring.clone());
    let path = place.file("x.aci", &aci(&manifest("example.com/app", json!({})), &[Member::file("f", "x")]));
    let registries =
        Registries::new(RegistrySettings::default(), Credentials::default(), Vec::new(), Patience::default());
    let options =
        AppcOptions { registries: &registries, keys: Some(&keyring), online: false, limits: Limits::default() };
    let id = AppcFetch::new(&store, options, &Silent).file(&path, None, None).unwrap().id;
    // From a file of one's own.
    store.resolve("example.com/app").unwrap();

    let record = store.image_directory(&id).join("image.json");
    let note = |signer: Option<&str>, url: Option<&str>| {
        let mut content: serde_json::Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
        (content["appc"]["signer"], content["appc"]["url"]) = (json!(signer), json!(url));
        fs::remove_file(&record).unwrap();
        fs::write(&record, content.to_string()).unwrap();
    };
    let unfit = |wanted: &str| store.resolve(wanted).map(|image| image.id).unwrap_err().to_string();
    let signer = format!("{} Alice <alice@example.com>", alice.fingerprint());
    note(Some(&signer), Some("https://example.com/app.aci"));
    store.resolve("example.com/app").unwrap();
    keyring.remove(&prefix, &alice.fingerprint()).unwrap();
    for wanted in ["example.com/app", &id.to_string()] {
        let error = unfit(wanted);
        assert!(error.contains("no longer trusted") && error.contains(&alice.fingerprint()), "{error}");
    }
    note(None, Some("https://example.com/app.aci"));
    assert!(unfit("example.com/app").contains("fetch it again"));
    // Without the check, all that is stored runs.
    place.store.resolve("example.com/app").unwrap();
}
