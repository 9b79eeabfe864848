//! The store as its users see it.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use super::{Collected, ImportOptions, Imported, Store, StoreError, Uses};
use crate::digest::Digest;
use crate::oci::fixture::{Layout, Packing, config, docker_archive, layer, layout, pack};
use crate::oci::host_architecture;
use crate::progress::Silent;

struct Place {
    directory: tempfile::TempDir,
    store: Store,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path().join("images")).unwrap();
        Self { directory, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    fn layout(&self, name: &str, layout: &Layout) -> PathBuf {
        layout.write(&self.path(name));
        self.path(name)
    }

    fn import(&self, path: &Path) -> Result<Imported, StoreError> {
        self.store.import(path, &ImportOptions::default(), &Silent)
    }

    /// Imports an image of one layer under `name`.
    fn simple(&self, name: &str, text: &str) -> Imported {
        let (base, tag) = name.split_once(':').unwrap_or((name, "latest"));
        let path = self.layout(base, &layout(tag, Packing::Plain, &[layer(text)]));
        let imported = self.import(&path).unwrap();
        fs::remove_dir_all(path).unwrap();
        imported
    }

    fn error(&self, path: &Path) -> String {
        let error = self.import(path).expect_err("the import is refused");
        self.assert_empty();
        error.to_string()
    }

    /// Nothing can be found, nothing half-made is left, and what is there is right.
    fn assert_empty(&self) {
        assert!(self.store.list().unwrap().is_empty());
        self.assert_clean();
        let refs = fs::read_dir(self.store.refs()).unwrap().count();
        assert_eq!(refs, 0);
    }

    fn assert_clean(&self) {
        assert_eq!(fs::read_dir(self.store.tmp()).unwrap().count(), 0);
        let problems = self.store.verify(false).unwrap();
        assert!(problems.is_empty(), "{problems:?}");
    }

    fn blobs(&self) -> usize {
        let names = super::records::names_in(&self.store.blobs()).unwrap();
        names.iter().filter(|name| name.ends_with(".erofs")).count()
    }
}

fn unused() -> io::Result<Uses> {
    Ok(Uses::default())
}

#[test]
fn an_image_is_the_same_from_whatever_it_comes() {
    let layers = [layer("base"), layer("top"), layer("base")];
    let oci = |packing| layout("3.4", packing, &layers);
    let plain = oci(Packing::Plain).archive();
    let docker = docker_archive(&[(&["etcd:3.4"], layers.to_vec())]);
    let mut ids = BTreeSet::new();
    for form in 0..7 {
        let place = Place::new();
        let path = match form {
            0 => place.layout("etcd", &oci(Packing::Plain)),
            1 => place.layout("etcd", &oci(Packing::Gzip)),
            2 => place.layout("etcd", &oci(Packing::Zstd)),
            3 => place.file("etcd.tar", &plain),
            4 => place.file("etcd.tar.gz", &pack(Packing::Gzip, &plain)),
            5 => place.file("etcd.oci.tar.zst", &pack(Packing::Zstd, &plain)),
            _ => place.file("saved.tar", &docker),
        };
        let imported = place.import(&path).unwrap();
        assert_eq!(imported.names[0].to_string(), "etcd:3.4", "form {form}");
        assert_eq!((imported.layers, imported.present), (2, 0));
        let image = place.store.resolve("etcd:3.4").unwrap();
        assert_eq!(image.id, imported.id);
        assert_eq!(image.config.entrypoint, ["/bin/app"]);
        assert_eq!(image.config.user, "7:8");
        assert_eq!(image.config.volumes, ["/data"]);
        let diff_ids: Vec<Digest> = image.layers.iter().map(|layer| layer.diff_id).collect();
        assert_eq!(diff_ids, layers.each_ref().map(|layer| Digest::of(layer)));
        for layer in &image.layers {
            assert_eq!(fs::metadata(&layer.path).unwrap().len(), layer.size);
        }
        assert_eq!(place.blobs(), 2);
        ids.insert(image.id);
        drop(image);
        place.assert_clean();
    }
    assert_eq!(ids.len(), 1);
}

