//! The vsock device's thread: Unix sockets towards the host, which others have made.

use super::{Allow, Profile};
use Allow::Call;

pub(super) const PROFILE: Profile = Profile {
    name: "vsock",
    system_calls: &[
        Call(libc::SYS_accept4),
        Call(libc::SYS_recvmsg),
        Call(libc::SYS_sendmsg),
        Call(libc::SYS_shutdown),
    ],
    capabilities: &[],
};
