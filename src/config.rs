//! Where podvm's files are: from the command line, else the configuration file, else beside the program.

use std::io;
use std::path::{Path, PathBuf};

use podvm_image::registry::{Lookaside, RegistrySettings};
use podvm_image::trust::PolicyFile;
use podvm_net::NetworkConfig;
use podvm_pod::PodsRoot;
use podvm_pod::stage1::Stage1Choice;
use podvm_stage1_kvm::layers::LayerAccess;
use serde::Deserialize;

use crate::cli::GlobalArgs;
use crate::commands::image::registries::InsecureOption;
use crate::input;
use crate::rootless;

const DEFAULT_CONFIG: &str = "/etc/podvm/config.toml";
const DEFAULT_ROOT: &str = "/var/lib/podvm";
/// Where an ordinary user's files are, below what the user's environment names (XDG Base Directory Specification).
const USER_CONFIG: &str = "podvm/config.toml";
const USER_ROOT: &str = "podvm";
/// Where keys are that may sign appc images: those that packages bring, and this host's.
const TRUSTED_KEYS: [&str; 2] = ["/usr/lib/podvm/trustedkeys", "/etc/podvm/trustedkeys"];
const USER_TRUSTED_KEYS: &str = "podvm/trustedkeys";
/// What OCI images are held against, in `~/.config` or /etc: podman's file.
const POLICY: &str = "containers/policy.json";
/// What says where signatures by GPG keys are, in `~/.config` or /etc: podman's folder.
const REGISTRIES_D: &str = "containers/registries.d";
/// Where such signatures are when nothing says it: root's, and in an ordinary user's home.
const SIGNATURES: &str = "/var/lib/containers/sigstore";
const USER_SIGNATURES: &str = ".local/share/containers/sigstore";

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration {path}: {source}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file says something podvm does not understand.
    #[error("configuration {path}: {message}", path = .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what, from the parser.
        message: String,
    },
    /// A path that would mean another place in each working directory.
    #[error("{name} is {path:?}; write an absolute path")]
    RelativePath {
        /// The setting.
        name: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// An ordinary user without a home.
    #[error("HOME is not set, so there is no place for this user's images and pods; set it, or give --root")]
    NoHome,
    /// The program does not know where it is.
    #[error("podvm cannot find its own files ({0}); set kernel, initramfs and supervisor in {DEFAULT_CONFIG}")]
    OwnPath(io::Error),
}

/// The configuration file, `/etc/podvm/config.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ConfigFile {
    /// Folder of podvm's state.
    root: Option<PathBuf>,
    /// The stage1 that is taken when none is asked for.
    stage1: Stage1Choice,
    /// The guest's kernel, a PVH ELF `vmlinux`.
    kernel: Option<PathBuf>,
    /// The guest's first filesystem, with the supervisor as `/init`.
    initramfs: Option<PathBuf>,
    /// The supervisor behind namespaces, a static binary.
    supervisor: Option<PathBuf>,
    /// How image layers come into VMs.
    layers: LayerAccess,
    /// The built-in network.
    network: NetworkConfig,
    /// Where images are fetched from.
    registries: RegistrySettings,
    /// Whose images are trusted.
    trust: TrustFile,
    /// Checks that are left out unless the command line says otherwise.
    #[serde(rename = "insecure-options")]
    insecure_options: Vec<InsecureOption>,
}

/// The `[trust]` table.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct TrustFile {
    /// Folders of keys that may sign appc images; the last is the one that is written to.
    keys: Option<Vec<PathBuf>>,
    /// What other images are held against, containers-policy.json(5).
    policy: Option<PathBuf>,
    /// What says where signatures by GPG keys are, containers-registries.d(5).
    registries_d: Option<PathBuf>,
}

/// Whose images are trusted.
#[derive(Debug, Clone)]
pub struct TrustSettings {
    /// Folders of keys that may sign appc images; the last is the one that is written to.
    pub keys: Vec<PathBuf>,
    /// What other images are held against.
    pub policy: PolicyFile,
    /// Where signatures by GPG keys are.
    pub signatures: Lookaside,
}

