//! A small HTTP server whose answers a test makes up, honest ones and others.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    /// Path and query.
    pub path: String,
    /// By lower-case name.
    pub headers: HashMap<String, String>,
    pub body: String,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// First byte wanted.
    pub fn from(&self) -> usize {
        let range =
            self.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        range.unwrap_or(0)
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// What `Content-Length` says, if not the truth.
    pub length: Option<u64>,
    /// After so many bytes of the body, the connection stands still for so long and ends.
    pub stall: Option<(usize, Duration)>,
    /// The wait before each byte of the body.
    pub drip: Option<Duration>,
    /// The body comes again and again.
    pub endless: bool,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let (headers, body) = (Vec::new(), body.into());
        Self { status, headers, body, length: None, stall: None, drip: None, endless: false }
    }

    pub fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub fn redirect(to: &str) -> Self {
        Self::new(307, "").header("Location", to)
    }

    /// The bytes from what was asked for on, as one who knows ranges answers.
    pub fn part(seen: &Seen, bytes: &[u8]) -> Self {
        match seen.from() {
            0 => Self::new(200, bytes),
            from if from >= bytes.len() => Self::new(416, ""),
            from => Self::new(206, &bytes[from..])
                .header("Content-Range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len())),
        }
    }

    /// Ends the connection after so many bytes.
    pub fn cut(self, after: usize) -> Self {
        Self { stall: Some((after, Duration::ZERO)), ..self }
    }
}

type Answer = dyn Fn(&Seen) -> Reply + Send + Sync;

/// A server on loopback, which ends when it is dropped.
pub struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    ended: Arc<AtomicBool>,
}

impl Server {
    pub fn start(answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let ended = Arc::new(AtomicBool::new(false));
        let answer: Arc<Answer> = Arc::new(answer);
        let (all, over) = (Arc::clone(&seen), Arc::clone(&ended));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let (answer, all) = (Arc::clone(&answer), Arc::clone(&all));
                // A client that goes away early is no concern of the server's.
                thread::spawn(move || drop(stream.and_then(|stream| serve(stream, &*answer, &all))));
            }
        });
        Self { address, seen, ended }
    }

    /// Host and port.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// How many requests so far were for a path with this part.
    pub fn count(&self, part: &str) -> usize {
        self.seen().iter().filter(|seen| seen.path.contains(part)).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
    }
}

fn serve(stream: TcpStream, answer: &Answer, all: &Mutex<Vec<Seen>>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    loop {
        let mut first = Vec::new();
        reader.by_ref().take(8192).read_until(b'\n', &mut first)?;
        let first = String::from_utf8_lossy(&first).into_owned();
        let words: Vec<&str> = first.split_whitespace().collect();
        let [method, path, "HTTP/1.1"] = words.as_slice() else {
            // Somebody tries TLS.
            return stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        };
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let body = String::from_utf8_lossy(&body).into_owned();
        let seen = Seen { method: (*method).to_owned(), path: (*path).to_owned(), headers, body };
        all.lock().unwrap().push(seen.clone());
        if !send(&mut stream, &seen, &answer(&seen))? {
            return Ok(());
        }
    }
}

/// Sends a reply; says whether the connection goes on.
fn send(stream: &mut TcpStream, seen: &Seen, reply: &Reply) -> std::io::Result<bool> {
    let mut head = format!("HTTP/1.1 {} Reply\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !reply.endless {
        head.push_str(&format!("Content-Length: {}\r\n", reply.length.unwrap_or(reply.body.len() as u64)));
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    if seen.method == "HEAD" {
        return Ok(true);
    }
    if let Some((after, wait)) = reply.stall {
        stream.write_all(&reply.body[..after.min(reply.body.len())])?;
        stream.flush()?;
        thread::sleep(wait);
        return Ok(false);
    }
    if let Some(wait) = reply.drip {
        for byte in &reply.body {
            thread::sleep(wait);
            stream.write_all(&[*byte])?;
        }
        return Ok(true);
    }
    stream.write_all(&reply.body)?;
    if reply.endless {
        loop {
            stream.write_all(&reply.body)?;
        }
    }
    Ok(reply.length.is_none())
}
