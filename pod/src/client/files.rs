//! Files out of a running pod's apps, and into them: a process in the app packs or unpacks, this one does the other half.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread::{JoinHandle, spawn};

use super::{ClientError, SupervisorClient};
use crate::archive::{ArchiveError, Archived};
use crate::console::printable;
use crate::manifest::AppName;
use crate::protocol::{ProcessId, SignalTarget, StreamKind};

/// Longest complaint that is read.
const MAX_COMPLAINT: u64 = 4096;
/// What ends the process in the app.
const SIGKILL: i32 = 9;

/// Why files did not go through.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The supervisor.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// In the app.
    #[error("in the app: {0}")]
    Inside(String),
    /// Here.
    #[error(transparent)]
    Here(#[from] ArchiveError),
}

/// Has `what` packed in the app, and hands the tar stream to `take`.
///
/// # Errors
/// [`FilesError`]; the app's own complaint comes before what followed from it here.
pub fn get_files<T>(
    client: &SupervisorClient,
    app: AppName,
    what: Archived,
    take: impl FnOnce(UnixStream) -> Result<T, ArchiveError>,
) -> Result<T, FilesError> {
    let (process, complaint) = prepare(client, app, what)?;
    let stream = client.open_stream(process, StreamKind::Stdout)?;
    client.start(process)?;
    let taken = take(stream);
    conclude(client, process, complaint, taken)
}

/// Has `what` unpacked in the app; `give` writes the tar stream.
///
/// # Errors
/// As [`get_files`].
pub fn put_files<T>(
    client: &SupervisorClient,
    app: AppName,
    what: Archived,
    give: impl FnOnce(&UnixStream) -> Result<T, ArchiveError>,
) -> Result<T, FilesError> {
    let (process, complaint) = prepare(client, app, what)?;
    let stream = client.open_stream(process, StreamKind::Stdin)?;
    client.start(process)?;
    let given = give(&stream);
    let _ = stream.shutdown(Shutdown::Write);
    conclude(client, process, complaint, given)
}

type Complaint = JoinHandle<String>;

fn prepare(client: &SupervisorClient, app: AppName, what: Archived) -> Result<(ProcessId, Complaint), ClientError> {
    let process = client.prepare_archive(app, what)?;
    let stderr = client.open_stream(process, StreamKind::Stderr)?;
    let complaint = spawn(move || {
        let mut bytes = Vec::new();
        let _ = (&stderr).take(MAX_COMPLAINT).read_to_end(&mut bytes);
        // Whoever says more is not stopped by nobody listening.
        let _ = io::copy(&mut &stderr, &mut io::sink());
        String::from_utf8_lossy(&bytes).trim_end().to_owned()
    });
    Ok((process, complaint))
}

fn conclude<T>(
    client: &SupervisorClient,
    process: ProcessId,
    complaint: Complaint,
    done: Result<T, ArchiveError>,
) -> Result<T, FilesError> {
    if done.is_err() {
        // Nobody wants the rest; one that has ended already is no trouble.
        let _ = client.signal(SignalTarget::Process(process), SIGKILL);
    }
    let status = client.wait(process)?;
    let complaint = complaint.join().unwrap_or_default();
    if !complaint.is_empty() {
        return Err(FilesError::Inside(printable(&complaint)));
    }
    match done {
        Ok(_) if !status.is_success() => Err(FilesError::Inside(format!("the files' process {status}"))),
        other => Ok(other?),
    }
}
