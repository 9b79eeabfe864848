//! Images out of the store and back.

use super::super::LayerPacking;
use super::*;

#[test]
fn an_exported_image_is_the_same_but_for_its_digests() {
    let place = Place::new();
    let imported =
        place.import(&place.layout("app", &layout("1", Packing::Zstd, &[layer("x"), layer("y"), layer("x")])));
    let original = place.store.find(&imported.unwrap().id.to_string()).unwrap();
    for packing in [LayerPacking::Gzip, LayerPacking::Zstd, LayerPacking::None] {
        let directory = place.path(&format!("{packing:?}"));
        let exported = place.store.export_directory("app:1", &directory, packing).unwrap();
        let archive = place.path(&format!("{packing:?}.tar"));
        let mut file = fs::File::create(&archive).unwrap();
        assert_eq!(place.store.export_archive("app:1", &mut file, packing).unwrap(), exported);
        for path in [directory, archive] {
            let other = Place::new();
            let again = other.import(&path).unwrap();
            assert_eq!((again.id, again.layers), (exported.id, 2));
            assert_eq!(again.names[0].to_string(), "app:1");
            let image = other.store.find("app:1").unwrap();
            assert_eq!((image.config, image.created), (original.config.clone(), original.created.clone()));
            assert_eq!(image.size, original.size);
            other.assert_clean();
        }
    }
    place.assert_clean();
}

#[test]
fn nothing_is_written_over_and_nothing_half_made_stays() {
    let place = Place::new();
    place.simple("app", "x");
    let there = place.file("there", b"mine");
    let error = place.store.export_directory("app", &there, LayerPacking::Gzip).unwrap_err().to_string();
    assert!(error.contains("there") && error.contains("exists"), "{error}");
    assert_eq!(fs::read(&there).unwrap(), b"mine");
    assert!(place.store.export_directory("none", &place.path("new"), LayerPacking::Gzip).is_err());
    let names: Vec<_> = fs::read_dir(place.directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    place.assert_clean();
}
