//! Image names: `etcd`, `localhost/etcd:3.4`, `registry.example:5000/team/app@sha256:…`.
//!
//! The grammar is the one of the Docker distribution project (reference/reference.go), which all
//! registries share. A name without a tag or digest means the tag `latest`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::Digest;

/// Longest domain and path together, in bytes, as registries define it.
const MAX_NAME: usize = 255;
/// Longest tag, in bytes.
const MAX_TAG: usize = 128;
/// The tag of a name that has neither tag nor digest.
pub const DEFAULT_TAG: &str = "latest";

/// The name of an image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: Option<String>,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not an image name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing, or nothing before the tag.
    #[error("image name {0:?} is empty; write for example etcd or localhost/etcd:3.4")]
    Empty(String),
    /// Longer than registries allow.
    #[error("image name {0:?} is longer than {MAX_NAME} characters")]
    TooLong(String),
    /// A path component with other characters than registries allow.
    #[error(
        "image name {name:?}: {component:?} is not a valid name component; \
         use lower-case letters, digits and single separators . _ -"
    )]
    Component {
        /// The whole name.
        name: String,
        /// What is wrong in it.
        component: String,
    },
    /// The part before the first slash is no host name with an optional port.
    #[error("image name {name:?}: {domain:?} is not a host name with an optional port")]
    Domain {
        /// The whole name.
        name: String,
        /// What is wrong in it.
        domain: String,
    },
    /// A tag with other characters than registries allow, or too long.
    #[error(
        "image name {name:?}: tag {tag:?} is not valid; \
         use up to {MAX_TAG} letters, digits and . _ -, not starting with . or -"
    )]
    Tag {
        /// The whole name.
        name: String,
        /// What is wrong in it.
        tag: String,
    },
    /// It would be taken for an ID, and the image for another.
    #[error("image name {0:?} reads as the ID of an image; choose another name")]
    Id(String),
    /// What follows `@` is no digest.
    #[error("image name {name:?}: {source}")]
    Digest {
        /// The whole name.
        name: String,
        /// What is wrong with the digest.
        source: crate::digest::DigestError,
    },
}

impl Reference {
    /// The registry's host and port, when the name has one.
    pub fn domain(&self) -> Option<&str> {
        self.domain.as_deref()
    }

    /// The repository within the registry, such as `library/etcd`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag; [`DEFAULT_TAG`] when the name has neither tag nor digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The manifest's digest, when the name is pinned to one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The name without its digest, with a tag: what images are stored under.
    pub fn without_digest(&self) -> Self {
        let tag = self.tag.clone().unwrap_or_else(|| DEFAULT_TAG.to_owned());
        Self { tag: Some(tag), digest: None, ..self.clone() }
    }

    /// This name first, then the longer names that a short one commonly stands for: built here, or at one of the places
    /// `HOST[/PATH]` that are searched.
    ///
    /// `etcd` is also found as `localhost/etcd`, and as `docker.io/library/etcd` when that is searched.
    pub fn candidates(&self, search: &[String]) -> Vec<Self> {
        let mut all = vec![self.clone()];
        if self.domain.is_none() {
            all.push(Self { domain: Some("localhost".to_owned()), ..self.clone() });
            all.extend(self.searched(search));
        }
        all
    }

    /// The names at the searched places that a name without a registry stands for. One with a slash in it is
    /// below the place's host, one without below the whole place.
    pub fn searched(&self, search: &[String]) -> Vec<Self> {
        let at = |place: &String| {
            let (host, folder) = place.split_once('/').unwrap_or((place, ""));
            let path = match folder.is_empty() || self.path.contains('/') {
                true => self.path.clone(),
                false => format!("{}/{}", folder.trim_end_matches('/'), self.path),
            };
            Self { domain: Some(host.to_owned()), path, ..self.clone() }
        };
        search.iter().map(at).collect()
    }

