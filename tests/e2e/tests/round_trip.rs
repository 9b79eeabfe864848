//! A root filesystem is the same whoever makes it: podvm's, rendered and as a pod has it, and podman's of the same image, file
//! by file with all that can be seen of them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use podvm_e2e::tree::{MOUNTED, Tree, describe, differences};
use podvm_e2e::{Finished, Host, Invocation, layout, skip, stage1, wait_for};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

const A_WHILE: Duration = Duration::from_secs(300);

/// Why the test cannot run here.
fn missing(programs: &[&str]) -> Option<String> {
    if stage1() != "ns" {
        return Some("it is podvm's root that is looked at, from the host; behind namespaces it can be".into());
    }
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root".into());
    }
    let is_there =
        |name: &&&str| Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    let program = programs.iter().find(|name| !is_there(name))?;
    Some(format!("{program} is not installed; `cargo xtask setup` brings it"))
}

/// podman with a store of its own.
struct Podman {
    folder: PathBuf,
}

impl Podman {
    fn run(&self, words: &[&str]) -> Finished {
        let at = |name: &str| self.folder.join(name).display().to_string();
        let mut all = vec!["--storage-driver".to_owned(), "overlay".into()];
        all.extend(["--root".into(), at("podman"), "--runroot".into(), at("podman-run")]);
        all.extend(words.iter().map(|word| (*word).to_owned()));
        Invocation::new("podman", all).time_limit(A_WHILE).run().expect_code(0)
    }

    /// The root of a layout's image.
    fn root(&self, layout: &Path, tag: &str) -> PathBuf {
        // It makes a name of the path, and names have no capital letters.
        let link = std::env::temp_dir().join(format!("podvm-round-trip-{}", std::process::id()));
        let _ = fs::remove_file(&link);
        symlink(layout, &link).unwrap();
        let id = self.run(&["pull", "--quiet", &format!("oci:{}:{tag}", link.display())]).stdout.trim().to_owned();
        fs::remove_file(link).unwrap();
        PathBuf::from(self.run(&["image", "mount", &id]).stdout.trim())
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        self.run(&["image", "umount", "--all"]);
        self.run(&["rmi", "--all", "--force"]);
        // Its storage is a mount itself.
        let _ = Command::new("umount").arg(self.folder.join("podman/overlay")).stderr(Stdio::null()).status();
    }
}

/// What a pod of the image sees, looked at from the host.
fn pods_root(host: &Host, image: &str) -> Tree {
    // Found among all processes by what it waits for.
    let seconds = (1_000_000 + std::process::id()).to_string();
    let mut pod = host.podvm(["run", "--rm", "--quiet", "--net=none", "--exec=/bin/sh", image, "--", "-c"]);
    pod = pod.arg(format!("echo up; exec sleep {seconds}"));
    let mut pod = pod.spawn();
    pod.wait_for_stdout("up\n", A_WHILE);
    let app = wait_for("the app waits", A_WHILE, || {
        fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()).find(|path| {
            fs::read(path.join("cmdline")).is_ok_and(|line| line == format!("sleep\0{seconds}\0").as_bytes())
        })
    });
    let tree = describe(&app.join("root/."));
    pod.signal(Signal::SIGTERM);
    pod.wait(A_WHILE);
    tree
}

/// Holds what podvm makes of a layout's image against what podman makes of it. Directories that the uppermost layer goes through
/// without naming them have no time of their own; podman gives them the time at which it unpacks them. Of the root itself, podman
/// takes nothing from images: it is compared between podvm's two.
fn expect_the_same(host: &Host, layout: &Path, tag: &str, unnamed: &[&str]) {
    let podman = Podman { folder: host.directory("podman") };
    let theirs = describe(&podman.root(layout, tag));
    assert!(theirs.len() > 10, "podman's root has files");

    let image = format!("round-trip/{tag}");
    let source = format!("oci:{}:{tag}", layout.display());
    host.podvm(["image", "import", "--quiet", &source, "--name", &image]).run().expect_code(0);
    let rendered = host.scratch().join("rendered");
    host.podvm(["image", "render", &image, rendered.to_str().unwrap()]).run().expect_code(0).expect_stdout("");
    let is_unnamed = |path: &Path| path == Path::new("") || unnamed.iter().any(|name| path == Path::new(name));
    let rendered = describe(&rendered);
    let different = differences(&rendered, &theirs, is_unnamed);
    assert_eq!(different, "", "rendered, beside podman's");

    // What podvm brings along is written into the root's uppermost layer, later than the image.
    let ours = pods_root(host, &image);
    let is_podvms = |path: &Path| {
        let touched = ["", "etc", "etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab", "run"];
        touched.iter().chain(unnamed).any(|name| path == Path::new(name))
            || ours.iter().any(|(place, file)| file == MOUNTED && path.starts_with(place))
    };
    let different = differences(&ours, &theirs, is_podvms);
    assert_eq!(different, "", "a pod's, beside podman's");
    let mode_and_owner = |tree: &Tree| tree[Path::new("")].split(' ').take(3).collect::<Vec<_>>().join(" ");
    assert_eq!(mode_and_owner(&ours), mode_and_owner(&rendered));
}

