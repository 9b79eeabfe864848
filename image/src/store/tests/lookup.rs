//! What names, ids and parts of them find.

use super::*;

#[test]
fn images_are_found_by_name_id_and_start_of_an_id() {
    let place = Place::new();
    let message = |wanted: &str| place.store.resolve(wanted).unwrap_err().to_string();
    assert!(message("etcd").contains("get one with `podvm image fetch NAME`"));
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
    assert!(message(&other.to_string()).starts_with("no image sha256:"));
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
    let images = place.images();
    assert_eq!((images[0].id, images[1].id), (new, old));
    assert!(images[1].names.is_empty(), "the old image stays, without a name");
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
fn a_damaged_image_does_not_hide_the_others_and_can_be_removed_by_its_id() {
    let place = Place::new();
    let (damaged, whole) = (place.simple("damaged", "x").id, place.simple("whole", "y").id);
    let record = place.store.image_directory(&damaged).join("image.json");
    let others = fs::read(place.store.image_directory(&whole).join("image.json")).unwrap();
    for content in [b"{".as_slice(), &others] {
        fs::remove_file(&record).unwrap();
        fs::write(&record, content).unwrap();
        let listing = place.store.list().unwrap();
        assert_eq!((listing.images.len(), listing.images[0].id), (1, whole));
        assert!(listing.damaged[0].to_string().contains(&record.display().to_string()), "{listing:?}");
        assert_eq!(place.store.find(&whole.to_string()).unwrap().names.len(), 1);
    }
    place.simple("third", "z");
    let blobs = place.blobs();
    assert!(place.store.remove("third", &unused).unwrap().image);
    assert_eq!(place.blobs(), blobs, "which layers the damaged one needs is not known");
    place.store.gc(&unused).unwrap_err();
    assert!(place.store.remove(&damaged.to_string(), &unused).unwrap().image);
    assert_eq!(place.images().len(), 1);
    place.assert_clean();
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
fn the_last_use_of_an_image_is_known() {
    let place = Place::new();
    let id = place.simple("app", "x").id;
    let long_ago = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let record = fs::File::open(place.store.image_directory(&id).join("image.json")).unwrap();
    record.set_times(fs::FileTimes::new().set_modified(long_ago)).unwrap();
    let before = place.store.find("app").unwrap();
    assert_eq!(before.used, before.imported, "it was not used before it came");
    record.set_times(fs::FileTimes::new().set_modified(long_ago + Duration::from_secs(4_000_000_000))).unwrap();
    assert_eq!(place.images()[0].used, 5_000_000_000);
    drop(place.store.resolve("app").unwrap());
    assert!(place.store.find("app").unwrap().used < 5_000_000_000, "it was used now");
}
