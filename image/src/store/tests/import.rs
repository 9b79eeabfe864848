//! Images from all forms, good and broken, into the store.

use super::*;

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
fn an_entry_for_this_machine_is_taken_before_one_that_says_nothing() {
    let place = Place::new();
    let mut layout = Layout::new();
    let silent = layout.image(host_architecture(), Packing::Plain, &[layer("silent")]);
    let mut meant = layout.image(host_architecture(), Packing::Plain, &[layer("meant")]);
    meant["platform"] = json!({"os": "linux", "architecture": host_architecture(), "variant": "v3"});
    let index = layout.index(&[silent, meant]);
    layout.entry(index, json!({"org.opencontainers.image.ref.name": "1"}));
    place.import(&place.layout("a", &layout)).unwrap();
    assert_eq!(place.store.resolve("a:1").unwrap().layers[0].diff_id, Digest::of(&layer("meant")));
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
fn artifacts_are_refused_by_their_type() {
    const EMPTY: &str = "application/vnd.oci.empty.v1+json";
    const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    let place = Place::new();
    for (number, (artifact, config, layer, expected)) in [
        (
            "",
            "application/vnd.cncf.helm.config.v1+json",
            "x",
            "an artifact of type \"application/vnd.cncf.helm.config.v1+json\"",
        ),
        ("application/x-model", EMPTY, EMPTY, "an artifact of type \"application/x-model\", not an image"),
        ("a\u{1b}[2J", EMPTY, EMPTY, "not an image"),
        ("", CONFIG, "application/vnd.cncf.helm.chart", "layers of type \"application/vnd.cncf.helm.chart\""),
    ]
    .into_iter()
    .enumerate()
    {
        let mut layout = Layout::new();
        let config = layout.blob(config, b"{}".to_vec());
        let layer = layout.blob(layer, b"{} ".to_vec());
        let manifest = json!({"schemaVersion": 2, "artifactType": artifact, "config": config, "layers": [layer]});
        let manifest = layout.blob("application/vnd.oci.image.manifest.v1+json", manifest.to_string().into_bytes());
        layout.entry(manifest, json!({}));
        let error = place.error(&place.layout(&format!("artifact{number}"), &layout));
        assert!(error.contains(expected) && !error.contains('\u{1b}'), "{error}");
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
