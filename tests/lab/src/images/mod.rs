//! Container images made of Debian packages, as OCI layout directories (OCI image specification 1.1).
//!
//! Two layers each: the shared libraries that the programs need, with busybox as a shell; and the programs
//! themselves. Nothing is installed and no root is needed: packages are unpacked, and a layer's owners are written
//! into its archive. The result depends only on the packages' versions and the recipe, and is cached by them.

mod catalogue;
mod layer;
mod libraries;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub use catalogue::{NAMES, described};
use layer::{Contents, Layer};

use crate::cache::Cache;
use crate::{LabError, apt};

/// Counted up when the same description gives other bytes.
const RECIPE: &str = "1";
/// What no container reads.
const LEFT_OUT: [&str; 6] =
    ["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian", "usr/share/bug", "usr/share/info"];
/// The shell of every image.
const SHELL: &str = "busybox-static";
/// The names under which busybox is to be found.
const APPLETS: &str = "[ ash awk base64 basename cat chmod chown cp cut date dd df dirname du echo env expr false find free grep \
    gunzip gzip head hostname id ifconfig ip kill killall less ln ls md5sum mkdir mkfifo mknod mktemp mount mv nc netstat nslookup \
    od pidof ping ping6 ps pwd readlink realpath rm rmdir route sed seq sh sha256sum sleep sort stat stty sync tail tar tee test \
    timeout top touch tr true truncate tty umount uname uniq vi wc wget which whoami xargs yes";

/// A user that an image has beside root.
#[derive(Debug, Clone, Copy)]
pub struct User {
    /// Its name, and its group's.
    pub name: &'static str,
    /// Its number, and its group's.
    pub id: u32,
    /// Directories that are made for it.
    pub owns: &'static [&'static str],
}

/// What an image is made of.
#[derive(Debug, Clone)]
pub struct Description {
    /// Its name.
    pub name: String,
    /// The packages whose programs are in it.
    pub packages: Vec<String>,
    /// Paths of those packages that are left out.
    pub without: Vec<String>,
    /// Files of our own: path, permission bits, content.
    pub files: Vec<(String, u32, String)>,
    /// A user beside root.
    pub user: Option<User>,
    /// The `config` object of its image configuration.
    pub config: Value,
}

/// The image's layout directory, from the cache or built.
pub fn debian(cache: &Cache, image: &Description) -> Result<PathBuf, LabError> {
    let mut named = image.packages.clone();
    named.extend([SHELL.to_owned(), "libc6".to_owned()]);
    let versions = apt::versions(&named)?;
    let description = format!("{image:?}");
    cache.entry(&format!("image-{}", image.name), &[RECIPE, &versions, &description, APPLETS], |place| {
        eprintln!("lab: making the image {} of {}", image.name, image.packages.join(", "));
        build(place, image)
    })
}

fn build(place: &Path, image: &Description) -> Result<(), LabError> {
    let work = place.join("work");
    let [programs, shell, libraries] = ["programs", "shell", "libraries"].map(|name| work.join(name));
    unpack(&image.packages, &programs)?;
    unpack(&[SHELL.to_owned()], &shell)?;
    for path in LEFT_OUT.iter().copied().chain(image.without.iter().map(String::as_str)) {
        remove(&programs.join(path))?;
    }
    let needed = apt::library_closure(&image.packages)?;
    unpack(&needed, &libraries)?;
    let libraries = libraries::needed_by(&programs, &libraries)?;
    let pack = || -> io::Result<()> {
        let base = base_layer(image, &shell, &libraries)?;
        let top = program_layer(image, &programs)?;
        write_layout(place, image, &[base, top])?;
        fs::remove_dir_all(&work)
    };
    pack().map_err(LabError::io(format!("pack the image {}", image.name)))
}

fn unpack(packages: &[String], into: &Path) -> Result<(), LabError> {
    fs::create_dir_all(into).map_err(LabError::io(format!("make {}", into.display())))?;
    apt::download(packages, into)?;
    apt::unpack_all(into, into)
}

