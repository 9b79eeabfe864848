//! Connections to the host's sockets that apps in a VM are started with: each is tied to one to the app's own socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{SockFlag, accept4};

use crate::client::{ClientError, SupervisorClient};
use crate::console::spawn;
use crate::manifest::AppName;
use crate::relay::Relay;
use crate::sockets::AppSocket;

/// Most connections that are carried at a time for all apps; further ones wait in their sockets' queues. Each takes a thread here
/// and two of the supervisor's descriptors.
const MAX_CONNECTIONS: usize = 256;
/// How long a socket rests when it gives an error instead of a connection, such as for want of descriptors.
const REST: std::time::Duration = std::time::Duration::from_millis(100);

/// The sockets of a pod's apps whose connections are carried from here.
pub(super) struct Relays {
    client: SupervisorClient,
    sockets: Vec<AppSocket>,
    room: Arc<Room>,
}

/// Room for so many more connections.
struct Room {
    left: Mutex<usize>,
    freed: Condvar,
}

/// The place of one connection, which is free again when this is dropped.
struct Place(Arc<Room>);

impl Room {
    fn take(self: &Arc<Self>) -> Place {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = self.freed.wait_while(left, |left| *left == 0).unwrap_or_else(PoisonError::into_inner);
        *left -= 1;
        Place(Arc::clone(self))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.left.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.freed.notify_one();
    }
}

impl Relays {
    pub fn new(client: SupervisorClient, sockets: Vec<AppSocket>) -> Self {
        Self { client, sockets, room: Arc::new(Room { left: Mutex::new(MAX_CONNECTIONS), freed: Condvar::new() }) }
    }

    /// Takes connections from now on, in threads that end with the process. What came before has waited in the sockets' queues.
    ///
    /// # Errors
    /// No thread can be made.
    pub fn begin(&mut self) -> io::Result<()> {
        let mut indices: Vec<(AppName, usize)> = Vec::new();
        for AppSocket { app, socket, .. } in std::mem::take(&mut self.sockets) {
            let index = indices.iter().filter(|(other, _)| *other == app).count();
            indices.push((app.clone(), index));
            let (client, room) = (self.client.clone(), Arc::clone(&self.room));
            spawn("socket", move || {
                loop {
                    let place = room.take();
                    let connection = accept(&socket);
                    let (client, app) = (client.clone(), app.clone());
                    let carried = spawn("connection", move || {
                        if let Err(error) = carry(connection, &client, app.clone(), index) {
                            eprintln!("podvm: a connection to app {app} is lost: {error}");
                        }
                        drop(place);
                    });
                    if carried.is_err() {
                        std::thread::sleep(REST);
                    }
                }
            })?;
        }
        Ok(())
    }
}

/// Waits for the next connection. The socket may be anybody's, too: whether it waits by itself is left as it is.
fn accept(socket: &OwnedFd) -> OwnedFd {
    loop {
        // An error is one of accept4(2), too.
        let _ = poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE);
        match accept4(socket.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            // SAFETY: the descriptor is new, and nobody else knows of it.
            Ok(fd) => return unsafe { OwnedFd::from_raw_fd(fd) },
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => {}
            Err(_) => std::thread::sleep(REST),
        }
    }
}

fn carry(connection: OwnedFd, client: &SupervisorClient, app: AppName, index: usize) -> Result<(), ClientError> {
    let inside = client.open_socket(app, index)?;
    let mut relay = Relay::new([connection, inside.into()], [Vec::new(), Vec::new()])?;
    relay.run()?;
    Ok(())
}
