//! What an app may use and do, beside its files: limits, privileges, system calls.
//!
//! The names are appc's ("isolators") and the OCI runtime specification's (config-linux.md).

use std::collections::BTreeSet;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::quantity::{ByteSize, CpuLimit};
use super::rlimit::Rlimit;
use super::seccomp::Seccomp;

/// All limits and privileges of one app. What is `None` is not limited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Isolators {
    /// Memory that the app's processes may use together (`memory.max`); beyond it they are killed.
    pub memory: Option<ByteSize>,
    /// CPU time (`cpu.max`).
    pub cpu: Option<CpuLimit>,
    /// Share of CPU time against other apps when all want it (`cpu.weight` after OCI's conversion), 2 to 262144.
    pub cpu_shares: Option<u64>,
    /// Most processes and threads (`pids.max`).
    pub pids: Option<u32>,
    /// Capabilities the app and what it executes may have; the bounding set too.
    pub capabilities: BTreeSet<Capability>,
    /// Whether nothing the app executes may gain privileges (`PR_SET_NO_NEW_PRIVS`).
    pub no_new_privileges: bool,
    /// Which system calls it may make.
    pub seccomp: Seccomp,
    /// Resource limits, each resource once.
    pub rlimits: Vec<Rlimit>,
    /// How readily the kernel kills the app when memory runs out, -1000 to 1000.
    pub oom_score_adj: Option<i32>,
}

impl Default for Isolators {
    fn default() -> Self {
        Self {
            memory: None,
            cpu: None,
            cpu_shares: None,
            pids: None,
            capabilities: Capability::default_set(),
            no_new_privileges: false,
            seccomp: Seccomp::Default,
            rlimits: Vec::new(),
            oom_score_adj: None,
        }
    }
}

macro_rules! capabilities {
    ($($name:ident = $number:literal $text:literal)*) => {
        /// A capability (capabilities(7)), numbered as in the kernel's `linux/capability.h`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[repr(u8)]
        #[allow(missing_docs)]
        pub enum Capability {
            $(#[serde(rename = $text)] $name = $number,)*
        }

        impl Capability {
            /// Every capability there is.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Its name, as in capabilities(7).
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

capabilities! {
    Chown = 0 "CAP_CHOWN"
    DacOverride = 1 "CAP_DAC_OVERRIDE"
    DacReadSearch = 2 "CAP_DAC_READ_SEARCH"
    Fowner = 3 "CAP_FOWNER"
    Fsetid = 4 "CAP_FSETID"
    Kill = 5 "CAP_KILL"
    Setgid = 6 "CAP_SETGID"
    Setuid = 7 "CAP_SETUID"
    Setpcap = 8 "CAP_SETPCAP"
    LinuxImmutable = 9 "CAP_LINUX_IMMUTABLE"
    NetBindService = 10 "CAP_NET_BIND_SERVICE"
    NetBroadcast = 11 "CAP_NET_BROADCAST"
    NetAdmin = 12 "CAP_NET_ADMIN"
    NetRaw = 13 "CAP_NET_RAW"
    IpcLock = 14 "CAP_IPC_LOCK"
    IpcOwner = 15 "CAP_IPC_OWNER"
    SysModule = 16 "CAP_SYS_MODULE"
    SysRawio = 17 "CAP_SYS_RAWIO"
    SysChroot = 18 "CAP_SYS_CHROOT"
    SysPtrace = 19 "CAP_SYS_PTRACE"
    SysPacct = 20 "CAP_SYS_PACCT"
    SysAdmin = 21 "CAP_SYS_ADMIN"
    SysBoot = 22 "CAP_SYS_BOOT"
    SysNice = 23 "CAP_SYS_NICE"
    SysResource = 24 "CAP_SYS_RESOURCE"
    SysTime = 25 "CAP_SYS_TIME"
    SysTtyConfig = 26 "CAP_SYS_TTY_CONFIG"
    Mknod = 27 "CAP_MKNOD"
    Lease = 28 "CAP_LEASE"
    AuditWrite = 29 "CAP_AUDIT_WRITE"
    AuditControl = 30 "CAP_AUDIT_CONTROL"
    Setfcap = 31 "CAP_SETFCAP"
    MacOverride = 32 "CAP_MAC_OVERRIDE"
    MacAdmin = 33 "CAP_MAC_ADMIN"
    Syslog = 34 "CAP_SYSLOG"
    WakeAlarm = 35 "CAP_WAKE_ALARM"
    BlockSuspend = 36 "CAP_BLOCK_SUSPEND"
    AuditRead = 37 "CAP_AUDIT_READ"
    Perfmon = 38 "CAP_PERFMON"
    Bpf = 39 "CAP_BPF"
    CheckpointRestore = 40 "CAP_CHECKPOINT_RESTORE"
}

impl Capability {
    /// What an app has when nothing else is said: the same as podman's default.
    pub fn default_set() -> BTreeSet<Self> {
        use Capability::*;
        [Chown, DacOverride, Fowner, Fsetid, Kill, NetBindService, Setfcap, Setgid, Setpcap, Setuid, SysChroot].into()
    }
}

/// No capability of that name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no capability; see capabilities(7) for their names")]
pub struct UnknownCapability(pub String);

impl FromStr for Capability {
    type Err = UnknownCapability;

    /// Reads `CAP_NET_ADMIN`, `NET_ADMIN` or `net_admin`.
    fn from_str(text: &str) -> Result<Self, UnknownCapability> {
        let upper = text.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let found = Self::ALL.iter().find(|capability| capability.name()[4..] == *bare);
        found.copied().ok_or_else(|| UnknownCapability(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_in_every_spelling() {
        for text in ["CAP_NET_ADMIN", "NET_ADMIN", "net_admin"] {
            assert_eq!(text.parse(), Ok(Capability::NetAdmin));
        }
        assert!("CAP_FLY".parse::<Capability>().is_err());
    }

    #[test]
    fn capability_numbers_are_dense() {
        for (index, capability) in Capability::ALL.iter().enumerate() {
            assert_eq!(*capability as usize, index);
        }
    }
}