/// A layer in the making.
struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    /// With a root of this mode and owner.
    fn new(mode: u32, owner: (u64, u64)) -> Self {
        let mut layer = Self(tar::Builder::new(Vec::new()));
        layer.add("./", EntryType::Directory, mode, owner, &[], b"");
        layer
    }

    /// An entry with pax records; its time is a nanosecond before 2001.
    fn add(
        &mut self,
        name: impl AsRef<[u8]>,
        kind: EntryType,
        mode: u32,
        owner: (u64, u64),
        records: &[(&str, &[u8])],
        data: &[u8],
    ) {
        let mut all = vec![("mtime", &b"978307199.999999999"[..])];
        all.retain(|(key, _)| records.iter().all(|(other, _)| other != key));
        all.extend(records);
        let name = name.as_ref();
        if name.len() > 100 {
            all.push(("path", name));
        }
        self.0.append_pax_extensions(all).unwrap();
        let mut header = Header::new_ustar();
        header.as_old_mut().name[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        let has_data = kind == EntryType::Regular;
        header.set_size(if has_data { data.len() as u64 } else { 0 });
        if matches!(kind, EntryType::Symlink | EntryType::Link) {
            header.as_old_mut().linkname[..data.len()].copy_from_slice(data);
        }
        if let (EntryType::Char | EntryType::Block, [major, minor]) = (kind, data) {
            header.set_device_major(u32::from(*major)).unwrap();
            header.set_device_minor(u32::from(*minor)).unwrap();
        }
        header.set_cksum();
        self.0.append(&header, if has_data { data } else { b"" }).unwrap();
    }

    fn file(&mut self, name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) {
        self.add(name, EntryType::Regular, 0o644, (0, 0), &[], data.as_ref());
    }

    fn directory(&mut self, name: impl AsRef<[u8]>) {
        self.add(name, EntryType::Directory, 0o755, (0, 0), &[], b"");
    }
}

