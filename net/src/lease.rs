//! Address leases: which pod has which address.
//!
//! A lease is a file named after the address, which holds the pod's UUID, and on which the pod's process holds an exclusive
//! flock(2). Whatever ends the process, the kernel drops the lock, and with it the lease: no clean-up is needed for an address
//! to be free again. The file stays behind as a note of what the pod may have left, for [`crate::gc`].
//!
//! Files are made, locked and removed only under the lock of `.lock`, so that nobody locks a file that is just being removed.
//! Addresses are given out in turn (`.next` says whose turn it is), so that one that was just freed rests for as long as
//! possible: a peer's stale connection or neighbour entry does not meet another pod.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use podvm_pod::fault::{FaultPoint, reach};
use uuid::Uuid;

use crate::subnet::Ipv4Subnet;

/// Why an address could not be leased, or leases not looked through.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// A file operation failed.
    #[error("address lease {path}: {source}", path = .path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Every address of the subnet belongs to a living pod.
    #[error("all {count} addresses of {subnet} are taken by running pods; stop some, or configure a larger subnet")]
    Exhausted {
        /// The subnet.
        subnet: Ipv4Subnet,
        /// How many addresses it has for pods.
        count: u32,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> LeaseError + '_ {
    move |source| LeaseError::Io { path: path.into(), source }
}

/// The folder of a host's leases.
#[derive(Debug, Clone)]
pub struct LeaseDir {
    path: PathBuf,
}

/// An address that is this process's for as long as it, or a process it forked, holds this open.
#[derive(Debug)]
pub struct Lease {
    address: Ipv4Addr,
    path: PathBuf,
    /// Holds the lock. Closing it is what releases the lock; unlocking would free the lease under a forked process.
    _file: File,
}

impl Lease {
    /// The leased address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }
}

impl LeaseDir {
    /// The folder at this path; it is made if missing.
    ///
    /// # Errors
    /// [`LeaseError::Io`] when it cannot be made.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, LeaseError> {
        let path = path.into();
        fs::create_dir_all(&path).map_err(io_error(&path))?;
        Ok(Self { path })
    }

    /// Leases a free address of `subnet` to `pod`.
    ///
    /// # Errors
    /// [`LeaseError::Exhausted`] when there is none.
    pub fn lease(&self, subnet: &Ipv4Subnet, pod: Uuid) -> Result<Lease, LeaseError> {
        let _lock = self.lock()?;
        let next = self.path.join(".next");
        let first = fs::read_to_string(&next).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0_u32);
        for step in 0..subnet.capacity() {
            let number = first.wrapping_add(step);
            let address = subnet.pod_address(number);
            let path = self.path.join(address.to_string());
            if let Some(file) = take(&path, pod).map_err(io_error(&path))? {
                let after = (number % subnet.capacity() + 1).to_string();
                fs::write(&next, after).map_err(io_error(&next))?;
                return Ok(Lease { address, path, _file: file });
            }
        }
        Err(LeaseError::Exhausted { subnet: *subnet, count: subnet.capacity() })
    }

    /// Gives an address back at once, without waiting for the process to end.
    ///
    /// # Errors
    /// [`LeaseError::Io`] when the file cannot be removed; the lease is over nevertheless.
    pub fn release(&self, lease: Lease) -> Result<(), LeaseError> {
        let _lock = self.lock()?;
        fs::remove_file(&lease.path).map_err(io_error(&lease.path))
    }

    /// Calls `undo` for each lease whose process has ended, with the pod's UUID if the file tells it, and removes the lease
    /// when that succeeds. Returns the addresses removed.
    pub(crate) fn collect<E: From<LeaseError>>(
        &self,
        mut undo: impl FnMut(Option<Uuid>) -> Result<(), E>,
    ) -> Result<Vec<Ipv4Addr>, E> {
        let _lock = self.lock()?;
        let mut removed = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(io_error(&self.path))? {
            let path = entry.map_err(io_error(&self.path))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            let Some(address) = name else { continue };
            let mut file = File::open(&path).map_err(io_error(&path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(source)) => return Err(io_error(&path)(source).into()),
            }
            let mut text = String::new();
            let holder = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            undo(holder)?;
            reach(FaultPoint::LeaseUndone);
            fs::remove_file(&path).map_err(io_error(&path))?;
            removed.push(address);
        }
        removed.sort();
        Ok(removed)
    }

    fn lock(&self) -> Result<File, LeaseError> {
        let path = self.path.join(".lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(io_error(&path))?;
        file.lock().map_err(io_error(&path))?;
        Ok(file)
    }
}

