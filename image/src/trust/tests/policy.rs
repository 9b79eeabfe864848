//! Policies, as hosts write them.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::super::policy::Requirement;
use super::super::*;

fn parse(text: &str) -> Result<Policy, PolicyError> {
    Policy::parse(Path::new("/etc/containers/policy.json"), text.as_bytes())
}

fn error(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

fn registry(name: &str) -> Identity {
    Identity::of_registry(&name.parse().unwrap())
}

#[test]
fn the_narrowest_scope_counts() {
    let policy = parse(
        r#"{"default": [{"type": "reject"}],
            "transports": {
                "docker": {
                    "": [{"type": "insecureAcceptAnything"}, {"type": "insecureAcceptAnything"}],
                    "docker.io/library/busybox": [{"type": "insecureAcceptAnything"}],
                    "docker.io/library/busybox:bad": [{"type": "reject"}],
                    "*.example.com": [{"type": "reject"}, {"type": "reject"}],
                    "r.example.com:5000": [{"type": "sigstoreSigned", "keyPath": "/k"}],
                    "gpg.example": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"}],
                    "both.example": [
                        {"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"},
                        {"type": "sigstoreSigned", "keyPath": "/k"},
                        {"type": "signedBy", "keyType": "GPGKeys", "keyData": "YQ=="}
                    ],
                    "never.example": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"}, {"type": "reject"}]
                },
                "oci": {"/images": [{"type": "insecureAcceptAnything"}]},
                "atomic": {}, "docker-daemon": {"": [{"type": "reject"}]}
            }}"#,
    )
    .unwrap();
    for (image, scope, count) in [
        (registry("busybox"), "transports.docker.\"docker.io/library/busybox\"", 1),
        (registry("busybox:bad"), "transports.docker.\"docker.io/library/busybox:bad\"", 1),
        (registry("quay.io/x"), "transports.docker.\"\"", 2),
        (registry("a.b.example.com/x"), "transports.docker.\"*.example.com\"", 2),
        (registry("r.example.com:5000/x"), "transports.docker.\"r.example.com:5000\"", 1),
        (Identity::of_path("oci", Path::new("/images/a"), None), "transports.oci.\"/images\"", 1),
        (Identity::of_path("oci", Path::new("/image"), None), "default", 1),
        (Identity::of_stream("oci-archive"), "default", 1),
        (Identity::unknown(), "default", 1),
    ] {
        let (found, requirements) = policy.requirements(&image);
        assert_eq!((found.as_str(), requirements.len()), (scope, count));
    }
    for (name, forms) in [
        ("r.example.com:5000/x", &[SignatureForm::Sigstore][..]),
        ("gpg.example/x", &[SignatureForm::Simple]),
        ("both.example/x", &[SignatureForm::Simple, SignatureForm::Sigstore]),
        ("never.example/x", &[]),
        ("busybox", &[]),
    ] {
        assert_eq!(policy.wanted_signatures(&registry(name)), forms, "{name}");
    }
}

#[test]
fn debians_own_policy_takes_everything() {
    let policy =
        parse("{\n  \"default\": [\n    {\n      \"type\": \"insecureAcceptAnything\"\n    }\n  ]\n}\n").unwrap();
    assert_eq!(policy.requirements(&registry("etcd")).1, [Requirement::AcceptAnything]);
}