    /// The name that an image from a registry is stored under: with its tag, or, when it is pinned, with its digest alone.
    pub fn stored(&self) -> Self {
        match self.digest {
            Some(_) => Self { tag: None, ..self.clone() },
            None => self.without_digest(),
        }
    }

    /// With a registry: Docker Hub for a name that has none.
    pub fn with_domain(&self) -> Self {
        let hub = [crate::registry::DEFAULT_SEARCH.to_owned()];
        if self.domain.is_some() { self.clone() } else { self.searched(&hub).remove(0) }
    }

    /// A name made of `base` (the file name of an archive, say) and `tag`, when `base` can be one.
    pub fn from_parts(base: &str, tag: Option<&str>) -> Result<Self, ReferenceError> {
        match tag {
            Some(tag) => format!("{base}:{tag}").parse(),
            None => base.parse(),
        }
    }
}

/// A path component: runs of lower-case letters and digits, joined by `.`, `_`, `__` or dashes.
fn is_component(text: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    if !alnum(first) || !alnum(last) {
        return false;
    }
    bytes
        .split(|&b| alnum(b))
        .all(|separator| matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|&b| b == b'-'))
}

/// A host name, IPv4 address or bracketed IPv6 address, with an optional port.
fn is_domain(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let port_ok = port.is_none_or(|p| p.parse::<u16>().is_ok() && p.bytes().all(|b| b.is_ascii_digit()));
    let host_ok = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        }),
    };
    port_ok && host_ok
}

/// Whether the part before the first slash is a registry and not a component of the path.
fn looks_like_domain(text: &str) -> bool {
    text == "localhost" || text.contains(['.', ':', '[']) || text.bytes().any(|b| b.is_ascii_uppercase())
}

/// Whether a name without a registry is written as an image's ID is: `sha256:` and 64 hex digits, or the digits alone.
fn reads_as_id(path: &str, tag: Option<&str>) -> bool {
    let is_hex = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    is_hex(path) || (path == "sha256" && tag.is_some_and(is_hex))
}

