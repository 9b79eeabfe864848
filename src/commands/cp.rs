//! `podvm cp`: files into a running app, and out of it.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use podvm_pod::archive::{ArchiveError, Archived, Destination, Policy, Unpacked, first_name, open_root, pack, unpack};
use podvm_pod::client::{get_files, put_files};
use podvm_pod::console::printable;
use podvm_pod::manifest::AppName;

use super::target::RunningPod;
use crate::config::Config;
use crate::report;

const EXAMPLES: &str = "\
Examples:
  podvm cp ./site.conf 8d3f:/etc/nginx/conf.d/     a file into a directory of the only app
  podvm cp 8d3f:db:/var/lib/data ./backup          a directory out of app db; backup/data if backup is there
  podvm cp 8d3f:/srv/. ./srv                       what is in a directory
  podvm cp 8d3f:/srv - | tar t                     as a tar stream
Owners (by number), modes, times and links are kept. A symbolic link is copied, not followed. On the way to the host, device
files are left out, programs lose their set-user-ID and set-group-ID bits, and a directory that is there keeps its owner and mode.";

/// Options of `podvm cp`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct CpArgs {
    /// What to copy: POD[:APP]:PATH, a path of the host (one with a colon needs ./ or / before it), or - for a tar stream
    #[arg(value_name = "SOURCE")]
    pub source: Place,
    /// Where to: as SOURCE. A directory that is there gets the copy; another name is the copy's own
    #[arg(value_name = "DESTINATION", allow_hyphen_values = true)]
    pub destination: Place,
}

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A path of the host.
    Host(PathBuf),
    /// Standard input or output.
    Stream,
    /// A path in an app.
    App {
        /// The pod.
        pod: String,
        /// The app; the only one when none.
        app: Option<AppName>,
        /// The path, from the app's root.
        path: PathBuf,
    },
}

/// Not a place.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no place of files: write POD[:APP]:PATH, or a path of the host")]
pub struct NoPlace(String);

impl FromStr for Place {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        let wrong = || NoPlace(text.into());
        if text == "-" {
            return Ok(Self::Stream);
        }
        let (pod, rest) = match text.split_once(':') {
            Some(parts) if !text.starts_with(['/', '.']) => parts,
            _ if text.is_empty() => return Err(wrong()),
            _ => return Ok(Self::Host(text.into())),
        };
        let (app, path) = match rest.split_once(':') {
            Some((app, path)) if !app.contains('/') => (Some(app.parse().map_err(|_| wrong())?), path),
            _ => (None, rest),
        };
        if pod.is_empty() || path.is_empty() {
            return Err(wrong());
        }
        Ok(Self::App { pod: pod.into(), app, path: Path::new("/").join(path) })
    }
}

/// Copies files.
pub fn run(args: &CpArgs, config: &Config) -> Result<u8> {
    match (&args.source, &args.destination) {
        (Place::App { pod, app, path }, to @ (Place::Host(_) | Place::Stream)) => {
            let pod = RunningPod::find(config, pod)?;
            let app = pod.app(app.as_ref())?;
            fetch(&pod, app, path, to)?;
        }
        (from @ (Place::Host(_) | Place::Stream), Place::App { pod, app, path }) => {
            let pod = RunningPod::find(config, pod)?;
            let app = pod.app(app.as_ref())?;
            send(&pod, app, from, path)?;
        }
        (Place::App { .. }, Place::App { .. }) => bail!("cp copies from an app or into one, not both; copy twice"),
        _ => bail!("neither {} is in a pod; write POD[:APP]:PATH for one of them", "SOURCE nor DESTINATION"),
    }
    Ok(0)
}

/// From an app.
fn fetch(pod: &RunningPod, app: AppName, path: &Path, to: &Place) -> Result<()> {
    let what = Archived::Out(path.to_owned());
    match to {
        Place::Host(to) => {
            let (to, destination) = (std::path::absolute(to)?, destination(path));
            let root = open_root(Path::new("/"))?;
            let unpacked = get_files(&pod.client(), app, what, |stream| {
                unpack(root.as_fd(), &to, destination, Policy::OntoHost(first_name(path)), stream)
            })?;
            tell_of_skipped(&unpacked);
        }
        _ => get_files(&pod.client(), app, what, write_to_stdout)?,
    }
    Ok(())
}

