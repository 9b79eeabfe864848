//! What a stage1 must do: build the walls around a prepared pod and run it in the calling process.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::directory::PreparedPod;
use crate::status::PodReport;

/// The walls a pod is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage1Kind {
    /// A micro-VM.
    Kvm,
    /// Linux namespaces.
    Ns,
}

impl fmt::Display for Stage1Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Ns => "ns",
        })
    }
}

/// Which stage1 the user wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage1Choice {
    /// kvm where this host's KVM really runs guests.
    #[default]
    Auto,
    /// kvm or nothing.
    Kvm,
    /// Namespaces.
    Ns,
}

/// No stage1 of that name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no stage1; choose auto, kvm or ns")]
pub struct UnknownStage1(pub String);

impl FromStr for Stage1Choice {
    type Err = UnknownStage1;

    fn from_str(text: &str) -> Result<Self, UnknownStage1> {
        match text {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "ns" => Ok(Self::Ns),
            _ => Err(UnknownStage1(text.into())),
        }
    }
}

/// Builds walls around pods.
pub trait Stage1 {
    /// What can go wrong before the pod runs.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Which walls.
    fn kind(&self) -> Stage1Kind;

    /// Runs the pod in the calling process, which must be single-threaded, and returns when it has ended and its end is
    /// recorded in its directory. The process has given up its privileges by then; nothing but exiting is left to it.
    ///
    /// # Errors
    /// What kept the pod from being started. A pod that started and failed is a [`PodReport`].
    fn run(&self, pod: PreparedPod) -> Result<PodReport, Self::Error>;
}
