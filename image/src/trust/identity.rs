//! What an image is called: by a policy's scopes, and by those who sign it (containers-policy.json(5)).

use std::path::Path;

use serde::Deserialize;

use crate::reference::{DEFAULT_TAG, Reference};

/// What an image is called where it has come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    transport: &'static str,
    scopes: Vec<String>,
    /// At a registry.
    name: Option<Name>,
}

/// A name at a registry, in full: `docker.io/library/etcd:latest`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Name {
    repository: String,
    /// `:TAG` or `@DIGEST`.
    version: String,
}

impl Name {
    fn new(reference: &Reference) -> Option<Self> {
        let host = match reference.domain()? {
            "index.docker.io" => "docker.io",
            host => host,
        };
        let path = reference.path();
        // Docker Hub's single words have a folder.
        let folder = if host == "docker.io" && !path.contains('/') { "library/" } else { "" };
        let version = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => format!("@{digest}"),
            (None, tag) => format!(":{}", tag.unwrap_or(DEFAULT_TAG)),
        };
        Some(Self { repository: format!("{host}/{folder}{path}"), version })
    }

    fn full(&self) -> String {
        format!("{}{}", self.repository, self.version)
    }

    fn is_pinned(&self) -> bool {
        self.version.starts_with('@')
    }
}

impl Identity {
    /// Of a name at a registry; a name without one is Docker Hub's.
    pub fn of_registry(reference: &Reference) -> Self {
        let name = Name::new(&reference.with_domain());
        let mut scopes: Vec<String> = Vec::new();
        if let Some(name) = &name {
            scopes.push(name.full());
            let mut rest = name.repository.as_str();
            scopes.push(rest.to_owned());
            while let Some((parent, _)) = rest.rsplit_once('/') {
                scopes.push(parent.to_owned());
                rest = parent;
            }
            let mut domain = rest.split(':').next().unwrap_or_default();
            while let Some((_, parent)) = domain.split_once('.') {
                scopes.push(format!("*.{parent}"));
                domain = parent;
            }
        }
        Self { transport: "docker", scopes, name }
    }

    /// Of a layout or an archive at a path, and the image of several that was chosen.
    pub fn of_path(transport: &'static str, path: &Path, chosen: Option<&str>) -> Self {
        let mut scopes = Vec::new();
        // Archives of `docker save` have no scopes but the transport's own.
        if transport != DOCKER_ARCHIVE {
            let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
            scopes.push(format!("{}:{}", path.display(), chosen.unwrap_or_default()));
            let folders = path.ancestors().take_while(|folder| folder.parent().is_some());
            scopes.extend(folders.map(|folder| folder.display().to_string()));
        }
        Self { transport, scopes, name: None }
    }

    /// Of an archive that arrives as a stream, and so from nowhere.
    pub fn of_stream(transport: &'static str) -> Self {
        Self { transport, scopes: Vec::new(), name: None }
    }

    /// Of an image of which nobody knows where it has come from.
    pub fn unknown() -> Self {
        Self { transport: "", scopes: Vec::new(), name: None }
    }

    /// `docker`, `oci`, …
    pub fn transport(&self) -> &'static str {
        self.transport
    }

    /// Whether it is at a path, where there is no place for signatures.
    pub fn is_at_path(&self) -> bool {
        self.name.is_none() && !self.transport.is_empty()
    }

    /// The path of its repository at its registry: `library/etcd`.
    pub fn repository_path(&self) -> Option<&str> {
        self.name.as_ref()?.repository.split_once('/').map(|(_, path)| path)
    }

    /// The scopes it is in, the narrowest first.
    pub fn scopes(&self) -> &[String] {
        &self.scopes
    }
}

/// Transport of OCI layouts.
pub const OCI: &str = "oci";
/// Transport of their archives.
pub const OCI_ARCHIVE: &str = "oci-archive";
/// Transport of archives of `docker save`.
pub const DOCKER_ARCHIVE: &str = "docker-archive";

