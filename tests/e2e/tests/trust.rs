//! Whose images run: the host's policy for OCI images, and keys for those of appc.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use podvm_e2e::{Host, Invocation, layout, skip};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::appc::Signer;
use crate::registry::Registry;

/// A key of Alice's, and its fingerprint.
const ALICE: &[u8] = include_bytes!("../../../image/src/trust/fixtures/alice.key");
const FINGERPRINT: &str = "6C6C33B5CA738FBD0663884E3DD9A6CD330FB593";

/// Runs a program that must succeed; returns what it prints.
fn output(program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes a key pair; returns the files of the private and the public key.
fn key_pair(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
    let (private, public) = (folder.join(format!("{name}.key")), folder.join(format!("{name}.pub")));
    output("openssl", &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private.to_str().unwrap()]);
    output("openssl", &["pkey", "-in", private.to_str().unwrap(), "-pubout", "-out", public.to_str().unwrap()]);
    (private, public)
}

/// Puts a signature beside an image, in the form in which cosign does.
fn sign(registry: &Registry, host: &Host, private: &Path, repository: &str, digest: &str, name: &str) {
    let folder = host.directory(&format!("signature-{}", private.file_stem().unwrap().display()));
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let blob = |bytes: &[u8]| {
        let digest = sha256(bytes);
        fs::write(blobs.join(&digest), bytes).unwrap();
        (format!("sha256:{digest}"), bytes.len())
    };
    let document = json!({
        "critical": {
            "type": "cosign container image signature",
            "image": {"docker-manifest-digest": digest},
            "identity": {"docker-reference": name},
        },
        "optional": null,
    })
    .to_string();
    let signed = folder.join("document");
    fs::write(&signed, &document).unwrap();
    let arguments = ["dgst", "-sha256", "-sign", private.to_str().unwrap(), signed.to_str().unwrap()];
    let signature = folder.join("signature");
    fs::write(&signature, output("openssl", &arguments)).unwrap();
    let signature = String::from_utf8(output("base64", &["-w0", signature.to_str().unwrap()])).unwrap();
    let (layer, layer_size) = blob(document.as_bytes());
    let (config, config_size) = blob(
        json!({"architecture": "", "os": "", "config": {}, "rootfs": {"type": "layers", "diff_ids": [layer]}})
            .to_string()
            .as_bytes(),
    );
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size},
        "layers": [{
            "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
            "digest": layer,
            "size": layer_size,
            "annotations": {"dev.cosignproject.cosign/signature": signature},
        }],
    });
    let (manifest, manifest_size) = blob(manifest.to_string().as_bytes());
    let index = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "size": manifest_size,
    }]});
    fs::write(folder.join("index.json"), index.to_string()).unwrap();
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
    registry.push_layout(&folder, &format!("{repository}:{}.sig", digest.replace(':', "-")));
}

/// Calls of podvm with a configuration of the test's own.
fn configured<'a>(host: &'a Host, text: &str) -> impl Fn(&[&str]) -> Invocation + 'a {
    let config = host.scratch().join("config.toml");
    fs::write(&config, text).unwrap();
    move |arguments| host.podvm(["--config", config.to_str().unwrap()].iter().chain(arguments))
}