#[test]
fn a_second_import_finds_all_layers_present() {
    let place = Place::new();
    let path = place.layout("a", &layout("1", Packing::Gzip, &[layer("x"), layer("y")]));
    let first = place.import(&path).unwrap();
    let second = place.import(&path).unwrap();
    assert_eq!((first.present, second.present), (0, 2));
    assert_eq!((first.id, first.size), (second.id, second.size));
}

#[test]
fn a_changed_byte_anywhere_is_found_and_named() {
    let good = layout("1", Packing::Gzip, &[layer("x"), layer("y")]);
    let mut tried = 0;
    for (number, (name, bytes)) in good.files.iter().enumerate() {
        let Some(hex) = name.strip_prefix("blobs/sha256/") else { continue };
        for at in [0, bytes.len() / 2, bytes.len() - 1] {
            let place = Place::new();
            let mut bad = layout("1", Packing::Gzip, &[layer("x"), layer("y")]);
            bad.files[number].1[at] ^= 0x10;
            let actual = Digest::of(&bad.files[number].1);
            let error = place.error(&place.layout("a", &bad));
            for part in [name.clone(), format!("sha256:{hex}"), actual.to_string()] {
                assert!(error.contains(&part), "byte {at} of {name}: {error}");
            }
            tried += 1;
        }
    }
    assert_eq!(tried, 12, "two layers, configuration, manifest");
}

#[test]
fn wrong_sizes_missing_files_and_wrong_diff_ids_are_named() {
    let layers = [layer("x")];
    let place = Place::new();
    let mut short = layout("1", Packing::Gzip, &layers);
    short.files[2].1.pop();
    let name = short.files[2].0.clone();
    let error = place.error(&place.layout("short", &short));
    assert!(error.contains(&name) && error.contains("bytes, expected"), "{error}");

    let mut missing = layout("1", Packing::Gzip, &layers);
    missing.files.remove(2);
    let error = place.error(&place.layout("missing", &missing));
    assert!(error.contains(&name) && error.contains("incomplete"), "{error}");

    let mut lying = Layout::new();
    let other = Digest::of(b"other");
    let image = lying.image_with(host_architecture(), Packing::Zstd, &layers, &[other]);
    lying.entry(image, json!({}));
    let error = place.error(&place.layout("lying", &lying));
    let actual = Digest::of(&layers[0]).to_string();
    assert!(error.contains(&other.to_string()) && error.contains(&actual), "{error}");

    let mut uneven = Layout::new();
    let image = uneven.image_with(host_architecture(), Packing::Plain, &layers, &[]);
    uneven.entry(image, json!({}));
    let error = place.error(&place.layout("uneven", &uneven));
    assert!(error.contains("1 layers, but the configuration names 0"), "{error}");
}

#[test]
fn a_docker_archive_with_a_changed_layer_or_configuration_is_refused() {
    let good = docker_archive(&[(&["a:1"], vec![layer("x")])]);
    let find = |needle: &[u8]| good.windows(needle.len()).position(|w| w == needle).unwrap();
    for needle in [&b"xxxxxxxx"[..], b"/bin/app"] {
        let place = Place::new();
        let mut bad = good.clone();
        bad[find(needle)] = b'X';
        let error = place.error(&place.file("a.tar", &bad));
        assert!(error.contains("is corrupt") && error.contains("in "), "{error}");
    }
}

#[test]
fn a_hostile_layer_leaves_nothing_behind() {
    use crate::tar::builder::{Member, archive};
    let place = Place::new();
    let evil = archive(&[Member::file("../../etc/passwd", "root")]);
    let error = place.error(&place.layout("evil", &layout("1", Packing::Gzip, &[evil])));
    assert!(error.contains("blobs/sha256/") && error.contains("leads out of the root"), "{error}");
    assert_eq!(place.blobs(), 0);
}

