//! Reading a layer from a registry. A connection that ends early is gone on with where it ended; of a large layer also
//! after the end of the process, since what has arrived is kept in a file until the layer is stored.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::sleep;

use ureq::http::header;

use super::error::RegistryError;
use super::http::{Request, Response};
use super::repository::Repository;
use super::url::Url;
use crate::digest::Digest;

/// Bytes after which a connection has been of use, so that attempts are counted anew.
const PROGRESS: u64 = 256 * 1024;

/// A layer at a registry.
#[derive(Debug, Clone)]
pub struct RemoteBlob {
    pub(crate) repository: Arc<Repository>,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// Where it is besides, if the registry does not have it: layers that must not be handed on are at their makers'.
    pub(crate) urls: Vec<Url>,
    /// Where what has arrived is kept, if it is.
    pub(crate) kept: Option<Arc<Kept>>,
}

/// The file in which what has arrived of a layer is kept.
#[derive(Debug)]
pub(crate) struct Kept {
    file: File,
    path: PathBuf,
}

impl Kept {
    fn error(&self, source: io::Error) -> RegistryError {
        RegistryError::Kept { path: self.path.clone(), source }
    }
}

impl RemoteBlob {
    /// Its bytes, from the first on.
    pub fn open(&self) -> BlobReader {
        let kept = self.kept.as_ref().and_then(|kept| kept.file.metadata().ok()).map_or(0, |metadata| metadata.len());
        BlobReader {
            blob: self.clone(),
            done: 0,
            kept: kept.min(self.size),
            body: None,
            endpoint: self.repository.endpoint_from(0),
            is_asked_whole: false,
            attempts: 0,
            last_progress: 0,
            failed: None,
        }
    }

    /// The same, but what arrives is kept in `file`, which is at `path`, and what is there already is not fetched.
    pub(crate) fn keeping(&self, file: File, path: PathBuf) -> Self {
        Self { kept: Some(Arc::new(Kept { file, path })), ..self.clone() }
    }

    fn name(&self) -> String {
        format!("layer {}", self.digest)
    }
}

/// Reads a layer's bytes; exactly as many as its manifest says, or an error.
pub struct BlobReader {
    blob: RemoteBlob,
    done: u64,
    /// How many bytes the file had in the beginning.
    kept: u64,
    body: Option<Box<dyn Read + Send>>,
    /// Which of the repository's endpoints is asked; behind them come the layer's URLs.
    endpoint: usize,
    /// Whether all is asked for, though a part is here: what answers knows no ranges.
    is_asked_whole: bool,
    /// Connections without progress.
    attempts: u32,
    last_progress: u64,
    /// The error that every further read gets again.
    failed: Option<String>,
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(what) = &self.failed {
            return Err(io::Error::other(what.clone()));
        }
        let left = self.blob.size - self.done;
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        if self.done < self.kept {
            let most = usize::try_from(self.kept - self.done).unwrap_or(usize::MAX).min(most);
            return self.read_kept(&mut buffer[..most]);
        }
        loop {
            let result = match &mut self.body {
                Some(body) => body.read(&mut buffer[..most]),
                None => match self.connect() {
                    Ok(()) => continue,
                    Err(error) => return Err(self.fail(error)),
                },
            };
            match result {
                Ok(n) if n > 0 => {
                    self.keep(&buffer[..n])?;
                    self.done += n as u64;
                    if self.done - self.last_progress >= PROGRESS {
                        (self.last_progress, self.attempts) = (self.done, 0);
                    }
                    return Ok(n);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Too short, cut, or too slow: go on with another connection.
                _ => self.body = None,
            }
        }
    }
}

impl BlobReader {
    /// Reads what had arrived before.
    fn read_kept(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(kept) = self.blob.kept.clone() else { return Ok(0) };
        let result = match kept.file.read_at(buffer, self.done) {
            Ok(0) => Err(io::Error::other("it became shorter")),
            other => other,
        };
        let n = result.map_err(|error| self.fail(kept.error(error)))?;
        self.done += n as u64;
        Ok(n)
    }

    /// Keeps what has arrived. When that fails the reader has failed for good: these bytes will not come by again.
    fn keep(&mut self, arrived: &[u8]) -> io::Result<()> {
        let Some(kept) = self.blob.kept.clone() else { return Ok(()) };
        kept.file.write_all_at(arrived, self.done).map_err(|error| self.fail(kept.error(error)))
    }

