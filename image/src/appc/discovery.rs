//! Where an appc image is, by its name and labels (App Container specification, discovery.md).
//!
//! First *simple discovery*, as early versions of the specification have it: the image may stand at
//! `https://NAME-VERSION-OS-ARCH.aci` itself. Else *meta discovery*: the page `https://NAME?ac-discovery=1`, or else that of the
//! name's parent, has
//!
//! ```html
//! <meta name="ac-discovery" content="PREFIX https://…/{name}-{version}-{os}-{arch}.{ext}">
//! <meta name="ac-discovery-pubkeys" content="PREFIX https://…/pubkeys.gpg">
//! ```
//!
//! Of the templates whose every label is known, those that use the most labels are taken, in the page's order. All of it is
//! HTTPS; plain HTTP only where the check `http` is left out.

use std::collections::{BTreeMap, BTreeSet};

use ureq::http::{Method, header};

use super::meta::{Meta, metas};
use crate::registry::{Http, Insecure, Registries, RegistryError, Request, Response, Url, percent_encoded};

/// Largest page that is read.
const MAX_PAGE: u64 = 1 << 20;
/// Most places of an image, or of keys, that are taken from one page.
const MAX_PLACES: usize = 20;
/// Most parts of a name: each may cost a request.
const MAX_PARTS: usize = 32;
/// What an image without a version is looked for as, when no template does without one.
const LATEST: &str = "latest";

/// Where an image and its signature are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The image.
    pub image: Url,
    /// Its detached signature.
    pub signature: Url,
}

/// What discovery has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoints {
    /// Where the image is, the best place first; never empty.
    pub images: Vec<Endpoint>,
    /// Where the keys are that may sign it. Whether they are trusted is another question.
    pub keys: Vec<Url>,
}

/// Why discovery finds nothing.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// No page tells.
    #[error("{name}: no image is found by discovery: {}; check the name", tried.join("; "))]
    NoImage {
        /// The image's name.
        name: String,
        /// Pages that were asked for, and what they say.
        tried: Vec<String>,
    },
    /// No page tells of keys.
    #[error("{name}: no keys are found by discovery: {}; give them as files or URLs", tried.join("; "))]
    NoKeys {
        /// The prefix.
        name: String,
        /// Pages that were asked for, and what they say.
        tried: Vec<String>,
    },
    /// It cannot be made a URL.
    #[error("{name:?} is no name that discovery can look for, such as example.com/app")]
    Name {
        /// The name.
        name: String,
    },
    /// The host does not answer.
    #[error("{name}: discovery: {source}")]
    Host {
        /// The image's name.
        name: String,
        /// Why.
        source: RegistryError,
    },
}

/// Finds the places of the image of this name and these labels; `os` and `arch` belong to them. `version` may be left out.
///
/// # Errors
/// [`DiscoveryError`]; none of what the pages say has been believed then.
pub fn discover(
    registries: &Registries,
    name: &str,
    labels: &BTreeMap<String, String>,
) -> Result<Endpoints, DiscoveryError> {
    let http = registries.http();
    if let Some(endpoint) = simple(http, name, labels) {
        return Ok(Endpoints { images: vec![endpoint], keys: Vec::new() });
    }
    let found = visit(http, name, |metas| {
        let images = endpoints(http, name, labels, metas);
        let why = match metas.iter().any(|meta| meta.name == "ac-discovery") {
            false => "has no ac-discovery",
            true => "has no ac-discovery for this name whose labels are all known (such as version)",
        };
        if images.is_empty() { Err(why) } else { Ok(Endpoints { images, keys: keys(http, name, metas) }) }
    })?;
    found.map_err(|tried| DiscoveryError::NoImage { name: name.to_owned(), tried })
}

/// Finds the keys that may sign images of this name or below it.
///
/// # Errors
/// [`DiscoveryError`].
pub fn discover_keys(registries: &Registries, name: &str) -> Result<Vec<Url>, DiscoveryError> {
    let http = registries.http();
    let found = visit(http, name, |metas| {
        let keys = keys(http, name, metas);
        if keys.is_empty() { Err("has no ac-discovery-pubkeys for this name") } else { Ok(keys) }
    })?;
    found.map_err(|tried| DiscoveryError::NoKeys { name: name.to_owned(), tried })
}