/// Into an app.
fn send(pod: &RunningPod, app: AppName, from: &Place, path: &Path) -> Result<()> {
    let path = path.to_owned();
    match from {
        Place::Host(from) => {
            let destination = destination(from);
            let from = whole(from)?;
            let name = Path::new(first_name(&from));
            let root = open_root(Path::new("/"))?;
            put_files(&pod.client(), app, Archived::In { path, destination }, |stream| {
                let mut stream = pack(root.as_fd(), &from, name, BufWriter::new(stream))?;
                stream.flush().map_err(ArchiveError::Stream)
            })?;
        }
        _ => {
            let what = Archived::In { path, destination: Destination::Inside };
            put_files(&pod.client(), app, what, |mut stream| {
                io::copy(&mut io::stdin().lock(), &mut stream).map(drop).map_err(ArchiveError::Stream)
            })?;
        }
    }
    Ok(())
}

/// A path of the host with a name at its end.
fn whole(path: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(path)?;
    if path.file_name().is_some() && !path.ends_with(".") {
        return Ok(path);
    }
    path.canonicalize().with_context(|| path.display().to_string())
}

/// `dir/.` is what is in the directory.
fn destination(source: &Path) -> Destination {
    let text = source.as_os_str().as_encoded_bytes();
    if text == b"." || text.ends_with(b"/.") { Destination::Contents } else { Destination::Copy }
}

/// Writes a tar stream to the standard output, which must be no terminal.
pub fn write_to_stdout(mut stream: impl io::Read) -> Result<(), ArchiveError> {
    if io::stdout().is_terminal() {
        let message = "a tar stream is nothing for a terminal; redirect it";
        return Err(ArchiveError::Stream(io::Error::other(message)));
    }
    // Not the standard library's own buffer, which looks for ends of lines.
    let copied =
        io::stdout().as_fd().try_clone_to_owned().map(File::from).and_then(|mut out| io::copy(&mut stream, &mut out));
    copied.map(drop).map_err(ArchiveError::Stream)
}

fn tell_of_skipped(unpacked: &Unpacked) {
    if unpacked.skipped > 0 {
        let names: Vec<String> = unpacked.names.iter().map(|name| printable(&name.to_string_lossy())).collect();
        let more = if unpacked.skipped > names.len() { ", …" } else { "" };
        report(&format!("{} device files were left out: {}{more}", unpacked.skipped, names.join(", ")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart() {
        let app = |pod: &str, app: Option<&str>, path: &str| Place::App {
            pod: pod.into(),
            app: app.map(|name| name.parse().unwrap()),
            path: path.into(),
        };
        for (text, place) in [
            ("8d3f:/etc/x", app("8d3f", None, "/etc/x")),
            ("8d3f:etc/x", app("8d3f", None, "/etc/x")),
            ("8d3f:db:/etc/x", app("8d3f", Some("db"), "/etc/x")),
            ("8d3f:/a:b", app("8d3f", None, "/a:b")),
            ("./8d3f:/etc", Place::Host("./8d3f:/etc".into())),
            ("/a:b", Place::Host("/a:b".into())),
            ("file", Place::Host("file".into())),
            ("-", Place::Stream),
        ] {
            assert_eq!(text.parse::<Place>().unwrap(), place, "{text}");
        }
        for wrong in ["", ":/x", "8d3f:", "8d3f:DB?:/x"] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_dot_at_the_end_means_what_is_inside() {
        for (text, expected) in [
            ("/srv/.", Destination::Contents),
            (".", Destination::Contents),
            ("/srv", Destination::Copy),
            ("/srv/.hidden", Destination::Copy),
            ("/srv/..", Destination::Copy),
        ] {
            assert_eq!(destination(Path::new(text)), expected, "{text}");
        }
    }
}
