//! A web server with a certificate of its own making, for tests of what podvm asks of the web.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::Invocation;

/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(60);

/// The pages by their path and query.
type Pages = Arc<Mutex<HashMap<String, Vec<u8>>>>;

/// A server, which ends with the test.
pub struct Web {
    pages: Pages,
    authority: PathBuf,
    address: SocketAddr,
}

impl Web {
    /// Serves this host name at `address`, with a certificate that is made in `folder`.
    ///
    /// # Panics
    /// When openssl is missing, or the address is taken.
    #[track_caller]
    pub fn start(folder: &Path, name: &str, address: &str) -> Self {
        let (certificate, key) = (folder.join("web.pem"), folder.join("web.key"));
        let subject = format!("/CN={name}");
        let names = format!("subjectAltName=DNS:{name}");
        let words =
            ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", &subject, "-addext", &names];
        let made = Invocation::new("openssl", words).arg("-addext").arg("basicConstraints=critical,CA:FALSE");
        made.arg("-out").arg(&certificate).arg("-keyout").arg(&key).run().expect_code(0);
        let certificates = CertificateDer::pem_file_iter(&certificate).expect("the certificate can be read");
        let certificates = certificates.collect::<Result<Vec<_>, _>>().expect("the certificate is one");
        let key = PrivateKeyDer::from_pem_file(&key).expect("the key is one");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.expect("TLS has versions").with_no_client_auth().with_single_cert(certificates, key);
        let config = Arc::new(config.expect("certificate and key belong together"));
        let listener = TcpListener::bind(address).expect("the address is free");
        let web = Self {
            pages: Pages::default(),
            authority: certificate,
            address: listener.local_addr().expect("a listener has an address"),
        };
        let pages = Arc::clone(&web.pages);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (config, pages) = (Arc::clone(&config), Arc::clone(&pages));
                // What a client does not wait for is its own affair.
                std::thread::spawn(move || drop(serve(stream, config, &pages)));
            }
        });
        web
    }

    /// The certificate that clients must trust.
    pub fn authority(&self) -> &Path {
        &self.authority
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Puts a page there; `path` with its query.
    pub fn put(&self, path: &str, content: impl Into<Vec<u8>>) {
        self.pages.lock().expect("no server's thread panics").insert(path.to_owned(), content.into());
    }

    /// Takes a page away.
    pub fn remove(&self, path: &str) {
        self.pages.lock().expect("no server's thread panics").remove(path);
    }
}

fn serve(stream: TcpStream, config: Arc<ServerConfig>, pages: &Pages) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut stream = BufReader::new(StreamOwned::new(connection, stream));
    let mut first = String::new();
    stream.by_ref().take(8192).read_line(&mut first)?;
    let mut line = String::new();
    while stream.by_ref().take(8192).read_line(&mut line)? > 2 {
        line.clear();
    }
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let page = pages.lock().expect("no server's thread panics").get(path).cloned();
    let status = if page.is_some() { "200 OK" } else { "404 Not Found" };
    let page = page.unwrap_or_default();
    let kind = if path.contains('?') { "text/html" } else { "application/octet-stream" };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n",
        page.len()
    );
    let stream = stream.get_mut();
    stream.write_all(head.as_bytes())?;
    if method != "HEAD" {
        stream.write_all(&page)?;
    }
    stream.conn.send_close_notify();
    stream.flush()
}
