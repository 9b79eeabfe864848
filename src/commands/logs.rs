//! `podvm logs`: what a pod's apps have printed, in the order of time.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use podvm_pod::PodDir;
use podvm_pod::manifest::{AppName, PodManifest};
use podvm_pod::runner::log::{LogEntry, LogStream, file_name};

use crate::config::Config;

/// How often a log that is followed is looked at.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);
/// Most that is read of a line at once; podvm writes shorter ones.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// Options of `podvm logs`.
#[derive(Debug, clap::Args)]
pub struct LogsArgs {
    /// The pod: its UUID, or enough of its beginning
    #[arg(value_name = "POD")]
    pub pod: String,
    /// Only what this app has printed
    #[arg(long, value_name = "APP")]
    pub app: Option<AppName>,
    /// Go on until the pod has ended
    #[arg(long, short)]
    pub follow: bool,
    /// Begin each line with its time
    #[arg(long, short)]
    pub timestamps: bool,
}

/// Prints logs: standard output to standard output, standard error to standard error.
pub fn run(args: &LogsArgs, config: &Config) -> Result<u8> {
    let dir = config.pods().find(&args.pod)?;
    let manifest = dir.manifest()?;
    let apps = chosen_apps(args, &manifest)?;
    let mut printer = Printer { with_times: args.timestamps, with_names: apps.len() > 1, in_line: Vec::new() };
    let mut logs: Vec<_> = apps.into_iter().map(|app| FollowedLog::new(&dir, app)).collect();
    loop {
        // Asked first, so that what was printed before the end is still read.
        let may_grow = args.follow && dir.is_alive()?;
        match print_new(&mut logs, &mut printer) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(0),
            printed => drop(printed.with_context(|| format!("logs of pod {}", dir.uuid()))?),
        }
        if !may_grow {
            return Ok(0);
        }
        std::thread::sleep(FOLLOW_INTERVAL);
    }
}

fn chosen_apps(args: &LogsArgs, manifest: &PodManifest) -> Result<Vec<AppName>> {
    let all: Vec<_> = manifest.apps.iter().map(|app| app.name.clone()).collect();
    match &args.app {
        None => Ok(all),
        Some(app) if all.contains(app) => Ok(vec![app.clone()]),
        Some(app) => {
            let names = all.iter().map(AppName::as_str).collect::<Vec<_>>().join(", ");
            bail!("pod {} has no app {app}; its apps are {names}", manifest.uuid)
        }
    }
}

/// An entry with what it says of itself.
struct Entry {
    time: String,
    stream: LogStream,
    is_full: bool,
    text: Vec<u8>,
}

/// Prints what has come since the last time, merged by time; returns whether anything has.
pub fn print_new(logs: &mut [FollowedLog], printer: &mut Printer) -> io::Result<bool> {
    let mut has_come = false;
    loop {
        for log in logs.iter_mut() {
            log.fill()?;
        }
        let oldest = logs.iter_mut().filter(|log| log.next.is_some());
        let oldest = oldest.min_by(|one, other| one.time().cmp(&other.time()));
        let Some((log, entry)) = oldest.and_then(|log| log.next.take().map(|entry| (log, entry))) else {
            return io::stdout().flush().map(|()| has_come);
        };
        printer.print(&log.app, &entry)?;
        has_come = true;
    }
}

/// One app's log, read on as it grows and through its change of files.
pub struct FollowedLog {
    app: AppName,
    path: PathBuf,
    /// The file before the present one, until it is read.
    older: Option<PathBuf>,
    reader: Option<BufReader<File>>,
    /// A line whose end is not written yet.
    begun: Vec<u8>,
    /// Read and not printed.
    next: Option<Entry>,
}

impl FollowedLog {
    /// The log of an app, from its beginning.
    pub fn new(dir: &PodDir, app: AppName) -> Self {
        let path = dir.logs().join(file_name(&app));
        let older = Some(path.with_extension("log.1"));
        Self { app, path, older, reader: None, begun: Vec::new(), next: None }
    }

    /// Passes over what was printed before.
    ///
    /// # Errors
    /// Those of its file; one that is not there yet has its beginning at its end.
    pub fn skip_to_end(&mut self) -> io::Result<()> {
        self.older = None;
        if let Some(mut file) = open_if_there(&self.path)? {
            file.seek(SeekFrom::End(0))?;
            self.reader = Some(BufReader::new(file));
        }
        Ok(())
    }