#[test]
fn images_run_that_somebody_has_signed_whom_the_policy_trusts() {
    let host = Host::empty();
    let Some(registry) = Registry::start(host.scratch()) else {
        skip!("docker-registry or skopeo is not installed; `cargo xtask setup` brings them");
    };
    let name = registry.push("busybox", "team/busybox:1");
    let inspected = output("skopeo", &["inspect", "--tls-verify=false", "--raw", &format!("docker://{name}")]);
    let digest = format!("sha256:{}", sha256(&inspected));
    let (private, public) = key_pair(host.scratch(), "right");
    let (other, _) = key_pair(host.scratch(), "wrong");
    let policy = host.scratch().join("policy.json");
    let requirement = json!([{"type": "sigstoreSigned", "keyPath": public}]);
    let rules =
        json!({"default": [{"type": "reject"}], "transports": {"docker": {registry.host.clone(): requirement}}});
    fs::write(&policy, rules.to_string()).unwrap();
    let podvm = configured(&host, &format!("[trust]\npolicy = {policy:?}\n"));
    let run = |checks: &str, image: &str| {
        podvm(&["run", &format!("--insecure-options={checks}"), "--quiet", "--rm", image, "--", "echo", "it runs"])
            .run()
    };

    // Nobody has signed it; somebody else has; a local copy comes from nowhere that the policy knows.
    let refused = run("http", &name).expect_code(254);
    assert!(refused.stderr.contains("a signature is required, and there is none"), "{refused}");
    sign(&registry, &host, &other, "team/busybox", &digest, &name);
    let refused = run("http", &name).expect_code(254);
    assert!(refused.stderr.contains("by another key"), "{refused}");
    let refused = run("http", &format!("oci:{}", layout("busybox").display())).expect_code(254);
    assert!(refused.stderr.contains("rejected"), "{refused}");
    assert_eq!(podvm(&["image", "list", "--output", "json"]).run().expect_code(0).json(), json!([]));

    // Stored while nobody looked, it still does not run when somebody does.
    run("http,image", &name).expect_code(0).expect_stdout("it runs");
    let refused = run("http", &name).expect_code(254);
    assert!(refused.stderr.contains("by another key"), "{refused}");

    sign(&registry, &host, &private, "team/busybox", &digest, &name);
    run("http", &name).expect_code(0).expect_stdout("it runs");
    let id = podvm(&["image", "list", "--output", "json"]).run().expect_code(0).json()[0]["id"].clone();
    // Now by the signature that is kept.
    drop(registry);
    run("none", &name).expect_code(0).expect_stdout("it runs");
    run("none", id.as_str().unwrap()).expect_code(0).expect_stdout("it runs");
    podvm(&["image", "verify"]).run().expect_code(0);

    // A key that has changed since goes for what is stored.
    let (_, another) = key_pair(host.scratch(), "another");
    fs::copy(another, &public).unwrap();
    let refused = podvm(&["run", "--pull-policy=never", id.as_str().unwrap(), "--", "true"]).run().expect_code(254);
    assert!(refused.stderr.contains("by another key"), "{refused}");
    fs::write(&policy, r#"{"default": [{"type": "trustEverybody"}]}"#).unwrap();
    let refused = run("none", &name).expect_code(254);
    assert!(refused.stderr.contains("trustEverybody") && refused.stderr.contains("policy.json"), "{refused}");
}

/// skopeo with a configuration of the test's own, and this signer's keys.
struct Skopeo<'a> {
    policy: &'a Path,
    registries_d: &'a Path,
    signer: &'a Signer,
}

impl Skopeo<'_> {
    fn copy(&self, words: &[&str]) -> std::process::Output {
        let mut skopeo = Command::new("skopeo");
        skopeo.arg("--policy").arg(self.policy).arg("--registries.d").arg(self.registries_d);
        skopeo.args(["copy", "--src-tls-verify=false", "--dest-tls-verify=false"]).args(words);
        skopeo.env("GNUPGHOME", self.signer.home()).output().unwrap()
    }

    /// Signs an image of the registry as `user`, where its configuration has signatures.
    fn sign(&self, user: &str, name: &str) {
        let image = format!("docker://{name}");
        let signed = self.copy(&["--quiet", "--preserve-digests", "--sign-by", user, &image, &image]);
        assert!(signed.status.success(), "{}", String::from_utf8_lossy(&signed.stderr));
    }

    /// Whether its policy takes an image.
    fn takes(&self, name: &str, place: &Path) -> bool {
        let _ = fs::remove_dir_all(place);
        self.copy(&["--quiet", &format!("docker://{name}"), &format!("dir:{}", place.display())]).status.success()
    }
}