/// An access control list as Linux hands it over: user::rwx, user:7:r--, group::r-x, mask::rwx, other::--- (acl(5)).
fn acl() -> Vec<u8> {
    let entries: [(u16, u16, u32); 5] =
        [(1, 7, u32::MAX), (2, 4, 7), (4, 5, u32::MAX), (0x10, 7, u32::MAX), (0x20, 0, u32::MAX)];
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, rights, id) in entries {
        bytes.extend([tag.to_le_bytes(), rights.to_le_bytes()].concat());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// Everything that a file can be and have.
fn odd_files() -> Layer {
    use EntryType::{Block, Char, Directory, Fifo, Link, Regular, Symlink};
    let mut layer = Layer::new(0o755, (0, 0));
    layer.directory("odd/");
    for (number, mode) in [0o0000, 0o4755, 0o2755, 0o6711, 0o1644, 0o7777].into_iter().enumerate() {
        layer.add(format!("odd/mode{number}"), Regular, mode, (7, 8), &[], b"mode");
        layer.add(format!("odd/directory{number}/"), Directory, mode, (70, 80), &[], b"");
        layer.file(format!("odd/directory{number}/inside"), "inside");
    }
    let owner: [(&str, &[u8]); 2] = [("uid", b"4294967294"), ("gid", b"3000000000")];
    layer.add("odd/large-owner", Regular, 0o644, (0, 0), &owner, b"x");
    // podman has no times before 1970.
    for (name, time) in [("first", "0"), ("late", "4500000000.123456789")] {
        layer.add(format!("odd/{name}"), Regular, 0o644, (0, 0), &[("mtime", time.as_bytes())], b"x");
    }
    layer.add("odd/null", Char, 0o666, (0, 0), &[], &[1, 3]);
    layer.add("odd/disk", Block, 0o660, (0, 6), &[], &[8, 250]);
    layer.add("odd/pipe", Fifo, 0o622, (5, 5), &[], b"");
    layer.add("odd/link", Symlink, 0o777, (9, 9), &[], b"../nowhere/at all");
    layer.add("odd/link-too", Link, 0o777, (9, 9), &[], b"odd/link");
    layer.add("odd/pipe-too", Link, 0o622, (5, 5), &[], b"odd/pipe");
    layer.file("odd/many", vec![b'm'; 5000]);
    layer.add("odd/many-2", Link, 0o644, (0, 0), &[], b"odd/many");
    layer.add("odd/directory1/many-3", Link, 0o644, (0, 0), &[], b"./odd/many");
    // The entry of a file's other name says what both are.
    layer.add("odd/renewed", Regular, 0o644, (1, 0), &[("mtime", b"1000")], b"renewed");
    layer.add(
        "odd/renewed-2",
        Link,
        0o2600,
        (7, 8),
        &[("mtime", b"5000.25"), ("SCHILY.xattr.user.any", b"2")],
        b"odd/renewed",
    );
    layer.add("odd/renewed-link", Symlink, 0o777, (1, 0), &[("mtime", b"1000")], b"nowhere");
    layer.add("odd/renewed-link-2", Link, 0o600, (7, 8), &[("mtime", b"5000")], b"odd/renewed-link");
    layer.file(b"odd/not \xff utf-8 \n\x01\\", "name");
    layer.file(format!("odd/{}", "n".repeat(255)), "long name");
    for depth in 1..200 {
        layer.directory(format!("odd/{}", "deep/".repeat(depth)));
    }
    layer.file(format!("odd/{}bottom", "deep/".repeat(199)), "long path");
    layer.add("odd/empty", Regular, 0o644, (0, 0), &[], b"");
    for size in [1, 2047, 2048, 2049, 4095, 4096, 4097, 1 << 20, (1 << 20) + 1] {
        let data: Vec<u8> = (0..size).map(|at| (at * 7 / 5 % 251) as u8).collect();
        layer.file(format!("odd/size{size}"), data);
    }
    let sparse: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"odd/sparse"),
        ("GNU.sparse.realsize", b"8388613"),
    ];
    let mut data = b"2\n1048576\n4\n8388608\n5\n".to_vec();
    data.resize(512, 0);
    data.extend(b"headtails");
    layer.add("odd/placeholder", Regular, 0o644, (0, 0), &sparse, &data);

    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    for name in ["capable", "no-longer-capable"] {
        let name = format!("odd/{name}");
        layer.add(name, Regular, 0o755, (0, 0), &[("SCHILY.xattr.security.capability", capability)], b"x");
    }
    layer.add("odd/capable-2", Link, 0o755, (0, 0), &[], b"odd/capable");
    layer.add("odd/no-longer-capable-2", Link, 0o755, (7, 0), &[], b"odd/no-longer-capable");
    let (long, many) = (vec![b'v'; 2000], [b"\0\xff=\n".to_vec(), vec![b'z'; 100]].concat());
    let attributes: [(&str, &[u8]); 3] =
        [("SCHILY.xattr.user.any", &many), ("SCHILY.xattr.user.long", &long), ("SCHILY.xattr.trusted.any", b"trusted")];
    layer.add("odd/attributes", Regular, 0o644, (0, 0), &attributes, b"x");
    layer.add("odd/attributes-too/", Directory, 0o755, (0, 0), &attributes, b"");
    for (name, key) in [("label", "RHT.security.selinux"), ("label-too", "SCHILY.xattr.security.selinux")] {
        layer.add(format!("odd/{name}"), Regular, 0o644, (0, 0), &[(key, b"system_u:object_r:etc_t:s0")], b"x");
    }
    layer.file("odd/slash/", "a file all the same");
    let acl = acl();
    layer.add("odd/acl", Regular, 0o770, (0, 0), &[("SCHILY.xattr.system.posix_acl_access", &acl)], b"x");
    layer.add("odd/acl-of-new/", Directory, 0o755, (0, 0), &[("SCHILY.xattr.system.posix_acl_default", &acl)], b"");

    add_global_header(&mut layer);
    layer.directory("merged/");
    for name in [
        "gone",
        "replaced",
        "kept",
        "opaque/gone",
        "gone-directory/inside",
        "to-file/inside",
        "whole/inside",
        "gone-again/inside",
    ] {
        if let Some((directory, _)) = name.split_once('/') {
            layer.directory(format!("merged/{directory}/"));
        }
        layer.file(format!("merged/{name}"), "first");
    }
    layer.file("merged/to-directory", "first");
    layer.add("merged/to-link", Regular, 0o644, (0, 0), &[], b"first");
    layer.add("merged/many-lower", Link, 0o644, (0, 0), &[], b"merged/kept");
    layer
}

