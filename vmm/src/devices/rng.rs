//! virtio-rng: gives the guest entropy (virtio 1.2, section 5.4).
//!
//! One queue of writable buffers. Each is filled from the host's getrandom(2), at most
//! [`MAX_BYTES_PER_REQUEST`] bytes a request, so that a guest cannot make the host work without bound.

use std::io;

use serde::{Deserialize, Serialize};

use super::{Context, DeviceError, DeviceKind, VirtioDevice, Watches};
use crate::persist::{Persist, PersistError};
use crate::virtio::chain::DescriptorChain;

/// Most bytes one request is filled with; a longer buffer is returned partly used, as the spec allows.
const MAX_BYTES_PER_REQUEST: usize = 64 * 1024;

/// The only queue: buffers to fill.
const REQUEST_QUEUE: usize = 0;

/// The entropy device. It has no state of its own.
#[derive(Debug, Default)]
pub struct Rng;

impl Rng {
    /// A new device.
    pub fn new() -> Self {
        Self
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Rng
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn activate(&mut self, _features: u64, _context: &mut Context<'_, '_>) -> Result<(), DeviceError> {
        Ok(())
    }

    fn process_queue(&mut self, _index: usize, context: &mut Context<'_, '_>) -> Result<(), DeviceError> {
        context.queues[REQUEST_QUEUE].serve(fill)
    }

    fn reset(&mut self, _watches: &mut Watches<'_, '_>) {}
}

/// Fills the writable part of one request with random bytes.
fn fill(chain: &DescriptorChain) -> Result<u32, DeviceError> {
    let target = chain.writable().take(MAX_BYTES_PER_REQUEST);
    let mut written = 0;
    for slice in target.slices() {
        let guard = slice.ptr_guard_mut();
        // SAFETY: the guard's pointer is valid for the slice's length, and getrandom only writes there.
        let count = unsafe { libc::getrandom(guard.as_ptr().cast(), guard.len(), 0) };
        let count = u32::try_from(count)
            .map_err(|_| DeviceError::Host { what: "getrandom", source: io::Error::last_os_error() })?;
        written += count;
        // A signal can cut a long read short; what there is serves.
        if (count as usize) < slice.len() {
            break;
        }
    }
    Ok(written)
}

/// The device's saved state: nothing.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngState;

impl Persist for Rng {
    type State = RngState;
    type Args = ();

    fn save(&self) -> RngState {
        RngState
    }

    fn restore((): (), _state: RngState) -> Result<Self, PersistError> {
        Ok(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::{Bench, Buffer, survives_hostile_rings};

    #[test]
    fn fills_a_buffer_with_random_bytes() {
        let mut bench = Bench::start(Rng::new());
        let head = bench.add_chain(0, &[Buffer::writable(64)]);
        bench.kick(0);
        assert_eq!(bench.used(0), [(head, 64)]);
        let bytes = bench.written(0, head);
        assert!(bytes.iter().any(|&byte| byte != 0));
        assert!(bench.interrupted());
    }

    #[test]
    fn a_huge_buffer_is_filled_to_the_limit_only() {
        let mut bench = Bench::start(Rng::new());
        let head = bench.add_chain(0, &[Buffer::writable(100_000), Buffer::writable(100_000)]);
        bench.kick(0);
        assert_eq!(bench.used(0), [(head, MAX_BYTES_PER_REQUEST as u32)]);
    }

    #[test]
    fn a_request_without_a_writable_buffer_gets_nothing() {
        let mut bench = Bench::start(Rng::new());
        let head = bench.add_chain(0, &[Buffer::readable(b"?")]);
        bench.kick(0);
        assert_eq!(bench.used(0), [(head, 0)]);
    }

    #[test]
    fn hostile_rings_only_stop_the_device() {
        survives_hostile_rings(Rng::new);
    }
}
