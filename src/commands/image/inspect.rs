//! `podvm image inspect`.

use std::fmt::Write;

use anyhow::Result;
use podvm_image::{AppcRecord, Image, ImageConfig, Store};
use podvm_pod::manifest::ByteSize;
use podvm_pod::timestamp::Timestamp;
use serde::Serialize;

use super::fetch::{shown_id, shown_names};
use crate::output::{OutputArgs, one_line, print};

/// Options of `podvm image inspect`.
#[derive(Debug, clap::Args)]
pub struct InspectArgs {
    /// Images: names, or beginnings of IDs
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
    /// Form of the output.
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Serialize)]
struct Inspected {
    id: String,
    names: Vec<String>,
    manifest_digest: Option<String>,
    architecture: String,
    created: Option<String>,
    imported: String,
    size_bytes: u64,
    layers: Vec<String>,
    config: ImageConfig,
    appc: Option<AppcRecord>,
}

impl From<Image> for Inspected {
    fn from(image: Image) -> Self {
        Self {
            id: shown_id(&image.id, image.appc.as_ref()),
            names: shown_names(&image.names, image.appc.as_ref()),
            manifest_digest: image.manifest_digest.map(|digest| digest.to_string()),
            architecture: image.architecture,
            created: image.created,
            imported: Timestamp::from_seconds(image.imported).to_string(),
            size_bytes: image.size,
            layers: image.layers.iter().map(ToString::to_string).collect(),
            config: image.config,
            appc: image.appc,
        }
    }
}

/// Shows images.
pub fn run(args: &InspectArgs, store: &Store) -> Result<u8> {
    let mut images = Vec::new();
    for wanted in &args.images {
        images.push(Inspected::from(store.find(wanted)?));
    }
    print(args.output, &images, |images| images.iter().map(as_text).collect::<Vec<_>>().join("\n"))?;
    Ok(0)
}

fn as_text(image: &Inspected) -> String {
    let config = &image.config;
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let joined = |words: &[String]| (!words.is_empty()).then(|| words.join(" "));
    let labels = || config.labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>();
    let one_line_each =
        |name: &'static str, values: Vec<String>| values.into_iter().map(move |value| (name, Some(value)));
    let mut fields = vec![
        ("image", Some(image.id.clone())),
        ("names", joined(&image.names)),
        ("manifest", image.manifest_digest.clone()),
        ("architecture", Some(image.architecture.clone())),
        ("created", image.created.clone()),
        ("imported", Some(image.imported.clone())),
        ("size", Some(ByteSize(image.size_bytes).to_string())),
        ("entrypoint", joined(&config.entrypoint)),
        ("command", joined(&config.cmd)),
        ("directory", given(&config.working_dir)),
        ("user", given(&config.user)),
        ("stop signal", given(&config.stop_signal)),
        ("ports", joined(&config.exposed_ports)),
        ("volumes", joined(&config.volumes)),
    ];
    if let Some(appc) = &image.appc {
        let manifest = &appc.manifest;
        fields.push(("signed by", appc.signer.clone()));
        fields.push(("fetched from", appc.url.clone()));
        let dependencies = manifest.dependencies.iter().map(|dependency| dependency.wanted().to_string());
        fields.extend(one_line_each("dependency", dependencies.collect()));
        let isolators = manifest.app.iter().flat_map(|app| &app.isolators);
        let isolators = isolators.map(|isolator| format!("{} {}", isolator.name, isolator.value));
        fields.extend(one_line_each("isolator", isolators.collect()));
    }
    fields.extend(one_line_each("environment", config.env.clone()));
    fields.extend(one_line_each("label", labels()));
    fields.extend(one_line_each("layer", image.layers.clone()));
    let mut text = String::new();
    for (name, value) in fields {
        if let Some(value) = value {
            // Whoever writes to a string never fails.
            let _ = writeln!(text, "{:<14} {}", format!("{name}:"), one_line(&value));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_image_does_not_say_has_no_line() {
        let env = vec!["A=b".into(), "C=d\nsigned by: x".into()];
        let config = ImageConfig { entrypoint: vec!["/e".into(), "-x".into()], env, ..Default::default() };
        let image = Inspected {
            id: "sha256:0".into(),
            names: Vec::new(),
            manifest_digest: None,
            architecture: "amd64".into(),
            created: None,
            imported: "1970-01-01T00:00:00Z".into(),
            size_bytes: 4096,
            layers: vec!["sha256:1".into()],
            config,
            appc: None,
        };
        let text = as_text(&image);
        for line in
            ["entrypoint:    /e -x\n", "environment:   A=b\n", "layer:         sha256:1\n", "size:          4 KiB\n"]
        {
            assert!(text.contains(line), "{text}");
        }
        assert!(!text.contains("\nsigned by:"), "a value makes no line of its own: {text}");
        assert!(!text.contains("user:") && !text.contains("names:"), "{text}");
    }
}