/// A pax header for all entries after it, which nobody obeys.
fn add_global_header(layer: &mut Layer) {
    let records = b"12 uid=4242\n14 mtime=77.5\n25 SCHILY.xattr.user.g=1\n";
    let mut header = Header::new_ustar();
    header.set_path("global").unwrap();
    header.set_entry_type(EntryType::XGlobalHeader);
    header.set_size(records.len() as u64);
    header.set_cksum();
    layer.0.append(&header, &records[..]).unwrap();
}

/// What layers do to those below them.
fn changes() -> Vec<Layer> {
    let mut second = Layer::new(0o755, (0, 0));
    second.directory("merged/");
    second.file("merged/.wh.gone", "");
    second.file("merged/.wh.gone-directory", "");
    second.file("merged/gone-directory/.wh.inside", "");
    second.file("merged/.wh.gone-again", "");
    second.file("merged/gone-again/.wh..wh..opq", "");
    second.file("merged/gone-again/deep/.wh.inside", "");
    second.file("merged/replaced", "second");
    second.add("merged/opaque/", EntryType::Directory, 0o700, (3, 3), &[], b"");
    second.file("merged/opaque/.wh..wh..opq", "");
    second.file("merged/opaque/new", "second");
    second.file("merged/to-file", "second");
    second.file("merged/to-file/.wh.inside", "");
    second.directory("merged/to-directory/");
    second.file("merged/to-directory/inside", "second");
    second.add("merged/to-link", EntryType::Symlink, 0o777, (0, 0), &[], b"kept");
    second.add("merged/whole/", EntryType::Directory, 0o2771, (4, 4), &[], b"");
    let mut third = Layer::new(0o751, (2, 3));
    third.directory("merged/");
    third.directory("merged/gone-directory/");
    third.file("merged/gone-directory/back", "third");
    third.directory("merged/opaque/");
    third.file("merged/opaque/third", "third");
    third.file("merged/.wh.to-link", "");
    vec![second, third]
}

fn write_blob(folder: &Path, media_type: &str, bytes: &[u8]) -> Value {
    let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(folder.join("blobs/sha256").join(&digest), bytes).unwrap();
    json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len()})
}

fn read_blob(folder: &Path, descriptor: &Value) -> Value {
    let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    serde_json::from_slice(&fs::read(folder.join("blobs/sha256").join(digest)).unwrap()).unwrap()
}

