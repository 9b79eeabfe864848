//! How an import tells whoever watches how far it is.

use crate::digest::Digest;

/// Something that happened during an import. Layers are counted from zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The image has been found: so many different layers of so many packed bytes together.
    Begin {
        /// Number of layers.
        layers: usize,
        /// Their packed size.
        bytes: u64,
    },
    /// A layer was stored before; nothing is to be done for it.
    Present {
        /// Which layer.
        layer: usize,
        /// Its packed size.
        bytes: u64,
    },
    /// Work on a layer begins.
    Start {
        /// Which layer.
        layer: usize,
        /// Its name in the store.
        diff_id: Digest,
        /// Its packed size.
        bytes: u64,
    },
    /// More of a layer has been read.
    Read {
        /// Which layer.
        layer: usize,
        /// Packed bytes read since the last such event.
        bytes: u64,
    },
    /// A layer is verified and stored.
    Stored {
        /// Which layer.
        layer: usize,
        /// Its name in the store.
        diff_id: Digest,
    },
}

/// Takes events; called from several threads at once.
pub trait Progress: Sync {
    /// Must return soon: the import waits for it.
    fn event(&self, event: Event);
}

/// Nobody watches.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _: Event) {}
}