/// The image beside its own name, if it is there.
fn simple(http: &Http, name: &str, labels: &BTreeMap<String, String>) -> Option<Endpoint> {
    let (authority, path) = name.split_once('/')?;
    let label = |name: &str| labels.get(name).map(|value| percent_encoded(value));
    let (version, os, arch) = (label("version")?, label("os")?, label("arch")?);
    let path = format!("/{}-{version}-{os}-{arch}", percent_encoded(path));
    let base = Url::of_host(true, authority);
    let url = |ending: &str| Url::parse(&base.with_path(&format!("{path}.{ending}")).to_string());
    let endpoint = Endpoint { image: url("aci")?, signature: url("aci.asc")? };
    let request = Request { method: Method::HEAD, ..Request::get(endpoint.image.clone()) };
    let response = http.send_once(&request, None).ok()?;
    // Some hosts have a page for every name.
    let is_page = response.header(header::CONTENT_TYPE).is_some_and(|kind| kind.starts_with("text/"));
    (response.status == 200 && !is_page).then_some(endpoint)
}

/// Asks for the name's page, then for those of its parents, until `take` finds in one what it wants. Gives what the pages lack
/// when none has it.
fn visit<T>(
    http: &Http,
    name: &str,
    take: impl Fn(&[Meta]) -> Result<T, &'static str>,
) -> Result<Result<T, Vec<String>>, DiscoveryError> {
    let host_error = |source| DiscoveryError::Host { name: name.to_owned(), source };
    let parts: Vec<&str> = name.split('/').collect();
    let is_name = parts.len() <= MAX_PARTS && parts.iter().all(|part| !part.is_empty());
    let first = parts.first().filter(|_| is_name);
    let authority = first.ok_or_else(|| DiscoveryError::Name { name: name.to_owned() })?;
    let mut tried = Vec::new();
    for count in (1..=parts.len()).rev() {
        let path = percent_encoded(&parts[1..count].join("/"));
        let secure = Url::parse(&format!("https://{authority}/{path}?ac-discovery=1"));
        let secure = secure.ok_or_else(|| DiscoveryError::Name { name: name.to_owned() })?;
        let response = get(http, secure).map_err(host_error)?;
        let url = response.url.clone();
        if response.status != 200 {
            tried.push(format!("{url} answers {}", response.status));
            continue;
        }
        let Some(page) = response.read(MAX_PAGE).map_err(host_error)? else {
            tried.push(format!("{url} is larger than {MAX_PAGE} bytes"));
            continue;
        };
        match take(&metas(&String::from_utf8_lossy(&page))) {
            Ok(found) => return Ok(Ok(found)),
            Err(why) => tried.push(format!("{url} {why}")),
        }
    }
    Ok(Err(tried))
}

/// Asks with TLS, and without where that is allowed and the host speaks none.
fn get(http: &Http, secure: Url) -> Result<Response, RegistryError> {
    if !http.is_insecure(secure.authority(), Insecure::Http) {
        return http.send(&Request::get(secure), None);
    }
    match http.send_once(&Request::get(secure.clone()), None) {
        // It does speak TLS.
        Err(error @ (RegistryError::Certificate { .. } | RegistryError::Certificates { .. })) => Err(error),
        Err(_) => http.send(&Request::get(secure.without_tls()), None),
        Ok(response) => Ok(response),
    }
}

/// What a tag says of a name: the text behind the prefix.
fn said<'a>(metas: &'a [Meta], tag: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    let tags = metas.iter().filter(move |meta| meta.name == tag);
    tags.filter_map(move |meta| {
        let (prefix, text) = meta.content.trim().split_once(|c: char| c.is_ascii_whitespace())?;
        name.starts_with(prefix).then_some(text.trim())
    })
}

/// A place that may be asked; other schemes than HTTP's are left to others.
fn place(http: &Http, text: &str) -> Option<Url> {
    Url::parse(text).filter(|url| url.is_https() || http.is_insecure(url.authority(), Insecure::Http))
}

