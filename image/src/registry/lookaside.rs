//! Where signatures by GPG keys are, which registries themselves do not keep: what `registries.d` says (containers-registries.d(5)), which
//! podman and skopeo are told by, too.
//!
//! ```yaml
//! default-docker:
//!   lookaside: file:///var/lib/containers/sigstore
//! docker:
//!   registry.example/team:
//!     lookaside: https://signatures.example
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::url::Url;
use crate::trust::Identity;

/// Largest file of the configuration.
const MAX_FILE: u64 = 1 << 20;
/// Most files of it.
const MAX_FILES: usize = 1000;

/// Where the configuration is, and what goes without it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lookaside {
    /// Folders with files `*.yaml`. The first that is there counts.
    pub folders: Vec<PathBuf>,
    /// Whether one must be there.
    pub is_required: bool,
    /// The folder of signatures that are nowhere else.
    pub default: Option<PathBuf>,
}

/// Why nobody knows where signatures are.
#[derive(Debug, thiserror::Error)]
pub enum LookasideError {
    /// A file or folder cannot be read.
    #[error("places of signatures: {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file says something that is not understood.
    #[error("places of signatures: {}: {what}; see containers-registries.d(5)", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What.
        what: String,
    },
    /// Two files speak of the same.
    #[error("places of signatures: {scope} is in {} and in {}; take it out of one of them", one.display(), other.display())]
    Twice {
        /// Of what.
        scope: String,
        /// One file.
        one: PathBuf,
        /// The other.
        other: PathBuf,
    },
    /// A place that is none.
    #[error("places of signatures: {}: {place:?} of {scope} is no file:///PATH, https://HOST/PATH or http://HOST/PATH", path.display())]
    Place {
        /// The file.
        path: PathBuf,
        /// Whose place.
        scope: String,
        /// The place as it is written.
        place: String,
    },
}

/// A place of signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Storage {
    Folder(PathBuf),
    Web(Url),
}

/// A file. What is not known of it is for others, who have more settings there.
#[derive(Default, Deserialize)]
struct File {
    #[serde(rename = "default-docker")]
    default: Option<Section>,
    docker: Option<BTreeMap<String, Option<Section>>>,
}

#[derive(Default, Deserialize)]
struct Section {
    lookaside: Option<String>,
    /// The older name.
    sigstore: Option<String>,
}

/// What is said for a scope.
struct Entry {
    file: PathBuf,
    place: Option<String>,
}

/// What messages call the section for everything else.
const DEFAULT: &str = "default-docker";

impl Lookaside {
    /// Where the signatures of an image are; nowhere when nothing is configured.
    pub(super) fn storage(&self, image: &Identity) -> Result<Option<Storage>, LookasideError> {
        let entries = self.read()?;
        // A section without a place leaves it to a wider one, as podman does it.
        for scope in image.scopes().iter().map(String::as_str).chain([DEFAULT]) {
            let Some(Entry { file, place: Some(place) }) = entries.get(scope) else { continue };
            let wrong = || LookasideError::Place { path: file.clone(), scope: scope.to_owned(), place: place.clone() };
            return Storage::parse(place).map(Some).ok_or_else(wrong);
        }
        Ok(self.default.clone().map(Storage::Folder))
    }

    /// All sections by their scopes.
    fn read(&self) -> Result<BTreeMap<String, Entry>, LookasideError> {
        let mut entries = BTreeMap::new();
        for path in self.files()? {
            let File { default, docker } = parse(&path)?;
            let default = default.map(|section| (DEFAULT.to_owned(), section));
            let docker = docker.unwrap_or_default().into_iter();
            let sections = docker.map(|(scope, section)| (scope, section.unwrap_or_default()));
            for (scope, Section { lookaside, sigstore }) in sections.chain(default) {
                let place = [lookaside, sigstore].into_iter().flatten().find(|place| !place.is_empty());
                let entry = Entry { file: path.clone(), place };
                if let Some(Entry { file: one, .. }) = entries.insert(scope.clone(), entry) {
                    return Err(LookasideError::Twice { scope, one, other: path });
                }
            }
        }
        Ok(entries)
    }

    fn files(&self) -> Result<Vec<PathBuf>, LookasideError> {
        for folder in &self.folders {
            let failed = |source| LookasideError::Read { path: folder.clone(), source };
            let entries = match fs::read_dir(folder) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound && !self.is_required => continue,
                Err(error) => return Err(failed(error)),
            };
            let mut files = Vec::new();
            for entry in entries {
                let path = entry.map_err(failed)?.path();
                if path.extension().is_some_and(|end| end == "yaml") {
                    files.push(path);
                }
                if files.len() > MAX_FILES {
                    return Err(failed(io::Error::other(format!("it has more than {MAX_FILES} files"))));
                }
            }
            files.sort();
            return Ok(files);
        }
        Ok(Vec::new())
    }
}

fn parse(path: &Path) -> Result<File, LookasideError> {
    let failed = |source| LookasideError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let file = fs::File::open(path).map_err(failed)?;
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE {
        return Err(failed(io::Error::other("it is too large")));
    }
    parse_text(&text).map_err(|what| LookasideError::Broken { path: path.to_owned(), what })
}

fn parse_text(text: &str) -> Result<File, String> {
    let options = serde_saphyr::options! { with_snippet: false };
    let file: Result<Option<File>, _> = serde_saphyr::from_str_with_options(text, options);
    let one_line = |text: String| text.lines().map(str::trim).collect::<Vec<_>>().join(" ").chars().take(300).collect();
    file.map(Option::unwrap_or_default).map_err(|error| one_line(error.to_string()))
}

