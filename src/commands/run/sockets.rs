//! Sockets that podvm was started with: systemd's socket activation (sd_listen_fds(3)).

use std::os::fd::{FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use podvm_pod::Stage1Kind;
use podvm_pod::manifest::PodManifest;
use podvm_pod::sockets::{AppSocket, PassedSocket, SocketError, assign, check_for_vm};

/// What a variable of the protocol begins with. They are about this process, so that apps never inherit them.
pub const VARIABLES: &str = "LISTEN_";

/// Takes over the sockets that were passed to this process. To be called once.
///
/// # Errors
/// `LISTEN_FDS` promises what is not there.
pub fn take() -> Result<Vec<PassedSocket>> {
    let passed = sd_notify::listen_fds_with_names()
        .context("the sockets that LISTEN_FDS and LISTEN_PID tell of cannot be used; unset both if there are none")?;
    // SAFETY: who started this process has opened them for it, as the variables say; nothing else in it knows of them.
    Ok(passed.map(|(fd, name)| PassedSocket { name, socket: unsafe { OwnedFd::from_raw_fd(fd) } }).collect())
}

/// Finds out which app each is for, and whether these walls let it through.
///
/// # Errors
/// [`SocketError`].
pub fn for_apps(
    passed: Vec<PassedSocket>,
    manifest: &PodManifest,
    stage1: Stage1Kind,
) -> Result<Vec<AppSocket>, SocketError> {
    let sockets = assign(passed, manifest)?;
    if stage1 == Stage1Kind::Kvm {
        check_for_vm(&sockets)?;
    }
    Ok(sockets)
}

/// The ports that images expect as open sockets, and that nobody has passed.
pub fn remarks(manifest: &PodManifest, sockets: &[AppSocket]) -> Vec<String> {
    let is_passed =
        |name: &str| sockets.iter().any(|socket| socket.port.as_ref().is_some_and(|port| port.name == name));
    let missing = manifest.ports.iter().filter(|port| port.socket_activated && !is_passed(&port.name));
    let line = |port: &podvm_pod::manifest::PublishedPort| {
        format!(
            "port {} is to be passed as an open socket, and podvm was started with none for {}/{}; the app must listen there itself",
            port.name, port.host_port, port.protocol
        )
    };
    missing.map(line).collect()
}
