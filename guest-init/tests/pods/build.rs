//! Pods as a command line would describe them.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use podvm_pod::manifest::{App, AppImage, ByteSize, Isolators, Mount, UserSpec};
use podvm_pod::protocol::{AppSpec, LayerSource, NetworkSpec, PodSpec, VolumeSource, VolumeSpec, WritableSource};

use super::{Outcome, Pod};

pub const BUSYBOX: &str = "/bin/busybox";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nworker:x:1000:1001:Worker:/home/worker:/bin/sh\n";
const GROUP: &str = "root:x:0:\nworkers:x:1001:\nextra:x:1002:worker\n";

/// A pod to be.
pub struct PodBuilder {
    pub folder: Arc<tempfile::TempDir>,
    pub spec: PodSpec,
}

/// An app that runs a shell script.
pub fn app(name: &str, script: &str) -> App {
    App {
        name: name.parse().unwrap(),
        image: AppImage { name: "busybox".into(), id: "sha256:0".into(), layers: Vec::new() },
        exec: ["/bin/sh", "-c", script].map(str::to_owned).into(),
        user: UserSpec::default(),
        supplementary_gids: Vec::new(),
        working_directory: "/".into(),
        environment: Vec::new(),
        mounts: Vec::new(),
        isolators: Isolators::default(),
        read_only_root: false,
        terminal: false,
        stdin: false,
        health: None,
        restart: Default::default(),
        pre_start: Vec::new(),
        post_stop: Vec::new(),
        stop_signal: libc::SIGTERM,
    }
}

impl PodBuilder {
    /// A pod without apps, and the image they will have: busybox in one layer, users in another.
    pub fn new() -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let base = folder.path().join("base");
        for directory in ["bin", "tmp", "root"] {
            std::fs::create_dir_all(base.join(directory)).unwrap();
        }
        std::fs::copy(BUSYBOX, base.join("bin/busybox")).unwrap();
        let list = std::process::Command::new(BUSYBOX).arg("--list").output().unwrap();
        for name in String::from_utf8(list.stdout).unwrap().lines().filter(|name| *name != "busybox") {
            symlink("busybox", base.join("bin").join(name)).unwrap();
        }
        let users = folder.path().join("users");
        std::fs::create_dir_all(users.join("etc")).unwrap();
        std::fs::write(users.join("etc/passwd"), PASSWD).unwrap();
        std::fs::write(users.join("etc/group"), GROUP).unwrap();
        let spec = PodSpec {
            uuid: uuid::Uuid::nil(),
            hostname: "testpod".into(),
            apps: Vec::new(),
            volumes: Vec::new(),
            writable: WritableSource::Tmpfs(ByteSize::mib(64)),
            shm: None,
            network: NetworkSpec::default(),
        };
        Self { folder, spec }
    }

    /// A pod of one app called `main` that runs a script.
    pub fn script(script: &str) -> Self {
        Self::new().with(app("main", script))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Adds an app of the image.
    pub fn with(mut self, app: App) -> Self {
        let layers = ["base", "users"].map(|name| LayerSource::Directory(self.path(name))).into();
        self.spec.apps.push(AppSpec { app, layers, sockets: Vec::new() });
        self
    }

    /// Adds a layer on top of the last app's.
    pub fn layer(mut self, name: &str, fill: impl FnOnce(&Path)) -> Self {
        let path = self.path(name);
        std::fs::create_dir_all(&path).unwrap();
        fill(&path);
        self.spec.apps.last_mut().unwrap().layers.push(LayerSource::Directory(path));
        self
    }

    /// Changes the last app.
    pub fn app(mut self, change: impl FnOnce(&mut App)) -> Self {
        change(&mut self.spec.apps.last_mut().unwrap().app);
        self
    }

    pub fn user(self, user: &str) -> Self {
        self.app(|app| app.user = user.into())
    }

    pub fn volume(mut self, name: &str, source: VolumeSource, read_only: bool) -> Self {
        self.spec.volumes.push(VolumeSpec { name: name.parse().unwrap(), source, read_only });
        self
    }

    pub fn mount(self, volume: &str, path: &str, read_only: bool) -> Self {
        let mount = Mount { volume: volume.parse().unwrap(), path: path.into(), read_only };
        self.app(|app| app.mounts.push(mount))
    }

    /// A directory on this machine as a volume.
    pub fn directory(self, name: &str, fill: impl FnOnce(&Path)) -> Self {
        let path = self.path(name);
        std::fs::create_dir_all(&path).unwrap();
        fill(&path);
        self.volume(name, VolumeSource::Directory(path), false)
    }

    /// Starts it.
    pub fn start(&self) -> Pod {
        Pod::run(self.spec.clone(), self.folder.clone())
    }

    /// Runs it to its end.
    pub fn outcome(&self) -> Outcome {
        self.start().outcome()
    }
}
