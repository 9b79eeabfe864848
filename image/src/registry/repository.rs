//! One repository of a registry, and of the mirrors before it: logging in, manifests, blobs (OCI distribution-spec 1.1).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use ureq::http::{Method, header};

use super::challenge::{self, Challenge};
use super::credentials::{Credentials, Login, Secret};
use super::error::RegistryError;
use super::http::{Http, Request, Response};
use super::settings::Insecure;
use super::url::{Url, percent_encoded};
use crate::digest::Digest;

/// Manifests and indexes that are understood.
const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
/// Largest answer of a token server.
const MAX_TOKEN: u64 = 1 << 20;

/// Where a repository can be had.
#[derive(Debug)]
pub struct Endpoint {
    /// The registry as names and credential files have it.
    pub host: String,
    /// Host and port that are connected to.
    authority: String,
    /// The repository's path there.
    path: String,
    /// How it is spoken to; unknown before the first answer.
    base: Mutex<Option<Url>>,
    /// What it is shown.
    authorization: Mutex<Option<String>>,
    /// Whether it is left alone: a mirror that did not give what was wanted.
    is_left: AtomicBool,
}

impl Endpoint {
    /// The repository `path` of `host`.
    pub fn new(host: &str, path: &str) -> Self {
        // Docker Hub's names and its registry have different hosts, and its single-word repositories a folder.
        let is_hub = matches!(host, "docker.io" | "index.docker.io");
        let authority = if is_hub { "registry-1.docker.io" } else { host };
        let path = if is_hub && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
        Self {
            host: if is_hub { "docker.io".to_owned() } else { host.to_owned() },
            authority: authority.to_owned(),
            path,
            base: Mutex::default(),
            authorization: Mutex::default(),
            is_left: AtomicBool::default(),
        }
    }
}