#[test]
fn what_is_not_understood_makes_the_file_useless() {
    let accept = r#"[{"type":"insecureAcceptAnything"}]"#;
    let docker = |text: &str| format!(r#"{{"default":{accept},"transports":{{"docker":{{{text}}}}}}}"#);
    let one = |requirement: &str| docker(&format!(r#""a.example":[{requirement}]"#));
    for (text, part) in [
        ("".to_owned(), "EOF"),
        ("{}".to_owned(), "default"),
        (r#"{"default":[]}"#.to_owned(), "default has no requirement"),
        (format!(r#"{{"default":{accept},"extra":1}}"#), "extra"),
        (one(r#"{"type":"trustMe"}"#), "trustMe"),
        (one(r#"{"type":"reject","why":1}"#), "why"),
        (one(r#"{"type":"insecureAcceptAnything","why":1}"#), "why"),
        (one(r#"{"type":"signedBy","keyPath":"/k"}"#), "keyType"),
        (
            one(r#"{"type":"signedBy","keyType":"X509Certificates","keyPath":"/k"}"#),
            "\"X509Certificates\" is not built",
        ),
        (one(r#"{"type":"signedBy","keyType":"GPGKeys"}"#), "exactly one of keyPath, keyPaths and keyData must"),
        (one(r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k","keyData":"YQ=="}"#), "exactly one of keyPath"),
        (one(r#"{"type":"signedBy","keyType":"GPGKeys","keyDatas":["YQ=="]}"#), "keyDatas"),
        (one(r#"{"type":"signedBy","keyType":"GPGKeys","keyPaths":[]}"#), "at least one"),
        (one(r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"key.gpg"}"#), "absolute"),
        (one(r#"{"type":"signedBy","keyType":"GPGKeys","keyData":"?"}"#), "base64"),
        (one(r#"{"type":"signedBaseLayer","baseLayerIdentity":{}}"#), "signedBaseLayer"),
        (one(r#"{"type":"sigstoreSigned"}"#), "exactly one of keyPath"),
        (one(r#"{"type":"sigstoreSigned","keyPath":"/a","keyData":"YQ=="}"#), "exactly one of keyPath"),
        (one(r#"{"type":"sigstoreSigned","keyPath":"cosign.pub"}"#), "absolute"),
        (one(r#"{"type":"sigstoreSigned","keyPaths":[]}"#), "at least one"),
        (one(r#"{"type":"sigstoreSigned","keyData":"?"}"#), "base64"),
        (one(r#"{"type":"sigstoreSigned","keyPath":"/a","fulcio":{}}"#), "fulcio"),
        (one(r#"{"type":"sigstoreSigned","rekorPublicKeyPath":"/r"}"#), "exactly one of keyPath"),
        (
            one(r#"{"type":"sigstoreSigned","keyPath":"/a","rekorPublicKeyPath":"/r","rekorPublicKeyData":"YQ=="}"#),
            "exactly one of rekorPublicKeyPath",
        ),
        (one(r#"{"type":"sigstoreSigned","keyPath":"/a","rekorPublicKeyPath":"r"}"#), "absolute"),
        (one(r#"{"type":"sigstoreSigned","keyPath":"/a","signedIdentity":{"type":"any"}}"#), "any"),
        (one(r#"{"type":"sigstoreSigned","keyPath":"/a","signedIdentity":{"type":"matchExact","x":1}}"#), "x"),
        (
            one(
                r#"{"type":"sigstoreSigned","keyPath":"/a","signedIdentity":{"type":"exactReference","dockerReference":"a"}}"#,
            ),
            "NAME:TAG",
        ),
        (docker(&format!(r#""a":{accept},"a":{accept}"#)), "stands twice"),
        (docker(&format!(r#""a*.example":{accept}"#)), "*.example.com"),
        (docker(&format!(r#""*.example/x":{accept}"#)), "*.example.com"),
    ] {
        let error = error(&text);
        assert!(error.contains(part) && error.contains("/etc/containers/policy.json"), "{text}\n{error}");
    }
    for good in [
        r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/a","signedIdentity":{"type":"matchExact"}}"#,
        r#"{"type":"signedBy","keyType":"GPGKeys","keyPaths":["/a","/b"]}"#,
        r#"{"type":"signedBy","keyType":"GPGKeys","keyData":"YQ=="}"#,
        r#"{"type":"sigstoreSigned","keyPath":"/a","rekorPublicKeyPath":"/r"}"#,
        r#"{"type":"sigstoreSigned","keyPath":"/a","rekorPublicKeyDatas":["YQ==","Yg=="]}"#,
        r#"{"type":"sigstoreSigned","keyPath":"/a","signedIdentity":{"type":"matchRepository"}}"#,
        r#"{"type":"sigstoreSigned","keyDatas":["YQ=="],"signedIdentity":{"type":"remapIdentity","prefix":"a","signedPrefix":"b.example/c"}}"#,
        r#"{"type":"sigstoreSigned","keyPaths":["/a","/b"],"signedIdentity":{"type":"exactRepository","dockerRepository":"a.example/b"}}"#,
    ] {
        parse(&one(good)).unwrap();
    }
}

#[test]
fn the_first_file_that_is_there_counts() {
    let directory = tempfile::tempdir().unwrap();
    let [own, hosts] = ["own.json", "hosts.json"].map(|name| directory.path().join(name));
    let mut file = PolicyFile { paths: vec![own.clone(), hosts.clone()], is_required: false };
    assert!(file.load().unwrap().is_none());
    fs::write(&hosts, r#"{"default":[{"type":"reject"}]}"#).unwrap();
    assert_eq!(file.load().unwrap().unwrap().path, hosts);
    fs::write(&own, "{").unwrap();
    assert!(file.load().unwrap_err().to_string().contains("own.json"));
    fs::remove_file(&own).unwrap();
    file.is_required = true;
    assert!(file.load().unwrap_err().to_string().contains("own.json"));
}

proptest! {
    #[test]
    fn any_text_is_answered_without_panic(text in ".{0,80}", near in "[\\[\\]{}:,\"a-z/*.]{0,60}") {
        let _ = parse(&text);
        let _ = parse(&format!(r#"{{"default":[{{"type":"reject"}}],"transports":{{"docker":{{"{near}":[]}}}}}}"#));
        let _ = parse(&near);
    }
}