fn keys(http: &Http, name: &str, metas: &[Meta]) -> Vec<Url> {
    said(metas, "ac-discovery-pubkeys", name).filter_map(|text| place(http, text)).take(MAX_PLACES).collect()
}

/// The best places of an image: by the templates that use the most labels.
fn endpoints(http: &Http, name: &str, labels: &BTreeMap<String, String>, metas: &[Meta]) -> Vec<Endpoint> {
    let with = |labels: &BTreeMap<String, String>| {
        let mut best = (0, Vec::new());
        for template in said(metas, "ac-discovery", name) {
            let rendered = |ending: &str| render(template, name, labels, ending);
            let (Some((image, used)), Some((signature, _))) = (rendered("aci"), rendered("aci.asc")) else { continue };
            let (Some(image), Some(signature)) = (place(http, &image), place(http, &signature)) else { continue };
            if best.1.is_empty() || used > best.0 {
                best = (used, Vec::new());
            }
            if used == best.0 && best.1.len() < MAX_PLACES {
                best.1.push(Endpoint { image, signature });
            }
        }
        best.1
    };
    let found = with(labels);
    if !found.is_empty() || labels.contains_key("version") {
        return found;
    }
    // Before version 0.8 of the specification, this was the version of all that had none.
    let mut labels = labels.clone();
    labels.insert("version".to_owned(), LATEST.to_owned());
    with(&labels)
}