/// A copy of one of the tests' layouts.
fn copy_of(host: &Host, image: &str, tag: &str) -> PathBuf {
    let folder = host.scratch().join("layout");
    let source = layout(image).canonicalize().unwrap();
    Invocation::new("cp", [Path::new("-a"), &source, &folder]).run().expect_code(0);
    let mut index: Value = serde_json::from_slice(&fs::read(folder.join("index.json")).unwrap()).unwrap();
    index["manifests"][0]["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
    fs::write(folder.join("index.json"), index.to_string()).unwrap();
    folder
}

/// Puts layers on top of a layout's image.
fn stack(folder: &Path, layers: Vec<Layer>) {
    let mut index: Value = serde_json::from_slice(&fs::read(folder.join("index.json")).unwrap()).unwrap();
    let mut manifest = read_blob(folder, &index["manifests"][0]);
    let mut config = read_blob(folder, &manifest["config"]);
    config.as_object_mut().unwrap().remove("history");
    for layer in layers {
        let bytes = layer.0.into_inner().unwrap();
        let blob = write_blob(folder, "application/vnd.oci.image.layer.v1.tar", &bytes);
        config["rootfs"]["diff_ids"].as_array_mut().unwrap().push(blob["digest"].clone());
        manifest["layers"].as_array_mut().unwrap().push(blob);
    }
    let (config, of_config) = (config.to_string(), manifest["config"]["mediaType"].as_str().unwrap().to_owned());
    manifest["config"] = write_blob(folder, &of_config, config.as_bytes());
    let of_manifest = index["manifests"][0]["mediaType"].as_str().unwrap().to_owned();
    let annotations = index["manifests"][0]["annotations"].clone();
    index["manifests"][0] = write_blob(folder, &of_manifest, manifest.to_string().as_bytes());
    index["manifests"][0]["annotations"] = annotations;
    fs::write(folder.join("index.json"), index.to_string()).unwrap();
}

#[test]
fn an_image_of_everything_odd_has_the_root_that_podman_gives_it() {
    if let Some(reason) = missing(&["podman"]) {
        skip!("{reason}");
    }
    let host = Host::empty();
    let folder = copy_of(&host, "busybox", "odd");
    let mut layers = vec![odd_files()];
    layers.extend(changes());
    stack(&folder, layers);
    expect_the_same(&host, &folder, "odd", &[]);
}

#[test]
fn images_of_debian_packages_have_the_root_that_podman_gives_them() {
    if let Some(reason) = missing(&["podman"]) {
        skip!("{reason}");
    }
    for image in ["nginx", "postgres"] {
        let host = Host::empty();
        let folder = copy_of(&host, image, image);
        expect_the_same(&host, &folder, image, &[]);
    }
}

#[test]
fn an_image_that_umoci_has_changed_has_the_root_that_podman_gives_it() {
    if let Some(reason) = missing(&["podman", "umoci"]) {
        skip!("{reason}");
    }
    let host = Host::empty();
    let folder = copy_of(&host, "nginx", "changed");
    let bundle = host.scratch().join("bundle");
    let image = format!("{}:changed", folder.display());
    let umoci = |words: &[&str]| Invocation::new("umoci", words).time_limit(A_WHILE).run().expect_code(0);
    umoci(&["unpack", "--image", &image, bundle.to_str().unwrap()]);
    change(&bundle.join("rootfs"));
    umoci(&["repack", "--image", &image, bundle.to_str().unwrap()]);
    umoci(&["unpack", "--image", &image, bundle.with_extension("2").to_str().unwrap()]);
    fs::remove_file(bundle.with_extension("2").join("rootfs/changed/link")).unwrap();
    umoci(&["repack", "--image", &image, bundle.with_extension("2").to_str().unwrap()]);
    expect_the_same(&host, &folder, "changed", &["changed"]);
}

/// Does to a root what package scripts do.
fn change(root: &Path) {
    let at = |name: &str| root.join("changed").join(name);
    fs::create_dir(root.join("changed")).unwrap();
    fs::write(at("file"), vec![1; 100_000]).unwrap();
    fs::hard_link(at("file"), at("file-too")).unwrap();
    chown(at("file"), Some(12), Some(34)).unwrap();
    fs::set_permissions(at("file"), PermissionsExt::from_mode(0o4711)).unwrap();
    symlink("file", at("link")).unwrap();
    mknod(&at("zero"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 5)).unwrap();
    mknod(&at("pipe"), SFlag::S_IFIFO, Mode::from_bits_truncate(0o600), 0).unwrap();
    rustix::fs::setxattr(at("file"), "user.mine", b"value", rustix::fs::XattrFlags::empty()).unwrap();
    fs::remove_dir_all(root.join("var/lib")).unwrap();
    fs::remove_file(root.join("etc/nsswitch.conf")).unwrap();
    fs::create_dir(root.join("etc/nsswitch.conf")).unwrap();
    assert_eq!(fs::metadata(at("file")).unwrap().uid(), 12);
}
