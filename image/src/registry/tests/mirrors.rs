//! Mirrors, and names that are searched.

use super::*;

#[test]
fn a_mirror_is_asked_first_under_its_path_and_the_registry_last() {
    let (content, layers) = Content::image(Packing::Gzip, &[large_layer(30)]);
    let registry = content.clone().serve();
    let digest = layers[0].hex();
    let mirror = Server::start(move |seen| match seen.path.contains(&digest) {
        // It ends in the middle of a layer, again and again.
        true => Reply::part(seen, &content.blobs[&layers[0]]).cut(100 << 10).header("X", 1),
        false => content.answer(seen),
    });
    let mut place = Place::new();
    place.host(&registry.host()).mirrors = vec!["127.0.0.1:1".into(), format!("{}/copies", mirror.host())];
    place.patience.attempts = 1;
    place.fetch(&format!("{}/team/app", registry.host())).unwrap();
    place.assert_clean();
    assert!(mirror.count("/v2/copies/team/app/manifests/latest") > 0);
    let asked: Vec<(String, usize)> = registry.seen().iter().map(|seen| (seen.method.clone(), seen.from())).collect();
    assert_eq!(asked.len(), 1, "only what the mirror has not: {asked:?}");
    assert!(asked[0].1 >= 100 << 10, "{asked:?}");
}

#[test]
fn a_mirror_that_fails_is_asked_once_and_left_alone() {
    for status in [404, 503] {
        let layers: Vec<Vec<u8>> = (0..5).map(|number| layer(&number.to_string())).collect();
        let (content, _) = Content::image(Packing::Plain, &layers);
        let (registry, mirror) = (content.serve(), Server::start(move |_| Reply::new(status, "")));
        let mut place = Place::new();
        place.host(&registry.host()).mirrors = vec![mirror.host()];
        place.fetch(&format!("{}/app", registry.host())).unwrap();
        assert!(mirror.seen().len() <= 2, "{:?}", mirror.seen());
    }
}

#[test]
fn what_a_mirror_has_not_the_registry_has() {
    let (content, _) = Content::image(Packing::Gzip, &[layer("x")]);
    let (registry, mirror) = (content.serve(), Server::start(|_| Reply::new(404, "")));
    let mut place = Place::new();
    place.host(&registry.host()).mirrors = vec![mirror.host()];
    place.fetch(&format!("{}/app", registry.host())).unwrap();
    assert!(!mirror.seen().is_empty());
}

#[test]
fn a_short_name_is_searched_in_order_and_found_in_the_store_by_it() {
    let (content, _) = Content::image(Packing::Gzip, &[layer("x")]);
    let (none, some) = (Server::start(|_| Reply::new(404, "")), content.serve());
    let mut place = Place::new();
    place.settings.search = vec![none.host(), format!("{}/library", some.host())];
    place.store = place.store.clone().searching(place.settings.search.clone());
    let imported = place.fetch("app").unwrap();
    assert_eq!(imported.names[0].to_string(), format!("{}/library/app:latest", some.host()));
    assert_eq!(place.store.resolve("app").unwrap().id, imported.id);
    assert_eq!(place.store.origin("app").unwrap(), crate::Origin::Fetched(imported.names[0].clone()));
    assert_eq!(place.fetch("team/app").unwrap().names[0].to_string(), format!("{}/team/app:latest", some.host()));
    let error = place.fetch("app:other").unwrap_err().to_string();
    assert!(error.starts_with("no registry has app:other: "), "{error}");
    assert!(error.contains(&none.host()) && error.contains(&some.host()), "{error}");
}

#[test]
fn a_host_that_is_not_there_is_told_at_once() {
    let start = std::time::Instant::now();
    let mut place = Place::new();
    place.patience.backoff = Duration::from_secs(60);
    let error = place.error("127.0.0.1:1/app");
    assert!(error.contains("Connection refused"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10));
}
