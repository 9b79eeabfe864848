//! What a user may write where an image is wanted: a name or id, a name at a registry, or a path to import from.

use std::path::{Path, PathBuf};

use crate::appc::AppcName;
use crate::appc::name::AppcNameError;
use crate::oci::Format;
use crate::reference::{Reference, ReferenceError};
use crate::registry::Url;
use crate::store::APPC_PREFIX;

/// An image as the command line names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// A name, id or unique start of an id in the store; or a name that may be at a registry.
    Named(String),
    /// A name at a registry, written with `docker://`.
    Registry(Reference),
    /// An image of appc, to be found by discovery.
    Appc(AppcName),
    /// An image of appc at a URL.
    Url(Url),
    /// A layout or archive, and perhaps `:NAME` to choose one of several images in it.
    Path {
        /// How to read it.
        format: Format,
        /// The path as written, choice included: whether a colon belongs to the path is seen on opening.
        path: PathBuf,
    },
}

/// Why a text names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// No name at a registry.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// No name of appc.
    #[error(transparent)]
    Appc(#[from] AppcNameError),
    /// No URL.
    #[error("{0:?} is no URL such as https://example.com/app.aci; it must not have a user in it")]
    Url(String),
}

/// Prefixes that name the form of what a path leads to, as skopeo and podman have them.
const PREFIXES: [(&str, Format); 4] =
    [("oci:", Format::Oci), ("oci-archive:", Format::Oci), ("docker-archive:", Format::Docker), ("aci:", Format::Aci)];

/// The prefix that names a registry's image.
const REGISTRY: &str = "docker://";
/// How the file of an image of appc ends.
const ACI: &str = ".aci";
/// The path that means standard input.
pub const STDIN: &str = "-";

impl ImageSource {
    /// Tells paths from names: a path starts with `/`, `./` or `../`, has a prefix such as `oci:`, or ends with `.aci`. A name
    /// with labels behind commas is one of appc, and so is whatever follows `appc:`.
    ///
    /// # Errors
    /// What follows `docker://` or `appc:` is no name, or what begins like a URL is none.
    pub fn parse(text: &str) -> Result<Self, SourceError> {
        if let Some(name) = text.strip_prefix(REGISTRY) {
            return Ok(Self::Registry(name.parse::<Reference>()?.with_domain()));
        }
        if let Some(name) = text.strip_prefix(APPC_PREFIX) {
            return Ok(Self::Appc(name.trim_start_matches("//").parse()?));
        }
        if text.starts_with("https://") || text.starts_with("http://") {
            return Url::parse(text).map(Self::Url).ok_or_else(|| SourceError::Url(text.to_owned()));
        }
        match Self::parse_local(text) {
            // No other name has a comma in it.
            Self::Named(text) if text.contains(',') => Ok(Self::Appc(text.parse()?)),
            source => Ok(source),
        }
    }

    fn parse_local(text: &str) -> Self {
        if let Some((rest, format)) =
            PREFIXES.iter().find_map(|&(prefix, format)| Some((text.strip_prefix(prefix)?, format)))
        {
            return Self::Path { format, path: rest.into() };
        }
        let is_path = matches!(text, STDIN | "." | "..")
            || ["/", "./", "../"].iter().any(|start| text.starts_with(start))
            || text.ends_with(ACI) && !text.contains(',');
        match is_path {
            true => Self::Path { format: Format::Any, path: text.into() },
            false => Self::Named(text.to_owned()),
        }
    }

    /// A path to import from, whatever it looks like: for commands that take nothing else.
    pub fn parse_path(text: &str) -> Self {
        match Self::parse_local(text) {
            Self::Named(path) => Self::Path { format: Format::Any, path: path.into() },
            path => path,
        }
    }
}

/// Splits `PATH:NAME`: the shortest start that exists and is followed by a colon is the path.
///
/// What exists as a whole is all path.
pub(crate) fn split_choice(path: &Path) -> (PathBuf, Option<String>) {
    let whole = (path.to_owned(), None);
    let Some(text) = path.to_str().filter(|_| !path.exists()) else { return whole };
    let colons = text.match_indices(':').map(|(at, _)| at);
    colons
        .filter(|&at| at > 0 && Path::new(&text[..at]).exists())
        .map(|at| (PathBuf::from(&text[..at]), Some(text[at + 1..].to_owned())))
        .next()
        .unwrap_or(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_from_names() {
        let path = |format, path: &str| ImageSource::Path { format, path: path.into() };
        for (text, expected) in [
            ("etcd", ImageSource::Named("etcd".into())),
            ("localhost/etcd:3", ImageSource::Named("localhost/etcd:3".into())),
            ("./etcd", path(Format::Any, "./etcd")),
            ("../x.tar:tag", path(Format::Any, "../x.tar:tag")),
            ("/a", path(Format::Any, "/a")),
            (".", path(Format::Any, ".")),
            ("oci:etcd:latest", path(Format::Oci, "etcd:latest")),
            ("oci-archive:a.tar", path(Format::Oci, "a.tar")),
            ("docker-archive:a.tar", path(Format::Docker, "a.tar")),
            ("-", path(Format::Any, "-")),
            ("docker://quay.io/a:1", ImageSource::Registry("quay.io/a:1".parse().unwrap())),
            ("aci:x", path(Format::Aci, "x")),
            ("x.aci", path(Format::Any, "x.aci")),
            ("coreos.com/etcd,version=v2", ImageSource::Appc("coreos.com/etcd,version=v2".parse().unwrap())),
            ("appc:coreos.com/etcd:v2", ImageSource::Appc("coreos.com/etcd,version=v2".parse().unwrap())),
            ("https://a.example/x.aci", ImageSource::Url(Url::parse("https://a.example/x.aci").unwrap())),
            ("docker://etcd", ImageSource::Registry("docker.io/library/etcd".parse().unwrap())),
        ] {
            assert_eq!(ImageSource::parse(text), Ok(expected), "{text}");
        }
        for bad in ["docker://Not a name", "a,b", "appc:A", "https://u:p@a.example/x.aci"] {
            assert!(ImageSource::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(ImageSource::parse_path("etcd"), path(Format::Any, "etcd"));
    }

    #[test]
    fn a_colon_belongs_to_the_path_when_such_a_path_exists() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["plain", "with:colon"] {
            std::fs::write(at(name), "").unwrap();
        }
        let choice = |name: &str| split_choice(&at(name));
        assert_eq!(choice("plain"), (at("plain"), None));
        assert_eq!(choice("plain:a/b:c"), (at("plain"), Some("a/b:c".into())));
        assert_eq!(choice("with:colon"), (at("with:colon"), None));
        assert_eq!(choice("with:colon:x"), (at("with:colon"), Some("x".into())));
        assert_eq!(choice("none:x"), (at("none:x"), None));
    }
}
