//! What the supervisor's process does before it is the supervisor: from the host's filesystem tree to the pod's own.
//!
//! The pod's tree is a small one in memory, in which there is nothing of the host but what the pod was given: its layers, its
//! writable layer, its volumes, its cgroup. Mounts are made detached, while the host's paths are there, and put in their places
//! in the new root; the host's tree is then let go of as a whole.

use std::ffi::CStr;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use podvm_pod::directory::RunningPod;
use podvm_pod::manifest::VolumeKind;
use podvm_pod::writable;
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree,
};

use crate::cgroup::PodCgroup;
use crate::spec::{CGROUP, LAYERS, SCRATCH, VOLUMES, WRITABLE, distinct_layers};
use crate::{NsError, NsStage1, layer};

/// Numbers of the descriptors the supervisor gets beside the standard streams.
const PRIMARY: RawFd = 3;
const LISTENER: RawFd = 4;
const LOCK: RawFd = 5;
/// The arguments that name them.
const PRIMARY_ARGUMENT: &CStr = c"3";
const LISTENER_ARGUMENT: &CStr = c"4";
/// First descriptor that ends when the supervisor is executed.
const FIRST_PRIVATE: RawFd = 6;

/// A step that failed, in words.
pub type Failure = String;

/// What was tried, before what came of it.
trait Step<T> {
    fn step(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| {
            let error: io::Error = error.into();
            format!("cannot {}: {error}", what())
        })
    }
}

/// What the pod's tree is made of, as the host names it.
#[derive(Debug)]
pub struct Tree {
    supervisor: PathBuf,
    /// A directory that is covered for a moment, in the supervisor's process alone.
    any_directory: PathBuf,
    layers: Vec<PathBuf>,
    writable: PathBuf,
    volumes: Vec<SharedDirectory>,
    cgroup: Option<PathBuf>,
    notes: File,
}

#[derive(Debug)]
struct SharedDirectory {
    name: String,
    source: PathBuf,
    read_only: bool,
}

/// The descriptors that the supervisor takes over.
#[derive(Debug, Clone, Copy)]
pub struct Inherited<'a> {
    /// The primary connection.
    pub primary: BorrowedFd<'a>,
    /// Where requests are taken.
    pub listener: BorrowedFd<'a>,
    /// The pod's lock: a pod is alive until its supervisor is gone, too.
    pub lock: BorrowedFd<'a>,
}

impl Tree {
    /// Makes and opens what has to be before the walls are built.
    ///
    /// # Errors
    /// [`NsError::Writable`], and [`NsError::Walls`] when the supervisor's notes cannot be kept.
    pub fn of_pod(stage1: &NsStage1, pod: &RunningPod, cgroup: Option<&PodCgroup>) -> Result<Self, NsError> {
        let (manifest, dir) = (pod.manifest(), pod.dir().path());
        let disk = dir.join("writable.img");
        writable::create(&disk, manifest.resources.disk, &stage1.root.join("templates"))?;
        let notes = OpenOptions::new().append(true).create(true).mode(0o600).open(dir.join("console.log"));
        let volumes = manifest.volumes.iter().filter_map(|volume| match &volume.kind {
            VolumeKind::Host { source } => Some(SharedDirectory {
                name: volume.name.to_string(),
                source: source.clone(),
                read_only: volume.read_only,
            }),
            VolumeKind::Empty => None,
        });
        Ok(Self {
            supervisor: stage1.supervisor.clone(),
            any_directory: dir.into(),
            layers: distinct_layers(manifest).into_iter().map(Path::to_owned).collect(),
            writable: disk,
            volumes: volumes.collect(),
            cgroup: cgroup.map(|cgroup| cgroup.path().to_owned()),
            notes: notes.map_err(crate::walls::WallsError::Io)?,
        })
    }

    /// Enters the pod's tree and executes the supervisor. Returns only when that failed.
    ///
    /// To be called in a process of its own, in its own mount and PID namespaces.
    pub fn enter(&self, inherited: Inherited<'_>) -> Failure {
        match self.enter_and_execute(inherited) {
            Ok(never) => match never {},
            Err(failure) => failure,
        }
    }

    fn enter_and_execute(&self, inherited: Inherited<'_>) -> Result<std::convert::Infallible, Failure> {
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .step(|| "keep the pod's mounts to itself".into())?;
        let program = self.program()?;
        let null = File::options().read(true).write(true).open("/dev/null").step(|| "open /dev/null".into())?;
        let parts = self.parts()?;

        let root = in_memory("size=1m").step(|| "make the pod's root".into())?;
        attach(root, &self.any_directory).step(|| "mount the pod's root".into())?;
        nix::unistd::chdir(&self.any_directory).step(|| "enter the pod's root".into())?;
        for (place, mount) in parts {
            let place = place.strip_prefix("/").unwrap_or(&place);
            make_directories(place).step(|| format!("make /{}", place.display()))?;
            attach(mount, place).step(|| format!("mount /{}", place.display()))?;
        }
        make_directories(Path::new(SCRATCH.trim_start_matches('/'))).step(|| format!("make {SCRATCH}"))?;
        // The old root is then mounted on top of the new one (pivot_root(2), "pivot_root(".", ".")").
        nix::unistd::pivot_root(".", ".").step(|| "change the root".into())?;
        nix::mount::umount2(".", nix::mount::MntFlags::MNT_DETACH).step(|| "let go of the host's root".into())?;
        nix::unistd::chdir("/").step(|| "enter the pod's root".into())?;
        self.execute(&program, null.as_fd(), inherited)
    }

