//! Requests to registries: TLS, redirects, and attempts that are repeated.
//!
//! Redirects are followed here and not by the HTTP library, since what is shown to one origin is not for another.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use ureq::http::{HeaderMap, Method, Request as HttpRequest, header};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::error::RegistryError;
use super::pace::Paced;
use super::settings::{HostSettings, Insecure, Patience, RegistrySettings};
use super::url::Url;

/// Most redirects from one request.
const MAX_REDIRECTS: u32 = 5;
/// Size of the buffer that answers are read into.
const INPUT_BUFFER: usize = 256 * 1024;
/// Where systems have all their certificates in one file: Debian and its kin, Fedora and its kin, openSUSE, Alpine.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Largest message of a registry that is looked at.
const MAX_MESSAGE: u64 = 64 * 1024;

/// A request without its authorization.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    pub method: Method,
    pub url: Url,
    /// Media types.
    pub accept: &'a [&'a str],
    /// First byte wanted, if not all.
    pub from: u64,
    /// A form to be posted.
    pub form: Option<String>,
    /// Whether it is sent again when another attempt may do better.
    pub is_asked_again: bool,
    /// When the answer is wanted, or a part of it.
    pub conditions: Vec<(header::HeaderName, String)>,
}

impl<'a> Request<'a> {
    pub fn get(url: Url) -> Self {
        Self {
            method: Method::GET,
            url,
            accept: &[],
            from: 0,
            form: None,
            is_asked_again: true,
            conditions: Vec::new(),
        }
    }
}

/// An answer.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Body,
    /// Who answered, after redirects.
    pub url: Url,
    /// How long a certain part of the body may take.
    patience: Duration,
}

impl Response {
    pub fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body, which must not come too slowly.
    pub fn into_reader(self) -> impl Read + Send + use<> {
        Paced::new(self.body.into_reader(), self.patience)
    }

    /// All of a small body; `None` when it is larger than `most`.
    pub fn read(self, most: u64) -> Result<Option<Vec<u8>>, RegistryError> {
        let (url, mut bytes) = (self.url.to_string(), Vec::new());
        let read = self.into_reader().take(most + 1).read_to_end(&mut bytes);
        read.map_err(|error| RegistryError::Connect { url, what: error.to_string() })?;
        Ok((bytes.len() as u64 <= most).then_some(bytes))
    }

    /// What the registry says of an error, as `: TEXT`, or nothing.
    pub fn message(self) -> String {
        let text = self.read(MAX_MESSAGE).ok().flatten().unwrap_or_default();
        let value: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        let first = &value["errors"][0];
        let word = first["message"].as_str().or(first["code"].as_str()).or(value["details"].as_str());
        let clean: String = word.unwrap_or_default().chars().filter(|c| !c.is_control()).take(200).collect();
        if clean.is_empty() { clean } else { format!(": {clean}") }
    }
}

/// Whose certificates are trusted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Trust {
    /// No TLS is spoken.
    Plain,
    System(Option<PathBuf>),
    Anyone,
}

/// What sends requests. Connections are kept for further requests.
#[derive(Debug)]
pub struct Http {
    pub patience: Patience,
    /// Left out with all hosts.
    insecure: Vec<Insecure>,
    hosts: BTreeMap<String, HostSettings>,
    /// Trusted instead of the system's.
    ca: Option<PathBuf>,
    /// By whom they trust, and whether they go past the environment's proxy.
    agents: Mutex<HashMap<(Trust, bool), Agent>>,
}

impl Http {
    pub fn new(patience: Patience, insecure: Vec<Insecure>, settings: &RegistrySettings) -> Self {
        let (hosts, ca) = (settings.hosts.clone(), settings.ca.clone());
        Self { patience, insecure, hosts, ca, agents: Mutex::default() }
    }

    /// Whether a check is left out with this host.
    pub fn is_insecure(&self, authority: &str, option: Insecure) -> bool {
        self.insecure.contains(&option) || self.hosts.get(authority).is_some_and(|host| host.insecure.contains(&option))
    }

