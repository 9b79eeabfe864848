//! Which registries images are fetched from, and how: options, configuration, and where credentials are.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use podvm_image::Registries;
use podvm_image::registry::{Credentials, Insecure, Patience, PullPolicy};

use serde::Deserialize;

use crate::config::Config;

/// Options of every command that may fetch an image.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct RegistryArgs {
    /// When to ask the registry for an image: new (if it is not stored), update (always) or never
    #[arg(long, value_name = "POLICY")]
    pub pull_policy: Option<PullPolicyArg>,
    /// Checks to leave out.
    #[command(flatten)]
    pub insecure: InsecureArgs,
}

/// The option of every command that checks where images come from.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct InsecureArgs {
    /// Checks to leave out: image (signatures, and policy.json), http (hosts need no TLS), tls (their certificates are not
    /// checked), all or none [default: insecure-options of the configuration, which has none]
    #[arg(long, value_name = "CHECKS", value_delimiter = ',')]
    pub insecure_options: Vec<InsecureOption>,
}

/// `--pull-policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum PullPolicyArg {
    /// When it is not stored.
    New,
    /// Always.
    Update,
    /// Never.
    Never,
}

/// One word of `--insecure-options`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum InsecureOption {
    /// Leaves out no check.
    None,
    /// Leaves out the check of signatures.
    Image,
    /// Leaves out one of the connection.
    Only(Insecure),
    /// Leaves out all that there are.
    All,
}

/// No check of that name.
#[derive(Debug, thiserror::Error)]
#[error("there is no check {0:?} to leave out; use image, http, tls, all or none")]
pub struct UnknownCheck(String);

impl FromStr for InsecureOption {
    type Err = UnknownCheck;

    fn from_str(text: &str) -> Result<Self, UnknownCheck> {
        match text {
            "none" => Ok(Self::None),
            "image" => Ok(Self::Image),
            "http" => Ok(Self::Only(Insecure::Http)),
            "tls" => Ok(Self::Only(Insecure::Tls)),
            "all" => Ok(Self::All),
            _ => Err(UnknownCheck(text.to_owned())),
        }
    }
}

impl TryFrom<String> for InsecureOption {
    type Error = UnknownCheck;

    fn try_from(text: String) -> Result<Self, UnknownCheck> {
        text.parse()
    }
}

impl InsecureArgs {
    /// What was asked for, or what the configuration says when nothing was.
    fn options<'a>(&'a self, config: &'a Config) -> &'a [InsecureOption] {
        if self.insecure_options.is_empty() { &config.insecure_options } else { &self.insecure_options }
    }

    /// Whether signatures are checked.
    pub fn checks_images(&self, config: &Config) -> bool {
        let is_left_out = |option: &InsecureOption| matches!(option, InsecureOption::Image | InsecureOption::All);
        !self.options(config).iter().any(is_left_out)
    }

    /// The registries, with which nobody has spoken yet.
    pub fn registries(&self, config: &Config) -> Registries {
        let mut insecure = Vec::new();
        for option in self.options(config) {
            match option {
                InsecureOption::None | InsecureOption::Image => {}
                InsecureOption::Only(check) => insecure.push(*check),
                InsecureOption::All => insecure.extend([Insecure::Http, Insecure::Tls]),
            }
        }
        let credentials = Credentials { files: credential_files(|name| env::var_os(name)) };
        let mut settings = config.registries.clone();
        settings.ca = env::var_os("SSL_CERT_FILE").filter(|file| !file.is_empty()).map(PathBuf::from).or(settings.ca);
        let registries = Registries::new(settings, credentials, insecure, Patience::default());
        registries.with_signatures_in(config.trust.signatures.clone())
    }
}

impl RegistryArgs {
    /// The policy that was asked for, or the configuration's.
    pub fn policy(&self, config: &Config) -> PullPolicy {
        match self.pull_policy {
            Some(PullPolicyArg::New) => PullPolicy::New,
            Some(PullPolicyArg::Update) => PullPolicy::Update,
            Some(PullPolicyArg::Never) => PullPolicy::Never,
            None => config.registries.pull_policy,
        }
    }
}

/// Where `podman login` and `docker login` keep credentials (containers-auth.json(5)).
fn credential_files(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let folder = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(file) = folder("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    let uid = nix::unistd::geteuid();
    let runtime = folder("XDG_RUNTIME_DIR").map_or_else(
        || PathBuf::from(format!("/run/containers/{uid}/auth.json")),
        |runtime| runtime.join("containers/auth.json"),
    );
    let home = folder("HOME");
    let configuration = folder("XDG_CONFIG_HOME").or_else(|| Some(home.as_ref()?.join(".config")));
    let docker = folder("DOCKER_CONFIG").or_else(|| Some(home.as_ref()?.join(".docker")));
    let mut files = vec![runtime];
    files.extend(configuration.map(|folder| folder.join("containers/auth.json")));
    files.extend(docker.map(|folder| folder.join("config.json")));
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_where_the_environment_says() {
        let files = |variables: &[(&str, &str)]| {
            let find =
                |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into());
            credential_files(find).iter().map(|path| path.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(files(&[("REGISTRY_AUTH_FILE", "/a"), ("HOME", "/h")]), ["/a"]);
        assert_eq!(
            files(&[("XDG_RUNTIME_DIR", "/run/user/0"), ("HOME", "/h")]),
            ["/run/user/0/containers/auth.json", "/h/.config/containers/auth.json", "/h/.docker/config.json"]
        );
        assert_eq!(files(&[("DOCKER_CONFIG", "/d")])[1..], ["/d/config.json"]);
    }

    #[test]
    fn checks_are_left_out_by_name_only() {
        assert_eq!("http".parse::<InsecureOption>().unwrap(), InsecureOption::Only(Insecure::Http));
        assert_eq!("image".parse::<InsecureOption>().unwrap(), InsecureOption::Image);
        assert!("ondisk".parse::<InsecureOption>().unwrap_err().to_string().contains("use image, http"));
        assert!("htp".parse::<InsecureOption>().unwrap_err().to_string().contains("\"htp\""));
    }
}