#[test]
fn the_manifest_for_this_machine_is_chosen_through_nested_indexes() {
    let place = Place::new();
    let mut layout = Layout::new();
    let mut on = |architecture: &str, variant: &str, text: &str| {
        let mut image = layout.image(architecture, Packing::Plain, &[layer(text)]);
        image["platform"] = json!({"os": "linux", "architecture": architecture, "variant": variant});
        image
    };
    let here = host_architecture();
    let images = [
        on("s390x", "", "mainframe"),
        on(here, "v3", "tuned"),
        on(here, "", "plain"),
        on("unknown", "", "attestation"),
    ];
    let inner = layout.index(&images);
    let outer = layout.index(&[inner]);
    layout.entry(outer, json!({"org.opencontainers.image.ref.name": "multi"}));
    let imported = place.import(&place.layout("a", &layout)).unwrap();
    let image = place.store.resolve("a:multi").unwrap();
    assert_eq!(image.layers[0].diff_id, Digest::of(&layer("plain")));
    assert_eq!(imported.layers, 1);
}

#[test]
fn an_image_for_another_machine_is_refused_by_what_it_is_for() {
    let place = Place::new();
    let mut labelled = Layout::new();
    let mut image = labelled.image("s390x", Packing::Plain, &[layer("x")]);
    let mut bare = Layout::new();
    let bare_image = bare.image("s390x", Packing::Plain, &[layer("x")]);
    image["platform"] = json!({"os": "linux", "architecture": "s390x"});
    labelled.entry(image, json!({}));
    bare.entry(bare_image, json!({}));
    for (name, layout) in [("labelled", labelled), ("bare", bare)] {
        let error = place.error(&place.layout(name, &layout));
        let wanted = format!("no image for linux/{}; it has linux/s390x", host_architecture());
        assert!(error.contains(&wanted), "{error}");
    }
}

#[test]
fn one_of_several_images_is_chosen_by_its_name() {
    let place = Place::new();
    let mut layout = Layout::new();
    for tag in ["v1", "v2"] {
        let image = layout.image(host_architecture(), Packing::Plain, &[layer(tag)]);
        layout.entry(image, json!({"org.opencontainers.image.ref.name": tag}));
    }
    let image = layout.image(host_architecture(), Packing::Plain, &[layer("full")]);
    layout.entry(
        image,
        json!({"io.containerd.image.name": "docker.io/library/full:3",
        "org.opencontainers.image.ref.name": "3"}),
    );
    let path = place.layout("multi", &layout);
    let docker = docker_archive(&[(&["a:1", "a:one"], vec![layer("v1")]), (&["b:2"], vec![layer("v2")])]);
    let saved = place.file("saved.tar", &docker);

    let error = place.error(&path);
    assert!(error.contains("choose one by") && error.contains("v1, v2, docker.io/library/full:3"), "{error}");
    let error = place.error(&saved);
    assert!(error.contains("a:1, b:2"), "{error}");
    let with = |path: &Path, choice: &str| PathBuf::from(format!("{}:{choice}", path.display()));
    let error = place.error(&with(&path, "v3"));
    assert!(error.contains("holds no image v3; it has v1, v2"), "{error}");

    for (path, choice, name, text) in [
        (&path, "v2", "multi:v2", "v2"),
        (&path, "docker.io/library/full:3", "full:3", "full"),
        (&saved, "a:one", "a:1", "v1"),
        (&saved, "b:2", "b:2", "v2"),
    ] {
        place.import(&with(path, choice)).unwrap();
        let image = place.store.resolve(name).unwrap();
        assert_eq!(image.layers[0].diff_id, Digest::of(&layer(text)), "{choice}");
    }
}

#[test]
fn what_is_no_image_is_refused_by_name() {
    let place = Place::new();
    for (path, expected) in [
        (place.path("none"), "none: No such file"),
        (place.file("text", b"hello"), "text: neither an OCI image layout"),
        (place.file("empty.tar", &[0; 1024]), "neither an OCI image layout nor an archive"),
        (place.layout("hollow", &Layout::new()), "hollow: holds no image"),
        (PathBuf::from("/dev/null"), "/dev/null: neither an OCI image layout"),
    ] {
        let error = place.error(&path);
        assert!(error.contains(expected), "{}: {error}", path.display());
    }
}