/// Locks the lease file and writes the pod's name into it; none when a living process has it.
///
/// A crash between the two leaves an empty file, which is right: nothing else of the pod exists yet.
fn take(path: &Path, pod: Uuid) -> io::Result<Option<File>> {
    let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    reach(FaultPoint::LeaseMade);
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{pod}")?;
    reach(FaultPoint::LeaseNamed);
    Ok(Some(file))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn fresh() -> (tempfile::TempDir, LeaseDir) {
        let folder = tempfile::tempdir().unwrap();
        let leases = LeaseDir::open(folder.path().join("leases")).unwrap();
        (folder, leases)
    }

    #[test]
    fn a_freed_address_rests_until_all_others_had_their_turn() {
        let (_folder, leases) = fresh();
        let subnet: Ipv4Subnet = "10.0.0.0/29".parse().unwrap();
        let mut turns = Vec::new();
        for _ in 0..7 {
            turns.push(leases.lease(&subnet, Uuid::new_v4()).unwrap().address().octets()[3]);
        }
        assert_eq!(turns, [2, 3, 4, 5, 6, 2, 3]);
    }

    #[test]
    fn a_full_subnet_says_so_and_serves_again_after_one_ends() {
        let (_folder, leases) = fresh();
        let subnet: Ipv4Subnet = "10.0.0.0/29".parse().unwrap();
        let mut held: Vec<_> = (0..5).map(|_| leases.lease(&subnet, Uuid::new_v4()).unwrap()).collect();
        let error = leases.lease(&subnet, Uuid::new_v4()).unwrap_err();
        assert!(error.to_string().starts_with("all 5 addresses of 10.0.0.0/29 are taken"), "{error}");
        let freed = held.remove(2).address();
        assert_eq!(leases.lease(&subnet, Uuid::new_v4()).unwrap().address(), freed);
    }

    #[test]
    fn fifty_at_once_get_fifty_addresses() {
        let (_folder, leases) = fresh();
        let held: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..50).map(|_| scope.spawn(|| leases.lease(&Ipv4Subnet::DEFAULT, Uuid::new_v4()).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(held.iter().map(Lease::address).collect::<HashSet<_>>().len(), 50);
    }

    #[test]
    fn collecting_tells_whose_leases_ended_and_leaves_living_ones() {
        let (_folder, leases) = fresh();
        let (dead, alive) = (Uuid::new_v4(), Uuid::new_v4());
        let ended = leases.lease(&Ipv4Subnet::DEFAULT, dead).unwrap();
        let _held = leases.lease(&Ipv4Subnet::DEFAULT, alive).unwrap();
        let address = ended.address();
        drop(ended);
        let mut told = Vec::new();
        let mut collect = || {
            leases.collect(|pod| {
                told.push(pod);
                Ok::<_, LeaseError>(())
            })
        };
        assert_eq!(collect().unwrap(), [address]);
        assert!(collect().unwrap().is_empty());
        assert_eq!(told, [Some(dead)]);
    }

    #[test]
    fn damaged_files_hinder_nobody() {
        let (_folder, leases) = fresh();
        fs::write(leases.path.join(".next"), "nonsense").unwrap();
        fs::write(leases.path.join("172.16.28.2"), [0xff; 9]).unwrap();
        fs::write(leases.path.join("readme"), "not a lease").unwrap();
        assert_eq!(leases.lease(&Ipv4Subnet::DEFAULT, Uuid::new_v4()).unwrap().address().octets()[3], 2);
        fs::write(leases.path.join("172.16.28.9"), [0xff; 9]).unwrap();
        let removed = leases.collect(|_| Ok::<_, LeaseError>(()));
        assert_eq!(removed.unwrap().len(), 2);
        assert!(leases.path.join("readme").exists());
    }
}
