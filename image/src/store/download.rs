//! Files from HTTP servers. What has arrived is kept in `partial/` until it is of no more use, so that a transfer that was cut
//! short, by whatever, is gone on with: if the server says that the file is still the same (RFC 9110, section 13).

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::thread::sleep;

use ureq::http::header;

use super::Store;
use super::error::{StoreError, at};
use super::scratch::{Lock, write_atomically};
use crate::digest::Digest;
use crate::progress::{Event, Progress};
use crate::registry::{Insecure, Registries, RegistryError, Request, Response, Url};

/// Size of a piece that is written at a time.
const PIECE: usize = 256 * 1024;
/// Bytes after which a connection has been of use, so that attempts are counted anew.
const PROGRESS: u64 = 256 * 1024;
/// Longest validator that is remembered.
const MAX_VALIDATOR: usize = 1000;
/// How a date stands before others.
const DATE: &str = "modified ";

/// A file that is here.
pub(super) struct Here {
    pub file: File,
    /// By what the server tells this state of the file from others.
    pub validator: Option<String>,
}

/// What became of a download.
pub(super) enum Downloaded {
    /// The file is what it was.
    Unchanged,
    /// The file is here.
    Here(Here),
}

/// What is to be downloaded.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub url: &'a Url,
    /// What it is called in messages.
    pub what: &'a str,
    /// Most bytes.
    pub most: u64,
    /// The state that is there already.
    pub known: Option<&'a str>,
}

impl Store {
    fn download_key(url: &Url) -> Digest {
        Digest::of(format!("file at {url}").as_bytes())
    }

    /// Waits until nobody else downloads from this URL.
    pub(super) fn download_lock(&self, url: &Url) -> Result<Lock, StoreError> {
        let path = self.lock_path(&format!("file-{}", &Self::download_key(url).hex()[..16]));
        Lock::exclusive(&path).map_err(at(path))
    }

    fn validator_path(&self, url: &Url) -> PathBuf {
        self.partial_path(&Self::download_key(url)).with_added_extension("state")
    }