    fn agent(&self, url: &Url) -> Result<Agent, RegistryError> {
        let trust = if !url.is_https() {
            Trust::Plain
        } else if self.is_insecure(url.authority(), Insecure::Tls) {
            Trust::Anyone
        } else {
            Trust::System(self.hosts.get(url.authority()).and_then(|host| host.ca.clone()))
        };
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        // A proxy is elsewhere, and has a loopback of its own.
        let is_direct = url.is_loopback();
        let key = (trust, is_direct);
        if let Some(agent) = agents.get(&key) {
            return Ok(agent.clone());
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = TlsConfig::builder().unversioned_rustls_crypto_provider(provider);
        let tls = match &key.0 {
            Trust::Plain => tls,
            Trust::Anyone => tls.disable_verification(true).root_certs(RootCerts::Specific(Arc::default())),
            Trust::System(own) => {
                let mut certificates = match &self.ca {
                    Some(path) => certificates_in(path)?,
                    None => system_certificates()?,
                };
                if let Some(path) = own {
                    certificates.extend(certificates_in(path)?);
                }
                tls.root_certs(RootCerts::Specific(Arc::new(certificates)))
            }
        };
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .accept_encoding("identity")
            .user_agent(concat!("podvm/", env!("CARGO_PKG_VERSION")))
            .input_buffer_size(INPUT_BUFFER)
            .timeout_connect(Some(self.patience.connect))
            .timeout_recv_response(Some(self.patience.read))
            .timeout_per_read(Some(self.patience.read))
            .timeout_per_write(Some(self.patience.read))
            .tls_config(tls.build());
        let config = if is_direct { config.proxy(None) } else { config };
        let agent = config.build().new_agent();
        agents.insert(key, agent.clone());
        Ok(agent)
    }

    /// Sends a request until there is an answer that another attempt would not change.
    ///
    /// `authorization` is shown to the request's own origin only.
    pub fn send(&self, request: &Request<'_>, authorization: Option<&str>) -> Result<Response, RegistryError> {
        let mut attempt = 1;
        loop {
            let last = attempt >= self.patience.attempts || !request.is_asked_again;
            let (wait, error) = match self.follow(request, authorization) {
                Ok(response) if is_passing(response.status) => {
                    let asked = retry_after(&response);
                    if response.status == 429 && (last || asked.is_some_and(|wait| wait > self.patience.longest_wait)) {
                        let host = response.url.authority().to_owned();
                        return Err(RegistryError::RateLimited { host, wait: asked });
                    }
                    if last || asked.is_some_and(|wait| wait > self.patience.longest_wait) {
                        return Ok(response);
                    }
                    (asked, None)
                }
                Ok(response) => return Ok(response),
                Err((error, may_pass)) if last || !may_pass => return Err(error),
                Err((error, _)) => (None, Some(error)),
            };
            drop(error);
            sleep(wait.unwrap_or_else(|| self.backoff(attempt)));
            attempt += 1;
        }
    }

    /// Sends a request once. For finding out how a host is to be spoken to.
    pub fn send_once(&self, request: &Request<'_>, authorization: Option<&str>) -> Result<Response, RegistryError> {
        self.follow(request, authorization).map_err(|(error, _)| error)
    }

    /// How long to wait before another attempt.
    pub fn backoff(&self, attempt: u32) -> Duration {
        self.patience.backoff.saturating_mul(1 << attempt.saturating_sub(1).min(10)).min(self.patience.longest_wait)
    }

    /// One attempt, with its redirects. An error comes with whether another attempt may do better.
    fn follow(&self, request: &Request<'_>, authorization: Option<&str>) -> Result<Response, (RegistryError, bool)> {
        let mut url = request.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let shown = authorization.filter(|_| url.same_origin(&request.url));
            let response = self.exchange(request, &url, shown)?;
            let is_redirect = matches!(response.status, 301 | 302 | 303 | 307 | 308);
            let Some(location) = response.header(header::LOCATION).filter(|_| is_redirect) else { return Ok(response) };
            let refused = |why| {
                let to = location.chars().filter(|c| !c.is_control()).take(200).collect();
                (RegistryError::Redirect { url: request.url.to_string(), to, why }, false)
            };
            let next = url.join(location).ok_or_else(|| refused("that is no address of HTTP"))?;
            if request.form.is_some() && !next.same_origin(&request.url) {
                return Err(refused("a password must not go to another host"));
            }
            if url.is_https() && !next.is_https() && !self.is_insecure(next.authority(), Insecure::Http) {
                return Err(refused("that is without TLS; --insecure-options=http allows it"));
            }
            url = next;
        }
        let why = "that was one redirect too many";
        Err((RegistryError::Redirect { url: request.url.to_string(), to: url.to_string(), why }, false))
    }