#[test]
fn images_are_found_by_name_id_and_start_of_an_id() {
    let place = Place::new();
    let message = |wanted: &str| place.store.resolve(wanted).unwrap_err().to_string();
    assert!(message("etcd").contains("import one with `podvm image import PATH`"));
    let etcd = place.simple("etcd:3.4", "etcd").id;
    place.simple("nginx", "nginx");
    let hex = etcd.hex();
    for wanted in ["etcd:3.4", &hex, &hex[..12], &hex[..4], &format!("sha256:{hex}")] {
        assert_eq!(place.store.resolve(wanted).unwrap().id, etcd, "{wanted}");
    }
    let manifest = place.store.find("etcd:3.4").unwrap().manifest_digest.unwrap();
    for wanted in [format!("etcd:3.4@{manifest}"), format!("elsewhere/etcd@{manifest}")] {
        assert_eq!(place.store.resolve(&wanted).unwrap().id, etcd, "{wanted}");
    }
    let other = Digest::of(b"other");
    assert!(message(&format!("etcd:3.4@{other}")).starts_with("no image etcd:3.4@sha256:"));
    let error = message("etcd");
    assert!(error.contains("there are etcd:3.4, nginx:latest"), "{error}");
    assert!(message("Bad Name").contains("not a valid name component"));
    assert!(message(&hex[..3]).starts_with("no image"));
}

#[test]
fn short_names_find_what_is_stored_under_long_ones() {
    let place = Place::new();
    let path = place.layout("x", &layout("1", Packing::Plain, &[layer("x")]));
    let name = Some("localhost/etcd:3".parse().unwrap());
    let options = ImportOptions { name, ..ImportOptions::default() };
    let imported = place.store.import(&path, &options, &Silent).unwrap();
    assert_eq!(imported.names[0].to_string(), "localhost/etcd:3");
    assert_eq!(place.store.resolve("etcd:3").unwrap().id, imported.id);
    assert!(place.store.resolve("x:1").is_err());
}

#[test]
fn an_ambiguous_start_lists_the_candidates() {
    let place = Place::new();
    let mut ids = Vec::new();
    // Two images whose ids agree in their first four digits, without making thousands.
    for name in ["0", "1"] {
        let imported = place.simple(name, name);
        let id = Digest::from_hex(&format!("abcd{}", &imported.id.hex()[4..])).unwrap();
        fs::rename(place.store.image_directory(&imported.id), place.store.image_directory(&id)).unwrap();
        ids.push(id);
    }
    let error = place.store.resolve("abcd").unwrap_err().to_string();
    assert!(ids.iter().all(|id| error.contains(&id.short())), "{error}");
}

#[test]
fn a_name_moves_to_the_image_imported_last() {
    let place = Place::new();
    let old = place.simple("app", "old").id;
    let new = place.simple("app", "new").id;
    assert_eq!(place.store.resolve("app").unwrap().id, new);
    let images = place.store.list().unwrap();
    assert_eq!((images[0].id, images[1].id), (new, old));
    assert!(images[1].names.is_empty(), "the old image stays, without a name");
}

#[test]
fn removal_keeps_what_others_need() {
    let place = Place::new();
    let shared = layer("shared");
    for (name, own) in [("a", "first"), ("b", "second")] {
        place.import(&place.layout(name, &layout("1", Packing::Plain, &[shared.clone(), layer(own)]))).unwrap();
    }
    assert_eq!(place.blobs(), 3);
    let removed = place.store.remove("a:1", &unused).unwrap();
    assert!(removed.image);
    assert_eq!((removed.collected.layers, place.blobs()), (1, 2));
    assert!(place.store.resolve("a:1").is_err());
    assert!(place.store.resolve("b:1").is_ok());
    assert_eq!(place.store.gc(&unused).unwrap(), Collected::default());
    place.assert_clean();
    assert!(matches!(place.store.remove("a:1", &unused), Err(StoreError::NotFound { .. })));
}