fn remove(path: &Path) -> Result<(), LabError> {
    let done = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match done {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(LabError::io(format!("remove {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

/// The base: directories, accounts, busybox and the libraries. A gzip archive.
fn base_layer(image: &Description, shell: &Path, libraries: &[(PathBuf, PathBuf)]) -> io::Result<Layer> {
    let mut contents = Contents::default();
    for directory in [
        "dev",
        "etc",
        "proc",
        "root",
        "run",
        "srv",
        "sys",
        "usr/bin",
        "usr/lib",
        "usr/lib64",
        "usr/sbin",
        "var/lib",
        "var/log",
    ] {
        contents.directory(directory, 0o755, 0)?;
    }
    for directory in ["tmp", "var/tmp"] {
        contents.directory(directory, 0o1777, 0)?;
    }
    for (link, to) in
        [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64"), ("var/run", "/run")]
    {
        contents.link(link, to)?;
    }
    let (mut accounts, mut groups) = ("root:x:0:0:root:/root:/bin/sh\n".to_owned(), "root:x:0:\n".to_owned());
    accounts += "nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n";
    groups += "nogroup:x:65534:\n";
    if let Some(User { name, id, .. }) = image.user {
        accounts += &format!("{name}:x:{id}:{id}:{name}:/nonexistent:/bin/sh\n");
        groups += &format!("{name}:x:{id}:\n");
    }
    contents.file("etc/passwd", 0o644, accounts.as_bytes())?;
    contents.file("etc/group", 0o644, groups.as_bytes())?;
    contents.file("etc/nsswitch.conf", 0o644, b"passwd: files\ngroup: files\nhosts: files dns\n")?;
    contents.file("usr/bin/busybox", 0o755, &fs::read(busybox(shell)?)?)?;
    for applet in APPLETS.split_whitespace() {
        contents.link(&format!("usr/bin/{applet}"), "busybox")?;
    }
    for (path, file) in libraries {
        contents.file(&path.to_string_lossy(), 0o755, &fs::read(file)?)?;
    }
    contents.gzip()
}

fn busybox(shell: &Path) -> io::Result<PathBuf> {
    let found = ["bin/busybox", "usr/bin/busybox"].map(|path| shell.join(path)).into_iter().find(|path| path.is_file());
    found.ok_or_else(|| io::Error::other(format!("{SHELL} holds no busybox")))
}

/// The programs and their data, with the user's directories and our own files. A plain archive.
fn program_layer(image: &Description, programs: &Path) -> io::Result<Layer> {
    let mut contents = Contents::default();
    contents.tree(programs)?;
    if let Some(user) = image.user {
        for directory in user.owns {
            contents.directory(directory, 0o750, user.id)?;
        }
    }
    for (path, permissions, text) in &image.files {
        contents.file(path, *permissions, text.as_bytes())?;
    }
    contents.plain()
}

fn write_layout(place: &Path, image: &Description, layers: &[Layer]) -> io::Result<()> {
    let blobs = place.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    for layer in layers {
        write_blob(&blobs, &layer.bytes)?;
    }
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": image.config,
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>()},
        "history": layers.iter().map(|_| json!({"created_by": "podvm-lab"})).collect::<Vec<_>>(),
    });
    let config = write_json(&blobs, "application/vnd.oci.image.config.v1+json", &config)?;
    let layers = layers.iter().map(|layer| descriptor(layer.media_type, &layer.bytes)).collect::<Vec<_>>();
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
    let mut manifest = write_json(&blobs, media_type, &manifest)?;
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": image.name});
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest],
    });
    fs::write(place.join("index.json"), serde_json::to_vec_pretty(&index)?)?;
    fs::write(place.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

fn write_blob(blobs: &Path, bytes: &[u8]) -> io::Result<()> {
    File::create(blobs.join(digest(bytes).trim_start_matches("sha256:")))?.write_all(bytes)
}

fn write_json(blobs: &Path, media_type: &str, value: &Value) -> io::Result<Value> {
    let bytes = serde_json::to_vec(value)?;
    write_blob(blobs, &bytes)?;
    Ok(descriptor(media_type, &bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_descriptor_of_a_layout_leads_to_its_blob() {
        let place = tempfile::tempdir().unwrap();
        let image = Description {
            name: "thing".into(),
            packages: vec![],
            without: vec![],
            files: vec![("etc/thing.conf".into(), 0o600, "a = 1\n".into())],
            user: Some(User { name: "thing", id: 101, owns: &["var/lib/thing"] }),
            config: json!({"Entrypoint": ["/bin/sh"]}),
        };
        let shell = place.path().join("shell/bin");
        fs::create_dir_all(&shell).unwrap();
        fs::write(shell.join("busybox"), "not really").unwrap();
        let base = base_layer(&image, &place.path().join("shell"), &[]).unwrap();
        let empty = place.path().join("empty");
        fs::create_dir(&empty).unwrap();
        let top = program_layer(&image, &empty).unwrap();
        write_layout(place.path(), &image, &[base, top]).unwrap();

        let read = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
            let bytes = fs::read(place.path().join("blobs/sha256").join(&digest)).unwrap();
            assert_eq!(bytes.len() as u64, descriptor["size"].as_u64().unwrap());
            assert_eq!(hex::encode(Sha256::digest(&bytes)), digest);
            bytes
        };
        let index: Value = serde_json::from_slice(&fs::read(place.path().join("index.json")).unwrap()).unwrap();
        let manifest: Value = serde_json::from_slice(&read(&index["manifests"][0])).unwrap();
        let config: Value = serde_json::from_slice(&read(&manifest["config"])).unwrap();
        assert_eq!(config["config"]["Entrypoint"][0], "/bin/sh");
        let layers = manifest["layers"].as_array().unwrap();
        assert_eq!(layers.len(), config["rootfs"]["diff_ids"].as_array().unwrap().len());
        let plain = read(&layers[1]);
        assert_eq!(digest(&plain), config["rootfs"]["diff_ids"][1].as_str().unwrap());
        assert_eq!(read(&layers[0])[..2], [0x1f, 0x8b], "the base is compressed");
    }
}