/// A template with its labels replaced, and how many different ones it has; `None` when one is not known, or when it cannot tell
/// an image from its signature.
fn render(template: &str, name: &str, labels: &BTreeMap<String, String>, ending: &str) -> Option<(String, usize)> {
    let mut url = String::new();
    let mut used = BTreeSet::new();
    let mut has_ending = false;
    let mut rest = template;
    while let Some(at) = rest.find('{') {
        url.push_str(&rest[..at]);
        let (label, behind) = rest[at + 1..].split_once('}')?;
        match label {
            "name" => url.push_str(&percent_encoded(name)),
            "ext" => {
                url.push_str(ending);
                has_ending = true;
            }
            label => {
                url.push_str(&percent_encoded(labels.get(label)?));
                used.insert(label);
            }
        }
        rest = behind;
    }
    url.push_str(rest);
    has_ending.then_some((url, used.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::tests::server::{Reply, Server};
    use crate::registry::{Credentials, Patience, RegistrySettings};
    use proptest::prelude::*;
    use std::time::Duration;

    fn registries(insecure: &[Insecure]) -> Registries {
        let patience = Patience {
            connect: Duration::from_secs(5),
            read: Duration::from_millis(500),
            backoff: Duration::from_millis(1),
            attempts: 2,
            longest_wait: Duration::from_secs(1),
        };
        Registries::new(RegistrySettings::default(), Credentials::default(), insecure.to_vec(), patience)
    }

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn full() -> BTreeMap<String, String> {
        labels(&[("version", "1.0+x"), ("os", "linux"), ("arch", "amd64")])
    }

    fn page(tags: &[(&str, &str)]) -> String {
        tags.iter().map(|(name, content)| format!("<meta name=\"{name}\" content=\"{content}\">\n")).collect()
    }

    fn images(labels: &BTreeMap<String, String>, templates: &[&str]) -> Vec<String> {
        let tags: Vec<(&str, &str)> = templates.iter().map(|template| ("ac-discovery", *template)).collect();
        let registries = registries(&[]);
        let found = endpoints(registries.http(), "example.com/reduce-worker", labels, &metas(&page(&tags)));
        found.iter().map(|endpoint| endpoint.image.to_string()).collect()
    }

    #[test]
    fn the_templates_with_the_most_known_labels_are_taken() {
        let templates = [
            "example.com https://storage.example.com/{os}/{arch}/{name}-{version}.{ext}",
            "example.com https://mirror.example.com/{os}/{arch}/{name}-{version}.{ext}",
            "example.com https://storage.example.com/{os}/{arch}/{name}-newest.{ext}",
            "example.com hdfs://storage.example.com/{name}-{version}-{os}-{arch}.{ext}",
            "example.com http://storage.example.com/{name}-{version}-{os}-{arch}.{ext}",
            "example.com https://storage.example.com/{name}-{version}-{os}-{arch}",
            "example.com https://storage.example.com/{colour}/{name}-{version}-{os}-{arch}.{ext}",
            "other.example https://other.example/{name}-{version}-{os}-{arch}.{ext}",
        ];
        let stored = "https://storage.example.com/linux/amd64/example.com/reduce-worker";
        assert_eq!(
            images(&full(), &templates),
            [
                format!("{stored}-1.0%2Bx.aci"),
                "https://mirror.example.com/linux/amd64/example.com/reduce-worker-1.0%2Bx.aci".to_owned()
            ]
        );
        let without = labels(&[("os", "linux"), ("arch", "amd64")]);
        assert_eq!(images(&without, &templates), [format!("{stored}-newest.aci")]);
        assert_eq!(images(&without, &templates[..1]), [format!("{stored}-latest.aci")]);
    }

    #[test]
    fn the_signature_stands_beside_the_image() {
        let tags = page(&[("ac-discovery", "example.com https://x.example/{name}.{ext}?{ext}")]);
        let registries = registries(&[]);
        let found = endpoints(registries.http(), "example.com/a", &labels(&[]), &metas(&tags));
        assert_eq!(found[0].signature.to_string(), "https://x.example/example.com/a.aci.asc?aci.asc");
    }

    #[test]
    fn the_parents_pages_are_asked_when_the_names_own_tells_nothing() {
        let server = Server::start(|seen| match seen.path.as_str() {
            "/team/?ac-discovery=1" | "/team/app?ac-discovery=1" => Reply::new(404, ""),
            "/team?ac-discovery=1" => Reply::new(200, "<html>nothing here"),
            "/?ac-discovery=1" => {
                let host = seen.header("host").unwrap_or_default();
                let template = format!("{host} http://{host}/{{name}}-{{version}}.{{ext}}");
                let keys = format!("{host} http://{host}/keys.gpg");
                Reply::new(200, page(&[("ac-discovery", &template), ("ac-discovery-pubkeys", &keys)]))
            }
            _ => Reply::new(404, ""),
        });
        let host = server.host();
        let name = format!("{host}/team/app");
        let insecure = registries(&[Insecure::Http]);
        let found = discover(&insecure, &name, &full()).unwrap();
        assert_eq!(found.images[0].image.to_string(), format!("http://{host}/{host}/team/app-1.0%2Bx.aci"));
        assert_eq!(found.keys.len(), 1);
        assert_eq!(discover_keys(&insecure, &name).unwrap(), found.keys);
        let error = discover(&registries(&[]), &name, &full()).unwrap_err().to_string();
        assert!(error.contains("--insecure-options=http"), "{error}");
    }

    #[test]
    fn what_was_asked_is_told_when_nothing_is_found() {
        let server = Server::start(|seen| match seen.path.contains("/app") {
            true => Reply::new(403, ""),
            false => Reply { endless: true, ..Reply::new(200, vec![b'<'; 1 << 16]) },
        });
        let name = format!("{}/app", server.host());
        let error = discover(&registries(&[Insecure::Http]), &name, &full()).unwrap_err().to_string();
        assert!(error.contains("app?ac-discovery=1 answers 403") && error.contains("larger than"), "{error}");
        let error = discover_keys(&registries(&[Insecure::Http]), "a//b").unwrap_err();
        assert!(matches!(error, DiscoveryError::Name { .. }), "{error}");
    }

    proptest! {
        #[test]
        fn what_is_rendered_has_no_label_left(template in "[a-z{}:/.-]{0,40}", value in "[a-z{}+/ ]{0,10}") {
            let labels = labels(&[("os", &value)]);
            if let Some((url, _)) = render(&template, "a.example/b", &labels, "aci") {
                prop_assert!(!url.contains('{'), "{url}");
            }
        }

        #[test]
        fn any_content_of_a_tag_is_answered_without_panic(content in ".{0,60}", near in "a\\.example ?(https://|\\{|\\}|ext|name|[a-z /]){0,12}") {
            let registries = registries(&[]);
            for content in [content, near] {
                let metas = [Meta { name: "ac-discovery".to_owned(), content }];
                let _ = endpoints(registries.http(), "a.example/b", &full(), &metas);
            }
        }
    }
}