    fn fail(&mut self, error: RegistryError) -> io::Error {
        self.failed = Some(error.to_string());
        error.into_io()
    }

    /// Asks for what is missing, of one endpoint after another.
    fn connect(&mut self) -> Result<(), RegistryError> {
        let repository = Arc::clone(&self.blob.repository);
        let http = repository.http();
        loop {
            if self.attempts >= http.patience.attempts {
                let error = self.cut();
                self.next_endpoint(error)?;
            }
            if self.attempts > 0 {
                sleep(http.backoff(self.attempts));
            }
            self.attempts += 1;
            match self.request() {
                Ok(()) => return Ok(()),
                Err(error) => self.next_endpoint(error)?,
            }
        }
    }

    fn cut(&self) -> RegistryError {
        RegistryError::Cut {
            what: self.blob.name(),
            host: self.host(),
            done: self.done,
            size: self.blob.size,
            attempts: self.attempts,
        }
    }

    /// The layer's URL that is asked; none as long as it is the repository.
    fn url(&self) -> Option<&Url> {
        let number = self.endpoint.checked_sub(self.blob.repository.endpoints().len())?;
        self.blob.urls.get(number)
    }

    fn host(&self) -> String {
        match self.url() {
            Some(url) => url.authority().to_owned(),
            None => self.blob.repository.endpoints()[self.endpoint].host.clone(),
        }
    }

    /// Goes to the next endpoint, or gives `error` back when this was the last.
    fn next_endpoint(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        let repository = &self.blob.repository;
        let endpoints = repository.endpoints().len();
        if self.endpoint + 1 >= endpoints + self.blob.urls.len() {
            return Err(error);
        }
        if self.endpoint + 1 < endpoints {
            // One that lacks a layer may have the others.
            if !error.is_absence() {
                repository.leave(self.endpoint);
            }
            self.endpoint = repository.endpoint_from(self.endpoint + 1);
        } else {
            self.endpoint += 1;
        }
        (self.attempts, self.is_asked_whole) = (0, false);
        Ok(())
    }

    /// Sends one request. Whom a layer's maker names is shown nothing that registries are.
    fn ask(&self) -> Result<Response, RegistryError> {
        let repository = &self.blob.repository;
        let from = if self.is_asked_whole { 0 } else { self.done };
        match self.url() {
            Some(url) => repository.http().send(&Request { from, ..Request::get(url.clone()) }, None),
            None => repository.request_blob(self.endpoint, &self.blob.digest, from),
        }
    }

    fn status_error(&self, response: Response) -> RegistryError {
        if self.url().is_none() {
            return self.blob.repository.status_error(self.endpoint, &self.blob.name(), response);
        }
        let (url, status) = (response.url.to_string(), response.status);
        RegistryError::Status { url, status, message: response.message() }
    }

    fn request(&mut self) -> Result<(), RegistryError> {
        let response = self.ask()?;
        let size = self.blob.size;
        let is_asked_in_part = self.done > 0 && !self.is_asked_whole;
        let is_wanted_part = response.status == 206 && content_range_start(&response) == Some(self.done);
        match response.status {
            // It has ranges, but not as they should be.
            206 | 416 if is_asked_in_part && !is_wanted_part => {
                self.is_asked_whole = true;
                return self.request();
            }
            206 if is_asked_in_part => {
                self.body = Some(Box::new(response.into_reader()));
            }
            200 => {
                let length = response.body.content_length();
                if let Some(actual) = length.filter(|length| *length != size) {
                    let (what, host) = (self.blob.name(), self.host());
                    return Err(RegistryError::Size { what, host, expected: size, actual });
                }
                let mut body = response.into_reader();
                // It does not know ranges: what is there already comes again.
                let skipped = io::copy(&mut body.by_ref().take(self.done), &mut io::sink());
                if skipped.is_ok_and(|skipped| skipped == self.done) {
                    self.body = Some(Box::new(body));
                }
            }
            416 => {
                let (what, host) = (self.blob.name(), self.host());
                return Err(RegistryError::Size { what, host, expected: size, actual: self.done });
            }
            _ => return Err(self.status_error(response)),
        }
        Ok(())
    }
}

/// Where the bytes of a partial answer begin.
fn content_range_start(response: &Response) -> Option<u64> {
    let range = response.header(header::CONTENT_RANGE)?;
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}