    /// Takes away what is kept of a file, once it is of no more use.
    pub(super) fn forget_download(&self, url: &Url) -> Result<(), StoreError> {
        let _lock = self.download_lock(url)?;
        for path in [self.validator_path(url), self.partial_path(&Self::download_key(url))] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(path)(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Downloads a file. The caller holds [`Store::download_lock`].
    pub(super) fn download(
        &self,
        registries: &Registries,
        wanted: &Wanted<'_>,
        progress: &dyn Progress,
    ) -> Result<Downloaded, StoreError> {
        let url = wanted.url;
        let http = registries.http();
        if !url.is_https() && !http.is_insecure(url.authority(), Insecure::Http) {
            return Err(RegistryError::Plain { url: url.to_string() }.into());
        }
        let path = self.partial_path(&Self::download_key(url));
        let options = || File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = options().map_err(at(&path))?;
        let mut transfer = Transfer { wanted: *wanted, progress, done: 0, size: None, announced: false };
        let validator = fs::read_to_string(self.validator_path(url)).ok();
        transfer.done = match validator {
            Some(_) => file.metadata().map_err(at(&path))?.len(),
            None => 0,
        };
        let begin = |validator: Option<&str>| {
            // Somebody may still read what was fetched before.
            drop(fs::remove_file(&path));
            let place = self.validator_path(url);
            match validator {
                Some(text) => write_atomically(&self.tmp(), &place, text.as_bytes()).map_err(at(place))?,
                // Without one, there is nothing to go on with later.
                None => drop(fs::remove_file(place)),
            }
            options().map_err(at(&path))
        };
        let downloaded = transfer_all(registries, transfer, &mut file, validator, &begin);
        if !matches!(downloaded, Ok(Downloaded::Here(_))) && file.metadata().is_ok_and(|metadata| metadata.len() == 0) {
            drop(fs::remove_file(&path));
        }
        downloaded
    }
}

/// Asks until all of a file is here. `begin` writes down the state that the server says it is in, and gives an empty file for it.
fn transfer_all(
    registries: &Registries,
    mut transfer: Transfer<'_>,
    file: &mut File,
    mut validator: Option<String>,
    begin: &dyn Fn(Option<&str>) -> Result<File, StoreError>,
) -> Result<Downloaded, StoreError> {
    let (http, wanted) = (registries.http(), transfer.wanted);
    let here = |file: &File, validator| -> Result<Downloaded, StoreError> {
        let file = file.try_clone().map_err(at("the file in partial/"))?;
        Ok(Downloaded::Here(Here { file, validator }))
    };
    let (mut attempts, mut last_progress) = (0, transfer.done);
    loop {
        attempts += 1;
        let response = http.send(&transfer.request(validator.as_deref()), None)?;
        match response.status {
            304 if transfer.done == 0 => return Ok(Downloaded::Unchanged),
            206 if content_range(&response).is_some_and(|(start, _)| start == Some(transfer.done)) => {
                transfer.size = content_range(&response).and_then(|(_, size)| size);
            }
            416 if transfer.done > 0 => {
                if content_range(&response).is_some_and(|(_, size)| size == Some(transfer.done)) {
                    return here(file, validator);
                }
                (transfer.done, validator) = (0, None);
                continue;
            }
            200 => {
                (transfer.done, last_progress) = (0, 0);
                validator = validator_of(&response);
                *file = begin(validator.as_deref())?;
                transfer.size = response.body.content_length();
            }
            404 | 410 => {
                let (what, host) = (wanted.what.to_owned(), response.url.authority().to_owned());
                return Err(RegistryError::NotFound { what, host, login: String::new() }.into());
            }
            status => {
                let url = response.url.to_string();
                return Err(RegistryError::Status { url, status, message: String::new() }.into());
            }
        }
        let host = response.url.authority().to_owned();
        if transfer.run(response, file)? {
            return here(file, validator);
        }
        if transfer.done - last_progress.min(transfer.done) >= PROGRESS {
            (attempts, last_progress) = (0, transfer.done);
        }
        if attempts >= http.patience.attempts {
            let (what, done) = (wanted.what.to_owned(), transfer.done);
            return Err(RegistryError::Cut { what, host, done, size: transfer.size.unwrap_or(0), attempts }.into());
        }
        sleep(http.backoff(attempts.max(1)));
    }
}

/// A transfer under way.
struct Transfer<'a> {
    wanted: Wanted<'a>,
    progress: &'a dyn Progress,
    /// Bytes that are here.
    done: u64,
    /// Bytes there are.
    size: Option<u64>,
    announced: bool,
}

impl Transfer<'_> {
    fn request(&self, validator: Option<&str>) -> Request<'static> {
        let mut request = Request::get(self.wanted.url.clone());
        let value = |text: &str| text.strip_prefix(DATE).unwrap_or(text).to_owned();
        match (validator, self.wanted.known) {
            (Some(validator), _) if self.done > 0 => {
                request.from = self.done;
                request.conditions.push((header::IF_RANGE, value(validator)));
            }
            (_, Some(known)) => {
                let name = if known.starts_with(DATE) { header::IF_MODIFIED_SINCE } else { header::IF_NONE_MATCH };
                request.conditions.push((name, value(known)));
            }
            _ => {}
        }
        request
    }

    /// Takes an answer's bytes; whether all are here.
    fn run(&mut self, response: Response, file: &File) -> Result<bool, StoreError> {
        let (what, host) = (self.wanted.what.to_owned(), response.url.authority().to_owned());
        let too_large = |most| RegistryError::TooLarge { what: what.clone(), host: host.clone(), most };
        if self.size.is_some_and(|size| size > self.wanted.most) {
            return Err(too_large(self.wanted.most).into());
        }
        let diff_id = Store::download_key(self.wanted.url);
        if !std::mem::replace(&mut self.announced, true) {
            let bytes = self.size.unwrap_or(0);
            self.progress.event(Event::Begin { layers: 1, bytes });
            self.progress.event(Event::Start { layer: 0, diff_id, bytes });
            self.progress.event(Event::Read { layer: 0, bytes: self.done });
        }
        let mut body = response.into_reader();
        let mut piece = vec![0; PIECE];
        loop {
            let n = match body.read(&mut piece) {
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return Ok(false),
            };
            if n == 0 {
                break;
            }
            if self.done + n as u64 > self.wanted.most {
                return Err(too_large(self.wanted.most).into());
            }
            file.write_all_at(&piece[..n], self.done).map_err(at("the file in partial/"))?;
            self.done += n as u64;
            self.progress.event(Event::Read { layer: 0, bytes: n as u64 });
        }
        let is_whole = self.size.is_none_or(|size| size == self.done);
        if is_whole {
            self.progress.event(Event::Stored { layer: 0, diff_id });
        }
        Ok(is_whole)
    }
}

/// A strong entity tag, or else a date.
fn validator_of(response: &Response) -> Option<String> {
    let tag = response.header(header::ETAG).filter(|tag| tag.starts_with('"'));
    let date = || response.header(header::LAST_MODIFIED).map(|date| format!("{DATE}{date}"));
    tag.map(str::to_owned).or_else(date).filter(|text| text.len() <= MAX_VALIDATOR)
}

/// Where a partial answer begins, and how long the whole is, as far as it is told.
fn content_range(response: &Response) -> Option<(Option<u64>, Option<u64>)> {
    let range = response.header(header::CONTENT_RANGE)?.strip_prefix("bytes ")?;
    let (part, size) = range.split_once('/')?;
    Some((part.split('-').next()?.parse().ok(), size.parse().ok()))
}