#[test]
fn a_name_among_several_is_all_that_goes() {
    let place = Place::new();
    let saved = place.file("s.tar", &docker_archive(&[(&["a:1", "a:one"], vec![layer("x")])]));
    let id = place.import(&saved).unwrap().id;
    let removed = place.store.remove("a:one", &unused).unwrap();
    assert!(!removed.image);
    assert_eq!(place.store.resolve("a:1").unwrap().id, id);
    assert!(place.store.remove(&id.short(), &unused).unwrap().image);
    place.assert_empty();
    assert_eq!(place.blobs(), 0);
}

#[test]
fn an_image_in_use_is_not_removed() {
    let place = Place::new();
    let id = place.simple("app", "x").id;
    let uses = || Ok(Uses { images: vec![(id, "pod-7".into())], ..Uses::default() });
    let error = place.store.remove("app", &uses).unwrap_err().to_string();
    assert_eq!(error, "image app is used by pod pod-7; remove the pod first");
    assert!(place.store.resolve("app").is_ok());
    let blind = || Err(io::Error::other("pods cannot be read"));
    assert!(matches!(place.store.remove("app", &blind), Err(StoreError::Uses(_))));
    assert!(place.store.resolve("app").is_ok());
}

#[test]
fn removal_waits_for_a_pod_that_is_being_started() {
    let place = Place::new();
    place.simple("app", "x");
    let image = place.store.resolve("app").unwrap();
    let asked = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| {
            place.store.remove("app", &|| {
                asked.store(true, std::sync::atomic::Ordering::SeqCst);
                unused()
            })
        });
        std::thread::sleep(Duration::from_millis(100));
        assert!(!asked.load(std::sync::atomic::Ordering::SeqCst), "pods are asked for too early");
        assert!(image.layers[0].path.exists());
        drop(image);
        assert!(removal.join().unwrap().unwrap().image);
    });
}

#[test]
fn layers_in_use_outlive_their_image() {
    let place = Place::new();
    place.simple("app", "x");
    let layers = BTreeSet::from([Digest::of(&layer("x"))]);
    let uses = || Ok(Uses { layers: layers.clone(), ..Uses::default() });
    assert_eq!(place.store.remove("app", &uses).unwrap().collected.layers, 0);
    assert_eq!(place.blobs(), 1);
    assert_eq!(place.store.gc(&unused).unwrap().layers, 1);
}

#[test]
fn collection_does_not_touch_layers_during_an_import() {
    let place = Place::new();
    let importing = place.store.importing().unwrap();
    place.simple("app", "x");
    let removed = place.store.remove("app", &unused).unwrap();
    assert!(removed.collected.busy);
    assert_eq!(place.blobs(), 1);
    drop(importing);
    assert_eq!(place.store.gc(&unused).unwrap().layers, 1);
}

#[test]
fn many_importers_of_one_image_all_win_and_do_it_once() {
    let place = Place::new();
    let layers: Vec<Vec<u8>> = (0..4).map(|i| layer(&format!("layer {i}"))).collect();
    let path = place.layout("app", &layout("1", Packing::Zstd, &layers));
    let stored = std::sync::atomic::AtomicUsize::new(0);
    struct Count<'a>(&'a std::sync::atomic::AtomicUsize);
    impl crate::Progress for Count<'_> {
        fn event(&self, event: crate::Event) {
            if matches!(event, crate::Event::Stored { .. }) {
                self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
        }
    }
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                place.store.import(&path, &ImportOptions::default(), &Count(&stored)).unwrap();
            });
        }
    });
    assert_eq!(stored.into_inner(), 4);
    assert_eq!(place.store.resolve("app:1").unwrap().layers.len(), 4);
    place.assert_clean();
}

#[test]
fn damage_is_reported_and_repaired_by_another_import() {
    let place = Place::new();
    let path = place.layout("app", &layout("1", Packing::Zstd, &[layer("x"), layer("y")]));
    place.import(&path).unwrap();
    let blob = place.store.resolve("app:1").unwrap().layers[1].path.clone();
    let mut bytes = fs::read(&blob).unwrap();
    bytes[5000] ^= 1;
    fs::remove_file(&blob).unwrap();
    fs::write(&blob, bytes).unwrap();
    let problems = place.store.verify(false).unwrap();
    assert_eq!(problems.len(), 1);
    assert!(problems[0].to_string().contains(&blob.display().to_string()));
    assert_eq!(place.store.verify(true).unwrap().len(), 2, "the layer, and that the image misses it");
    let error = place.store.resolve("app:1").unwrap_err().to_string();
    assert!(error.contains("import the image again"), "{error}");
    assert_eq!(place.import(&path).unwrap().present, 1);
    place.assert_clean();
}

