//! Users, passwords, tokens, and to whom they are not shown.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::*;

fn auth(text: &str) -> String {
    format!(r#"{{"auth":"{}"}}"#, STANDARD.encode(text))
}

/// A registry that wants this authorization.
fn guarded(content: Content, wanted: &'static str, challenge: impl Into<String>) -> Server {
    let challenge = challenge.into();
    Server::start(move |seen| match seen.header("authorization") {
        Some(shown) if shown == wanted => content.answer(seen),
        _ => Reply::new(401, "{}").header("WWW-Authenticate", &challenge),
    })
}

/// Gives the token `abc` to those with the password, and to those with the identity token.
fn token_server() -> Server {
    Server::start(|seen| {
        let with_password = seen.header("authorization") == Some(&format!("Basic {}", STANDARD.encode("me:pw")));
        let with_identity =
            seen.method == "POST" && seen.body.contains("refresh_token=long+lived".replace('+', "%20").as_str());
        match with_password || with_identity {
            true => Reply::new(200, r#"{"token":"abc"}"#),
            false => Reply::new(401, r#"{"details":"wrong"}"#),
        }
    })
}

#[test]
fn passwords_are_shown_when_they_are_asked_for() {
    let (content, _) = Content::image(Packing::Gzip, &[layer("x")]);
    let server = guarded(content, "Basic bWU6cHc=", "Basic realm=x");
    let name = format!("{}/app", server.host());
    let mut place = Place::new();
    let error = place.error(&name);
    assert!(error.contains("wants a login") && error.contains("podman login"), "{error}");
    let file = place.log_in(&server.host(), &auth("me:wrong"));
    let error = place.error(&name);
    assert!(error.contains(&file.display().to_string()) && error.contains("not accepted"), "{error}");
    assert!(!error.contains("wrong"), "{error}");
    place.log_in(&server.host(), &auth("me:pw"));
    place.fetch(&name).unwrap();
    place.assert_clean();
}

#[test]
fn tokens_are_got_with_a_password_or_an_identity_token() {
    let tokens = token_server();
    let (content, _) = Content::image(Packing::Gzip, &[layer("x"), layer("y")]);
    let challenge = format!(r#"Bearer realm="http://{}/token?a=b",service="s v""#, tokens.host());
    let server = guarded(content, "Bearer abc", challenge);
    for entry in [auth("me:pw"), r#"{"identitytoken":"long lived"}"#.to_owned()] {
        let mut place = Place::new();
        place.log_in(&server.host(), &entry);
        place.fetch(&format!("{}/team/app", server.host())).unwrap();
        place.assert_clean();
    }
    assert_eq!(tokens.seen()[0].path, "/token?a=b&service=s%20v&scope=repository:team/app:pull");
    assert!(tokens.seen().len() <= 4, "a token is used again: {:?}", tokens.seen());
    let error = Place::new().error(&format!("{}/team/app", server.host()));
    assert!(error.contains("refuses ") && error.contains("podman login"), "{error}");
}

#[test]
fn another_host_is_not_shown_what_the_registry_is() {
    let (content, layers) = Content::image(Packing::Gzip, &[layer("x")]);
    let blob = content.blobs[&layers[0]].clone();
    let storage = Server::start(move |seen| Reply::part(seen, &blob));
    let target = format!("http://{}/storage?sig=1", storage.host());
    let digest = layers[0].hex();
    let server = Server::start(move |seen| {
        if seen.header("authorization") != Some("Basic bWU6cHc=") {
            return Reply::new(401, "").header("WWW-Authenticate", "Basic realm=x");
        }
        if seen.path.contains("/moved/") {
            return content.answer(seen);
        }
        if seen.path.contains(&digest) {
            return Reply::redirect(&target);
        }
        // To itself: there, the authorization goes on being shown.
        Reply::redirect(&seen.path.replace("/app/", "/moved/"))
    });
    let mut place = Place::new();
    place.log_in(&server.host(), &auth("me:pw"));
    place.fetch(&format!("{}/app", server.host())).unwrap();
    let seen = storage.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].path, "/storage?sig=1");
    assert_eq!(seen[0].header("authorization"), None);
}

#[test]
fn a_host_redirected_to_cannot_ask_for_the_password() {
    let (content, layers) = Content::image(Packing::Gzip, &[layer("x")]);
    let thief = Server::start(|_| Reply::new(401, "").header("WWW-Authenticate", "Basic realm=x"));
    let target = format!("http://{}/", thief.host());
    let digest = layers[0].hex();
    let server = Server::start(move |seen| match seen.path.contains(&digest) {
        true => Reply::redirect(&target),
        false => content.answer(seen),
    });
    let mut place = Place::new();
    place.log_in(&server.host(), &auth("me:pw"));
    let error = place.error(&format!("{}/app", server.host()));
    assert!(error.contains("not allowed"), "{error}");
    assert!(thief.seen().iter().all(|seen| seen.header("authorization").is_none()));
}

#[test]
fn a_challenge_that_is_not_understood_is_told() {
    let (content, _) = Content::image(Packing::Gzip, &[layer("x")]);
    let server = guarded(content, "none", "Negotiate");
    let error = Place::new().error(&format!("{}/app", server.host()));
    assert!(error.contains("Negotiate"), "{error}");
}
