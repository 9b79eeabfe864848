//! What the fuzzers in `fuzz/` do with bytes, and what must hold whatever the bytes are. The tests below do the same with the
//! fuzzers' seeds.
//!
//! Each takes any bytes and returns; it panics when something is wrong.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Write};

use rustix::fs::FileType;

use crate::digest::Digest;
use crate::erofs::{Built, Limits, Merged, Node, ReadError, Volume, build, image_digest, reader, write_tar};
use crate::oci::{self, Descriptor, Documents, Format, OciError, Packed};

/// Limits that keep a run short.
const LIMITS: Limits = Limits {
    entries: 4096,
    metadata_bytes: 8 << 20,
    data_bytes: 8 << 20,
    padding_bytes: 8 << 20,
    stream_bytes: 16 << 20,
};

fn memory() -> File {
    rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).expect("a file in memory can be made").into()
}

fn built(tar: &[u8]) -> Option<(File, Built)> {
    let (image, tails) = (memory(), memory());
    let built = build(tar, &image, &tails, &LIMITS).ok()?;
    Some((image, built))
}

fn content(file: &File) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; file.metadata().expect("a file has a size").len() as usize];
    file.read_exact_at(&mut bytes, 0).expect("a file in memory can be read");
    bytes
}

/// A layer's archive: refused, or made into an image that Linux would take, which holds what its digest says and gives the same
/// image again when it is made into an archive.
pub fn tar_to_erofs(bytes: &[u8]) {
    let Some((image, first)) = built(bytes) else { return };
    assert_eq!(image_digest(&image).expect("the image can be read"), first.digest);
    // Panics at what Linux would not take.
    let files = reader::read(&content(&image));
    assert!(files.contains_key(&b""[..]));
    let mut tar = Vec::new();
    let limited = write_tar(&image, Limited { bytes: &mut tar, left: 64 << 20 });
    match limited {
        // Files of nothing but holes are written out.
        Err(error) if error.kind() == io::ErrorKind::StorageFull => return,
        other => other.expect("an image can be made into an archive"),
    }
    let limits = Limits { data_bytes: 64 << 20, stream_bytes: 128 << 20, metadata_bytes: 16 << 20, ..LIMITS };
    let (again, tails) = (memory(), memory());
    build(&tar[..], &again, &tails, &limits).expect("an archive of ours is accepted");
    assert_eq!(reader::read(&content(&again)).len(), files.len(), "no file is lost");
}

struct Limited<'a> {
    bytes: &'a mut Vec<u8>,
    left: usize,
}

impl Write for Limited<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left = self.left.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
        self.bytes.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An image's bytes on a disk that failed: read as far as they make sense.
pub fn damaged_erofs(bytes: &[u8]) {
    let mut image = memory();
    image.write_all(bytes).expect("a file in memory can be written");
    let _ = write_tar(&image, Limited { bytes: &mut Vec::new(), left: 1 << 20 });
    let _ = walk(&image);
}

