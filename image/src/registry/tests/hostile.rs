//! Registries that lie.

use super::*;

/// An image of one layer from a registry that answers in its own way whatever `lie` does not pass over.
fn fetch_from(lie: impl Fn(&Seen, &Content, &Digest) -> Option<Reply> + Send + Sync + 'static) -> (String, Digest) {
    let (content, layers) = Content::image(Packing::Gzip, &[large_layer(1)]);
    let layer = layers[0];
    let server = Server::start(move |seen| lie(seen, &content, &layer).unwrap_or_else(|| content.answer(seen)));
    (Place::new().error(&format!("{}/app", server.host())), layer)
}

#[test]
fn a_layer_with_other_bytes_is_refused_by_its_digest() {
    let (error, layer) = fetch_from(|seen, content, layer| {
        let mut bytes = content.blobs[layer].clone();
        bytes[1 << 20] ^= 1;
        seen.path.contains(&layer.hex()).then(|| Reply::part(seen, &bytes))
    });
    assert!(error.contains(&format!("layer {layer} of ")) && error.contains("is corrupt: its digest is"), "{error}");
}

#[test]
fn another_document_than_the_one_asked_for_is_refused() {
    let (error, _) = fetch_from(|seen, content, _| {
        let is_config =
            seen.path.contains("/blobs/") && !content.tags.values().any(|tag| seen.path.contains(&tag.hex()));
        is_config.then(|| Reply::new(200, r#"{"rootfs":{"diff_ids":[]}}"#))
    });
    assert!(error.contains("configuration sha256:") && error.contains("is corrupt"), "{error}");

    let (content, _) = Content::image(Packing::Gzip, &[layer("x")]);
    let manifest = content.blobs[&content.tags["latest"]].clone();
    let server = Server::start(move |_| Reply::new(200, manifest.clone()));
    let pinned = Digest::of(b"another");
    let error = Place::new().error(&format!("{}/app@{pinned}", server.host()));
    assert!(error.contains(&format!("expected {pinned}")), "{error}");
}

#[test]
fn a_length_that_is_not_the_manifests_is_refused() {
    let (error, _) = fetch_from(|seen, content, layer| {
        let bytes = &content.blobs[layer];
        let lie = Reply { length: Some(bytes.len() as u64 + 1), ..Reply::new(200, bytes.clone()) };
        seen.path.contains(&layer.hex()).then_some(lie)
    });
    assert!(error.contains("the registry's copy is damaged"), "{error}");
}

#[test]
fn a_layer_shorter_than_its_manifest_says_is_refused() {
    let (error, _) = fetch_from(|seen, content, layer| {
        let bytes = &content.blobs[layer];
        let short = &bytes[..bytes.len() - 10];
        // It says the right length, sends less, and has nothing behind that.
        let mut reply = Reply::part(seen, short);
        if reply.status == 200 {
            reply.length = Some(bytes.len() as u64);
        }
        seen.path.contains(&layer.hex()).then_some(reply)
    });
    assert!(error.contains("the connection ended after") && error.contains("4 times"), "{error}");
}

#[test]
fn a_manifest_without_end_is_read_to_its_limit() {
    let (error, _) = fetch_from(|seen, _, _| {
        let endless = Reply { endless: true, ..Reply::new(200, vec![b' '; 1 << 16]) };
        seen.path.contains("/manifests/").then_some(endless)
    });
    assert!(error.contains("is larger than 4194304 bytes"), "{error}");
}

#[test]
fn what_is_no_manifest_is_named() {
    for (body, part) in [
        ("<html>", "/app:latest: expected value"),
        ("{}", "not an image manifest"),
        (r#"{"manifests":[]}"#, "holds no image"),
        (r#"{"config":{"digest":"sha512:1","size":1}}"#, "only sha256"),
    ] {
        let (error, _) = fetch_from(move |seen, _, _| {
            (seen.path.contains("/manifests/") && seen.method == "GET").then(|| Reply::new(200, body))
        });
        assert!(error.contains(part), "{body}: {error}");
    }
    let (error, _) = fetch_from(|seen, _, _| {
        let old = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        seen.path.contains("/manifests/").then(|| Reply::new(200, "{}").header("Content-Type", old))
    });
    assert!(error.contains("schema 1"), "{error}");
    let (error, _) = fetch_from(|seen, _, _| {
        let old = r#"{"schemaVersion":1,"name":"app","fsLayers":[{"blobSum":"x"}],"history":[]}"#;
        let reply = Reply::new(200, old).header("Content-Type", "application/json");
        seen.path.contains("/manifests/").then_some(reply)
    });
    assert!(error.contains("schema 1"), "{error}");
}

#[test]
fn an_index_without_this_machines_platform_lists_what_it_has() {
    let mut layout = Layout::new();
    let mut entries = Vec::new();
    for architecture in ["riscv64", "s390x"] {
        let mut manifest = layout.image(architecture, Packing::Gzip, &[layer("x")]);
        manifest["platform"] = serde_json::json!({"os": "linux", "architecture": architecture});
        entries.push(manifest);
    }
    let index = layout.index(&entries);
    let top = serde_json::from_value(index["digest"].clone()).unwrap();
    let server = Content::new(&layout, top).serve();
    let error = Place::new().error(&format!("{}/app", server.host()));
    assert!(error.contains("no image for linux/") && error.contains("it has linux/riscv64, linux/s390x"), "{error}");
}

#[test]
fn an_index_leads_to_this_machines_image() {
    let mut layout = Layout::new();
    let mut entries = Vec::new();
    for architecture in ["riscv64", crate::oci::host_architecture()] {
        let mut manifest = layout.image(architecture, Packing::Zstd, &[layer(architecture)]);
        manifest["platform"] = serde_json::json!({"os": "linux", "architecture": architecture});
        entries.push(manifest);
    }
    let index = layout.index(&entries);
    let top: Digest = serde_json::from_value(index["digest"].clone()).unwrap();
    let server = Content::new(&layout, top).serve();
    let place = Place::new();
    let name = format!("{}/app", server.host());
    let imported = place.fetch(&name).unwrap();
    let pinned = format!("{name}@{top}");
    assert_eq!(place.fetch(&pinned).unwrap().id, imported.id);
    // The index's digest is no manifest's; the name that was fetched by it knows it.
    assert_eq!(place.store.resolve(&pinned).unwrap().id, imported.id);
    assert_eq!(place.store.find(&name).unwrap().architecture, crate::oci::host_architecture());
    place.assert_clean();
}

#[test]
fn redirects_without_end_and_to_other_schemes_are_refused() {
    for (to, part) in [("/v2/again", "one redirect too many"), ("file:///etc/passwd", "no address of HTTP")] {
        let (error, _) = fetch_from(move |_, _, _| Some(Reply::redirect(to)));
        assert!(error.contains(part), "{error}");
    }
}
