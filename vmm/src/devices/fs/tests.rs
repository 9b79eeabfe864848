//! The share as a FUSE client sees it, and as an attacker does.

use std::fs;
use std::os::unix::fs::MetadataExt;

use vm_memory::GuestAddress;

use super::*;
use crate::devices::block::Extent;
use crate::devices::pmem::ReadOnlyFiles;
use crate::devices::testing::{Bench, Buffer, MEMORY_BYTES, survives_hostile_rings};
use crate::memory::{SharedMemory, map_ram};
use crate::virtio::COMMON_FEATURES;

const LOOKUP: u32 = 1;
const OPEN: u32 = 14;
const READ: u32 = 15;
const LINK: u32 = 13;
const INIT: u32 = 26;
const CREATE: u32 = 35;
const ROOT: u64 = 1;

/// Whether this process may clone mounts; says why a test is skipped when not.
fn may_share() -> bool {
    let folder = tempfile::tempdir().unwrap();
    let error = SharedDirectory::open(folder.path(), false).err();
    if let Some(error) = &error {
        eprintln!("skipped: {error}");
    }
    error.is_none()
}

/// A request as FUSE has it: a header, and what it is about.
fn request(opcode: u32, node: u64, body: &[u8], user: u32) -> Vec<u8> {
    let mut request = Vec::new();
    request.extend((40 + body.len() as u32).to_le_bytes());
    request.extend(opcode.to_le_bytes());
    request.extend(7_u64.to_le_bytes());
    request.extend(node.to_le_bytes());
    for word in [user, user, 1, 0] {
        request.extend(word.to_le_bytes());
    }
    request.extend(body);
    request
}

/// A FUSE client over the bench. The device's thread is a thread of its own, for it changes its working directory.
struct Client {
    bench: Bench<Fs>,
}

impl Client {
    fn mount(folder: &std::path::Path, read_only: bool) -> Self {
        Self::mount_in(map_ram(MEMORY_BYTES).unwrap(), folder, read_only)
    }

    fn mount_in(memory: SharedMemory, folder: &std::path::Path, read_only: bool) -> Self {
        let root = SharedDirectory::open(folder, read_only).unwrap();
        let features = COMMON_FEATURES & !(1 << 29);
        let mut client = Self { bench: Bench::start_in(memory, Fs::new("data", root).unwrap(), features) };
        let mut init = Vec::new();
        for word in [7_u32, 38, 1 << 20, 0] {
            init.extend(word.to_le_bytes());
        }
        client.call(INIT, 0, &init, 0).unwrap();
        client
    }

    /// Sends a request as root; returns the answer's body, or the errno.
    fn call(&mut self, opcode: u32, node: u64, body: &[u8], user: u32) -> Result<Vec<u8>, i32> {
        let request = request(opcode, node, body, user);
        let head = self.bench.add_chain(1, &[Buffer::readable(&request), Buffer::writable(8192)]);
        self.bench.kick(1);
        let used = self.bench.used(1);
        assert_eq!(used.len(), 1);
        let answer = self.bench.written(1, head);
        let length = u32::from_le_bytes(answer[..4].try_into().unwrap()) as usize;
        assert_eq!(used[0].1 as usize, length);
        match i32::from_le_bytes(answer[4..8].try_into().unwrap()) {
            0 => Ok(answer[16..length].to_vec()),
            error => Err(-error),
        }
    }

    fn lookup(&mut self, node: u64, name: &str) -> Result<u64, i32> {
        let entry = self.call(LOOKUP, node, format!("{name}\0").as_bytes(), 0)?;
        Ok(u64::from_le_bytes(entry[..8].try_into().unwrap()))
    }

    fn open(&mut self, node: u64) -> Result<u64, i32> {
        let opened = self.call(OPEN, node, &[0; 8], 0)?;
        Ok(u64::from_le_bytes(opened[..8].try_into().unwrap()))
    }

    fn read(&mut self, node: u64, handle: u64) -> Result<Vec<u8>, i32> {
        let mut body = Vec::new();
        body.extend(handle.to_le_bytes());
        body.extend(0_u64.to_le_bytes());
        body.extend(4096_u32.to_le_bytes());
        body.extend([0; 20]);
        self.call(READ, node, &body, 0)
    }

    fn create(&mut self, name: &str, user: u32) -> Result<u64, i32> {
        let mut body = Vec::new();
        for word in [libc::O_RDWR as u32 | libc::O_CREAT as u32, 0o640, 0, 0] {
            body.extend(word.to_le_bytes());
        }
        body.extend(format!("{name}\0").as_bytes());
        let entry = self.call(CREATE, ROOT, &body, user)?;
        Ok(u64::from_le_bytes(entry[..8].try_into().unwrap()))
    }
}

/// Runs a test on a thread of its own, because the device changes the working directory of its thread.
fn on_own_thread(test: impl FnOnce() + Send + 'static) {
    if may_share() {
        std::thread::spawn(test).join().unwrap();
    }
}

#[test]
fn a_file_of_the_host_is_read() {
    on_own_thread(|| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("hello"), "world").unwrap();
        let mut client = Client::mount(folder.path(), false);
        let node = client.lookup(ROOT, "hello").unwrap();
        let handle = client.open(node).unwrap();
        assert_eq!(client.read(node, handle).unwrap(), b"world");
    });
}

