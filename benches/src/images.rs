//! The images that fetching is measured with, made as OCI layouts; and the registry that serves them.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Layers of the image that is fetched, and the size of each, unpacked.
pub const LAYERS: usize = 5;
/// See [`LAYERS`].
pub const LAYER_BYTES: u64 = 100 << 20;

/// An OCI layout in the making.
pub struct Layout {
    folder: PathBuf,
}

/// A layer in a layout.
#[derive(Debug, Clone)]
pub struct Layer {
    digest: String,
    size: usize,
}

impl Layout {
    /// In a folder that is not there yet.
    pub fn new(folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(folder.join("blobs/sha256"))?;
        fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(Self { folder })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn blob(&self, bytes: &[u8]) -> Result<Layer> {
        let digest = hex::encode(Sha256::digest(bytes));
        fs::write(self.folder.join("blobs/sha256").join(&digest), bytes)?;
        Ok(Layer { digest: format!("sha256:{digest}"), size: bytes.len() })
    }

    /// Adds a layer of about so many bytes in files as they are in images: many small, few large, halfway compressible.
    pub fn layer(&self, number: u64, bytes: u64) -> Result<Layer> {
        let mut tar = tar::Builder::new(Vec::new());
        append_files(&mut tar, number, bytes)?;
        self.layer_of(&tar.into_inner()?)
    }

    /// Adds a layer with the content of a tar.
    pub fn layer_of(&self, tar: &[u8]) -> Result<Layer> {
        self.blob(tar)
    }

    /// Makes an image of these layers the layout's only one. `label` makes it differ from others.
    pub fn image(&self, layers: &[Layer], label: &str) -> Result<()> {
        let descriptor = |kind: &str, blob: &Layer| json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": blob.digest, "size": blob.size});
        let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.digest.as_str()).collect();
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": {"Cmd": ["true"], "Labels": {"number": label}},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = self.blob(config.to_string().as_bytes())?;
        let layers: Vec<Value> = layers.iter().map(|layer| descriptor("layer.v1.tar", layer)).collect();
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type, "config": descriptor("config.v1+json", &config), "layers": layers,
        });
        let manifest = self.blob(manifest.to_string().as_bytes())?;
        let index = json!({"schemaVersion": 2, "manifests": [descriptor("manifest.v1+json", &manifest)]});
        fs::write(self.folder.join("index.json"), index.to_string())?;
        Ok(())
    }
}

/// Appends about so many bytes in files as they are in images: many small, few large, halfway compressible.
pub fn append_files(tar: &mut tar::Builder<Vec<u8>>, number: u64, bytes: u64) -> Result<()> {
    let mut random = Random(number + 1);
    let words: Vec<Vec<u8>> =
        (0..4096).map(|_| (0..random.below(10) + 2).map(|_| random.next() as u8).collect()).collect();
    let (mut total, mut count) = (0, 0);
    while total < bytes {
        // Sizes spread evenly over powers of two, from 256 bytes to 2 MiB.
        let size = (256u64 << random.below(13)) + random.below(256);
        let mut data = Vec::new();
        while (data.len() as u64) < size {
            data.extend_from_slice(&words[random.below(4096) as usize]);
        }
        data.truncate(size as usize);
        let mut header = tar::Header::new_ustar();
        header.set_size(size);
        header.set_mode(0o644);
        let path = format!("usr/share/layer{number}/{}/{count}", count / 100);
        tar.append_data(&mut header, path, data.as_slice())?;
        total += size;
        count += 1;
    }
    Ok(())
}

/// Numbers that look random and are always the same (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Debian's docker-registry on loopback, which ends when this is dropped.
pub struct Registry {
    process: Child,
    host: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Registry {
    /// Starts it with its data in a folder.
    pub fn start(folder: &Path) -> Result<Self> {
        let host = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let config = folder.join("registry.yml");
        let data = folder.join("registry");
        let storage = format!("storage:\n  filesystem: {{rootdirectory: {}}}\n", data.display());
        let quiet = "log: {level: error, accesslog: {disabled: true}}";
        fs::write(&config, format!("version: 0.1\n{quiet}\n{storage}http: {{addr: \"{host}\"}}\n"))?;
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("docker-registry cannot be run; `cargo xtask setup` installs it")?;
        let registry = Self { process, host };
        for _ in 0..500 {
            if TcpStream::connect(&registry.host).is_ok() {
                return Ok(registry);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("docker-registry does not answer at {}", registry.host)
    }

    /// Pushes a layout's image, its layers packed by gzip; gives its name.
    pub fn push(&self, layout: &Layout, name: &str) -> Result<String> {
        let name = format!("{}/{name}:latest", self.host);
        let status = Command::new("skopeo")
            .args(["copy", "--quiet", "--dest-tls-verify=false", "--dest-compress-format", "gzip"])
            .arg(format!("oci:{}", layout.folder().display()))
            .arg(format!("docker://{name}"))
            .status()
            .context("skopeo cannot be run; `cargo xtask setup` installs it")?;
        ensure!(status.success(), "skopeo cannot push {name} ({status})");
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_of_the_size_asked_for_and_always_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path().join("layout")).unwrap();
        let one = layout.layer(1, 1 << 20).unwrap();
        assert!(((1 << 20)..(4 << 20)).contains(&one.size), "{}", one.size);
        assert_eq!(layout.layer(1, 1 << 20).unwrap().digest, one.digest);
        assert_ne!(layout.layer(2, 1 << 20).unwrap().digest, one.digest);
        layout.image(&[one], "x").unwrap();
        let index: Value = serde_json::from_slice(&fs::read(layout.folder().join("index.json")).unwrap()).unwrap();
        let digest = index["manifests"][0]["digest"].as_str().unwrap();
        assert!(layout.folder().join("blobs/sha256").join(&digest[7..]).exists());
    }
}
