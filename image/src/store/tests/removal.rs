//! What may go, and what must stay.

use super::*;

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

#[test]
fn imports_starts_removals_and_collections_at_once_lose_nothing_that_is_held() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let place = Place::new();
    let shared = layer("shared");
    let paths: Vec<PathBuf> = (0..3)
        .map(|number| {
            let layers = [shared.clone(), layer(&format!("own {number}"))];
            place.layout(&format!("app{number}"), &layout("1", Packing::Zstd, &layers))
        })
        .collect();
    let (rounds, started) = (40, AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for (number, path) in paths.iter().enumerate() {
            let (place, started) = (&place, &started);
            scope.spawn(move || {
                for _ in 0..rounds {
                    place.import(path).unwrap();
                    // As a start does: what it has found stays until it lets go of it.
                    let Ok(image) = place.store.resolve(&format!("app{number}:1")) else { continue };
                    started.fetch_add(1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(1));
                    assert!(image.layers.iter().all(|layer| layer.path.exists()));
                }
            });
            scope.spawn(move || {
                for _ in 0..rounds {
                    match place.store.remove(&format!("app{number}:1"), &unused) {
                        Ok(_) | Err(StoreError::NotFound { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..rounds {
                place.store.gc(&unused).unwrap();
                place.store.list().unwrap();
                let problems = place.store.verify(false).unwrap();
                assert!(problems.is_empty(), "{problems:?}");
            }
        });
    });
    assert!(started.into_inner() > 0);
    place.settle("at the end");
    place.assert_clean();
    for (number, path) in paths.iter().enumerate() {
        place.import(path).unwrap();
        assert_eq!(place.store.resolve(&format!("app{number}:1")).unwrap().layers.len(), 2);
    }
}
