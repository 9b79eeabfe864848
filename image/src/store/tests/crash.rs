//! Kills, full disks, damage and many at once.

use super::*;

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
fn a_name_that_cannot_be_read_is_reported_with_all_else_and_removed_by_repair() {
    let place = Place::new();
    place.simple("app", "x");
    let blob = place.store.resolve("app").unwrap().layers[0].path.clone();
    fs::remove_file(&blob).unwrap();
    let path = place.store.refs().join("junk");
    fs::write(&path, "junk").unwrap();
    let listing = place.store.list().unwrap();
    let error = listing.damaged[0].to_string();
    assert!(error.contains("junk") && error.contains("verify --repair"), "{error}");
    assert_eq!(listing.images.len(), 1, "the others are still there");
    for repair in [false, true] {
        let problems = place.store.verify(repair).unwrap();
        let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert!(all.len() == 2 && all[0].contains("is missing") && all[1].contains("junk"), "{all:?}");
    }
    assert!(!path.exists());
    assert_eq!(place.images().len(), 1);
    // What a newer podvm has written is not damaged.
    fs::write(&path, r#"{"version": 1000}"#).unwrap();
    assert_eq!(place.store.verify(true).unwrap().len(), 2);
    assert!(path.exists());
}

#[test]
fn a_repaired_layer_is_unpacked_anew_and_pods_keep_what_they_run_from() {
    let place = Place::new();
    let path = place.layout("app", &layout("1", Packing::Zstd, &[layer("x")]));
    place.import(&path).unwrap();
    let layer = place.store.resolve("app:1").unwrap().layers[0].clone();
    let damaged = place.store.unpacked(&layer.diff_id).unwrap();
    let right = fs::read(damaged.join("etc/text")).unwrap();
    fs::write(damaged.join("etc/text"), "damaged").unwrap();
    fs::remove_file(&layer.path).unwrap();
    fs::write(&layer.path, "damaged").unwrap();
    assert_eq!(place.store.verify(true).unwrap().len(), 2, "the layer, and that the image misses it");
    place.import(&path).unwrap();
    let tree = place.store.unpacked(&layer.diff_id).unwrap();
    assert_eq!(fs::read(tree.join("etc/text")).unwrap(), right);
    let trees = || fs::read_dir(place.store.trees()).unwrap().count();
    place.store.gc(&|| Ok(Uses { layers: BTreeSet::from([layer.diff_id]), ..Uses::default() })).unwrap();
    assert_eq!(trees(), 2);
    place.settle("no pod uses it");
    assert_eq!(trees(), 1);
    assert!(tree.exists());
    place.assert_clean();
}

#[test]
fn a_manifest_is_the_one_that_is_recorded() {
    let place = Place::new();
    let layers = [layer("x")];
    let (plain, gzip) = (layout("1", Packing::Plain, &layers), layout("1", Packing::Gzip, &layers));
    let (plain, gzip) = (place.layout("plain", &plain), place.layout("gzip", &gzip));
    let mut recorded = BTreeSet::new();
    for path in [&plain, &gzip, &plain] {
        let id = place.import(path).unwrap().id;
        let record = place.store.image_record(&id).unwrap().unwrap();
        let manifest = Digest::of(&fs::read(place.store.manifest_path(&id)).unwrap());
        assert_eq!(record.manifest_digest, Some(manifest));
        recorded.insert(manifest);
        place.assert_clean();
    }
    assert_eq!(recorded.len(), 2);
    let path = place.store.manifest_path(&place.store.find("plain:1").unwrap().id);
    for damage in [|path: &Path| fs::write(path, "junk").unwrap(), |_: &Path| ()] {
        fs::remove_file(&path).unwrap();
        damage(&path);
        let problems = place.store.verify(false).unwrap();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].to_string().contains(&path.display().to_string()), "{problems:?}");
        place.import(&plain).unwrap();
        place.assert_clean();
    }
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
            .args(["--exact", "store::tests::crash::importer_that_is_killed", "--ignored", "--nocapture"])
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

#[test]
fn a_disk_that_is_full_at_any_moment_is_named_and_leaves_nothing() {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    // Of this thread only: the mount vanishes with it.
    if !nix::unistd::geteuid().is_root() || unshare(CloneFlags::CLONE_NEWNS).is_err() {
        eprintln!("skipped: needs root to mount a small file system");
        return;
    }
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let big = crate::tar::builder::archive(&[crate::tar::builder::Member::file("f", vec![7; 1 << 20])]);
    layout("1", Packing::Zstd, &[layer("first"), big]).write(elsewhere.path());
    let directory = tempfile::tempdir().unwrap();
    mount(Some("small"), directory.path(), Some("tmpfs"), MsFlags::empty(), Some("size=8m")).unwrap();
    let store = Store::open(directory.path().join("images")).unwrap();
    let place = Place { directory, store };
    // Less room each time, by space and by the number of files, down to none: it ends at every step of an import.
    let mut failed = 0;
    let rooms = (0..110).map(|step| format!("size={}k", 1760 - 16 * step));
    for room in rooms.chain((15..45).map(|files| format!("size=8m,nr_inodes={files}"))) {
        mount(none, place.directory.path(), none, MsFlags::MS_REMOUNT, Some(room.as_str())).unwrap();
        match place.import(elsewhere.path()) {
            Ok(_) => {
                place.assert_clean();
                let id = place.images()[0].id;
                place.store.remove(&id.to_string(), &unused).unwrap();
            }
            Err(error) => {
                assert!(error.to_string().contains("No space left on device"), "{room}: {error}");
                place.assert_empty();
                failed += 1;
            }
        }
        place.settle(&room);
    }
    assert!(failed > 60, "{failed} of them failed");
    mount(none, place.directory.path(), none, MsFlags::MS_REMOUNT, Some("size=8m,nr_inodes=1000")).unwrap();
    assert_eq!(place.import(elsewhere.path()).unwrap().layers, 2);
    place.assert_clean();
    nix::mount::umount(place.directory.path()).unwrap();
}
