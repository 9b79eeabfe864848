//! The network device's thread: packets between the rings and the tap, and the tap's offload settings.

use super::{Allow, Profile};
use Allow::{Call, CallWith};

/// TUNSETOFFLOAD (linux/if_tun.h): the driver's choice of offloads is known only when it is set up.
const TAP_REQUESTS: &[u32] = &[0x4004_54d0];

pub(super) const PROFILE: Profile = Profile {
    name: "net",
    system_calls: &[Call(libc::SYS_readv), Call(libc::SYS_writev), CallWith(libc::SYS_ioctl, 1, TAP_REQUESTS)],
    capabilities: &[],
};
