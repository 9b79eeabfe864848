//! Images out of the store, as OCI layouts (image-spec, image-layout.md).
//!
//! The store has layers as EROFS images only. Their archives are written anew: the files are the same, with all that
//! is known of them, while the bytes around them, and so digests and the image's ID, are not those that once came.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::Store;
use super::error::{StoreError, at};
use super::lookup::ResolvedImage;
use super::scratch::Scratch;
use crate::digest::Digest;
use crate::erofs::write_tar;
use crate::tar::{Entry, Kind, TarWriter, Timestamp};

/// How the layers of an export are packed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LayerPacking {
    /// Understood everywhere.
    #[default]
    Gzip,
    /// Smaller and faster, for tools of this decade.
    Zstd,
    /// Not packed.
    None,
}

/// What an export has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// The exported image's ID: that of its new configuration.
    pub id: Digest,
    /// The digest of its manifest.
    pub manifest_digest: Digest,
}

/// A blob that has been written.
struct Blob {
    digest: Digest,
    size: u64,
}

impl Store {
    /// Writes an image as an OCI layout to the directory `place`, which must not be there yet.
    pub fn export_directory(&self, wanted: &str, place: &Path, packing: LayerPacking) -> Result<Exported, StoreError> {
        if fs::symlink_metadata(place).is_ok() {
            return Err(at(place)(io::ErrorKind::AlreadyExists.into()));
        }
        let (folder, name) = (parent(place), place.file_name().unwrap_or_default().to_string_lossy());
        let new = folder.join(format!(".{name}.{}", std::process::id()));
        fs::create_dir(&new).map_err(at(&new))?;
        let written = self.write_layout(wanted, &new, packing);
        let kept = written.and_then(|exported| fs::rename(&new, place).map(|()| exported).map_err(at(place)));
        if kept.is_err() {
            // The error is what matters.
            let _ = fs::remove_dir_all(&new);
        }
        kept
    }

    /// Writes an image as an archive of an OCI layout.
    pub fn export_archive(
        &self,
        wanted: &str,
        output: &mut dyn Write,
        packing: LayerPacking,
    ) -> Result<Exported, StoreError> {
        let tmp = self.tmp();
        let scratch = Scratch::directory(&tmp).map_err(at(&tmp))?;
        let exported = self.write_layout(wanted, scratch.path(), packing)?;
        write_archive(scratch.path(), output).map_err(at("the archive"))?;
        Ok(exported)
    }

    fn write_layout(&self, wanted: &str, place: &Path, packing: LayerPacking) -> Result<Exported, StoreError> {
        let image = self.hold(wanted)?;
        let blobs = place.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(at(&blobs))?;
        let (mut diff_ids, mut layers) = (Vec::new(), Vec::new());
        for layer in &image.layers {
            let (diff_id, blob) = pack_layer(&layer.path, &blobs, packing).map_err(at(&layer.path))?;
            diff_ids.push(diff_id.to_string());
            let media_type = match packing {
                LayerPacking::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
                LayerPacking::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
                LayerPacking::None => "application/vnd.oci.image.layer.v1.tar",
            };
            layers.push(blob.descriptor(media_type));
        }
        let write = |bytes: Value| write_blob(&blobs, &bytes).map_err(at(&blobs));
        let config = write(self.new_config(&image, diff_ids)?)?;
        let manifest = write(json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
            "layers": layers,
        }))?;
        let mut entry = manifest.descriptor("application/vnd.oci.image.manifest.v1+json");
        if let Some(name) = self.find(wanted)?.names.first() {
            entry["annotations"] = json!({
                "org.opencontainers.image.ref.name": name.tag().unwrap_or(crate::reference::DEFAULT_TAG),
                "io.containerd.image.name": name,
            });
        }
        let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
        for (name, content) in [("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#), ("index.json", &index)] {
            fs::write(place.join(name), content).map_err(at(place.join(name)))?;
        }
        Ok(Exported { id: config.digest, manifest_digest: manifest.digest })
    }

    /// The image's configuration with the new layers' digests.
    fn new_config(&self, image: &ResolvedImage, diff_ids: Vec<String>) -> Result<Value, StoreError> {
        let damaged = |source| StoreError::Damaged { path: self.config_path(&image.id), source };
        let mut config: Value = serde_json::from_slice(&self.config(&image.id)?).map_err(damaged)?;
        config["rootfs"] = json!({"type": "layers", "diff_ids": diff_ids});
        Ok(config)
    }
}

fn parent(place: &Path) -> &Path {
    place.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl Blob {
    fn descriptor(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": self.digest, "size": self.size})
    }
}

fn write_blob(blobs: &Path, value: &Value) -> io::Result<Blob> {
    let bytes = value.to_string().into_bytes();
    let digest = Digest::of(&bytes);
    fs::write(blobs.join(digest.hex()), &bytes)?;
    Ok(Blob { digest, size: bytes.len() as u64 })
}

/// Writes a layer's archive into a layout. Gives the digest of its plain form, and the blob.
fn pack_layer(image: &Path, blobs: &Path, packing: LayerPacking) -> io::Result<(Digest, Blob)> {
    let image = File::open(image)?;
    let new = blobs.join(".new");
    let packed = Hashing::new(BufWriter::with_capacity(1 << 20, File::create(&new)?));
    let (plain, packed) = match packing {
        LayerPacking::None => {
            let mut plain = Hashing::new(packed);
            write_tar(&image, &mut plain)?;
            plain.finish()
        }
        LayerPacking::Gzip => {
            let mut plain = Hashing::new(GzEncoder::new(packed, flate2::Compression::default()));
            write_tar(&image, &mut plain)?;
            let (plain, gzip) = plain.finish();
            (plain, gzip.finish()?)
        }
        LayerPacking::Zstd => {
            let mut plain = Hashing::new(zstd::stream::write::Encoder::new(packed, 0)?);
            write_tar(&image, &mut plain)?;
            let (plain, zstd) = plain.finish();
            (plain, zstd.finish()?)
        }
    };
    let size = packed.count;
    let (digest, mut file) = packed.finish();
    file.flush()?;
    fs::rename(new, blobs.join(digest.hex()))?;
    Ok((plain, Blob { digest, size }))
}

/// Passes bytes on and keeps their digest and number.
struct Hashing<W> {
    inner: W,
    hasher: Sha256,
    count: u64,
}

impl<W: Write> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hasher: Sha256::new(), count: 0 }
    }

    fn finish(self) -> (Digest, W) {
        (Digest::from_hasher(self.hasher), self.inner)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.count += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes a layout's files as one archive, the small ones first.
fn write_archive(layout: &Path, output: &mut dyn Write) -> io::Result<()> {
    let mut names = vec!["oci-layout".to_owned(), "index.json".to_owned()];
    for entry in fs::read_dir(layout.join("blobs/sha256"))? {
        names.extend(entry?.file_name().to_str().map(|name| format!("blobs/sha256/{name}")));
    }
    names[2..].sort();
    let mut tar = TarWriter::new(output);
    for name in names {
        let file = File::open(layout.join(&name))?;
        tar.entry(&plain_file(&name, file.metadata()?.len()), file)?;
    }
    tar.finish()?.flush()
}

/// The entry of a file that is about the image, and none of its own.
pub(super) fn plain_file(name: &str, size: u64) -> Entry {
    Entry {
        path: name.as_bytes().to_vec(),
        kind: Kind::File { size, segments: None },
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: Timestamp::default(),
        xattrs: Vec::new(),
        unknown_attributes: 0,
    }
}