/// All settings, resolved.
#[derive(Debug, Clone)]
pub struct Config {
    /// Folder of podvm's state.
    pub root: PathBuf,
    /// The stage1 that is taken when none is asked for.
    pub stage1: Stage1Choice,
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// The guest's first filesystem.
    pub initramfs: PathBuf,
    /// The supervisor behind namespaces.
    pub supervisor: PathBuf,
    /// How image layers come into VMs.
    pub layers: LayerAccess,
    /// The built-in network.
    pub network: NetworkConfig,
    /// Whether podvm runs for an ordinary user.
    pub is_unprivileged: bool,
    /// Where images are fetched from.
    pub registries: RegistrySettings,
    /// Whose images are trusted.
    pub trust: TrustSettings,
    /// Checks that are left out unless the command line says otherwise.
    pub insecure_options: Vec<InsecureOption>,
}

impl Config {
    /// Reads the configuration that the command line names, or the usual one if it is there.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(args: &GlobalArgs) -> Result<Self, ConfigError> {
        let is_unprivileged = rootless::is_unprivileged();
        let users_own = user_folder("XDG_CONFIG_HOME", ".config").map(|folder| folder.join(USER_CONFIG));
        let users_own = users_own.filter(|path| is_unprivileged && path.exists());
        let (path, must_exist) = match (&args.config, &users_own) {
            (Some(path), _) | (None, Some(path)) => (path.as_path(), true),
            (None, None) => (Path::new(DEFAULT_CONFIG), false),
        };
        let mut file = match input::read_text(path) {
            Ok(text) => parse(&text).map_err(|message| ConfigError::Parse { path: path.into(), message })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => ConfigFile::default(),
            Err(source) => return Err(ConfigError::Read { path: path.into(), source }),
        };
        if is_unprivileged && path == Path::new(DEFAULT_CONFIG) {
            // The host's is not a user's to write to.
            file.root = None;
        }
        let library = library_folder().map_err(ConfigError::OwnPath)?;
        let root = match &args.root {
            Some(root) => {
                std::path::absolute(root).map_err(|source| ConfigError::Read { path: root.clone(), source })?
            }
            None => absolute("root", file.root.map_or_else(|| default_root(is_unprivileged), Ok)?)?,
        };
        Ok(Self {
            root,
            stage1: file.stage1,
            kernel: absolute("kernel", file.kernel.unwrap_or_else(|| library.join("vmlinux")))?,
            initramfs: absolute("initramfs", file.initramfs.unwrap_or_else(|| library.join("initramfs.cpio")))?,
            supervisor: absolute("supervisor", file.supervisor.unwrap_or_else(|| library.join("supervisor")))?,
            layers: file.layers,
            network: file.network,
            is_unprivileged,
            registries: file.registries,
            trust: trust_settings(file.trust, is_unprivileged)?,
            insecure_options: file.insecure_options,
        })
    }

    /// Folder of the image store.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// The pods.
    pub fn pods(&self) -> PodsRoot {
        PodsRoot::new(&self.root)
    }
}

fn trust_settings(file: TrustFile, is_unprivileged: bool) -> Result<TrustSettings, ConfigError> {
    let keys = file.keys.unwrap_or_else(|| {
        let own = user_folder("XDG_CONFIG_HOME", ".config").filter(|_| is_unprivileged);
        let own = own.map(|folder| folder.join(USER_TRUSTED_KEYS));
        TRUSTED_KEYS.iter().map(PathBuf::from).chain(own).collect()
    });
    let keys = keys.into_iter().map(|folder| absolute("trust.keys", folder)).collect::<Result<_, _>>()?;
    // podman's files are looked for as podman does it: in the home, whatever XDG_CONFIG_HOME says.
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    let usual = |name: &str| {
        let own = home.as_ref().map(|home| home.join(".config").join(name));
        own.into_iter().chain([Path::new("/etc").join(name)]).collect::<Vec<_>>()
    };
    let (paths, is_required) = match file.policy {
        Some(path) => (vec![absolute("trust.policy", path)?], true),
        None => (usual(POLICY), false),
    };
    let policy = PolicyFile { paths, is_required };
    let (folders, is_required) = match file.registries_d {
        Some(folder) => (vec![absolute("trust.registries-d", folder)?], true),
        None => (usual(REGISTRIES_D), false),
    };
    let default = match is_unprivileged {
        true => home.map(|home| home.join(USER_SIGNATURES)),
        false => Some(SIGNATURES.into()),
    };
    Ok(TrustSettings { keys, policy, signatures: Lookaside { folders, is_required, default } })
}