    fn time(&self) -> Option<&str> {
        self.next.as_ref().map(|entry| entry.time.as_str())
    }

    /// Reads the next entry, if there is one.
    fn fill(&mut self) -> io::Result<()> {
        while self.next.is_none() {
            if self.reader.is_none() {
                self.reader = self.open_next()?.map(BufReader::new);
            }
            let Some(reader) = &mut self.reader else { return Ok(()) };
            if reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut self.begun)? == 0 {
                if !self.is_replaced()? {
                    return Ok(());
                }
                self.reader = None;
                self.begun.clear();
            } else if self.begun.ends_with(b"\n") {
                self.begun.pop();
                self.next = LogEntry::parse(&self.begun).map(|entry| Entry {
                    time: entry.time.to_owned(),
                    stream: entry.stream,
                    is_full: entry.is_full,
                    text: entry.text.to_vec(),
                });
                self.begun.clear();
            }
        }
        Ok(())
    }

    fn open_next(&mut self) -> io::Result<Option<File>> {
        if let Some(older) = self.older.take()
            && let Some(file) = open_if_there(&older)?
        {
            return Ok(Some(file));
        }
        open_if_there(&self.path)
    }

    /// Whether the file being read is no longer the one that is written.
    fn is_replaced(&self) -> io::Result<bool> {
        use std::os::unix::fs::MetadataExt;
        let Some(reader) = &self.reader else { return Ok(false) };
        let read = reader.get_ref().metadata()?;
        match std::fs::metadata(&self.path) {
            Ok(written) => Ok((read.dev(), read.ino()) != (written.dev(), written.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn open_if_there(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// How entries are printed.
pub struct Printer {
    with_times: bool,
    with_names: bool,
    /// The apps and streams that are within a line.
    in_line: Vec<(AppName, LogStream)>,
}

impl Printer {
    /// As the app printed it.
    pub fn plain() -> Self {
        Self { with_times: false, with_names: false, in_line: Vec::new() }
    }

    fn print(&mut self, app: &AppName, entry: &Entry) -> io::Result<()> {
        let begun = self.in_line.iter().position(|(name, stream)| name == app && *stream == entry.stream);
        let mut text = Vec::new();
        if begun.is_none() && self.with_times {
            write!(text, "{} ", entry.time)?;
        }
        if begun.is_none() && self.with_names {
            write!(text, "[{app}] ")?;
        }
        text.extend_from_slice(&entry.text);
        if entry.is_full {
            text.push(b'\n');
        }
        match begun {
            Some(position) if entry.is_full => drop(self.in_line.remove(position)),
            None if !entry.is_full => self.in_line.push((app.clone(), entry.stream)),
            _ => {}
        }
        match entry.stream {
            LogStream::Stdout => io::stdout().write_all(&text),
            LogStream::Stderr => io::stderr().write_all(&text),
        }
    }
}

#[cfg(test)]
mod tests {
    use podvm_pod::PodsRoot;
    use podvm_pod::Uuid;

    use super::*;

    fn all_of(log: &mut FollowedLog) -> Vec<String> {
        let mut texts = Vec::new();
        loop {
            log.fill().unwrap();
            match log.next.take() {
                Some(entry) => texts.push(String::from_utf8(entry.text).unwrap()),
                None => return texts,
            }
        }
    }

    #[test]
    fn a_log_is_read_on_through_its_change_of_files() {
        let folder = tempfile::tempdir().unwrap();
        let dir = PodsRoot::new(folder.path()).pod(Uuid::nil());
        std::fs::create_dir_all(dir.logs()).unwrap();
        let path = dir.logs().join("web.log");
        let old = dir.logs().join("web.log.1");
        std::fs::write(&old, "T stdout F one\nnonsense\n").unwrap();
        std::fs::write(&path, "T stdout F two\nT stdout F th").unwrap();
        let mut log = FollowedLog::new(&dir, "web".parse().unwrap());
        assert_eq!(all_of(&mut log), ["one", "two"]);
        let mut more = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        more.write_all(b"ree\n").unwrap();
        assert_eq!(all_of(&mut log), ["three"]);
        more.write_all(b"T stderr F four\n").unwrap();
        std::fs::rename(&path, &old).unwrap();
        std::fs::write(&path, "T stdout F five\n").unwrap();
        assert_eq!(all_of(&mut log), ["four", "five"]);
    }
}
