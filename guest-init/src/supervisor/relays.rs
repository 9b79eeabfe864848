//! Connections from outside to the sockets that apps were started with.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

use nix::poll::PollFlags as Events;
use podvm_pod::manifest::AppName;
use podvm_pod::relay::Relay;
use rustix::event::PollFlags;

use super::Supervisor;
use super::request::Refusal;

/// The connections that are carried.
#[derive(Debug, Default)]
pub struct Relays {
    open: BTreeMap<u64, Relay>,
    last: u64,
}

impl Relays {
    /// What to poll(2) them for: which, which of its ends, and for what.
    pub fn interests(&self) -> impl Iterator<Item = (u64, usize, BorrowedFd<'_>, PollFlags)> {
        self.open.iter().flat_map(|(id, relay)| {
            let ends = relay.interests().into_iter().enumerate();
            ends.filter_map(|(end, interest)| {
                let (fd, events) = interest?;
                Some((*id, end, fd, PollFlags::from_bits_retain(events.bits() as u16)))
            })
        })
    }

    /// Moves one on after poll(2) has reported one of its ends.
    pub fn serve(&mut self, id: u64, end: usize, events: PollFlags) {
        let Some(relay) = self.open.get_mut(&id) else { return };
        let mut both = [Events::empty(); 2];
        both[end] = Events::from_bits_retain(events.bits() as i16);
        if !relay.advance(both) {
            self.open.remove(&id);
        }
    }

    fn add(&mut self, relay: Relay) {
        self.last += 1;
        self.open.insert(self.last, relay);
        // What the client sent along with its request is not announced by poll(2), and the announcement is to go out.
        self.serve(self.last, 0, PollFlags::empty());
    }
}

impl Supervisor {
    /// Ties a client to a new connection to one of an app's sockets.
    pub(super) fn connect_socket(&mut self, connection: u64, app: &AppName, index: usize) -> Result<(), Refusal> {
        let app_index = self.app_index(app)?;
        let socket = self.pod.as_ref().and_then(|pod| pod.launched_with.sockets[app_index].get(index));
        let socket = socket.ok_or_else(|| format!("app {app} has no socket {index}"))?;
        let inside = socket.connect().map_err(|error| format!("a socket of app {app} takes no connection: {error}"))?;
        let Some(mut client) = self.connections.remove(&connection) else { return Ok(()) };
        client.announce_stream();
        let (outside, said, announcement) = client.into_framed().into_parts();
        let relay = Relay::new([outside, inside], [said, announcement]);
        self.relays.add(relay.map_err(|error| format!("a connection cannot be carried: {error}"))?);
        Ok(())
    }
}