fn parse(text: &str) -> Result<ConfigFile, String> {
    let file: ConfigFile = toml::from_str(text).map_err(|error: toml::de::Error| {
        let line = error.span().map(|span| 1 + text[..span.start].matches('\n').count());
        let place = line.map(|line| format!("line {line}: ")).unwrap_or_default();
        format!("{place}{}", error.message())
    })?;
    file.registries.check().map_err(|error| error.to_string())?;
    Ok(file)
}

fn absolute(name: &'static str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    if path.is_absolute() { Ok(path) } else { Err(ConfigError::RelativePath { name, path }) }
}

fn default_root(is_unprivileged: bool) -> Result<PathBuf, ConfigError> {
    if !is_unprivileged {
        return Ok(DEFAULT_ROOT.into());
    }
    Ok(user_folder("XDG_DATA_HOME", ".local/share").ok_or(ConfigError::NoHome)?.join(USER_ROOT))
}

/// The folder that a variable names, or one in the user's home.
fn user_folder(variable: &str, usual: &str) -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    folder(variable).or_else(|| Some(folder("HOME")?.join(usual)))
}

/// `<prefix>/lib/podvm`, when the program is `<prefix>/bin/podvm`.
fn library_folder() -> io::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let prefix = program.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
    Ok(prefix.join("lib/podvm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::load(&GlobalArgs { root: None, config: Some(file.path().into()) })
    }

    #[test]
    fn what_the_file_does_not_say_has_its_usual_value() {
        let config = load("stage1 = \"kvm\"\nkernel = \"/boot/vmlinux\"\n").unwrap();
        assert_eq!(config.stage1, Stage1Choice::Kvm);
        assert_eq!(config.kernel, Path::new("/boot/vmlinux"));
        assert!(config.initramfs.ends_with("lib/podvm/initramfs.cpio"));
        assert_eq!(config.root, Path::new(DEFAULT_ROOT));
        assert_eq!(config.layers, LayerAccess::Auto);
    }

    #[test]
    fn a_mistake_in_the_file_is_named_with_its_line() {
        let message = load("root = \"/x\"\ncolour = 1\n").unwrap_err().to_string();
        assert!(message.contains("line 2") && message.contains("colour"), "{message}");
        let message = load("layers = \"tape\"").unwrap_err().to_string();
        assert!(message.contains("tape") && message.contains("`memory`"), "{message}");
        let message = load("kernel = \"vmlinux\"").unwrap_err().to_string();
        assert!(message.contains("kernel") && message.contains("absolute"), "{message}");
    }

    #[test]
    fn registries_are_checked_when_they_are_read() {
        let config = load("[registries]\nsearch = [\"quay.io/coreos\"]\npull-policy = \"update\"\n").unwrap();
        assert_eq!(config.registries.search, ["quay.io/coreos"]);
        for (text, part) in [
            ("[registries]\nsearch = [\"Not a place\"]", "\"Not a place\""),
            ("[registries.hosts.\"docker.io\"]\nmirrors = [\"mirror\"]", "\"mirror\" is no HOST"),
            ("[registries.hosts.\"docker.io\"]\ninsecure = [\"all\"]", "all"),
        ] {
            let message = load(text).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn checks_are_left_out_by_name_only() {
        let config = load(
            "insecure-options = [\"image\"]\n[trust]\npolicy = \"/p.json\"\nkeys = [\"/k\"]\nregistries-d = \"/r\"\n",
        );
        let config = config.unwrap();
        assert_eq!(config.insecure_options, [InsecureOption::Image]);
        assert_eq!((config.trust.keys, config.trust.policy.is_required), (vec!["/k".into()], true));
        assert_eq!((config.trust.signatures.folders, config.trust.signatures.is_required), (vec!["/r".into()], true));
        for (text, part) in [
            ("insecure-options = [\"images\"]", "\"images\""),
            ("[trust]\npolicy = \"p.json\"", "absolute"),
            ("[trust]\nkeys = [\"k\"]", "absolute"),
            ("[trust]\nregistries-d = \"r\"", "absolute"),
            ("[trust]\npolice = \"/p.json\"", "police"),
        ] {
            let message = load(text).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_file_that_was_named_must_be_there() {
        let args = GlobalArgs { root: None, config: Some("/nonexistent/config.toml".into()) };
        assert!(matches!(Config::load(&args), Err(ConfigError::Read { .. })));
    }
}