/// What a signature must call an image.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum SignedIdentity {
    /// What it is called itself.
    MatchExact {},
    /// The same, unless it is called by its digest; then another tag of its repository will do.
    MatchRepoDigestOrExact {},
    /// Its repository, whatever the tag.
    MatchRepository {},
    /// This name.
    ExactReference {
        /// In full.
        docker_reference: String,
    },
    /// This repository, whatever the tag.
    ExactRepository {
        /// In full.
        docker_repository: String,
    },
    /// As `matchRepoDigestOrExact`, but what it is called begins with something else.
    RemapIdentity {
        /// What it begins with where it has come from.
        prefix: String,
        /// What it begins with in the signature.
        signed_prefix: String,
    },
}

impl SignedIdentity {
    /// Whether the names in it are ones.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::ExactReference { docker_reference } => {
                let has_version = parse(docker_reference).is_some_and(|(_, version)| version.is_some());
                has_version.then_some(()).ok_or(format!("dockerReference {docker_reference:?} is no NAME:TAG in full"))
            }
            Self::ExactRepository { docker_repository } => {
                let is_bare = parse(docker_repository).is_some_and(|(_, version)| version.is_none());
                is_bare.then_some(()).ok_or(format!("dockerRepository {docker_repository:?} is no repository in full"))
            }
            Self::RemapIdentity { prefix, signed_prefix } => {
                for text in [prefix, signed_prefix] {
                    let is_place = !text.is_empty() && format!("{text}/x").parse::<Reference>().is_ok();
                    is_place.then_some(()).ok_or(format!("{text:?} is no HOST or HOST/PATH"))?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Whether a signature that calls the image `signed` may count for `image`.
    pub fn accepts(&self, image: &Identity, signed: &str) -> bool {
        let Some((repository, version)) = parse(signed) else { return false };
        let exact = |name: &Name| name.repository == repository && version.as_deref() == Some(name.version.as_str());
        let exact_or_pinned = |name: &Name| match name.is_pinned() {
            true => name.repository == repository,
            false => exact(name),
        };
        match self {
            Self::MatchExact {} => image.name.as_ref().is_some_and(exact),
            Self::MatchRepoDigestOrExact {} => image.name.as_ref().is_some_and(exact_or_pinned),
            Self::MatchRepository {} => image.name.as_ref().is_some_and(|name| name.repository == repository),
            Self::ExactReference { docker_reference } => parse(docker_reference) == Some((repository, version)),
            Self::ExactRepository { docker_repository } => {
                parse(docker_repository).is_some_and(|(wanted, _)| wanted == repository)
            }
            Self::RemapIdentity { prefix, signed_prefix } => image.name.as_ref().is_some_and(|name| {
                let repository = match name.repository.strip_prefix(prefix.as_str()) {
                    Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{signed_prefix}{rest}"),
                    _ => name.repository.clone(),
                };
                exact_or_pinned(&Name { repository, version: name.version.clone() })
            }),
        }
    }
}

/// Repository and version of a name as signatures and policies have it.
fn parse(text: &str) -> Option<(String, Option<String>)> {
    let reference: Reference = text.parse().ok()?;
    let name = Name::new(&reference.with_domain())?;
    let has_version = reference.digest().is_some() || text.rsplit('/').next().is_some_and(|last| last.contains(':'));
    Some((name.repository, has_version.then_some(name.version)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn registry(name: &str) -> Identity {
        Identity::of_registry(&name.parse().unwrap())
    }

    #[test]
    fn scopes_go_from_the_image_to_the_whole_domain() {
        assert_eq!(
            registry("a.b.example:5000/team/app:1").scopes(),
            [
                "a.b.example:5000/team/app:1",
                "a.b.example:5000/team/app",
                "a.b.example:5000/team",
                "a.b.example:5000",
                "*.b.example",
                "*.example"
            ]
        );
        let hub = ["docker.io/library/etcd:latest", "docker.io/library/etcd", "docker.io/library", "docker.io", "*.io"];
        for name in ["etcd", "docker.io/etcd", "docker.io/library/etcd:latest"] {
            assert_eq!(registry(name).scopes(), hub, "{name}");
            assert_eq!(registry(name).repository_path(), Some("library/etcd"));
        }
        let layout = Identity::of_path(OCI, Path::new("/nonexistent/images/etcd"), Some("3"));
        assert_eq!(
            layout.scopes(),
            ["/nonexistent/images/etcd:3", "/nonexistent/images/etcd", "/nonexistent/images", "/nonexistent"]
        );
    }

    #[test]
    fn a_signature_must_call_the_image_what_the_policy_says() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let (tagged, pinned) = ("r.example/team/app:1".to_owned(), format!("r.example/team/app@{digest}"));
        let remap = SignedIdentity::RemapIdentity { prefix: "m.example/r".into(), signed_prefix: "r.example".into() };
        let mirrored = "m.example/r/team/app:1".to_owned();
        let reference = SignedIdentity::ExactReference { docker_reference: tagged.clone() };
        let repository = SignedIdentity::ExactRepository { docker_repository: "r.example/team/app".into() };
        let (exact, usual) = (SignedIdentity::MatchExact {}, SignedIdentity::MatchRepoDigestOrExact {});
        let any_tag = SignedIdentity::MatchRepository {};
        for (identity, image, signed, expected) in [
            (&exact, &tagged, "r.example/team/app:1", true),
            (&exact, &tagged, "r.example/team/app:2", false),
            (&exact, &tagged, "r.example/team/app", false),
            (&exact, &pinned, "r.example/team/app:1", false),
            (&exact, &pinned, pinned.as_str(), true),
            (&usual, &tagged, "r.example/team/app:1", true),
            (&usual, &tagged, "r.example/team/app", false),
            (&usual, &pinned, "r.example/team/app:1", true),
            (&usual, &pinned, "r.example/team/app", true),
            (&usual, &pinned, "r.example/team/apps:1", false),
            (&any_tag, &tagged, "r.example/team/app", true),
            (&any_tag, &tagged, "r.example/team/app:2", true),
            (&any_tag, &tagged, "r.example/team", false),
            (&any_tag, &tagged, "other.example/team/app", false),
            (&reference, &mirrored, "r.example/team/app:1", true),
            (&reference, &mirrored, "r.example/team/app:2", false),
            (&repository, &mirrored, "r.example/team/app:2", true),
            (&repository, &mirrored, "r.example/team/other", false),
            (&remap, &mirrored, "r.example/team/app:1", true),
            (&remap, &mirrored, "r.example/team/app:2", false),
            (&remap, &mirrored, "m.example/r/team/app:1", false),
            (&remap, &tagged, "r.example/team/app:1", true),
            (&any_tag, &tagged, "Not a name", false),
        ] {
            assert_eq!(identity.accepts(&registry(image), signed), expected, "{identity:?} {image} {signed}");
        }
        assert!(any_tag.accepts(&registry("etcd:3"), "index.docker.io/library/etcd"));
        let layout = Identity::of_path(OCI, Path::new("/x"), None);
        assert!(!any_tag.accepts(&layout, "r.example/team/app:1") && repository.accepts(&layout, &tagged));
    }

    #[test]
    fn names_in_a_policy_are_whole() {
        for wrong in [
            SignedIdentity::ExactReference { docker_reference: "r.example/app".into() },
            SignedIdentity::ExactRepository { docker_repository: "r.example/app:1".into() },
            SignedIdentity::RemapIdentity { prefix: String::new(), signed_prefix: "r.example".into() },
        ] {
            assert!(wrong.check().is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn any_signed_name_is_answered_without_panic(text in ".{0,40}") {
            let _ = SignedIdentity::MatchRepository {}.accepts(&registry("a.example/b"), &text);
        }
    }
}