    fn exchange(
        &self,
        request: &Request<'_>,
        url: &Url,
        authorization: Option<&str>,
    ) -> Result<Response, (RegistryError, bool)> {
        let agent = self.agent(url).map_err(|error| (error, false))?;
        let mut builder = HttpRequest::builder().method(request.method.clone()).uri(url.to_string());
        for accept in request.accept {
            builder = builder.header(header::ACCEPT, *accept);
        }
        if request.from > 0 {
            builder = builder.header(header::RANGE, format!("bytes={}-", request.from));
        }
        for (name, value) in &request.conditions {
            builder = builder.header(name, value);
        }
        if let Some(authorization) = authorization {
            builder = builder.header(header::AUTHORIZATION, authorization);
        }
        let sent = match &request.form {
            Some(form) => {
                let builder = builder.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
                builder.body(form.as_str()).map_err(ureq::Error::Http).and_then(|request| agent.run(request))
            }
            None => builder.body(()).map_err(ureq::Error::Http).and_then(|request| agent.run(request)),
        };
        let response = sent.map_err(|error| explain(url, &error))?;
        let (parts, body) = response.into_parts();
        let (status, patience) = (parts.status.as_u16(), self.patience.read);
        Ok(Response { status, headers: parts.headers, body, url: url.clone(), patience })
    }
}

/// Statuses that may be others the next time.
fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
}

fn retry_after(response: &Response) -> Option<Duration> {
    wait_until(response.header(header::RETRY_AFTER)?.trim(), SystemTime::now())
}

/// How long is to be waited from now on: seconds, or until a date (RFC 9110, section 10.2.3).
fn wait_until(text: &str, now: SystemTime) -> Option<Duration> {
    let seconds = text.parse().ok().map(Duration::from_secs);
    seconds.or_else(|| Some(httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()))
}

/// What a transport's error means, and whether another attempt may do better.
fn explain(url: &Url, error: &ureq::Error) -> (RegistryError, bool) {
    let host = url.with_path("/").to_string();
    let connect = |what: String| RegistryError::Connect { url: host.clone(), what };
    let tls = |error: &rustls::Error| match error {
        rustls::Error::InvalidCertificate(why) => {
            let what = format!("{why}");
            RegistryError::Certificate { url: host.clone(), what }
        }
        _ => RegistryError::Tls { url: host.clone(), what: error.to_string() },
    };
    match error {
        ureq::Error::Rustls(error) => (tls(error), false),
        ureq::Error::Tls(what) => (RegistryError::Tls { url: host, what: (*what).to_owned() }, false),
        ureq::Error::Io(error) => {
            if let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                return (tls(inner), false);
            }
            let hopeless = matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::HostUnreachable
                    | io::ErrorKind::NetworkUnreachable
                    | io::ErrorKind::PermissionDenied
            );
            let message = error.to_string();
            // The resolver has made its own attempts.
            let no_address = message.starts_with("failed to lookup address");
            (connect(format!("no connection: {message}")), !hopeless && !no_address)
        }
        ureq::Error::HostNotFound => (connect("there is no host of that name".to_owned()), false),
        ureq::Error::Timeout(_) => (connect("no answer in time".to_owned()), true),
        other => (connect(other.to_string()), matches!(other, ureq::Error::ConnectionFailed)),
    }
}

/// What the system trusts. Where all of it is in one file, the directory of single files is not read.
fn system_certificates() -> Result<Vec<Certificate<'static>>, RegistryError> {
    if let Some(bundle) = BUNDLES.iter().map(Path::new).find(|bundle| bundle.exists()) {
        return certificates_in(bundle);
    }
    // A file that cannot be read is as if it were not there.
    let loaded = rustls_native_certs::load_native_certs();
    Ok(loaded.certs.iter().map(|der| Certificate::from_der(der.as_ref()).to_owned()).collect())
}

fn certificates_in(path: &Path) -> Result<Vec<Certificate<'static>>, RegistryError> {
    let wrong = |what: String| RegistryError::Certificates { path: path.to_owned(), what };
    let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|error| wrong(error.to_string()))? {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        return Err(wrong("it holds no certificate in PEM form".to_owned()));
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_a_number_of_seconds_or_ends_at_a_date() {
        let now = httpdate::parse_http_date("Fri, 31 Dec 1999 23:59:50 GMT").unwrap();
        for (text, seconds) in [
            ("7", Some(7)),
            ("Sat, 01 Jan 2000 00:00:20 GMT", Some(30)),
            ("Fri, 31 Dec 1999 23:59:49 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ] {
            assert_eq!(wait_until(text, now), seconds.map(Duration::from_secs), "{text}");
        }
    }
}
