//! Connections that end early, stand still, or are not to be had; and layers that need none.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// Serves an image of one large layer, answering its nth request by `answer`.
fn with_layer_answers(answer: impl Fn(usize, &Seen, &[u8]) -> Reply + Send + Sync + 'static) -> (Server, Digest) {
    let (content, layers) = Content::image(Packing::Gzip, &[large_layer(2)]);
    let layer = layers[0];
    let count = AtomicUsize::new(0);
    let server = Server::start(move |seen| match seen.path.contains(&layer.hex()) {
        true => answer(count.fetch_add(1, Ordering::SeqCst), seen, &content.blobs[&layer]),
        false => content.answer(seen),
    });
    (server, layer)
}

fn fetched(server: &Server) {
    let place = Place::new();
    place.fetch(&format!("{}/app", server.host())).unwrap();
    place.assert_clean();
}

#[test]
fn a_connection_that_ends_early_is_gone_on_with_where_it_ended() {
    let (server, layer) = with_layer_answers(|_, seen, bytes| Reply::part(seen, bytes).cut(1 << 20));
    fetched(&server);
    let froms: Vec<usize> =
        server.seen().iter().filter(|seen| seen.path.contains(&layer.hex())).map(Seen::from).collect();
    assert_eq!(froms, [0, 1 << 20, 2 << 20, 3 << 20], "each asks for what is missing only");
}

#[test]
fn a_registry_that_knows_no_ranges_sends_it_all_again() {
    let (server, layer) = with_layer_answers(|number, _, bytes| {
        let whole = Reply::new(200, bytes);
        if number < 2 { whole.cut((1 << 20) + number) } else { whole }
    });
    fetched(&server);
    assert_eq!(server.count(&layer.hex()), 3);
}

#[test]
fn a_connection_that_stands_still_is_given_up_and_gone_on_with() {
    let (server, _) = with_layer_answers(|number, seen, bytes| {
        let mut reply = Reply::part(seen, bytes);
        if number == 0 {
            reply.stall = Some((2 << 20, Duration::from_secs(3)));
        }
        reply
    });
    let start = std::time::Instant::now();
    fetched(&server);
    assert!(start.elapsed() < Duration::from_millis(2500), "it did not wait for the connection's end");
}

#[test]
fn a_server_that_knows_ranges_by_name_only_is_asked_for_all() {
    for status in [416, 206] {
        let (server, layer) = with_layer_answers(move |number, seen, bytes| match seen.from() {
            0 if number == 0 => Reply::new(200, bytes).cut(1 << 20),
            0 => Reply::new(200, bytes),
            _ => Reply::new(status, ""),
        });
        fetched(&server);
        assert_eq!(server.count(&layer.hex()), 3);
    }
}

#[test]
fn a_document_that_is_cut_is_asked_for_again() {
    let (content, _) = Content::image(Packing::Plain, &[layer("small")]);
    let seen_before = std::sync::Mutex::new(std::collections::HashSet::new());
    let server = Server::start(move |seen| {
        let reply = content.answer(seen);
        let is_first = seen_before.lock().unwrap().insert((seen.method.clone(), seen.path.clone()));
        if is_first && seen.method == "GET" && seen.path.len() > "/v2/".len() { reply.cut(20) } else { reply }
    });
    fetched(&server);
}

#[test]
fn without_any_progress_it_is_over_after_some_attempts() {
    let (server, layer) = with_layer_answers(|_, seen, bytes| Reply::part(seen, bytes).cut(100));
    let error = Place::new().error(&format!("{}/app", server.host()));
    assert!(error.contains("the connection ended after 400 of ") && error.contains("4 times"), "{error}");
    assert_eq!(server.count(&layer.hex()), 4);
}