#[test]
fn images_run_that_somebody_has_signed_with_a_gpg_key() {
    let host = Host::empty();
    let Some(registry) = Registry::start(host.scratch()) else {
        skip!("docker-registry or skopeo is not installed; `cargo xtask setup` brings them");
    };
    let signers = ["team <team@example.com>", "other <other@example.com>"].map(|user| Signer::new(&host, user));
    let [Some(team), Some(other)] = signers else { skip!("gpg is not installed; `cargo xtask setup` brings it") };
    let name = registry.push("busybox", "team/busybox:1");
    let at = |name: &str| host.scratch().join(name);
    let (policy, anything, registries_d, key) =
        (at("policy.json"), at("anything.json"), host.directory("registries.d"), at("team.gpg"));
    fs::write(&key, team.key()).unwrap();
    let requirement = json!([{"type": "signedBy", "keyType": "GPGKeys", "keyPath": key}]);
    let rules =
        json!({"default": [{"type": "reject"}], "transports": {"docker": {registry.host.clone(): requirement}}});
    fs::write(&policy, rules.to_string()).unwrap();
    fs::write(&anything, r#"{"default": [{"type": "insecureAcceptAnything"}]}"#).unwrap();
    let place = format!("default-docker:\n  lookaside: file://{}\n", at("signatures").display());
    fs::write(registries_d.join("default.yaml"), place).unwrap();
    let podvm = configured(&host, &format!("[trust]\npolicy = {policy:?}\nregistries-d = {registries_d:?}\n"));
    let run = |checks: &str, image: &str| {
        podvm(&["run", &format!("--insecure-options={checks}"), "--quiet", "--rm", image, "--", "echo", "it runs"])
            .run()
    };
    let signing = |signer| Skopeo { policy: &anything, registries_d: &registries_d, signer };
    let checking = Skopeo { policy: &policy, ..signing(&other) };

    // Nobody has signed it; somebody else has. skopeo is of the same opinion.
    let refused = run("http", &name).expect_code(254);
    assert!(refused.stderr.contains("a signature by a GPG key is required, and there is none"), "{refused}");
    assert!(!checking.takes(&name, &at("copy")));
    signing(&other).sign("other@example.com", &name);
    let refused = run("http", &name).expect_code(254);
    assert!(refused.stderr.contains("not among the trusted keys"), "{refused}");
    assert!(!checking.takes(&name, &at("copy")));
    assert_eq!(podvm(&["image", "list", "--output", "json"]).run().expect_code(0).json(), json!([]));
    run("http,image", &name).expect_code(0).expect_stdout("it runs");

    signing(&team).sign("team@example.com", &name);
    assert!(checking.takes(&name, &at("copy")));
    run("http", &name).expect_code(0).expect_stdout("it runs");
    // Now by the signatures that are kept.
    drop(registry);
    fs::remove_dir_all(at("signatures")).unwrap();
    run("none", &name).expect_code(0).expect_stdout("it runs");
    podvm(&["image", "verify"]).run().expect_code(0);
    fs::write(&key, other.key()).unwrap();
    run("none", &name).expect_code(0).expect_stdout("it runs");
    fs::write(&key, ALICE).unwrap();
    let refused = run("none", &name).expect_code(254);
    assert!(refused.stderr.contains("not among the trusted keys"), "{refused}");
    run("image", &name).expect_code(0).expect_stdout("it runs");
}

#[test]
fn keys_are_trusted_by_their_fingerprints() {
    let host = Host::empty();
    let key = host.scratch().join("alice.key");
    fs::write(&key, ALICE).unwrap();
    let key = key.to_str().unwrap();
    let folder = host.scratch().join("keys");
    let podvm = configured(&host, &format!("[trust]\nkeys = [{folder:?}]\n"));
    let listed = || podvm(&["trust", "list", "--output", "json"]).run().expect_code(0).json();

    let refused = podvm(&["trust", "add", "--prefix", "example.com/team", key]).run().expect_code(254);
    assert!(refused.stderr.contains("6C6C 33B5") && refused.stderr.contains("Alice <alice@example.com>"), "{refused}");
    assert!(refused.stderr.contains("there is no terminal"), "{refused}");
    let wrong = "0".repeat(40);
    let refused = podvm(&["trust", "add", "--root", "--fingerprint", &wrong, key]).run().expect_code(254);
    assert!(refused.stderr.contains("nothing is trusted"), "{refused}");
    assert_eq!(listed(), json!([]));

    let add = ["trust", "add", "--prefix", "example.com/team", "--fingerprint", FINGERPRINT, key];
    let added = podvm(&add).run().expect_code(0);
    assert!(added.stdout.contains("prefix.d/example.com/team/6c6c33b5"), "{added}");
    podvm(&["trust", "add", "--root", "--skip-fingerprint-review", key]).run().expect_code(0);
    let keys = listed();
    assert_eq!(keys[0]["prefix"], json!(null));
    assert_eq!(keys[1]["prefix"], "example.com/team");
    assert_eq!(keys[1]["fingerprint"], FINGERPRINT);
    assert_eq!(keys[1]["user_ids"], json!(["Alice <alice@example.com>"]));

    podvm(&["trust", "rm", "--prefix", "example.com/team", FINGERPRINT]).run().expect_code(0);
    podvm(&["trust", "rm", "--root", FINGERPRINT]).run().expect_code(0);
    assert_eq!(listed(), json!([]));
    let refused = podvm(&["trust", "rm", "--root", FINGERPRINT]).run().expect_code(254);
    assert!(refused.stderr.contains("podvm trust list"), "{refused}");
}

#[test]
fn checks_are_left_out_by_their_names_alone() {
    let host = Host::empty();
    for (checks, part) in [("ondisk", "\"ondisk\""), ("images", "\"images\""), ("http,", "\"\"")] {
        let refused = host.podvm(["run", &format!("--insecure-options={checks}"), "x"]).run().expect_code(254);
        assert!(refused.stderr.contains(part) && refused.stderr.contains("image, http, tls"), "{refused}");
    }
    let podvm = configured(&host, "insecure-options = [\"image\", \"sealing\"]\n");
    let refused = podvm(&["image", "list"]).run().expect_code(254);
    assert!(refused.stderr.contains("sealing"), "{refused}");
}