fn get<T: Clone>(cell: &Mutex<Option<T>>) -> Option<T> {
    cell.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn set<T>(cell: &Mutex<Option<T>>, value: T) {
    *cell.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
}

/// A repository.
#[derive(Debug)]
pub struct Repository {
    http: Arc<Http>,
    credentials: Credentials,
    /// Mirrors first, the registry itself last.
    endpoints: Vec<Endpoint>,
}

/// A manifest as it came.
#[derive(Debug)]
pub struct Document {
    pub bytes: Vec<u8>,
    pub digest: Digest,
}

impl Repository {
    pub fn new(http: Arc<Http>, credentials: Credentials, endpoints: Vec<Endpoint>) -> Self {
        Self { http, credentials, endpoints }
    }

    pub fn http(&self) -> &Http {
        &self.http
    }

    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// The first endpoint from this one on that is not left alone; the registry itself never is.
    pub fn endpoint_from(&self, number: usize) -> usize {
        let is_asked = |number: &usize| !self.endpoints[*number].is_left.load(Ordering::Relaxed);
        (number..self.endpoints.len()).find(is_asked).unwrap_or(self.endpoints.len() - 1)
    }

    /// Leaves a mirror alone from now on.
    pub fn leave(&self, number: usize) {
        if number + 1 < self.endpoints.len() {
            self.endpoints[number].is_left.store(true, Ordering::Relaxed);
        }
    }

    /// The digest of what a tag stands for, when the registry tells it without sending it.
    pub fn digest_of(&self, tag: &str) -> Result<Option<Digest>, RegistryError> {
        self.first(|number| {
            let path = format!("manifests/{tag}");
            let response = self.request(number, Method::HEAD, &path, &MANIFEST_TYPES, 0)?;
            match response.status {
                200 => Ok(response
                    .headers
                    .get("docker-content-digest")
                    .and_then(|value| value.to_str().ok()?.parse().ok())),
                // Some do not know HEAD; a GET then tells what is wrong.
                _ => Ok(None),
            }
        })
    }

    /// The manifest or index that a tag or digest stands for. `what` is its name in messages.
    pub fn manifest(&self, what: &str, tag_or_digest: &str, most: u64) -> Result<Document, RegistryError> {
        self.document(what, &format!("manifests/{tag_or_digest}"), &MANIFEST_TYPES, most)
    }

    /// A small blob.
    pub fn small_blob(&self, what: &str, digest: &Digest, most: u64) -> Result<Document, RegistryError> {
        self.document(what, &format!("blobs/{digest}"), &[], most)
    }

    /// A blob from its byte `from` on.
    pub fn request_blob(&self, endpoint: usize, digest: &Digest, from: u64) -> Result<Response, RegistryError> {
        self.request(endpoint, Method::GET, &format!("blobs/{digest}"), &[], from)
    }

    fn document(&self, what: &str, path: &str, accept: &[&str], most: u64) -> Result<Document, RegistryError> {
        self.first(|number| {
            let host = self.endpoints[number].host.clone();
            let mut attempt = 1;
            let bytes = loop {
                let response = self.request(number, Method::GET, path, accept, 0)?;
                if response.status != 200 {
                    return Err(self.status_error(number, what, response));
                }
                let media_type = response.header(header::CONTENT_TYPE).unwrap_or_default();
                if media_type.contains("manifest.v1+") && media_type.contains("docker.distribution") {
                    return Err(RegistryError::Schema1 { what: what.to_owned() });
                }
                match response.read(most) {
                    Ok(bytes) => break bytes,
                    Err(error) if attempt >= self.http.patience.attempts => return Err(error),
                    // It was cut.
                    Err(_) => sleep(self.http.backoff(attempt)),
                }
                attempt += 1;
            };
            let bytes = bytes.ok_or_else(|| RegistryError::TooLarge { what: what.to_owned(), host, most })?;
            let digest = Digest::of(&bytes);
            Ok(Document { bytes, digest })
        })
    }

    /// What the first endpoint gives that gives anything; else what the registry itself says.
    fn first<T>(&self, ask: impl Fn(usize) -> Result<T, RegistryError>) -> Result<T, RegistryError> {
        let mut number = self.endpoint_from(0);
        loop {
            match ask(number) {
                Err(_) if number + 1 < self.endpoints.len() => self.leave(number),
                result => return result,
            }
            number = self.endpoint_from(number + 1);
        }
    }

    /// What an answer means that is not the one wanted.
    pub fn status_error(&self, endpoint: usize, what: &str, response: Response) -> RegistryError {
        let endpoint = &self.endpoints[endpoint];
        let host = endpoint.host.clone();
        let is_anonymous = get(&endpoint.authorization).is_none();
        let (url, status) = (response.url.to_string(), response.status);
        match status {
            404 => {
                let login = if is_anonymous { "" } else { " for this login" };
                RegistryError::NotFound { what: what.to_owned(), host, login: login.to_owned() }
            }
            401 | 403 => {
                let why = format!("not allowed{}", response.message());
                RegistryError::Unauthorized { host, what: what.to_owned(), why }
            }
            _ => RegistryError::Status { url, status, message: response.message() },
        }
    }

    /// Asks an endpoint for something below the repository, logging in when it wants that.
    fn request(
        &self,
        number: usize,
        method: Method,
        path: &str,
        accept: &[&str],
        from: u64,
    ) -> Result<Response, RegistryError> {
        let endpoint = &self.endpoints[number];
        let path = format!("/v2/{}/{path}", endpoint.path);
        let base = self.base(endpoint)?;
        // Where a mirror fails, there is another to ask.
        let is_asked_again = number + 1 == self.endpoints.len();
        let request = Request { method, accept, from, is_asked_again, ..Request::get(base.with_path(&path)) };
        let shown = get(&endpoint.authorization);
        let response = self.http.send(&request, shown.as_deref())?;
        // Only the registry itself may ask for credentials, not whom it redirects to.
        if response.status != 401 || !response.url.same_origin(&base) {
            return Ok(response);
        }
        let headers: Vec<String> = response
            .headers
            .get_all(header::WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok().map(str::to_owned))
            .collect();
        let Some(challenge) = challenge::best(headers.iter().map(String::as_str)) else {
            let challenge = headers.join(", ");
            return Err(RegistryError::Challenge { host: endpoint.host.clone(), challenge });
        };
        let login = self.credentials.find(&endpoint.host, &endpoint.path)?;
        let authorization = self.authorization(endpoint, &base, &challenge, login.as_ref())?;
        let response = self.http.send(&request, Some(&authorization))?;
        if response.status == 401 {
            let (host, what) =
                (endpoint.host.clone(), format!("{host}/{path}", host = endpoint.host, path = endpoint.path));
            let why = why_refused(&host, login.as_ref());
            return Err(RegistryError::Unauthorized { host, what, why });
        }
        set(&endpoint.authorization, authorization);
        Ok(response)
    }

    /// How an endpoint is spoken to: with TLS, unless it is allowed to be without and has none.
    fn base(&self, endpoint: &Endpoint) -> Result<Url, RegistryError> {
        if let Some(base) = get(&endpoint.base) {
            return Ok(base);
        }
        let secure = Url::of_host(true, &endpoint.authority);
        let mut base = secure.clone();
        if self.http.is_insecure(&endpoint.authority, Insecure::Http) {
            let ping = Request::get(secure.with_path("/v2/"));
            match self.http.send_once(&ping, None) {
                // It does speak TLS.
                Ok(_) | Err(RegistryError::Certificate { .. } | RegistryError::Certificates { .. }) => {}
                Err(_) => base = Url::of_host(false, &endpoint.authority),
            }
        }
        set(&endpoint.base, base.clone());
        Ok(base)
    }

    fn authorization(
        &self,
        endpoint: &Endpoint,
        base: &Url,
        challenge: &Challenge,
        login: Option<&Login>,
    ) -> Result<String, RegistryError> {
        let host = || endpoint.host.clone();
        let what = || format!("{}/{}", endpoint.host, endpoint.path);
        match (challenge, login.map(|login| &login.secret)) {
            (Challenge::Basic, Some(Secret::Password { user, password })) => Ok(basic(user, password)),
            (Challenge::Basic, _) => {
                let why = why_refused(&endpoint.host, login);
                Err(RegistryError::Unauthorized { host: host(), what: what(), why })
            }
            (Challenge::Bearer { realm, service, scope }, secret) => {
                let url = Url::parse(realm)
                    .ok_or_else(|| RegistryError::Challenge { host: host(), challenge: realm.clone() })?;
                if !url.is_https() && base.is_https() && !self.http.is_insecure(url.authority(), Insecure::Http) {
                    let (url, to) = (base.to_string(), url.to_string());
                    let why = "tokens are not asked for without TLS; --insecure-options=http allows it";
                    return Err(RegistryError::Redirect { url, to, why });
                }
                let scope = scope.clone().unwrap_or_else(|| format!("repository:{}:pull", endpoint.path));
                let request = token_request(&url, service.as_deref(), &scope, secret);
                let shown = match secret {
                    Some(Secret::Password { user, password }) => Some(basic(user, password)),
                    _ => None,
                };
                let response = self.http.send(&request, shown.as_deref())?;
                match response.status {
                    200 => token(response).map(|token| format!("Bearer {token}")),
                    401 | 403 => {
                        let why = why_refused(&endpoint.host, login);
                        Err(RegistryError::Unauthorized { host: host(), what: what(), why })
                    }
                    status => {
                        let url = response.url.to_string();
                        Err(RegistryError::Status { url, status, message: response.message() })
                    }
                }
            }
        }
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// Why a registry refuses, and what helps.
fn why_refused(host: &str, login: Option<&Login>) -> String {
    match login {
        Some(login) => format!("the login from {} is not accepted; log in anew with `podman login {host}`", login.from),
        None => format!(
            "there is no such image, or it wants a login, and no file has one for {host}; log in with `podman login {host}` or \
             `docker login {host}`"
        ),
    }
}

/// The request for a token that allows `scope` (distribution's token specification; with an identity token, its OAuth2 form).
fn token_request<'a>(url: &Url, service: Option<&str>, scope: &str, secret: Option<&Secret>) -> Request<'a> {
    if let Some(Secret::Identity(token)) = secret {
        let service = service.map(|service| format!("&service={}", percent_encoded(service))).unwrap_or_default();
        let form = format!(
            "grant_type=refresh_token&client_id=podvm&refresh_token={}&scope={}{service}",
            percent_encoded(token),
            percent_encoded(scope)
        );
        return Request { method: Method::POST, form: Some(form), ..Request::get(url.clone()) };
    }
    let mut url = url.clone();
    if let Some(service) = service {
        url = url.with_parameter("service", service);
    }
    for scope in scope.split(' ').filter(|scope| !scope.is_empty()) {
        url = url.with_parameter("scope", scope);
    }
    Request::get(url)
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

fn token(response: Response) -> Result<String, RegistryError> {
    let url = response.url.with_path("/").to_string();
    let bytes = response.read(MAX_TOKEN)?.unwrap_or_default();
    let answer: Result<TokenAnswer, _> = serde_json::from_slice(&bytes);
    let token = match answer {
        Ok(answer) => answer.token.or(answer.access_token).filter(|token| !token.is_empty()),
        Err(error) => return Err(RegistryError::Token { url, what: error.to_string() }),
    };
    match token {
        Some(token) if token.bytes().all(|b| b.is_ascii_graphic()) => Ok(token),
        _ => Err(RegistryError::Token { url, what: "there is none".to_owned() }),
    }
}
