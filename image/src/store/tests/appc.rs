//! Images of appc from files and URLs, with what they are placed upon.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::{AppcFetch, AppcOptions, RenderOptions, What};
use super::*;
use crate::appc::archive::tests::{aci, manifest};
use crate::erofs::Limits;
use crate::registry::tests::server::{Reply, Server};
use crate::registry::{Credentials, Insecure, Patience, Registries, RegistrySettings, Url};
use crate::tar::builder::Member;
use crate::trust::Keyring;

fn registries() -> Registries {
    let patience = Patience {
        connect: Duration::from_secs(5),
        read: Duration::from_millis(500),
        backoff: Duration::from_millis(1),
        attempts: 3,
        longest_wait: Duration::from_secs(1),
    };
    Registries::new(RegistrySettings::default(), Credentials::default(), vec![Insecure::Http], patience)
}

/// What is done with the images of appc of a store.
fn with<T>(place: &Place, keys: Option<&Keyring>, work: impl FnOnce(&AppcFetch<'_>) -> T) -> T {
    let registries = registries();
    let options = AppcOptions { registries: &registries, keys, online: false, limits: Limits::default() };
    work(&AppcFetch::new(&place.store, options, &Silent))
}

fn import(place: &Place, manifest: &serde_json::Value, files: &[Member]) -> Result<Imported, StoreError> {
    let path = place.file("x.aci", &aci(manifest, files));
    with(place, None, |appc| appc.file(&path, None, None))
}

fn refused(place: &Place, manifest: &serde_json::Value, files: &[Member]) -> String {
    let error = import(place, manifest, files).unwrap_err().to_string();
    place.assert_clean();
    error
}

/// The paths of an image's root, with the content of its files.
fn root(place: &Place, wanted: &str) -> Vec<String> {
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("root");
    place.store.render(wanted, &target, &RenderOptions { what: What::Root, overwrite: false }).unwrap();
    let mut found = Vec::new();
    let mut waiting = vec![target.clone()];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(&target).unwrap().display().to_string();
            if path.is_dir() && !path.is_symlink() {
                found.push(format!("{name}/"));
                waiting.push(path);
            } else {
                found.push(format!("{name}={}", fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

fn labels(version: &str) -> serde_json::Value {
    json!([{"name": "version", "value": version}, {"name": "os", "value": "linux"}, {"name": "arch", "value": host_architecture()}])
}

fn depends(on: &[&str]) -> serde_json::Value {
    on.iter().map(|name| json!({"imageName": name})).collect()
}

#[test]
fn an_image_is_found_by_name_labels_and_id() {
    let place = Place::new();
    let app = json!({"exec": ["/bin/app", "-x"], "user": "7", "group": "8", "workingDirectory": "/w",
        "ports": [{"name": "http", "port": 80, "protocol": "tcp"}], "mountPoints": [{"name": "data", "path": "/data"}]});
    let named = |version| manifest("example.com/app", json!({"labels": labels(version), "app": app}));
    let first = import(&place, &named("1"), &[Member::file("f", "1")]).unwrap();
    let second = import(&place, &named("2"), &[Member::file("f", "2")]).unwrap();
    let id = first.appc.clone().unwrap().id;
    for wanted in [
        "example.com/app,version=1",
        "example.com/app:1",
        "appc:example.com/app,os=linux,version=1",
        &id.to_string(),
        &id.short(),
        &first.id.to_string(),
    ] {
        assert_eq!(place.store.find(wanted).unwrap().id, first.id, "{wanted}");
    }
    assert!([first.id, second.id].contains(&place.store.find("example.com/app").unwrap().id));
    for wanted in ["example.com/app,version=3", "appc:example.com/other", "sha512-0000"] {
        assert!(matches!(place.store.find(wanted), Err(StoreError::NotFound { .. })), "{wanted}");
    }
    let image = place.store.resolve("example.com/app:1").unwrap();
    assert_eq!(image.config.entrypoint, ["/bin/app", "-x"]);
    assert_eq!((image.config.user.as_str(), image.config.working_dir.as_str()), ("7:8", "/w"));
    assert_eq!(image.config.labels["io.podvm.port.http"], "80/tcp");
    drop(image);
    assert_eq!(root(&place, "example.com/app:2"), ["f=2"]);
    assert_eq!(place.store.history("example.com/app:1").unwrap().len(), 1);
    let again = import(&place, &named("1"), &[Member::file("f", "1")]).unwrap();
    assert_eq!((again.id, again.present), (first.id, 1));
    place.store.remove("example.com/app:2", &unused).unwrap();
    assert_eq!(place.images().len(), 1);
    place.assert_clean();
}

#[test]
fn a_root_keeps_links_devices_and_names_that_mean_something_elsewhere() {
    let place = Place::new();
    let files = [
        Member::file("f", "x"),
        Member::hard_link("g", "f"),
        Member::symlink("s", "f"),
        Member::file(".wh.f", "plain"),
    ];
    import(&place, &manifest("a", json!({})), &files).unwrap();
    assert_eq!(root(&place, "a"), [".wh.f=plain", "f=x", "g=x", "s=x"]);
}

#[test]
fn dependencies_are_placed_in_their_order_and_once() {
    let place = Place::new();
    let file = |name: &str, text: &str| Member::file(name, text);
    import(&place, &manifest("d", json!({})), &[file("who", "d"), file("d", "d")]).unwrap();
    import(&place, &manifest("b", json!({"dependencies": depends(&["d"])})), &[file("who", "b"), file("b", "b")])
        .unwrap();
    import(&place, &manifest("c", json!({"dependencies": depends(&["d"])})), &[file("c", "c")]).unwrap();
    import(&place, &manifest("a", json!({"dependencies": depends(&["b", "c"])})), &[file("a", "a")]).unwrap();
    assert_eq!(place.store.resolve("a").unwrap().layers.len(), 4);
    // The order is d, b, d, c, a: d's files are above b's.
    assert_eq!(root(&place, "a"), ["a=a", "b=b", "c=c", "d=d", "who=d"]);
    assert_eq!(root(&place, "b"), ["b=b", "d=d", "who=b"]);
    let history = place.store.history("a").unwrap();
    assert_eq!(
        history.iter().map(|step| step.created_by.as_str()).collect::<Vec<_>>(),
        ["appc b", "appc d", "appc c", "appc a"]
    );
    // What others are placed upon may go; they keep its layers.
    place.store.remove("d", &unused).unwrap();
    assert_eq!(root(&place, "b").len(), 3);
    place.assert_clean();
}

#[test]
fn a_whitelist_goes_for_the_image_and_all_below_it() {
    let place = Place::new();
    let base = [
        Member::directory("etc"),
        Member::file("etc/keep", "1"),
        Member::file("etc/drop", "2"),
        Member::file("first", "3"),
        Member::hard_link("second", "first"),
        Member::file("hidden", "4"),
    ];
    let only = |paths: &[&str]| json!({"pathWhitelist": paths});
    import(&place, &manifest("base", only(&["/etc/keep", "/etc/drop", "/first", "/second"])), &base).unwrap();
    assert_eq!(root(&place, "base"), ["etc/", "etc/drop=2", "etc/keep=1", "first=3", "second=3"]);
    let mut top = only(&["/etc/keep", "/second", "/own", "/hidden"]);
    top["dependencies"] = depends(&["base"]);
    import(&place, &manifest("top", top), &[Member::file("own", "5"), Member::file("other", "6")]).unwrap();
    assert_eq!(root(&place, "top"), ["etc/", "etc/keep=1", "own=5", "second=3"]);
    let message = place.store.export_aci("top", &mut Vec::new()).unwrap_err().to_string();
    assert!(message.contains("put together"), "{message}");
    place.store.gc(&unused).unwrap();
    place.assert_clean();
}

#[test]
fn dependencies_that_cannot_be_are_named() {
    let place = Place::new();
    let message = refused(&place, &manifest("a", json!({"dependencies": depends(&["none"])})), &[]);
    assert!(message.contains("a is placed upon none: ") && message.contains("import it first"), "{message}");
    import(&place, &manifest("b", json!({"labels": labels("1")})), &[Member::file("b", "b")]).unwrap();
    let id = place.store.find("b").unwrap().appc.unwrap().id;
    let dependency = |more: serde_json::Value| {
        let mut dependency = json!({"imageName": "b"});
        dependency.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        manifest("a", json!({"dependencies": [dependency]}))
    };
    let wrong = crate::appc::ImageId::of(b"x");
    for more in [json!({"imageID": wrong}), json!({"labels": [{"name": "version", "value": "2"}]})] {
        assert!(refused(&place, &dependency(more), &[]).contains("is not stored"));
    }
    import(&place, &dependency(json!({"imageID": id, "labels": labels("1")})), &[]).unwrap();
    let other = manifest("c", json!({"labels": [{"name": "os", "value": "freebsd"}]}));
    let message = refused(&place, &other, &[]);
    assert!(message.contains("freebsd"), "{message}");
}

#[test]
fn archives_that_are_no_images_leave_nothing() {
    let place = Place::new();
    for (manifest, files, part) in [
        (json!({"acKind": "PodManifest", "acVersion": "0.8.0"}), vec![], "acKind"),
        (manifest("a", json!({})), vec![Member::file("../../etc/x", "x")], ".."),
        (manifest("a", json!({})), vec![Member::hard_link("x", "../manifest")], ".."),
        (manifest("a", json!({})), vec![Member::new("x", b'?')], "type '?'"),
    ] {
        let message = refused(&place, &manifest, &files);
        assert!(message.contains(part) && message.contains("x.aci") | message.contains("a: "), "{message}");
    }
    place.assert_empty();
}

#[test]
fn an_exported_archive_has_the_same_manifest_and_files() {
    let place = Place::new();
    let manifest = manifest("example.com/app", json!({"labels": labels("1")}));
    import(&place, &manifest, &[Member::directory("d"), Member::file("d/f", "x"), Member::hard_link("g", "d/f")])
        .unwrap();
    let mut exported = Vec::new();
    place.store.export_aci("example.com/app", &mut exported).unwrap();
    let other = Place::new();
    let path = other.file("again.aci", &exported);
    let imported = with(&other, None, |appc| appc.file(&path, None, None)).unwrap();
    assert_eq!(fs::read(other.store.manifest_path(&imported.id)).unwrap(), manifest.to_string().as_bytes());
    assert_eq!(root(&other, "example.com/app"), ["d/", "d/f=x", "g=x"]);
    let layout = place.path("layout");
    place.store.export_directory("example.com/app", &layout, Default::default()).unwrap();
    other.import(&layout).unwrap();
    place.simple("oci", "x");
    assert!(matches!(place.store.export_aci("oci", &mut Vec::new()), Err(StoreError::NotAppc(_))));
}

/// A server with one file, which can say that it has not changed and give parts of it. Its first answers are cut short.
fn server(bytes: Vec<u8>, asked: std::sync::Arc<Mutex<Vec<String>>>, cuts: usize) -> Server {
    let cut = AtomicUsize::new(cuts);
    Server::start(move |seen| {
        if !seen.path.ends_with(".aci") {
            return Reply::new(404, "");
        }
        let from = seen.from();
        asked.lock().unwrap().push(format!("{from} {}", seen.header("if-none-match").unwrap_or_default()));
        if seen.header("if-none-match") == Some("\"one\"") {
            return Reply::new(304, "");
        }
        let mut reply = match seen.header("if-range") == Some("\"one\"") {
            true => Reply::new(206, &bytes[from..])
                .header("Content-Range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len())),
            false => Reply::new(200, &bytes[..]),
        };
        if cut.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            reply.stall = Some((reply.body.len() / 2, Duration::ZERO));
        }
        reply.header("ETag", "\"one\"")
    })
}

#[test]
fn a_transfer_that_is_cut_goes_on_and_the_same_file_is_not_sent_again() {
    let place = Place::new();
    let asked = std::sync::Arc::new(Mutex::new(Vec::new()));
    let bytes = aci(&manifest("a", json!({})), &[Member::file("f", vec![b'x'; 100_000])]);
    let half = bytes.len() / 2;
    let server = server(bytes, std::sync::Arc::clone(&asked), 1);
    let url = Url::parse(&format!("http://{}/x.aci?y", server.host())).unwrap();
    assert!(Url::parse(&format!("http://{}/x.aci", server.host())).is_some());
    let url = url.with_path("/x.aci");
    let first = with(&place, None, |appc| appc.url(&url)).unwrap();
    assert_eq!(first.appc.unwrap().url.unwrap(), url.to_string());
    let again = with(&place, None, |appc| appc.url(&url)).unwrap();
    assert_eq!((again.id, again.present), (first.id, 1));
    assert_eq!(*asked.lock().unwrap(), ["0 ".to_owned(), format!("{half} "), "0 \"one\"".to_owned()]);
    assert_eq!(fs::read_dir(place.store.partial()).unwrap().count(), 0);
    place.assert_clean();
}

#[test]
fn what_had_arrived_when_a_fetch_failed_is_not_asked_for_again() {
    let place = Place::new();
    let asked = std::sync::Arc::new(Mutex::new(Vec::new()));
    let bytes = aci(&manifest("a", json!({})), &[Member::file("f", vec![b'x'; 100_000])]);
    let server = server(bytes.clone(), std::sync::Arc::clone(&asked), 3);
    let url = Url::parse(&format!("http://{}/x.aci", server.host())).unwrap();
    let message = with(&place, None, |appc| appc.url(&url)).unwrap_err().to_string();
    assert!(message.contains("without progress"), "{message}");
    assert_eq!(place.store.verify(false).unwrap().len(), 0);
    let had = asked.lock().unwrap().len();
    with(&place, None, |appc| appc.url(&url)).unwrap();
    let from: usize = asked.lock().unwrap()[had].trim().parse().unwrap();
    assert!(from > bytes.len() * 3 / 4, "{from}");
    assert_eq!(fs::read_dir(place.store.partial()).unwrap().count(), 0);
    place.assert_clean();
}

#[test]
fn several_who_want_one_file_download_it_once() {
    let place = Place::new();
    let asked = std::sync::Arc::new(Mutex::new(Vec::new()));
    let bytes = aci(&manifest("a", json!({})), &[Member::file("f", vec![b'x'; 100_000])]);
    let server = server(bytes, std::sync::Arc::clone(&asked), 0);
    let url = Url::parse(&format!("http://{}/x.aci", server.host())).unwrap();
    let ids: Vec<Digest> = std::thread::scope(|scope| {
        let fetch = || with(&place, None, |appc| appc.url(&url)).unwrap().id;
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(fetch)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    assert!(ids.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(asked.lock().unwrap().iter().filter(|asked| *asked == "0 ").count(), 1);
    place.assert_clean();
}

#[test]
fn what_is_fetched_must_be_signed() {
    let place = Place::new();
    let bytes = aci(&manifest("a", json!({})), &[]);
    let server = server(bytes, Default::default(), 0);
    let url = Url::parse(&format!("http://{}/x.aci", server.host())).unwrap();
    let keys = Keyring::new(vec![place.path("keys")]);
    let message = with(&place, Some(&keys), |appc| appc.url(&url)).unwrap_err().to_string();
    assert!(message.contains("is not signed") && message.contains("--insecure-options=image"), "{message}");
    // What was taken without a signature does not count when one is needed.
    with(&place, None, |appc| appc.url(&url)).unwrap();
    assert!(with(&place, Some(&keys), |appc| appc.url(&url)).is_err());
    let path = place.file("y.aci", &aci(&manifest("b", json!({})), &[]));
    place.file("y.aci.asc", b"no signature");
    let message = with(&place, Some(&keys), |appc| appc.file(&path, None, None)).unwrap_err().to_string();
    assert!(message.contains("b: "), "{message}");
    assert_eq!(place.images().len(), 1);
    place.assert_clean();
}