/// Looks at all files of two layers that are the same damaged image.
fn walk(image: &File) -> Result<(), ReadError> {
    let tree = Merged::new(vec![Volume::open(image)?, Volume::open(image)?]);
    let mut pending: Vec<Node> = tree.root()?.into_iter().collect();
    for _ in 0..200 {
        let Some(node) = pending.pop() else { break };
        tree.attributes(&node)?;
        match node.inode.kind() {
            FileType::Directory => pending.extend(tree.children(&node)?.into_iter().map(|(_, child)| child)),
            FileType::Symlink => drop(tree.layer(&node).target(&node.inode)?),
            FileType::RegularFile => {
                let mut at = 0;
                for _ in 0..20 {
                    if at >= node.inode.size {
                        break;
                    }
                    let (length, is_hole) = tree.layer(&node).extent(&node.inode, at)?;
                    assert!(length > 0, "a file comes to its end");
                    if !is_hole {
                        tree.layer(&node).read_data(&node.inode, at, &mut vec![0; length.min(4096) as usize])?;
                    }
                    at += length;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Documents in the order in which they are asked for, whatever their digests.
struct Answers<'a> {
    documents: Vec<&'a [u8]>,
    next: Cell<usize>,
}

impl Documents for Answers<'_> {
    fn document(&self, descriptor: &Descriptor, most: u64, _: bool) -> Result<(String, Vec<u8>), OciError> {
        let number = self.next.get();
        self.next.set(number + 1);
        let document = self.documents[number % self.documents.len()];
        assert!(number < 1000, "documents are not asked for without end");
        assert!(document.len() as u64 <= most);
        Ok((descriptor.digest.clone(), document.to_vec()))
    }

    fn layer(&self, descriptor: &Descriptor) -> Result<(String, Digest, Packed), OciError> {
        Err(OciError::NotAManifest { file: descriptor.digest.clone() })
    }
}

/// Index, manifest and configuration, one after the other with a zero byte between them.
pub fn oci_documents(bytes: &[u8]) {
    let documents: Vec<&[u8]> = bytes.split(|&byte| byte == 0).collect();
    let top = documents[0].to_vec();
    let answers = Answers { next: Cell::new(1), documents };
    if let Ok((digest, manifest)) = oci::select(&answers, "index", Digest::of(&top), top)
        && let Ok(found) = oci::read_image(&answers, "manifest", Some(digest), manifest)
    {
        assert_eq!(found.manifest_digest, Some(digest));
    }
}

/// An archive of an OCI layout or of `docker save`.
pub fn image_archive(bytes: &[u8]) {
    let found = oci::open_stream(&mut { bytes }, "archive".as_ref(), Format::Any, &|| Ok(memory()));
    if let Ok(found) = found {
        assert_eq!(found.id, Digest::of(&found.config));
        for layer in &found.layers {
            let mut packed = Vec::new();
            let read = layer.packed.open().read_to_end(&mut packed);
            assert!(read.is_err() || packed.len() as u64 == layer.packed.size());
        }
    }
}

/// A name as users and registries write them: what is read is written the same.
pub fn reference(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(reference) = text.parse::<crate::Reference>() {
        assert_eq!(reference.to_string().parse(), Ok(reference.clone()), "{text:?}");
        assert_eq!(reference.stored().to_string().parse(), Ok(reference.stored()), "{text:?}");
    }
    let _ = crate::ImageSource::parse(text);
    let _ = text.parse::<Digest>();
}

/// A packed layer.
pub fn decode(bytes: &[u8]) {
    let Ok(plain) = crate::decode::decode(bytes) else { return };
    let _ = io::copy(&mut plain.take(16 << 20), &mut io::sink());
}

/// An appc image's manifest: what is read can be read again.
pub fn appc_manifest(bytes: &[u8]) {
    if let Ok(manifest) = crate::appc::ImageManifest::parse(bytes) {
        let _ = (manifest.full_name().for_this_host(), manifest.labels(), manifest.version().map(str::len));
    }
}

/// A signature by a GPG key over an image, and what may have been signed: it never counts for an image that its key has not signed.
pub fn signed_message(bytes: &[u8]) {
    use crate::trust::{Expected, Identity, PublicKey, SignatureForm, SignedIdentity, SimpleSignature};
    let keys = PublicKey::read_all(include_bytes!("trust/fixtures/simple.key")).expect("it is a key");
    // In 2023, when the seeds' signatures are good.
    let now = 1_672_531_200;
    let image = Identity::of_registry(&"r.example/team/app:1".parse().expect("it is a name"));
    let digests = [Digest::of(b"an image")];
    let expected = Expected { digests: &digests, called: &SignedIdentity::MatchRepository {}, image: &image };
    assert!(SimpleSignature(bytes.to_vec()).check(&keys, &expected, &[now]).is_err());
    for form in [SignatureForm::Simple, SignatureForm::Sigstore] {
        let _ = expected.check(bytes, form);
    }
}

/// Takes any bytes and returns.
pub type Body = fn(&[u8]);

/// All of them, by the names of the folders with their seeds.
pub const ALL: [(&str, Body); 8] = [
    ("tar_to_erofs", tar_to_erofs),
    ("damaged_erofs", damaged_erofs),
    ("oci_documents", oci_documents),
    ("image_archive", image_archive),
    ("reference", reference),
    ("decode", decode),
    ("appc_manifest", appc_manifest),
    ("signed_message", signed_message),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The seeds, and what fuzzing has found.
    #[test]
    fn every_seed_of_the_fuzzers_is_answered() {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
        for (name, body) in ALL {
            let seeds = std::fs::read_dir(corpus.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
            let count = seeds.map(|seed| body(&std::fs::read(seed.unwrap().path()).unwrap())).count();
            assert!(count > 0, "{name} has seeds");
        }
    }

    #[test]
    #[ignore = "writes the first seeds; what fuzzing finds is added by hand"]
    fn write_the_seeds() {
        use crate::oci::fixture::{Layout, Packing, config, docker_archive, layer, layout, pack};
        use crate::tar::builder::{Member, archive};
        use serde_json::json;
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
        let write = |target: &str, name: &str, bytes: &[u8]| {
            std::fs::create_dir_all(corpus.join(target)).unwrap();
            std::fs::write(corpus.join(target).join(name), bytes).unwrap();
        };
        let tar = archive(&[
            Member { mode: 0o1777, ..Member::directory("./") },
            Member::file("d/small", "x").record("SCHILY.xattr.user.a", "1").record("mtime", "1.5"),
            Member::file("d/large", vec![1; 5000])
                .record("SCHILY.acl.access", "user::rw-,user:7:r--,group::r--,mask::r--,other::---"),
            Member::hard_link("d/same", "d/large"),
            Member::symlink("l", "d/../d"),
            Member::file("l/through", ""),
            Member { device: (1, 3), ..Member::new("null", b'3') },
            Member::new("pipe", b'6'),
            Member::file("d/.wh.gone", ""),
            Member::file("d/.wh..wh..opq", ""),
            Member::file("n".repeat(150), "long"),
        ]);
        let sparse = archive(&[Member::file("s", b"headtail")
            .record("GNU.sparse.size", "300000")
            .record("GNU.sparse.map", "0,4,299996,4")]);
        for (name, tar) in [("files", &tar), ("sparse", &sparse), ("empty", &archive(&[]))] {
            write("tar_to_erofs", name, tar);
            write("damaged_erofs", name, &content(&built(tar).unwrap().0));
        }
        let config = config(crate::oci::host_architecture(), &[]);
        let descriptor = |kind: &str| json!({"mediaType": kind, "digest": Digest::of(b""), "size": 0, "platform": {"os": "linux", "architecture": crate::oci::host_architecture()}});
        let manifest = json!({"schemaVersion": 2, "config": descriptor("config"), "layers": []}).to_string();
        let index = json!({"manifests": [descriptor("application/vnd.oci.image.index.v1+json")]}).to_string();
        let documents =
            [index.as_bytes(), index.as_bytes(), manifest.as_bytes(), manifest.as_bytes(), &config].join(&0);
        write("oci_documents", "image", &documents);
        write("oci_documents", "manifest", &[manifest.as_bytes(), &config].join(&0));
        let small = layer("x")[..].to_vec();
        write("image_archive", "layout", &layout("1", Packing::Gzip, std::slice::from_ref(&small)).archive());
        write("image_archive", "docker", &docker_archive(&[(&["a:1"], vec![archive(&[]), archive(&[])])]));
        write("image_archive", "hollow", &Layout::new().archive());
        for (number, name) in [
            "etcd",
            "quay.io/coreos/etcd:v3",
            "localhost:5000/a/b_c--d@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "docker://x",
            "oci:/a:b",
            "[::1]:5000/x",
        ]
        .iter()
        .enumerate()
        {
            write("reference", &format!("name{number}"), name.as_bytes());
        }
        for (name, packing) in [("gzip", Packing::Gzip), ("zstd", Packing::Zstd), ("plain", Packing::Plain)] {
            write("decode", name, &pack(packing, b"text text text"));
        }
        write(
            "decode",
            "skippable",
            &[&[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9][..], &pack(Packing::Zstd, b"text")].concat(),
        );
        let appc = json!({"acKind": "ImageManifest", "acVersion": "0.8.11", "name": "example.com/app",
            "labels": [{"name": "version", "value": "1"}, {"name": "os", "value": "linux"}, {"name": "arch", "value": "amd64"}],
            "app": {"exec": ["/bin/app"], "user": "0", "group": "0", "workingDirectory": "/", "environment": [{"name": "A", "value": "b"}],
                "eventHandlers": [{"name": "pre-start", "exec": ["/x"]}], "mountPoints": [{"name": "data", "path": "/data", "readOnly": true}],
                "ports": [{"name": "web", "port": 80, "protocol": "tcp", "count": 1, "socketActivated": true}],
                "isolators": [{"name": "resource/memory", "value": {"limit": "1G"}}]},
            "dependencies": [{"imageName": "example.com/base", "labels": [], "size": 5}], "pathWhitelist": ["/a"],
            "annotations": [{"name": "created", "value": "2014-10-27T19:32:27.67021798Z"}]});
        write("appc_manifest", "whole", appc.to_string().as_bytes());
        let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/trust/fixtures");
        for name in ["simple.sig", "simple.asc", "simple-plain.sig", "simple-two.sig", "simple.json", "sigstore.json"] {
            write("signed_message", name, &std::fs::read(fixtures.join(name)).unwrap());
        }
    }

    #[test]
    fn every_fuzzer_has_a_target_and_every_target_a_fuzzer() {
        let fuzz = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
        let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
        let targets = manifest.matches("[[bin]]").count();
        assert_eq!(targets, ALL.len());
        for (name, _) in ALL {
            assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
            let target = std::fs::read_to_string(fuzz.join("targets").join(name).with_extension("rs")).unwrap();
            assert!(target.contains(&format!("fuzz::{name}(")), "{name}");
        }
    }
}