fn is_tag(text: &str) -> bool {
    text.len() <= MAX_TAG
        && text
            .bytes()
            .enumerate()
            .all(|(i, b)| b.is_ascii_alphanumeric() || b == b'_' || (i > 0 && (b == b'.' || b == b'-')))
        && !text.is_empty()
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let name = || text.to_owned();
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest =
                    digest.parse::<Digest>().map_err(|source| ReferenceError::Digest { name: name(), source })?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        let (repository, tag) = match rest.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Tag { name: name(), tag: tag.to_owned() });
        }
        let (domain, path) = match repository.split_once('/') {
            Some((first, path)) if looks_like_domain(first) => (Some(first), path),
            _ => (None, repository),
        };
        if path.is_empty() {
            return Err(ReferenceError::Empty(name()));
        }
        if repository.len() > MAX_NAME {
            return Err(ReferenceError::TooLong(name()));
        }
        if let Some(domain) = domain.filter(|domain| !is_domain(domain)) {
            return Err(ReferenceError::Domain { name: name(), domain: domain.to_owned() });
        }
        if let Some(component) = path.split('/').find(|component| !is_component(component)) {
            return Err(ReferenceError::Component { name: name(), component: component.to_owned() });
        }
        if domain.is_none_or(|domain| domain == "localhost") && reads_as_id(path, tag) {
            return Err(ReferenceError::Id(name()));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some(DEFAULT_TAG),
            (tag, _) => tag,
        };
        Ok(Self { domain: domain.map(str::to_owned), path: path.to_owned(), tag: tag.map(str::to_owned), digest })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(domain) = &self.domain {
            write!(f, "{domain}/")?;
        }
        f.write_str(&self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_reads_as_an_id_is_no_name() {
        let hex = "0123456789abcdef".repeat(4);
        for text in [hex.clone(), format!("{hex}:1"), format!("sha256:{hex}"), format!("localhost/sha256:{hex}")] {
            assert!(matches!(text.parse::<Reference>(), Err(ReferenceError::Id(_))), "{text}");
        }
        for text in [format!("example.com/sha256:{hex}"), "sha256:latest".into(), "abcdef012345".into()] {
            assert!(text.parse::<Reference>().is_ok(), "{text}");
        }
    }
    use proptest::prelude::*;

    fn parse(text: &str) -> Reference {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn names_are_taken_apart_and_get_the_default_tag() {
        let digest = Digest::of(b"x");
        for (text, domain, path, tag) in [
            ("etcd", None, "etcd", Some("latest")),
            ("etcd:3.4", None, "etcd", Some("3.4")),
            ("coreos/etcd", None, "coreos/etcd", Some("latest")),
            ("localhost/etcd:3.4", Some("localhost"), "etcd", Some("3.4")),
            ("localhost:5000/etcd", Some("localhost:5000"), "etcd", Some("latest")),
            ("quay.io/coreos/etcd:v2", Some("quay.io"), "coreos/etcd", Some("v2")),
            ("[::1]:5000/a__b/c--d:e", Some("[::1]:5000"), "a__b/c--d", Some("e")),
        ] {
            let reference = parse(text);
            assert_eq!(reference.domain(), domain, "{text}");
            assert_eq!(reference.path(), path, "{text}");
            assert_eq!(reference.tag(), tag, "{text}");
        }
        let pinned = parse(&format!("etcd@{digest}"));
        assert_eq!((pinned.tag(), pinned.digest()), (None, Some(&digest)));
        assert_eq!(pinned.without_digest().to_string(), "etcd:latest");
        assert_eq!(parse(&format!("etcd:3@{digest}")).tag(), Some("3"));
    }

    #[test]
    fn bad_names_are_refused_and_named() {
        for bad in [
            "",
            ":tag",
            "localhost/",
            "Etcd",
            "a//b",
            "/a",
            "a/",
            "a._b",
            "a:b c",
            "a:",
            "a:-b",
            "-a",
            "a@sha256:12",
            "a@",
            "ho_st.x/a",
            "x:99999/a",
            "./dir",
            "a b",
            "é",
        ] {
            let error = bad.parse::<Reference>().expect_err(bad).to_string();
            assert!(error.contains("image name"), "{bad}: {error}");
        }
        assert!("a".repeat(256).parse::<Reference>().is_err());
        assert!(format!("a:{}", "b".repeat(129)).parse::<Reference>().is_err());
    }

    #[test]
    fn a_short_name_also_stands_for_its_long_forms() {
        let names = |text| {
            parse(text)
                .candidates(&["docker.io/library".into(), "quay.io".into()])
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            names("etcd"),
            ["etcd:latest", "localhost/etcd:latest", "docker.io/library/etcd:latest", "quay.io/etcd:latest"]
        );
        assert_eq!(names("a/b:1"), ["a/b:1", "localhost/a/b:1", "docker.io/a/b:1", "quay.io/a/b:1"]);
        assert_eq!(names("quay.io/a:1"), ["quay.io/a:1"]);
    }

    proptest! {
        #[test]
        fn a_well_formed_name_is_displayed_as_it_was_written(
            text in "((localhost|[a-z0-9]{1,9}\\.[a-z]{2,5})(:[1-9][0-9]{0,3})?/)?[a-z0-9]{1,9}([._-][a-z0-9]{1,5})?(/[a-z]{1,9}){0,2}:[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}(@sha256:[0-9a-f]{64})?"
        ) {
            prop_assert_eq!(parse(&text).to_string(), text);
        }

        #[test]
        fn any_text_is_answered_without_panic_and_what_parses_is_stable(text in "[a-z0-9A-Z:/@._\\-\\[\\]é ]{0,60}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(parse(&reference.to_string()), reference);
            }
        }
    }
}
