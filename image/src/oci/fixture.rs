//! Makes layouts and archives of images for tests, true ones and broken ones.

use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use super::host_architecture;
use crate::digest::Digest;
use crate::tar::builder::{Member, archive};

/// How a fixture's layers are packed.
#[derive(Debug, Clone, Copy)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

pub fn pack(packing: Packing, bytes: &[u8]) -> Vec<u8> {
    match packing {
        Packing::Plain => bytes.to_vec(),
        Packing::Zstd => zstd::encode_all(bytes, 1).unwrap(),
        Packing::Gzip => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(bytes).unwrap();
            gzip.finish().unwrap()
        }
    }
}

/// A layer with one file, different for each text.
pub fn layer(text: &str) -> Vec<u8> {
    archive(&[Member::directory("etc"), Member::file("etc/text", text.repeat(2000))])
}

/// A layout in the making.
pub struct Layout {
    pub files: Vec<(String, Vec<u8>)>,
    entries: Vec<Value>,
}

impl Layout {
    pub fn new() -> Self {
        let marker = ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        Self { files: vec![marker], entries: Vec::new() }
    }

    /// Adds content and gives its descriptor.
    pub fn blob(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = Digest::of(&bytes);
        let descriptor = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
        self.files.push((format!("blobs/sha256/{}", digest.hex()), bytes));
        descriptor
    }

    /// Adds an image for `architecture` and gives its manifest's descriptor.
    pub fn image(&mut self, architecture: &str, packing: Packing, layers: &[Vec<u8>]) -> Value {
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
        self.image_with(architecture, packing, layers, &diff_ids)
    }

    pub fn image_with(
        &mut self,
        architecture: &str,
        packing: Packing,
        layers: &[Vec<u8>],
        diff_ids: &[Digest],
    ) -> Value {
        let config = config(architecture, diff_ids);
        let config = self.blob("application/vnd.oci.image.config.v1+json", config);
        let layers: Vec<Value> = layers
            .iter()
            .map(|layer| {
                let packed = pack(packing, layer);
                self.blob("application/vnd.oci.image.layer.v1.tar+gzip", packed)
            })
            .collect();
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        self.blob("application/vnd.oci.image.manifest.v1+json", manifest.to_string().into_bytes())
    }

    /// Adds an image of one layer that is packed already.
    pub fn packed_image(&mut self, packed: Vec<u8>, diff_id: Digest) -> Value {
        let config = config(host_architecture(), &[diff_id]);
        let config = self.blob("application/vnd.oci.image.config.v1+json", config);
        let layers = [self.blob("application/vnd.oci.image.layer.v1.tar+zstd", packed)];
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        self.blob("application/vnd.oci.image.manifest.v1+json", manifest.to_string().into_bytes())
    }

    /// Adds an index of these descriptors.
    pub fn index(&mut self, manifests: &[Value]) -> Value {
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        self.blob("application/vnd.oci.image.index.v1+json", index.to_string().into_bytes())
    }

    /// Puts a descriptor into `index.json`.
    pub fn entry(&mut self, mut descriptor: Value, annotations: Value) {
        descriptor["annotations"] = annotations;
        self.entries.push(descriptor);
    }

    fn all_files(&self) -> Vec<(String, Vec<u8>)> {
        let index = json!({"schemaVersion": 2, "manifests": self.entries});
        let mut files = self.files.clone();
        files.push(("index.json".to_owned(), index.to_string().into_bytes()));
        files
    }

    pub fn write(&self, directory: &Path) {
        fs::create_dir_all(directory.join("blobs/sha256")).unwrap();
        for (name, bytes) in self.all_files() {
            fs::write(directory.join(name), bytes).unwrap();
        }
    }

    /// All of it as one archive.
    pub fn archive(&self) -> Vec<u8> {
        let members: Vec<Member> = self.all_files().iter().map(|(name, bytes)| Member::file(name, bytes)).collect();
        archive(&members)
    }
}

/// A layout with one image of these layers, tagged `tag`.
pub fn layout(tag: &str, packing: Packing, layers: &[Vec<u8>]) -> Layout {
    let mut layout = Layout::new();
    let image = layout.image(host_architecture(), packing, layers);
    layout.entry(image, json!({"org.opencontainers.image.ref.name": tag}));
    layout
}

pub fn config(architecture: &str, diff_ids: &[Digest]) -> Vec<u8> {
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "created": "2001-02-03T04:05:06Z",
        "config": {
            "Entrypoint": ["/bin/app"], "Cmd": ["--serve"], "Env": ["PATH=/bin"], "User": "7:8",
            "WorkingDir": "/srv", "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/data": {}},
            "StopSignal": "SIGINT", "Labels": {"a": "b"},
        },
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    config.to_string().into_bytes()
}

/// An archive as `docker save` makes it: plain layers, equal ones linked.
pub fn docker_archive(images: &[(&[&str], Vec<Vec<u8>>)]) -> Vec<u8> {
    let (mut members, mut manifest) = (Vec::new(), Vec::new());
    for (tags, layers) in images {
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
        let config = config(host_architecture(), &diff_ids);
        let config_name = format!("{}.json", Digest::of(&config).hex());
        let mut names = Vec::new();
        for (number, (layer, diff_id)) in layers.iter().zip(&diff_ids).enumerate() {
            let name = format!("{}/layer.tar", diff_id.hex());
            match diff_ids[..number].contains(diff_id) {
                true => {
                    let link = format!("{number}/layer.tar");
                    members.push(Member::symlink(&link, format!("../{name}")));
                    names.push(link);
                }
                false => {
                    members.push(Member::file(&name, layer));
                    names.push(name);
                }
            }
        }
        members.push(Member::file(&config_name, config));
        manifest.push(json!({"Config": config_name, "RepoTags": tags, "Layers": names}));
    }
    members.push(Member::file("manifest.json", Value::from(manifest).to_string()));
    archive(&members)
}
