//! Users and passwords for registries, from the files that `podman login` and `docker login` write
//! (containers-auth.json(5)), and from credential helpers.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::error::RegistryError;

/// What Docker Hub is called in these files.
const DOCKER_HUB: [&str; 4] = ["docker.io", "https://index.docker.io/v1/", "index.docker.io", "registry-1.docker.io"];
/// What a helper says that has nothing for a host.
const HELPER_HAS_NONE: &str = "credentials not found";
/// The user by which a helper says that the secret is a token.
const TOKEN_USER: &str = "<token>";
/// Largest file that is read; real ones are a few KiB.
const MAX_FILE: u64 = 4 << 20;

/// Where credentials are looked for.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// Files in the form of podman's `auth.json`, the first that has something for a registry wins. Those that are not
    /// there are passed over.
    pub files: Vec<PathBuf>,
}

/// What is shown to a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// User and password.
    Password {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// A token that other tokens are got with.
    Identity(String),
}

/// Passwords are not for messages and logs.
impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Password { user, .. } => write!(f, "Password({user})"),
            Self::Identity(_) => f.write_str("Identity"),
        }
    }
}

/// Credentials, and where they come from.
#[derive(Debug, Clone)]
pub struct Login {
    /// What to show.
    pub secret: Secret,
    /// The file or helper, for messages.
    pub from: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AuthFile {
    auths: Option<BTreeMap<String, Entry>>,
    cred_helpers: Option<BTreeMap<String, String>>,
    creds_store: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

impl Credentials {
    /// What there is for a repository of a registry: for the longest part of its path that a file names.
    ///
    /// # Errors
    /// A file or helper cannot be read.
    pub fn find(&self, host: &str, path: &str) -> Result<Option<Login>, RegistryError> {
        for file in &self.files {
            let Some(content) = read(file)? else { continue };
            if let Some(login) = find_in(file, &content, host, path)? {
                return Ok(Some(login));
            }
        }
        Ok(None)
    }
}

fn read(path: &Path) -> Result<Option<AuthFile>, RegistryError> {
    let io_error = |source| RegistryError::CredentialFile { path: path.to_owned(), source };
    let text = match fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX_FILE => return Err(io_error(io::Error::other("it is too large"))),
        Ok(_) => fs::read(path).map_err(io_error)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(None),
        Err(error) => return Err(io_error(error)),
    };
    serde_json::from_slice(&text).map(Some).map_err(|error| io_error(error.into()))
}

fn find_in(file: &Path, content: &AuthFile, host: &str, path: &str) -> Result<Option<Login>, RegistryError> {
    let hosts: &[&str] = if host == "docker.io" { &DOCKER_HUB } else { &[host] };
    for (name, helper) in content.cred_helpers.iter().flatten() {
        if hosts.contains(&name.as_str())
            && let Some(login) = ask_helper(helper, name)?
        {
            return Ok(Some(login));
        }
    }
    let auths = content.auths.iter().flatten();
    let fitting = auths.filter_map(|(name, entry)| Some((fit(name, hosts, path)?, entry)));
    if let Some((_, entry)) = fitting.max_by_key(|(length, _)| *length)
        && let Some(secret) = entry_secret(file, entry)?
    {
        return Ok(Some(Login { secret, from: file.display().to_string() }));
    }
    if let Some(helper) = &content.creds_store {
        for name in hosts {
            match ask_helper(helper, name) {
                Ok(None) => {}
                // Whoever uninstalls Docker Desktop keeps the file that names its store, for all registries.
                Err(RegistryError::NoHelper { .. }) => return Ok(None),
                found => return found,
            }
        }
    }
    Ok(None)
}

/// How much of `host/path` an entry of this name covers; `None` when it is for something else.
fn fit(name: &str, hosts: &[&str], path: &str) -> Option<usize> {
    if hosts.contains(&name) {
        return Some(0);
    }
    // docker writes `https://host/v1/`; only podman's entries have paths that mean repositories.
    let (bare, is_url) = match name.strip_prefix("https://").or_else(|| name.strip_prefix("http://")) {
        Some(bare) => (bare, true),
        None => (name, false),
    };
    let (host, prefix) = bare.split_once('/').unwrap_or((bare, ""));
    if !hosts.contains(&host) {
        return None;
    }
    let covers = is_url
        || prefix.is_empty()
        || path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    covers.then_some(if is_url { 0 } else { prefix.len() })
}

fn entry_secret(file: &Path, entry: &Entry) -> Result<Option<Secret>, RegistryError> {
    if let Some(token) = entry.identitytoken.as_deref().filter(|token| !token.is_empty()) {
        return Ok(Some(Secret::Identity(token.to_owned())));
    }
    if let (Some(user), Some(password)) = (&entry.username, &entry.password) {
        return Ok(Some(Secret::Password { user: user.clone(), password: password.clone() }));
    }
    let Some(auth) = entry.auth.as_deref().filter(|auth| !auth.is_empty()) else { return Ok(None) };
    let decoded = STANDARD.decode(auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let Some((user, password)) = decoded.as_deref().and_then(|text| text.split_once(':')) else {
        let source = io::Error::other("an auth entry is not the base64 form of USER:PASSWORD; log in again");
        return Err(RegistryError::CredentialFile { path: file.to_owned(), source });
    };
    // docker pads with zeros.
    let password = password.trim_end_matches('\0').to_owned();
    Ok(Some(Secret::Password { user: user.to_owned(), password }))
}

/// Asks `docker-credential-NAME get` (docker-credential-helpers' protocol).
fn ask_helper(name: &str, host: &str) -> Result<Option<Login>, RegistryError> {
    let program = format!("docker-credential-{name}");
    let failed = |what: String| RegistryError::Helper { program: program.clone(), host: host.to_owned(), what };
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        return Err(failed("that is no name of a program".into()));
    }
    let run = || {
        let mut child = Command::new(&program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            match stdin.write_all(host.as_bytes()) {
                // It needs no host to know that it has nothing.
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
                _ => {}
            }
        }
        child.wait_with_output()
    };
    let output = run().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => RegistryError::NoHelper { program: program.clone(), host: host.to_owned() },
        _ => failed(error.to_string()),
    })?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let complaint = format!("{} {}", said.trim(), String::from_utf8_lossy(&output.stderr).trim());
        return if complaint.contains(HELPER_HAS_NONE) { Ok(None) } else { Err(failed(complaint.trim().to_owned())) };
    }
    let answer: HelperAnswer = serde_json::from_str(&said).map_err(|error| failed(error.to_string()))?;
    let secret = match answer.username.as_str() {
        "" => return Ok(None),
        TOKEN_USER => Secret::Identity(answer.secret),
        _ => Secret::Password { user: answer.username, password: answer.secret },
    };
    Ok(Some(Login { secret, from: program }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn user(file: &str, host: &str, path: &str) -> Option<String> {
        let content = serde_json::from_str(file).unwrap();
        let login = find_in(Path::new("auth.json"), &content, host, path).unwrap()?;
        Some(match login.secret {
            Secret::Password { user, password } => format!("{user}:{password}"),
            Secret::Identity(token) => token,
        })
    }

    #[test]
    fn the_longest_fitting_entry_wins() {
        let auth = |text: &str| STANDARD.encode(text);
        let file = format!(
            r#"{{"auths":{{"quay.io":{{"auth":"{}"}},"quay.io/team":{{"auth":"{}"}},"quay.io/team/app":{{"auth":"{}"}},
            "https://index.docker.io/v1/":{{"auth":"{}"}},"r.example:5000":{{"identitytoken":"t"}},"empty.example":{{}}}}}}"#,
            auth("a:1"),
            auth("b:2:3"),
            auth("c:4"),
            auth("hub:pw\0\0"),
        );
        for (host, path, expected) in [
            ("quay.io", "other", Some("a:1")),
            ("quay.io", "team/x", Some("b:2:3")),
            ("quay.io", "team/app", Some("c:4")),
            ("quay.io", "teams", Some("a:1")),
            ("docker.io", "library/etcd", Some("hub:pw")),
            ("r.example:5000", "x", Some("t")),
            ("r.example", "x", None),
            ("empty.example", "x", None),
        ] {
            assert_eq!(user(&file, host, path).as_deref(), expected, "{host}/{path}");
        }
    }

    #[test]
    fn what_is_no_auth_entry_names_the_file() {
        let content = serde_json::from_str(r#"{"auths":{"h.x":{"auth":"!"}}}"#).unwrap();
        let error = find_in(Path::new("/x/auth.json"), &content, "h.x", "a").unwrap_err().to_string();
        assert!(error.contains("/x/auth.json") && error.contains("log in again"), "{error}");
    }

    #[test]
    fn a_store_that_is_not_installed_has_nothing_and_a_hosts_own_helper_must_be_there() {
        const MISSING: &str = "podvm-test-of-what-is-missing";
        assert_eq!(user(&format!(r#"{{"credsStore":"{MISSING}"}}"#), "docker.io", "library/a"), None);
        let own = format!(r#"{{"credHelpers":{{"h.x":"{MISSING}"}}}}"#);
        let error = find_in(Path::new("f"), &serde_json::from_str(&own).unwrap(), "h.x", "a").unwrap_err().to_string();
        assert!(error.contains(MISSING) && error.contains("h.x") && error.contains("install"), "{error}");
    }

    #[test]
    fn secrets_are_not_in_debug_output() {
        let secret = Secret::Password { user: "me".into(), password: "hush".into() };
        assert!(!format!("{secret:?} {:?}", Secret::Identity("hush".into())).contains("hush"));
    }

    proptest! {
        #[test]
        fn any_file_is_answered_without_panic(text in "[\\[\\]{}:,\"a-z0-9]{0,80}", name in "[a-z:/.]{0,30}") {
            if let Ok(content) = serde_json::from_str::<AuthFile>(&text) {
                let _ = find_in(Path::new("f"), &content, "h.x", "a/b");
            }
            let _ = fit(&name, &["h.x"], "a/b");
        }
    }
}
