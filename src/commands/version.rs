//! `podvm version`: what this podvm is, and what it can talk to.

use anyhow::Result;
use podvm_pod::manifest::MANIFEST_VERSION;
use podvm_pod::protocol::PROTOCOL_VERSION;
use serde::Serialize;

use crate::output::{OutputArgs, print};

/// Options of `podvm version`.
#[derive(Debug, clap::Args)]
pub struct VersionArgs {
    /// Form of the output.
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Serialize)]
struct Versions {
    podvm: &'static str,
    manifest: u32,
    protocol: u32,
    architecture: &'static str,
    stage1s: [&'static str; 1],
}

/// Prints versions.
pub fn run(args: &VersionArgs) -> Result<u8> {
    let versions = Versions {
        podvm: env!("CARGO_PKG_VERSION"),
        manifest: MANIFEST_VERSION,
        protocol: PROTOCOL_VERSION,
        architecture: std::env::consts::ARCH,
        stage1s: ["kvm"],
    };
    print(args.output, &versions, |versions| {
        format!(
            "podvm {}\npod manifest {}\nsupervisor protocol {}\narchitecture {}\nstage1s {}\n",
            versions.podvm,
            versions.manifest,
            versions.protocol,
            versions.architecture,
            versions.stage1s.join(", ")
        )
    })?;
    Ok(0)
}