#[test]
fn a_request_may_lie_in_a_mapped_file_but_no_answer() {
    on_own_thread(|| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("hello"), "world").unwrap();
        let lookup = request(LOOKUP, ROOT, b"hello\0", 0);
        let length = lookup.len() as u32;
        let start = GuestAddress(1 << 32);
        let files = ReadOnlyFiles::map(start, &[Extent::bytes(0, lookup)]).unwrap();
        let memory = map_ram(MEMORY_BYTES).unwrap().with_read_only([files.region()]).unwrap();
        let mut client = Client::mount_in(memory, folder.path(), false);
        let buffers = [Buffer::readable(&vec![0; length as usize]), Buffer::writable(8192)];
        let head = client.bench.add_chain(1, &buffers);
        client.bench.set_descriptor(1, head, start.0, length, 1, head + 1);
        client.bench.kick(1);
        assert_eq!(client.bench.used(1).len(), 1);
        let answer = client.bench.written(1, head);
        assert_eq!(
            (&answer[4..8], &answer[8..16]),
            (&[0; 4][..], &7_u64.to_le_bytes()[..]),
            "no error, the same request"
        );
        let head = client.bench.add_chain(1, &buffers);
        client.bench.set_descriptor(1, head + 1, start.0, 8192, 2, 0);
        client.bench.kick(1);
        assert!(client.bench.used(1).is_empty() && client.bench.link().health.needs_reset());
    });
}

#[test]
fn a_new_file_belongs_to_the_guests_user() {
    on_own_thread(|| {
        let folder = tempfile::tempdir().unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(folder.path(), mode).unwrap();
        let mut client = Client::mount(folder.path(), false);
        client.create("mine", 1234).unwrap();
        let metadata = fs::metadata(folder.path().join("mine")).unwrap();
        assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o777), (1234, 1234, 0o640));
    });
}

#[test]
fn there_is_no_way_out_of_the_directory() {
    on_own_thread(|| {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("inside");
        fs::create_dir_all(inside.join("a")).unwrap();
        fs::write(folder.path().join("secret"), "s").unwrap();
        std::os::unix::fs::symlink("../secret", inside.join("link")).unwrap();
        let mut client = Client::mount(&inside, false);
        assert_eq!(client.lookup(ROOT, "../secret"), Err(libc::EINVAL));
        assert_eq!(client.lookup(ROOT, ".."), Ok(ROOT));
        let a = client.lookup(ROOT, "a").unwrap();
        // A directory that the host moves away does not take the guest along.
        fs::rename(inside.join("a"), folder.path().join("a")).unwrap();
        assert_eq!(client.lookup(a, ".."), Err(libc::ENOENT));
        // A symbolic link is the guest's to follow; the host never opens its target.
        let link = client.lookup(ROOT, "link").unwrap();
        assert!(client.open(link).is_err());
    });
}

#[test]
fn a_device_file_cannot_be_opened() {
    on_own_thread(|| {
        let folder = tempfile::tempdir().unwrap();
        let name = std::ffi::CString::new(folder.path().join("zero").to_str().unwrap()).unwrap();
        // SAFETY: the path is a valid C string.
        let made = unsafe { libc::mknod(name.as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(1, 5)) };
        assert_eq!(made, 0, "{}", io::Error::last_os_error());
        let mut client = Client::mount(folder.path(), false);
        let node = client.lookup(ROOT, "zero").unwrap();
        assert!(client.open(node).is_err());
    });
}

#[test]
fn a_read_only_share_is_read_only_for_root_too() {
    on_own_thread(|| {
        let folder = tempfile::tempdir().unwrap();
        let mut client = Client::mount(folder.path(), true);
        assert_eq!(client.create("x", 0), Err(libc::EROFS));
        assert!(!folder.path().join("x").exists());
    });
}

#[test]
fn a_hard_link_is_the_same_file() {
    on_own_thread(|| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("one"), "1").unwrap();
        let mut client = Client::mount(folder.path(), false);
        let one = client.lookup(ROOT, "one").unwrap();
        let mut body = one.to_le_bytes().to_vec();
        body.extend(b"two\0");
        client.call(LINK, ROOT, &body, 0).unwrap();
        assert_eq!(client.lookup(ROOT, "two"), Ok(one));
        assert_eq!(fs::metadata(folder.path().join("two")).unwrap().nlink(), 2);
    });
}

#[test]
fn tags_that_do_not_fit_are_refused() {
    if !may_share() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for tag in ["", &"x".repeat(37)] {
        let root = SharedDirectory::open(folder.path(), false).unwrap();
        assert!(matches!(Fs::new(tag, root), Err(FsError::Tag { .. })));
    }
}

#[test]
fn state_survives_the_round_trip() {
    if !may_share() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let fs = Fs::new("data", SharedDirectory::open(folder.path(), false).unwrap()).unwrap();
    let state = fs.save();
    let root = SharedDirectory::open(folder.path(), false).unwrap();
    assert_eq!(Fs::restore(root, state).unwrap().save(), fs.save());
}

#[test]
fn hostile_rings_only_stop_the_device() {
    on_own_thread(|| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "x").unwrap();
        survives_hostile_rings(|| Fs::new("data", SharedDirectory::open(folder.path(), false).unwrap()).unwrap());
    });
}

#[test]
fn a_link_that_took_a_directorys_place_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    let (shared, other) = (root.join("shared"), root.join("other"));
    fs::create_dir(&other).unwrap();
    std::os::unix::fs::symlink(&other, &shared).unwrap();
    fs::create_dir(other.join("sub")).unwrap();
    for path in [shared.clone(), shared.join("sub")] {
        let error = SharedDirectory::open(&path, false).unwrap_err();
        assert!(matches!(error, DirectoryError::Moved(_)), "{error}");
    }
    fs::write(root.join("file"), "").unwrap();
    let error = SharedDirectory::open(&root.join("file"), false).unwrap_err();
    assert!(matches!(error, DirectoryError::Open { .. }), "{error}");
}