    /// The supervisor's program on a read-only mount of its own: an app that gets hold of `/proc/PID/exe` cannot write to the
    /// host's file.
    fn program(&self) -> Result<OwnedFd, Failure> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let open = || -> io::Result<OwnedFd> {
            let program = open_tree(CWD, &self.supervisor, flags)?;
            restrict(program.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID)?;
            Ok(program)
        };
        open().step(|| format!("open the supervisor {}", self.supervisor.display()))
    }

    /// All mounts with their places, outer ones first.
    fn parts(&self) -> Result<Vec<(PathBuf, OwnedFd)>, Failure> {
        let mut parts = Vec::new();
        for (number, layer) in self.layers.iter().enumerate() {
            let mount = layer::mount(layer).step(|| format!("mount the layer {}", layer.display()))?;
            parts.push((Path::new(LAYERS).join(number.to_string()), mount));
        }
        let writable = layer::mount_looped("ext4", &self.writable, false);
        parts.push((WRITABLE.into(), writable.step(|| format!("mount {}", self.writable.display()))?));
        for volume in &self.volumes {
            let SharedDirectory { name, source, read_only } = volume;
            let mount = bind(source, *read_only).step(|| format!("mount volume {name} from {}", source.display()))?;
            parts.push((Path::new(VOLUMES).join(name), mount));
        }
        if let Some(cgroup) = &self.cgroup {
            parts.push((CGROUP.into(), bind(cgroup, false).step(|| format!("mount {}", cgroup.display()))?));
        }
        // Of the PID namespace this process is the first of.
        parts.push(("/proc".into(), filesystem("proc", &[]).step(|| "mount /proc".into())?));
        Ok(parts)
    }

    fn execute(
        &self,
        program: &OwnedFd,
        null: BorrowedFd<'_>,
        inherited: Inherited<'_>,
    ) -> Result<std::convert::Infallible, Failure> {
        let Inherited { primary, listener, lock } = inherited;
        // All copies are made beyond the numbers that are to be filled, so that none is overwritten before its turn.
        let wanted = [null, self.notes.as_fd(), self.notes.as_fd(), primary, listener, lock];
        let copy = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, FIRST_PRIVATE);
        let copies = wanted.into_iter().map(copy).collect::<Result<Vec<_>, _>>().step(|| "copy descriptors".into())?;
        let program = rustix::io::fcntl_dupfd_cloexec(program, FIRST_PRIVATE).step(|| "copy descriptors".into())?;
        for (number, fd) in (0..).zip(&copies) {
            // SAFETY: whoever owned this number in this process does not use it again: the program is executed, or the
            // process ends by _exit(2).
            if unsafe { libc::dup2(fd.as_raw_fd(), number) } < 0 {
                return Err(io::Error::last_os_error()).step(|| "place descriptors".into());
            }
        }
        debug_assert_eq!((PRIMARY, LISTENER, LOCK), (3, 4, 5));
        // SAFETY: sets a flag only.
        let marked =
            unsafe { libc::syscall(libc::SYS_close_range, FIRST_PRIVATE, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
        if marked < 0 {
            return Err(io::Error::last_os_error()).step(|| "keep the host's files from the supervisor".into());
        }
        let scratch = std::ffi::CString::new(SCRATCH).unwrap_or_default();
        let cgroup = std::ffi::CString::new(CGROUP).unwrap_or_default();
        let mut arguments: Vec<&CStr> =
            vec![c"podvm-supervisor", c"namespaces", PRIMARY_ARGUMENT, LISTENER_ARGUMENT, &scratch];
        if self.cgroup.is_some() {
            arguments.push(&cgroup);
        }
        let environment: [&CStr; 0] = [];
        let flags = nix::fcntl::AtFlags::AT_EMPTY_PATH;
        let Err(errno) = nix::unistd::execveat(program, c"", &arguments, &environment, flags);
        Err(io::Error::from(errno)).step(|| format!("execute the supervisor {}", self.supervisor.display()))
    }
}

fn filesystem(name: &str, options: &[(&str, &str)]) -> io::Result<OwnedFd> {
    let context = fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(&context, *key, *value)?;
    }
    fsconfig_create(&context)?;
    let attributes =
        MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

fn in_memory(size: &str) -> io::Result<OwnedFd> {
    let size = size.trim_start_matches("size=");
    filesystem("tmpfs", &[("source", "pod"), ("size", size), ("mode", "0700")])
}

/// Another mount of a directory with everything mounted below it.
fn bind(source: &Path, read_only: bool) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let mount = open_tree(CWD, source, flags)?;
    if read_only {
        restrict(mount.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY)?;
    }
    Ok(mount)
}

/// Adds attributes to a mount and all below it (mount_setattr(2)).
fn restrict(mount: BorrowedFd<'_>, attributes: MountAttrFlags) -> io::Result<()> {
    // SAFETY: all zeroes are a valid mount_attr.
    let mut attr: libc::mount_attr = unsafe { std::mem::zeroed() };
    attr.attr_set = attributes.bits().into();
    // SAFETY: the path is an empty C string, and the structure is as long as said.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attr,
            size_of_val(&attr),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn attach(mount: OwnedFd, place: &Path) -> io::Result<()> {
    Ok(move_mount(&mount, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

fn make_directories(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}
