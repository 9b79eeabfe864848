//! What goes wrong with registries.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::lookaside::LookasideError;

/// Why something could not be had from a registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No connection, or it ended, and again on every further attempt.
    #[error("{url}: {what}")]
    Connect {
        /// What was asked for.
        url: String,
        /// Why.
        what: String,
    },
    /// The other side speaks no TLS, or none that is accepted.
    #[error("{url}: no TLS connection ({what}); if it speaks plain HTTP, allow that with --insecure-options=http")]
    Tls {
        /// What was asked for.
        url: String,
        /// Why.
        what: String,
    },
    /// The other side's certificate is not trusted.
    #[error(
        "{url}: its certificate is not trusted ({what}); name its authority's certificate as `ca` in the configuration, or \
         do without the check by --insecure-options=tls"
    )]
    Certificate {
        /// What was asked for.
        url: String,
        /// Why.
        what: String,
    },
    /// The system's certificates, or a registry's own, cannot be used.
    #[error("certificates {}: {what}", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// Why.
        what: String,
    },
    /// The registry does not have it, or does not say so to everyone.
    #[error("{host} has no {what}{login}; check the name and its tag")]
    NotFound {
        /// What was asked for.
        what: String,
        /// Who was asked.
        host: String,
        /// ` for this login`, or empty.
        login: String,
    },
    /// A name without a registry, and none of those searched has it.
    #[error("no registry has {wanted}: {}", tried.join("; "))]
    NoneHas {
        /// The name.
        wanted: String,
        /// What each said.
        tried: Vec<String>,
    },
    /// Credentials are missing or refused.
    #[error("{host} refuses {what}: {why}")]
    Unauthorized {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// With what it was asked, and what helps.
        why: String,
    },
    /// Too many requests.
    #[error(
        "{host} takes no more requests for now{}; try later, or log in for a higher limit",
        .wait.map(|wait| format!(" and asks to wait {} s", wait.as_secs())).unwrap_or_default()
    )]
    RateLimited {
        /// The registry.
        host: String,
        /// How long it asks to wait.
        wait: Option<Duration>,
    },
    /// Another answer than can be used.
    #[error("{url}: the registry answers {status}{message}")]
    Status {
        /// What was asked for.
        url: String,
        /// HTTP's status.
        status: u16,
        /// What the registry says; begins with a colon, or empty.
        message: String,
    },
    /// Redirects that must not be followed.
    #[error("{url}: redirected to {to}: {why}")]
    Redirect {
        /// What was asked for.
        url: String,
        /// Where it leads.
        to: String,
        /// Why not.
        why: &'static str,
    },
    /// Without TLS, where that is not allowed.
    #[error("{url} is without TLS; --insecure-options=http allows it")]
    Plain {
        /// What was asked for.
        url: String,
    },
    /// A challenge that is not understood.
    #[error("{host} asks for a login in a way that is not understood: {challenge:?}")]
    Challenge {
        /// The registry.
        host: String,
        /// The header.
        challenge: String,
    },
    /// A token server's answer cannot be used.
    #[error("{url}: no token in the answer ({what})")]
    Token {
        /// The token server.
        url: String,
        /// Why.
        what: String,
    },
    /// A document is too large.
    #[error("{what} at {host} is larger than {most} bytes, the most that is accepted")]
    TooLarge {
        /// The document.
        what: String,
        /// The registry.
        host: String,
        /// The limit.
        most: u64,
    },
    /// A layer has fewer or more bytes than its manifest says.
    #[error("{what} at {host} has {actual} bytes, expected {expected}; the registry's copy is damaged")]
    Size {
        /// The layer.
        what: String,
        /// The registry.
        host: String,
        /// What the manifest says.
        expected: u64,
        /// What there is.
        actual: u64,
    },
    /// A layer's transfer was cut short, and could not be gone on with.
    #[error("{what} from {host}: the connection ended after {done} of {size} bytes, {attempts} times without progress")]
    Cut {
        /// The layer.
        what: String,
        /// The registry.
        host: String,
        /// Bytes had.
        done: u64,
        /// Bytes to be had.
        size: u64,
        /// How often it was tried.
        attempts: u32,
    },
    /// What arrives of a layer cannot be kept.
    #[error("what has arrived of a layer, {}: {source}", path.display())]
    Kept {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An old form of image.
    #[error("{what} is in Docker's manifest schema 1, which is not supported; push it again with a current tool")]
    Schema1 {
        /// The image.
        what: String,
    },
    /// A file of credentials cannot be used.
    #[error("credentials {}: {source}", path.display())]
    CredentialFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A credential helper fails.
    #[error("{program} has no credentials for {host}: {what}")]
    Helper {
        /// The helper.
        program: String,
        /// The registry.
        host: String,
        /// What it says.
        what: String,
    },
    /// Nobody knows where signatures by GPG keys are.
    #[error(transparent)]
    Lookaside(#[from] LookasideError),
    /// A signature by a GPG key cannot be read.
    #[error("signature {}: {source}", path.display())]
    SignatureFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The server of signatures by GPG keys does not say whether there is one.
    #[error("signature {url}: the server answers {status}, where it must give it or answer 404")]
    SignatureStatus {
        /// What was asked for.
        url: String,
        /// HTTP's status.
        status: u16,
    },
    /// A credential helper is not installed.
    #[error(
        "{program} is not installed, but a file of logins names it for {host}; install it, or take it out of the file"
    )]
    NoHelper {
        /// The helper.
        program: String,
        /// The registry.
        host: String,
    },
    /// A mirror or place to search is no `HOST` or `HOST/PATH`.
    #[error("configuration: {setting} {value:?} is no HOST or HOST/PATH of a registry")]
    Setting {
        /// Which setting.
        setting: &'static str,
        /// Its value.
        value: String,
    },
}

impl RegistryError {
    /// Whether another registry may still have what this one has not.
    pub(crate) fn is_absence(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::Unauthorized { .. })
    }

    /// As an I/O error, for readers.
    pub(crate) fn into_io(self) -> io::Error {
        io::Error::other(self)
    }
}