#[test]
fn records_of_a_later_version_and_damaged_ones_are_told_apart() {
    let place = Place::new();
    let id = place.simple("app", "x").id;
    let record = place.store.image_directory(&id).join("image.json");
    for (content, expected) in [("{\"version\": 99}", "use a newer podvm"), ("{", "is damaged")] {
        fs::remove_file(&record).unwrap();
        fs::write(&record, content).unwrap();
        let error = place.store.resolve("app").unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert!(place.store.remove("app", &unused).unwrap().image, "a damaged image can be removed");
}

#[test]
fn the_configuration_is_kept_as_it_came() {
    let place = Place::new();
    let id = place.simple("app", "x").id;
    let kept = fs::read(place.store.config_path(&id)).unwrap();
    assert_eq!(Digest::of(&kept), id);
    assert_eq!(kept, config(host_architecture(), &[Digest::of(&layer("x"))]));
    assert!(fs::read(place.store.manifest_path(&id)).unwrap().starts_with(b"{"));
}

#[test]
fn uses_are_asked_only_when_an_image_would_go() {
    let place = Place::new();
    let asked = Cell::new(0);
    let uses = || {
        asked.set(asked.get() + 1);
        unused()
    };
    assert!(place.store.remove("none", &uses).is_err());
    assert_eq!(asked.get(), 0);
}

/// Says where each read event is and goes on slowly, so that a kill can hit any of them.
struct Slow;

impl crate::Progress for Slow {
    fn event(&self, event: crate::Event) {
        println!("{event:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
#[ignore = "the child process of the test below"]
fn importer_that_is_killed() {
    let root = std::env::var_os("PODVM_TEST_STORE").expect("run by the test below");
    let path = std::env::var_os("PODVM_TEST_LAYOUT").expect("run by the test below");
    let store = Store::open(root).unwrap();
    store.import(path.as_ref(), &ImportOptions::default(), &Slow).unwrap();
}

#[test]
fn a_kill_at_any_moment_leaves_a_clean_store() {
    let place = Place::new();
    let layers: Vec<Vec<u8>> = (0..6).map(|i| layer(&format!("layer {i}"))).collect();
    let path = place.layout("app", &layout("1", Packing::Plain, &layers));
    let (mut finished, mut killed) = (0, 0);
    for moment in 0..40 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::tests::importer_that_is_killed", "--ignored", "--nocapture"])
            .env("PODVM_TEST_STORE", place.store.root())
            .env("PODVM_TEST_LAYOUT", &path)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // So many lines of its output mark the moment, however fast the machine is.
        let mut output = io::BufRead::lines(io::BufReader::new(child.stdout.take().unwrap()));
        let lines = output.by_ref().take(3 + moment / 2).count();
        std::thread::sleep(Duration::from_micros(moment as u64 % 2 * 1500));
        child.kill().unwrap();
        match child.wait().unwrap().success() {
            true => finished += 1,
            false => killed += 1,
        }
        assert!(lines > 0);
        let problems = place.store.verify(false).unwrap();
        assert!(problems.is_empty(), "killed after {lines} lines: {problems:?}");
        if place.store.resolve("app:1").is_ok() {
            place.store.remove("app:1", &unused).unwrap();
        }
        place.store.gc(&unused).unwrap();
        assert_eq!(place.store.gc(&unused).unwrap(), Collected::default());
        assert_eq!(place.blobs(), 0);
        place.assert_empty();
    }
    assert!(killed > 5, "{killed} killed, {finished} finished");
    assert_eq!(place.import(&path).unwrap().layers, 6);
    place.assert_clean();
}
