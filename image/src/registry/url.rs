//! Just enough of URLs (RFC 3986) for registries: what they redirect to, and whether that is another origin.

use std::fmt;
use std::net::IpAddr;

/// An absolute `http` or `https` URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    is_https: bool,
    /// Host and port as written, without a user.
    authority: String,
    /// Path and query, beginning with a slash.
    path: String,
}

impl Url {
    /// The root of a host.
    pub fn of_host(is_https: bool, authority: &str) -> Self {
        Self { is_https, authority: authority.to_owned(), path: "/".to_owned() }
    }

    /// Reads an absolute URL; `None` when it is none, or has characters that no URL has.
    pub fn parse(text: &str) -> Option<Self> {
        let scheme_end = text.find("://")?;
        let is_https = match text[..scheme_end].to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let rest = &text[scheme_end + 3..];
        let rest = rest.split('#').next().unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        // A user in a URL is a password in a log.
        let is_clean = |text: &str| text.bytes().all(|b| b.is_ascii_graphic() && b != b'\\' && b != b'"');
        if authority.is_empty() || authority.contains('@') || !is_clean(authority) || !is_clean(path) {
            return None;
        }
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Some(Self { is_https, authority: authority.to_owned(), path })
    }

    /// Where a `Location` header leads from here.
    pub fn join(&self, location: &str) -> Option<Self> {
        if location.contains("://") && !location.starts_with(['/', '?']) {
            return Self::parse(location);
        }
        let scheme = self.scheme();
        if location.starts_with("//") {
            return Self::parse(&format!("{scheme}:{location}"));
        }
        let path = match location.chars().next()? {
            '/' => location.to_owned(),
            '?' => format!("{}{location}", self.path.split('?').next().unwrap_or_default()),
            _ => {
                let own = self.path.split('?').next().unwrap_or_default();
                format!("{}/{location}", own.rsplit_once('/').map_or("", |(folder, _)| folder))
            }
        };
        Self::parse(&format!("{scheme}://{}{path}", self.authority))
    }

    /// The same host with another path, which begins with a slash.
    pub fn with_path(&self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self.clone() }
    }

    /// What is at `path`, which begins with no slash, below this one.
    pub fn below(&self, path: &str) -> Self {
        Self { path: format!("{}/{path}", self.path.trim_end_matches('/')), ..self.clone() }
    }

    /// The same without TLS.
    #[must_use]
    pub fn without_tls(&self) -> Self {
        Self { is_https: false, ..self.clone() }
    }

    /// With one more parameter in its query.
    pub fn with_parameter(&self, name: &str, value: &str) -> Self {
        let mark = if self.path.contains('?') { '&' } else { '?' };
        Self { path: format!("{}{mark}{name}={}", self.path, percent_encoded(value)), ..self.clone() }
    }

    /// `https` or `http`.
    pub fn scheme(&self) -> &'static str {
        if self.is_https { "https" } else { "http" }
    }

    /// Whether it is `https`.
    pub fn is_https(&self) -> bool {
        self.is_https
    }

    /// Host and port as written.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Whether it leads to this host itself.
    pub fn is_loopback(&self) -> bool {
        let host = match self.authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => host,
            _ => &self.authority,
        };
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    }

    /// Whether two URLs lead to the same scheme, host and port.
    pub fn same_origin(&self, other: &Self) -> bool {
        let port = |url: &Self| {
            let default = if url.is_https { ":443" } else { ":80" };
            let lower = url.authority.to_ascii_lowercase();
            lower.strip_suffix(default).unwrap_or(&lower).to_owned()
        };
        self.is_https == other.is_https && port(self) == port(other)
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme(), self.authority, self.path)
    }
}

/// A text as it stands in a query or a form.
pub fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn locations_are_followed_from_where_they_stand() {
        let from = Url::parse("https://r.example:5000/v2/a/blobs/x?y=1").unwrap();
        for (location, expected) in [
            ("https://cdn.example/blob?sig=a%2Fb", Some("https://cdn.example/blob?sig=a%2Fb")),
            ("http://cdn.example", Some("http://cdn.example/")),
            ("//cdn.example/b", Some("https://cdn.example/b")),
            ("/other?u=https://x", Some("https://r.example:5000/other?u=https://x")),
            ("z", Some("https://r.example:5000/v2/a/blobs/z")),
            ("?z", Some("https://r.example:5000/v2/a/blobs/x?z")),
            ("file:///etc/passwd", None),
            ("https://user:pw@x/", None),
            ("https://x/a b", None),
            ("https:///x", None),
            ("", None),
        ] {
            assert_eq!(from.join(location).map(|url| url.to_string()).as_deref(), expected, "{location}");
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let url = |text| Url::parse(text).unwrap();
        assert!(url("https://a.x/1").same_origin(&url("https://A.x:443/2")));
        for other in ["http://a.x/", "https://a.x:444/", "https://b.x/"] {
            assert!(!url("https://a.x/").same_origin(&url(other)), "{other}");
        }
    }

    #[test]
    fn this_host_is_known_by_its_names() {
        for (host, expected) in [
            ("localhost:5000", true),
            ("127.0.0.1", true),
            ("127.9.9.9:1", true),
            ("[::1]:443", true),
            ("[::1]", true),
            ("localhost.example", false),
            ("128.0.0.1", false),
            ("[::2]", false),
        ] {
            assert_eq!(Url::of_host(true, host).is_loopback(), expected, "{host}");
        }
    }

    proptest! {
        #[test]
        fn any_location_is_answered_without_panic_and_what_parses_is_stable(text in ".{0,60}") {
            let from = Url::parse("http://h/p").unwrap();
            if let Some(url) = from.join(&text) {
                prop_assert_eq!(Url::parse(&url.to_string()), Some(url));
            }
        }
    }
}