impl Storage {
    fn parse(place: &str) -> Option<Self> {
        if let Some(path) = place.strip_prefix("file://") {
            // On this host, whatever it calls itself.
            let path = decoded(path.strip_prefix("localhost").unwrap_or(path))?;
            return path.starts_with('/').then(|| Self::Folder(path.into()));
        }
        let is_plain = !place.contains(['?', '#']);
        Url::parse(place).filter(|_| is_plain).map(Self::Web)
    }
}

/// A path of a URL without its percent signs.
fn decoded(path: &str) -> Option<String> {
    let mut parts = path.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        bytes.extend(hex::decode(digits).ok()?);
        bytes.extend(rest.as_bytes());
    }
    String::from_utf8(bytes).ok().filter(|path| !path.contains(['\0', '?', '#']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn image() -> Identity {
        Identity::of_registry(&"r.example:5000/team/app:1".parse().unwrap())
    }

    /// The place of the image's signatures by these files.
    fn place(files: &[&str]) -> Result<Option<Storage>, String> {
        let folder = tempfile::tempdir().unwrap();
        for (number, text) in files.iter().enumerate() {
            fs::write(folder.path().join(format!("{number}.yaml")), text).unwrap();
        }
        fs::write(folder.path().join("notes.txt"), ": [").unwrap();
        let folders = vec![folder.path().join("missing"), folder.path().to_owned()];
        let lookaside = Lookaside { folders, is_required: false, default: Some("/default".into()) };
        lookaside.storage(&image()).map_err(|error| error.to_string())
    }

    fn folder(path: &str) -> Result<Option<Storage>, String> {
        Ok(Some(Storage::Folder(path.into())))
    }

    #[test]
    fn the_narrowest_section_with_a_place_counts() {
        let all = "default-docker:\n  lookaside: file:///all\n";
        let team = "docker:\n  r.example:5000/team: {lookaside: 'file:///team'}\n  other.example: {lookaside: x}\n";
        let app =
            "docker:\n  r.example:5000/team/app:\n    sigstore: file:///app\n    use-sigstore-attachments: true\n";
        assert_eq!(place(&[]), folder("/default"));
        assert_eq!(place(&[all]), folder("/all"));
        assert_eq!(place(&[all, team]), folder("/team"));
        assert_eq!(place(&[all, team, app]), folder("/app"));
        let tag = "docker:\n  \"r.example:5000/team/app:1\":\n    lookaside: file:///new\n    sigstore: file:///old\n";
        assert_eq!(place(&[tag, app]), folder("/new"));
        // As distributions have it: only for writing, or all of it commented out.
        assert_eq!(place(&["default-docker:\n  lookaside-staging: file:///w\n"]), folder("/default"));
        assert_eq!(place(&["default-docker:\n#  lookaside: x\ndocker:\n# nothing\n", ""]), folder("/default"));
        assert_eq!(place(&["# nothing\n", "docker:\n  r.example:5000:\n", team]), folder("/team"));
    }

    #[test]
    fn places_are_folders_or_on_the_web() {
        let url = Url::parse("https://s.example:8/x").unwrap();
        assert_eq!(Storage::parse("https://s.example:8/x"), Some(Storage::Web(url)));
        for (text, path) in [("file:///a%20b/c", "/a b/c"), ("file://localhost/a", "/a")] {
            assert_eq!(Storage::parse(text), Some(Storage::Folder(path.into())));
        }
        for wrong in
            ["/a", "file://host/a", "file:///a%2", "file:///%zz", "file:///a?b", "ftp://a/b", "https://a/b?c", "a", ""]
        {
            assert_eq!(Storage::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_not_understood_is_named_with_its_file() {
        let one = "docker:\n  r.example:5000/team: {lookaside: 'file:///a'}\n";
        for (files, part) in [
            (&[one, one][..], "r.example:5000/team is in"),
            (&["default-docker: {}", "default-docker: {}"], "default-docker is in"),
            (&["docker: ["], "0.yaml"),
            (&["docker: [a]"], "containers-registries.d(5)"),
            (&["docker: {a: {lookaside: [1]}}"], "containers-registries.d(5)"),
            (&["docker: {a: {}, a: {}}"], "containers-registries.d(5)"),
            (&["docker: {r.example:5000: {lookaside: here}}"], "\"here\" of r.example:5000"),
        ] {
            let error = place(files).unwrap_err();
            assert!(error.contains(part) && error.contains(".yaml"), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
        let large = "#".repeat(MAX_FILE as usize + 1);
        assert!(place(&[&large]).unwrap_err().contains("too large"));
        let lookaside = Lookaside { folders: vec!["/nonexistent".into()], is_required: true, default: None };
        assert!(lookaside.storage(&image()).unwrap_err().to_string().contains("/nonexistent"));
        assert_eq!(Lookaside::default().storage(&image()).unwrap(), None);
    }

    #[test]
    fn aliases_do_not_multiply_without_end() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
        }
        assert!(parse_text(&bomb).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_answered_without_panic(text in ".{0,80}", near in "[-a-z:{}\\[\\]&*!|>'\"# \n]{0,60}") {
            let _ = parse_text(&text);
            let _ = parse_text(&near);
            let _ = parse_text(&format!("docker:\n  {near}"));
            let _ = Storage::parse(&format!("file://{text}"));
        }
    }
}
