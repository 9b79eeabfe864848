//! What is wrong with a pod that was asked for.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use podvm_pod::manifest::{AppName, ByteSize, Protocol, VolumeName};
use podvm_pod::writable::{MAX_DISK, MIN_DISK};

/// Why a pod could not be prepared. Nothing has been made yet.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A `--volume` names a host directory that is not there.
    #[error("volume {name}: {path} does not exist; create it, or use kind=empty", path = .path.display())]
    VolumeSourceMissing {
        /// The volume.
        name: VolumeName,
        /// Its source.
        path: PathBuf,
    },
    /// A `--volume` names something else than a directory.
    #[error("volume {name}: {path} is not a directory; name the directory that holds it", path = .path.display())]
    VolumeSourceNoDirectory {
        /// The volume.
        name: VolumeName,
        /// Its source.
        path: PathBuf,
    },
    /// A `--volume`'s source cannot be looked at.
    #[error("volume {name}: {path}: {source}", path = .path.display())]
    VolumeSource {
        /// The volume.
        name: VolumeName,
        /// Its source.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Two volumes of one name.
    #[error("volume {0} is given twice; give each volume a name of its own")]
    VolumeTwice(VolumeName),
    /// A volume that no app has.
    #[error(
        "volume {name} is used by no app; name it as an image does ({declared}), or add --mount volume={name},target=DIR"
    )]
    VolumeUnused {
        /// The volume.
        name: VolumeName,
        /// What the images call theirs.
        declared: String,
    },
    /// Relative paths lead nowhere.
    #[error("the current directory cannot be named ({0}); give absolute paths of the host")]
    NoDirectory(#[source] std::io::Error),
    /// A mount of a volume that is not there.
    #[error("app {app} mounts volume {volume}, which the pod does not have; add --volume {volume},kind=…")]
    MountWithoutVolume {
        /// The app.
        app: AppName,
        /// The volume.
        volume: VolumeName,
    },
    /// Two volumes at one place.
    #[error("app {app} has two volumes at {path}; mount one of them elsewhere", path = .path.display())]
    MountTwice {
        /// The app.
        app: AppName,
        /// The place.
        path: PathBuf,
    },
    /// A volume in place of the whole root.
    #[error("app {app}: volume {volume} cannot be mounted at /, where the image is; mount it below")]
    MountAtRoot {
        /// The app.
        app: AppName,
        /// The volume.
        volume: VolumeName,
    },
    /// A volume in place of what the system needs.
    #[error("app {app}: volume {volume} cannot be mounted at {path}, which is the system's; mount it elsewhere", path = .path.display())]
    MountAtSystem {
        /// The app.
        app: AppName,
        /// The volume.
        volume: VolumeName,
        /// The place.
        path: PathBuf,
    },
    /// Two apps of one name.
    #[error("two apps are named {0}; give one another name with --name")]
    AppTwice(AppName),
    /// Two apps want what is typed.
    #[error("apps {0} and {1} are both --interactive, but there is one standard input; leave it out for one of them")]
    TwoInteractive(AppName, AppName),
    /// A port no image knows.
    #[error("no image has a port named {name:?}; {known}, or give a number such as 80 or 53/udp")]
    PortUnknown {
        /// What was asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A name that means different ports in different images.
    #[error("port {name:?} is {first} in app {first_app} and {second} in app {second_app}; give the number")]
    PortAmbiguous {
        /// What was asked for.
        name: String,
        /// One meaning.
        first: String,
        /// Whose.
        first_app: String,
        /// Another meaning.
        second: String,
        /// Whose.
        second_app: String,
    },
    /// A port of the host that is asked for twice.
    #[error("port {port}/{protocol} of the host is asked for twice{at}; give each port of the pod its own", at = .ip.map(|ip| format!(" at {ip}")).unwrap_or_default())]
    PortTwice {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// Its address, if one was given.
        ip: Option<IpAddr>,
    },
    /// A range of ports that the host's ports do not have room for.
    #[error("port {name:?} is {count} ports, and the host's from {first} on are not as many; begin with a lower one")]
    PortRange {
        /// Its name.
        name: String,
        /// How many it is.
        count: u16,
        /// The first at the host.
        first: u16,
    },
    /// Ports without a network.
    #[error("--port needs a network of the pod's own; leave out --net={0}")]
    PortWithoutNetwork(&'static str),
    /// The host's network for a VM.
    #[error("--net=host needs --stage1=ns: a VM cannot share the host's network; or use --net=default with --port")]
    HostNetwork,
    /// The host's shared memory for a VM.
    #[error("--ipc=host needs --stage1=ns: a VM cannot share the host's memory and semaphores; or leave it out")]
    HostIpc,
    /// The host's shared memory for users who are not the host's.
    #[error(
        "--ipc=host is for root's pods without --private-users: the host's memory and semaphores belong to its own users"
    )]
    HostIpcOfOthers,
    /// Settings of a health check that is not there.
    #[error("image {0} has no health check to be changed; give one with --health-cmd")]
    NoHealthCheck(String),
    /// What is typed would go to the first of many lives.
    #[error("app {0}: --restart and --interactive exclude each other: what is typed cannot be given to the app again")]
    InteractiveRestart(AppName),
    /// `--dns=host` or `--dns=none` beside something else.
    #[error(
        "--dns=host and --dns=none stand alone: leave out the other --dns, and with none also --dns-search and --dns-opt"
    )]
    DnsTogether,
    /// A file of variables that cannot be read or understood.
    #[error("--set-env-file {path}: {what}", path = .path.display())]
    EnvironmentFile {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        what: String,
    },
    /// A limit that is given twice.
    #[error("app {app}: the limit {name} is given twice; give each --rlimit once")]
    RlimitTwice {
        /// The app.
        app: AppName,
        /// Which limit.
        name: String,
    },
    /// A pod manifest that cannot be run.
    #[error("--pod-manifest {path}: {what}", path = .path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        what: String,
    },
    /// A limit that no program can start under.
    #[error("app {app}: {given} is too little memory; give at least {minimum}")]
    TooLittleMemory {
        /// The app.
        app: AppName,
        /// Its limit.
        given: ByteSize,
        /// The smallest.
        minimum: ByteSize,
    },
    /// More memory than there is.
    #[error("the pod would have {wanted} of memory, and this host has {present}; set lower limits with --memory")]
    TooMuchMemory {
        /// The pod's.
        wanted: ByteSize,
        /// The host's.
        present: ByteSize,
    },
    /// A disk too small for a filesystem, or larger than a file.
    #[error("a disk cannot be of {0}; give {MIN_DISK} to {MAX_DISK} with --disk")]
    DiskSize(ByteSize),
    /// Neither the image nor the user says what to run.
    #[error("image {0} names no program; give one after --, or with --exec")]
    NoProgram(String),
    /// A path that is relative to nothing.
    #[error("app {app}: working directory {path:?} is not absolute; begin it with /")]
    RelativeWorkingDirectory {
        /// The app.
        app: AppName,
        /// The directory.
        path: PathBuf,
    },
    /// Not a hostname.
    #[error("{0:?} is no hostname: use up to 64 letters, digits, dashes and dots, beginning with a letter or digit")]
    Hostname(String),
    /// An image says something that makes no sense.
    #[error("image {image}: {what}")]
    Image {
        /// The image.
        image: String,
        /// What is wrong.
        what: String,
    },
}
