//! Images that are one of the tests' images with something on top.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{Host, Invocation, layout};

impl Host {
    /// An OCI layout of `base` with the files of `root` in a layer on top, as tar(1) packs them, and the settings of `config` beside
    /// its own. It is in the test's scratch directory.
    #[track_caller]
    pub fn derived(&self, base: &str, root: &Path, config: Value) -> PathBuf {
        let folder = self.scratch().join(format!("{base}.derived"));
        let source = layout(base).canonicalize().expect("the layout is there");
        Invocation::new("cp", [Path::new("-a"), &source, &folder]).run().expect_code(0);
        let layer = self.scratch().join(format!("{base}.layer"));
        let tar =
            Invocation::new("tar", ["--numeric-owner", "--xattrs", "-cf"]).arg(&layer).arg("-C").arg(root).arg(".");
        tar.time_limit(Duration::from_secs(60)).run().expect_code(0);

        let mut index = read_json(&folder.join("index.json"));
        let mut manifest = read_blob(&folder, &index["manifests"][0]);
        let mut settings = read_blob(&folder, &manifest["config"]);
        let layer = write_blob(&folder, "application/vnd.oci.image.layer.v1.tar", &fs::read(layer).expect("a layer"));
        settings["rootfs"]["diff_ids"].as_array_mut().expect("an image has layers").push(layer["digest"].clone());
        settings.as_object_mut().expect("a configuration is an object").remove("history");
        for (key, value) in config.as_object().expect("settings are an object") {
            settings["config"][key] = value.clone();
        }
        manifest["layers"].as_array_mut().expect("an image has layers").push(layer);
        manifest["config"] = write_again(&folder, &manifest["config"], &settings);
        index["manifests"][0] = write_again(&folder, &index["manifests"][0], &manifest);
        fs::write(folder.join("index.json"), index.to_string()).expect("the layout can be written");
        folder
    }
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("the layout can be read")).expect("the layout is JSON")
}

fn read_blob(folder: &Path, descriptor: &Value) -> Value {
    let digest = descriptor["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:")).expect("a digest");
    read_json(&folder.join("blobs/sha256").join(digest))
}

/// Writes what takes the place of the blob that `descriptor` names.
fn write_again(folder: &Path, descriptor: &Value, content: &Value) -> Value {
    let media_type = descriptor["mediaType"].as_str().expect("a media type");
    write_blob(folder, media_type, content.to_string().as_bytes())
}

fn write_blob(folder: &Path, media_type: &str, bytes: &[u8]) -> Value {
    let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(folder.join("blobs/sha256").join(&digest), bytes).expect("the layout can be written");
    json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len()})
}