#[test]
fn what_comes_a_byte_at_a_time_is_given_up() {
    let drip = |reply: Reply| Reply { drip: Some(Duration::from_millis(100)), ..reply };
    let (server, digest) = with_layer_answers(move |_, seen, bytes| drip(Reply::part(seen, bytes)));
    let start = std::time::Instant::now();
    let error = Place::new().error(&format!("{}/app", server.host()));
    assert!(error.contains("4 times"), "{error}");
    assert_eq!(server.count(&digest.hex()), 4);
    let (content, _) = Content::image(Packing::Plain, &[layer("small")]);
    let server = Server::start(move |seen| drip(content.answer(seen)));
    let error = Place::new().error(&format!("{}/app", server.host()));
    assert!(error.contains("too slowly"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn passing_errors_are_asked_again_and_waits_are_kept() {
    let (server, layer) = with_layer_answers(|number, seen, bytes| match number {
        0 => Reply::new(503, ""),
        1 => Reply::new(429, "").header("Retry-After", 1),
        _ => Reply::part(seen, bytes),
    });
    let start = std::time::Instant::now();
    fetched(&server);
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(server.count(&layer.hex()), 3);
}

#[test]
fn a_wait_that_is_too_long_is_told_and_not_waited_for() {
    let (server, _) = with_layer_answers(|_, _, _| Reply::new(429, "").header("Retry-After", 9999));
    let error = Place::new().error(&format!("{}/app", server.host()));
    assert!(error.contains("asks to wait 9999 s") && error.contains("log in"), "{error}");
}

#[test]
fn lasting_errors_are_told_in_the_registrys_words() {
    let (server, _) =
        with_layer_answers(|_, _, _| Reply::new(500, r#"{"errors":[{"code":"OOPS","message":"the disk is gone"}]}"#));
    let error = Place::new().error(&format!("{}/app", server.host()));
    assert!(error.contains("answers 500: the disk is gone"), "{error}");
    assert_eq!(server.count("/blobs/"), 5, "four attempts for the layer, one for the configuration");
}

#[test]
fn what_is_stored_is_not_fetched_again() {
    let layers = [layer("base"), layer("top")];
    let (content, digests) = Content::image(Packing::Zstd, &layers);
    let (derived, more) = Content::image(Packing::Zstd, &[layer("base"), layer("top"), layer("more")]);
    let (server, other) = (content.serve(), derived.serve());
    let place = Place::new();
    let name = format!("{}/app", server.host());
    assert_eq!(place.fetch(&name).unwrap().present, 0);
    let before = server.seen().len();
    assert_eq!(place.fetch(&name).unwrap().present, 2);
    let methods: Vec<String> = server.seen()[before..].iter().map(|seen| seen.method.clone()).collect();
    assert_eq!(methods, ["HEAD"], "one question tells that nothing is new");
    assert_eq!(place.fetch(&format!("{}/app", other.host())).unwrap().present, 2);
    assert_eq!(digests[0], more[0]);
    assert_eq!([0, 1, 2].map(|number| other.count(&more[number].hex())), [0, 0, 1]);
    place.assert_clean();
}

#[test]
fn many_who_fetch_one_image_all_win_and_each_layer_comes_once() {
    let layers: Vec<Vec<u8>> = (10..14).map(large_layer).collect();
    let (content, digests) = Content::image(Packing::Plain, &layers);
    let server = content.serve();
    let place = Place::new();
    std::thread::scope(|scope| {
        for _ in 0..5 {
            scope.spawn(|| place.fetch(&format!("{}/app", server.host())).unwrap());
        }
    });
    for digest in digests {
        assert_eq!(server.count(&digest.hex()), 1);
    }
    place.assert_clean();
}

#[test]
fn frames_that_decoders_pass_over_are_tolerated() {
    // As zstd:chunked has them: a skippable frame in front, and the table of contents as another behind the data.
    let skippable = |bytes: &[u8]| [&[0x50, 0x2a, 0x4d, 0x18, bytes.len() as u8, 0, 0, 0][..], bytes].concat();
    let plain = layer("x");
    let packed = [skippable(b"front"), zstd::encode_all(&plain[..], 3).unwrap(), skippable(b"contents")].concat();
    let mut layout = Layout::new();
    let config = layout.blob(
        "application/vnd.oci.image.config.v1+json",
        crate::oci::fixture::config(crate::oci::host_architecture(), &[Digest::of(&plain)]),
    );
    let layer = layout.blob("application/vnd.oci.image.layer.v1.tar+zstd", packed);
    let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    let manifest = layout.blob("application/vnd.oci.image.manifest.v1+json", manifest.to_string().into_bytes());
    let top = serde_json::from_value(manifest["digest"].clone()).unwrap();
    fetched(&Content::new(&layout, top).serve());
}

#[test]
fn what_came_by_its_tag_is_found_by_the_digest_of_the_index_that_led_to_it() {
    let mut layout = Layout::new();
    let manifest = layout.image(crate::oci::host_architecture(), Packing::Zstd, &[layer("x")]);
    let index = layout.index(&[manifest]);
    let top: Digest = serde_json::from_value(index["digest"].clone()).unwrap();
    let server = Content::new(&layout, top).serve();
    let place = Place::new();
    let name = format!("{}/app", server.host());
    let id = place.fetch(&name).unwrap().id;
    assert_eq!(place.store.resolve(&format!("{name}@{top}")).unwrap().id, id);
    let other = Digest::of(b"other");
    assert!(place.store.resolve(&format!("{name}@{other}")).is_err());
}

/// An image whose layer is at another host, under these URLs; and the layer's digest and bytes.
fn foreign(urls: &[String]) -> (Content, Digest, Vec<u8>) {
    let mut layout = Layout::new();
    let diff_id = Digest::of(&large_layer(60));
    let config = crate::oci::fixture::config(crate::oci::host_architecture(), &[diff_id]);
    let config = layout.blob("application/vnd.docker.container.image.v1+json", config);
    let mut layer = layout.blob("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", large_layer(60));
    layer["urls"] = serde_json::json!(urls);
    let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    let manifest = layout.blob("application/vnd.docker.distribution.manifest.v2+json", manifest.to_string().into());
    layout.files.retain(|(name, _)| !name.contains(&diff_id.hex()));
    let top = serde_json::from_value(manifest["digest"].clone()).unwrap();
    (Content::new(&layout, top), diff_id, large_layer(60))
}

#[test]
fn a_layer_that_the_registry_does_not_have_is_fetched_from_its_own_urls() {
    let (_, digest, bytes) = foreign(&[]);
    let maker = Server::start(move |seen| match seen.path.as_str() {
        "/layer?x=y" => Reply::part(seen, &bytes).cut(1 << 20),
        _ => Reply::new(404, ""),
    });
    let at_maker = |path: &str| format!("http://{}/{path}", maker.host());
    let (content, ..) = foreign(&["no URL".to_owned(), at_maker("gone"), at_maker("layer?x=y")]);
    let server = Server::start(move |seen| match seen.header("authorization") {
        Some("Basic bWU6cHc=") => content.answer(seen),
        _ => Reply::new(401, "").header("WWW-Authenticate", "Basic realm=x"),
    });
    let mut place = Place::new();
    place.log_in(&server.host(), r#"{"auth":"bWU6cHc="}"#);
    place.fetch(&format!("{}/app", server.host())).unwrap();
    place.assert_clean();
    let seen = maker.seen();
    assert!(seen.iter().all(|seen| seen.header("authorization").is_none()));
    assert_eq!(seen.iter().map(Seen::from).collect::<Vec<_>>(), [0, 0, 1 << 20, 2 << 20, 3 << 20]);
    assert!(server.count(&digest.hex()) > 0, "the registry is asked first");
}

#[test]
fn a_layers_own_urls_give_that_layer_over_tls_or_none() {
    let other = large_layer(61);
    let maker = Server::start(move |_| Reply::new(200, other.clone()));
    let (content, digest, _) = foreign(&[format!("http://{}/layer", maker.host())]);
    let server = content.serve();
    let error = Place::new().error(&format!("{}/app", server.host()));
    assert!(error.contains(&digest.to_string()) && error.contains("is corrupt"), "{error}");
    let asked = maker.seen().len();
    let mut strict = Place { insecure: Vec::new(), ..Place::new() };
    strict.host(&server.host()).insecure = vec![Insecure::Http];
    let error = strict.error(&format!("{}/app", server.host()));
    assert!(error.contains(&digest.to_string()) && maker.seen().len() == asked, "{error}");
}

/// Kills are tried at many moments: see the store's tests of crashes.
#[test]
#[ignore = "the child process of the test below"]
fn fetcher_that_is_killed() {
    let root = std::env::var_os("PODVM_TEST_STORE").expect("run by the test below");
    let name = std::env::var("PODVM_TEST_NAME").expect("run by the test below");
    let place = Place { store: Store::open(root).unwrap(), ..Place::new() };
    place.fetch(&name).unwrap();
}

#[test]
fn a_fetch_that_is_killed_leaves_a_clean_store_and_whole_layers_stay() {
    let layers = [layer("small"), large_layer(20), large_layer(21)];
    let (content, digests) = Content::image(Packing::Plain, &layers);
    let slow = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let (is_slow, large) = (Arc::clone(&slow), digests[1..].to_vec());
    let server = Server::start(move |seen| {
        let mut reply = content.answer(seen);
        let is_large = large.iter().any(|digest| seen.path.contains(&digest.hex()));
        if is_large && is_slow.load(Ordering::SeqCst) {
            reply.stall = Some((1 << 20, Duration::from_secs(30)));
        }
        reply
    });
    let place = Place::new();
    let name = format!("{}/app", server.host());
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "registry::tests::transfer::fetcher_that_is_killed", "--ignored"])
        .env("PODVM_TEST_STORE", place.store.root())
        .env("PODVM_TEST_NAME", &name)
        .env("TMPDIR", place.directory.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let is_under_way = || digests[1..].iter().all(|digest| server.count(&digest.hex()) > 0);
    let has_first = || std::fs::read_dir(place.store.root().join("blobs/sha256")).unwrap().count() == 2;
    for _ in 0..1000 {
        if is_under_way() && has_first() {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(is_under_way() && has_first());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(std::fs::read_dir(place.store.root().join("tmp")).unwrap().count() > 0, "it was killed while it wrote");
    let problems = place.store.verify(false).unwrap();
    assert!(problems.is_empty(), "{problems:?}");
    slow.store(false, Ordering::SeqCst);
    assert_eq!(place.fetch(&name).unwrap().present, 1);
    assert_eq!(server.count(&digests[0].hex()), 1, "the layer that was whole is not fetched again");
    place.assert_clean();
}

#[test]
fn a_fetch_may_be_killed_at_every_step_and_the_next_one_goes_on() {
    let (content, _) = Content::image(Packing::Gzip, &[layer("small"), noise_layer(50, 5 << 20)]);
    let server = content.serve();
    let name = format!("{}/app", server.host());
    let place = Place::new();
    let environment = [
        ("PODVM_TEST_STORE", place.store.root()),
        ("PODVM_TEST_NAME", name.as_ref()),
        // It dies before it removes its own.
        ("TMPDIR", place.directory.path()),
    ];
    let unused = || Ok(crate::Uses::default());
    let deaths = crate::store::tests::steps::killed_at_every_step(
        "registry::tests::transfer::fetcher_that_is_killed",
        &environment,
        || {},
        |when| {
            let problems = place.store.verify(false).unwrap();
            assert!(problems.is_empty(), "{when}: {problems:?}");
            assert_eq!(place.fetch(&name).unwrap().layers, 2, "{when}");
            place.assert_clean();
            assert!(partial(&place).is_empty(), "{when}");
            place.store.remove(&name, &unused).unwrap();
        },
    );
    assert!(deaths.is_none_or(|deaths| deaths > 30), "{deaths:?}");
}

/// An image of one layer that is large enough for its parts to be kept.
fn very_large() -> (Content, Digest) {
    let (content, layers) = Content::image(Packing::Plain, &[noise_layer(50, 5 << 20)]);
    (content, layers[0])
}

fn partial(place: &Place) -> Vec<PathBuf> {
    std::fs::read_dir(place.store.root().join("partial")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// Cuts every connection for a layer after so many bytes.
fn cutting(content: Content, layer: Digest, after: Arc<AtomicUsize>) -> Server {
    Server::start(move |seen| match (content.answer(seen), after.load(Ordering::SeqCst)) {
        (reply, after) if after > 0 && seen.path.contains(&layer.hex()) => reply.cut(after),
        (reply, _) => reply,
    })
}

#[test]
fn what_has_arrived_of_a_large_layer_is_not_asked_for_again() {
    let (content, layer) = very_large();
    let after = Arc::new(AtomicUsize::new(100_000));
    let server = cutting(content, layer, Arc::clone(&after));
    let mut place = Place::new();
    place.patience.attempts = 1;
    let name = format!("{}/app", server.host());
    assert!(place.fetch(&name).is_err());
    assert_eq!(partial(&place).len(), 1);
    assert_eq!(std::fs::metadata(&partial(&place)[0]).unwrap().len(), 100_000);
    after.store(0, Ordering::SeqCst);
    place.fetch(&name).unwrap();
    let froms: Vec<usize> =
        server.seen().iter().filter(|seen| seen.path.contains(&layer.hex())).map(Seen::from).collect();
    assert_eq!(froms, [0, 100_000]);
    assert!(partial(&place).is_empty());
    place.assert_clean();
}

#[test]
fn a_kept_part_that_is_damaged_comes_again_and_one_of_no_use_is_collected() {
    let (content, layer) = very_large();
    let server = content.serve();
    let place = Place::new();
    let path = place.store.root().join("partial").join(layer.hex());
    std::fs::write(&path, vec![7; 1 << 20]).unwrap();
    place.fetch(&format!("{}/app", server.host())).unwrap();
    let froms: Vec<usize> =
        server.seen().iter().filter(|seen| seen.path.contains(&layer.hex())).map(Seen::from).collect();
    assert_eq!(froms, [1 << 20, 0]);
    assert!(partial(&place).is_empty());
    std::fs::write(&path, "left").unwrap();
    assert_eq!(place.store.gc(&|| Ok(crate::Uses::default())).unwrap().leftovers, 1);
    assert!(partial(&place).is_empty());
    place.assert_clean();
}

#[test]
fn what_has_arrived_is_kept_until_the_layer_is_in_its_place() {
    let (content, layer) = very_large();
    let server = content.serve();
    let place = Place::new();
    let name = format!("{}/app", server.host());
    // A directory where the layer's record belongs: the layer can be made, but not put there.
    let record = place.store.root().join(format!("blobs/sha256/{}.json", layer.hex()));
    std::fs::create_dir(&record).unwrap();
    let error = place.fetch(&name).unwrap_err().to_string();
    assert!(error.contains(&record.display().to_string()), "{error}");
    std::fs::remove_dir(&record).unwrap();
    place.fetch(&name).unwrap();
    assert_eq!(server.count(&layer.hex()), 1, "none of it comes again");
    assert!(partial(&place).is_empty());
    place.assert_clean();
}

#[test]
fn what_has_arrived_of_a_layer_that_is_stored_meanwhile_is_removed() {
    let (content, layer) = very_large();
    let server = content.serve();
    let place = Place::new();
    let name = format!("{}/app", server.host());
    place.fetch(&name).unwrap();
    for entry in std::fs::read_dir(place.store.root().join("refs")).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    std::fs::write(place.store.root().join("partial").join(layer.hex()), "left").unwrap();
    place.fetch(&name).unwrap();
    assert!(partial(&place).is_empty());
    place.assert_clean();
}

#[test]
fn a_disk_that_is_full_while_parts_are_kept_is_told_with_their_file() {
    let (content, layer) = very_large();
    let server = content.serve();
    let place = Place::new();
    let path = place.store.root().join("partial").join(layer.hex());
    std::os::unix::fs::symlink("/dev/full", &path).unwrap();
    let error = place.error(&format!("{}/app", server.host()));
    assert!(error.contains(&path.display().to_string()) && error.contains("No space left"), "{error}");
}

#[test]
fn a_disk_that_is_full_takes_nothing_of_what_has_arrived() {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    // Of this thread only: the mount vanishes with it.
    if !nix::unistd::geteuid().is_root() || unshare(CloneFlags::CLONE_NEWNS).is_err() {
        eprintln!("skipped: needs root to mount a small file system");
        return;
    }
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let (content, layer) = very_large();
    let bytes = content.blobs[&layer].clone();
    let server = content.serve();
    let place = Place::new();
    let name = format!("{}/app", server.host());
    mount(Some("small"), place.store.root(), Some("tmpfs"), MsFlags::empty(), Some("size=8m")).unwrap();
    let place = Place { store: Store::open(place.store.root()).unwrap(), ..place };
    // Room for what has arrived, not for the layer's image beside it.
    std::fs::write(place.store.root().join("partial").join(layer.hex()), &bytes).unwrap();
    let error = place.error(&name);
    assert!(error.contains("No space left on device"), "{error}");
    mount(none, place.store.root(), none, MsFlags::MS_REMOUNT, Some("size=32m")).unwrap();
    place.fetch(&name).unwrap();
    assert_eq!(server.count(&layer.hex()), 0, "none of it comes again");
    assert!(partial(&place).is_empty());
    place.assert_clean();
    nix::mount::umount(place.store.root()).unwrap();
}
