//! Archives that are made to do harm, through the door that all archives come in by.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::time::Instant;

use super::*;
use crate::Limits;
use crate::store::{RenderOptions, What};
use crate::tar::builder::{Member, archive, pax_record, seal};

/// What the import of a layer of these bytes says. Nothing is left of it.
fn refused_bytes(layer: &[u8]) -> String {
    let place = Place::new();
    let error = place.error(&place.layout("evil", &layout("1", Packing::Zstd, &[layer.to_vec()])));
    assert_eq!(place.blobs(), 0);
    assert!(error.len() < 1000, "an error is to be read: {error}");
    error
}

fn refused(members: &[Member]) -> String {
    refused_bytes(&archive(members))
}

/// The image of these layers as files.
fn rendered(place: &Place, layers: &[&[Member]]) -> PathBuf {
    let layers: Vec<Vec<u8>> = layers.iter().map(|members| archive(*members)).collect();
    place.import(&place.layout("odd", &layout("1", Packing::Zstd, &layers))).unwrap();
    place.assert_clean();
    let (out, options) = (place.path("out"), RenderOptions { what: What::Root, overwrite: false });
    place.store.render("odd:1", &out, &options).unwrap();
    out
}

/// All paths below a directory.
fn paths(directory: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(path) = pending.pop() {
        for entry in fs::read_dir(&path).unwrap().map(Result::unwrap) {
            all.push(entry.path().strip_prefix(directory).unwrap().display().to_string());
            if entry.file_type().unwrap().is_dir() {
                pending.push(entry.path());
            }
        }
    }
    all.sort();
    all
}

#[test]
fn names_that_lead_up_are_refused() {
    for name in ["..", "../x", "a/../../x", "/../x", "a/..", "./../etc/passwd"] {
        assert!(refused(&[Member::file(name, "")]).contains("leads out of the root by '..'"), "{name}");
        assert!(refused(&[Member::directory(name)]).contains("leads out of the root by '..'"), "{name}");
    }
}

#[test]
fn absolute_names_land_inside() {
    let place = Place::new();
    let out = rendered(&place, &[&[Member::file("/etc/passwd", "evil"), Member::file("//tmp///x", "")]]);
    assert_eq!(paths(&out), ["etc", "etc/passwd", "tmp", "tmp/x"]);
    assert_ne!(fs::read("/etc/passwd").unwrap(), b"evil");
}

#[test]
fn a_layer_does_not_write_through_links_of_its_own_or_of_others() {
    let place = Place::new();
    let victim = place.path("victim");
    fs::create_dir(&victim).unwrap();
    let lower = [Member::symlink("way", victim.as_os_str().as_encoded_bytes()), Member::symlink("up", "../../victim")];
    let upper = [
        Member::file("way/by-another", "evil"),
        Member::file("up/by-another", "evil"),
        Member::symlink("own", victim.as_os_str().as_encoded_bytes()),
        Member::file("own/by-own", "evil"),
        Member::symlink("replaced", "/victim"),
        Member::directory("replaced"),
        Member::file("replaced/inside", "evil"),
    ];
    let out = rendered(&place, &[&lower, &upper]);
    assert_eq!(paths(&victim), [""; 0]);
    // Followed inside the root, as the pod would, and only within a layer.
    let inside = victim.strip_prefix("/").unwrap().join("by-own");
    assert_eq!(fs::read(out.join(inside)).unwrap(), b"evil");
    assert!(out.join("way/by-another").exists() && out.join("up").is_dir() && out.join("replaced/inside").exists());
    for layer in &place.store.resolve("odd:1").unwrap().layers {
        place.store.unpacked(&layer.diff_id).unwrap();
    }
    assert_eq!(paths(&victim), [""; 0]);
}

#[test]
fn a_place_whose_directories_become_links_meanwhile_is_not_left() {
    let place = Place::new();
    let victim = place.path("victim");
    fs::create_dir(&victim).unwrap();
    let members: Vec<Member> = (0..3000).map(|number| Member::file(format!("d{}/f", number % 300), "evil")).collect();
    let path = place.layout("odd", &layout("1", Packing::Plain, &[archive(&members)]));
    place.import(&path).unwrap();
    let out = place.path("out");
    fs::create_dir(&out).unwrap();
    std::thread::scope(|scope| {
        let racer = scope.spawn(|| {
            // Somebody who may write to the place turns each directory into a link as soon as it is there.
            for number in 0..300 {
                let directory = out.join(format!("d{number}"));
                for _ in 0..200 {
                    if fs::rename(&directory, place.path(&format!("moved{number}"))).is_ok() {
                        let _ = symlink(&victim, &directory);
                        break;
                    }
                }
            }
        });
        // Whether it fails is a matter of luck; where it writes is not.
        let _ = place.store.render("odd:1", &out, &RenderOptions { what: What::Root, overwrite: false });
        racer.join().unwrap();
    });
    assert_eq!(paths(&victim), [""; 0]);
}

#[test]
fn hard_links_lead_to_files_of_the_layer_only() {
    for target in ["../../etc/shadow", "a/../../x"] {
        assert!(refused(&[Member::hard_link("h", target)]).contains("h: the name leads out of the root"), "{target}");
    }
    for target in ["/etc/shadow", "missing", "h", "missing/x"] {
        assert!(refused(&[Member::hard_link("h", target)]).contains("which is not in this layer"), "{target}");
    }
    let out = Member::symlink("way", "/etc");
    assert!(refused(&[out, Member::hard_link("h", "way/shadow")]).contains("which is not in this layer"));
}

#[test]
fn hard_links_to_directories_are_refused() {
    for target in ["d", "d/", ".", "/"] {
        let error = refused(&[Member::directory("d"), Member::hard_link("d/h", target)]);
        assert!(error.contains("hard link to the directory"), "{target}: {error}");
    }
}

#[test]
fn hard_links_in_a_circle_are_refused() {
    let error = refused(&[Member::hard_link("a", "b"), Member::hard_link("b", "a")]);
    assert!(error.contains("a: hard link to b, which is not in this layer"), "{error}");
}

#[test]
fn device_nodes_are_what_they_say_or_refused() {
    let device = |kind, device| Member { device, ..Member::new("dev/x", kind) };
    assert!(refused(&[device(b'3', (1 << 12, 0))]).contains("device number 4096:0 is out of range"));
    assert!(refused(&[device(b'4', (0, 1 << 20))]).contains("out of range"));
    if nix::unistd::geteuid().is_root() {
        let place = Place::new();
        let out = rendered(&place, &[&[device(b'4', (4095, (1 << 20) - 1))]]);
        let number = fs::metadata(out.join("dev/x")).unwrap().rdev();
        assert_eq!((nix::sys::stat::major(number), nix::sys::stat::minor(number)), (4095, (1 << 20) - 1));
    }
}

/// Headers of so many empty files, one after the other, in directories of a thousand.
struct ManyEntries {
    next: u32,
    most: u32,
    template: [u8; 512],
    block: io::Cursor<[u8; 512]>,
}

impl ManyEntries {
    fn new(most: u32) -> Self {
        let template: [u8; 512] = Member::new("0000/0000000", b'0').encode().try_into().unwrap();
        let mut block = io::Cursor::new(template);
        block.set_position(512);
        Self { next: 0, most, template, block }
    }

    /// The next header; its checksum is that of the template and what the digits add to it.
    fn header(&mut self) -> [u8; 512] {
        let mut block = self.template;
        block[..12].copy_from_slice(format!("{:04}/{:07}", self.next / 1000, self.next).as_bytes());
        let digits = |bytes: &[u8]| bytes[..12].iter().map(|&byte| u32::from(byte)).sum::<u32>();
        let sum = u32::from_str_radix(std::str::from_utf8(&block[148..154]).unwrap(), 8).unwrap();
        let sum = sum + digits(&block) - digits(&self.template);
        block[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
        self.next += 1;
        block
    }
}

impl io::Read for ManyEntries {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.block.position() == 512 && self.next < self.most {
            self.block = io::Cursor::new(self.header());
        }
        self.block.read(buffer)
    }
}

#[test]
#[ignore = "the child process of the test below"]
fn importer_of_a_million_entries() {
    let root = std::env::var_os("PODVM_TEST_STORE").expect("run by the test below");
    let path = std::env::var_os("PODVM_TEST_LAYOUT").expect("run by the test below");
    let store = Store::open(root).unwrap();
    store.import(path.as_ref(), &ImportOptions::default(), &Silent).unwrap();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", status.lines().find(|line| line.starts_with("VmHWM:")).unwrap());
}

#[test]
fn a_million_entries_take_memory_for_their_names_and_nothing_more() {
    const ENTRIES: u32 = 1_000_000;
    let place = Place::new();
    let mut packed = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    let entries = io::BufReader::with_capacity(1 << 20, ManyEntries::new(ENTRIES));
    let mut hashing = crate::digest::HashingReader::new(entries);
    io::copy(&mut hashing, &mut packed).unwrap();
    let (diff_id, _) = hashing.finish();
    let mut layout = Layout::new();
    let image = layout.packed_image(packed.finish().unwrap(), diff_id);
    layout.entry(image, json!({"org.opencontainers.image.ref.name": "1"}));
    let path = place.layout("many", &layout);
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::tests::hostile::importer_of_a_million_entries", "--ignored", "--nocapture"])
        .env("PODVM_TEST_STORE", place.store.root())
        .env("PODVM_TEST_LAYOUT", &path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let peak = said.split("VmHWM:").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap_or_default();
    let peak_mib = peak.parse::<u64>().unwrap_or_else(|_| panic!("{said}")) / 1024;
    assert!(peak_mib < 512, "{peak_mib} MiB");
    let image = place.store.resolve("many:1").unwrap();
    // An inode of 64 bytes and a name of about 20 for each.
    assert!(image.layers[0].size < 128 << 20, "{}", image.layers[0].size);
    place.assert_clean();
}

#[test]
fn more_entries_than_a_layer_may_have_are_refused() {
    let place = Place::new();
    let directories: Vec<Member> = (0..200).map(|number| Member::directory(number.to_string())).collect();
    let links = (0..200).map(|number| Member::hard_link(number.to_string(), "file"));
    let links: Vec<Member> = std::iter::once(Member::file("file", "")).chain(links).collect();
    let limits = Limits { entries: 100, ..Limits::default() };
    let options = ImportOptions { limits, ..ImportOptions::default() };
    for (name, members) in [("directories", directories), ("links", links)] {
        let path = place.layout(name, &layout("1", Packing::Zstd, &[archive(&members)]));
        let error = place.store.import(&path, &options, &Silent).unwrap_err().to_string();
        assert!(error.contains("the layer has more than 100 entries"), "{error}");
        place.assert_empty();
    }
}

#[test]
fn a_bomb_is_ended_by_its_ratio() {
    let place = Place::new();
    let mut bomb = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    bomb.write_all(&Member { size: 64 << 30, ..Member::new("zeros", b'0') }.encode()).unwrap();
    let zeros = vec![0; 4 << 20];
    for _ in 0..1000 {
        bomb.write_all(&zeros).unwrap();
    }
    let mut layout = Layout::new();
    let image = layout.packed_image(bomb.finish().unwrap(), Digest::of(b"never known"));
    layout.entry(image, json!({}));
    let error = place.error(&place.layout("bomb", &layout));
    assert!(error.contains("it unpacks to more than 250 times its size"), "{error}");
    assert_eq!(place.blobs(), 0);
}

#[test]
fn a_bomb_is_ended_by_its_size() {
    let place = Place::new();
    let path = place.layout("bomb", &layout("1", Packing::Gzip, &[archive(&[Member::file("f", vec![0; 8 << 20])])]));
    for (limits, expected) in [
        (Limits { stream_bytes: 4 << 20, ..Limits::default() }, "the layer unpacks to more than 4194304 bytes"),
        (Limits { data_bytes: 4 << 20, ..Limits::default() }, "the files of the layer are larger than 4 MiB"),
    ] {
        let options = ImportOptions { limits, ..ImportOptions::default() };
        let error = place.store.import(&path, &options, &Silent).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        place.assert_empty();
    }
}

/// A header whose size field has these bytes.
fn with_size(field: &[u8; 12]) -> Vec<u8> {
    let mut bytes = archive(&[Member::file("f", "data")]);
    bytes[124..136].copy_from_slice(field);
    let header: &mut [u8; 512] = (&mut bytes[..512]).try_into().unwrap();
    seal(header);
    bytes
}

#[test]
fn sizes_that_lie_are_refused() {
    let size = |size| Member { size, ..Member::file("f", "short") };
    assert!(refused(&[size(1 << 20)]).contains("truncated"));
    assert!(refused(&[size(1 << 45)]).contains("larger than"));
    assert!(refused_bytes(&with_size(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")).contains("not a number"));
    assert!(refused_bytes(&with_size(b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff")).contains("not a number"));
    assert!(refused_bytes(&with_size(b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")).contains("not a number"));
    assert!(refused_bytes(&with_size(b"-0000000004\0")).contains("not a number"));
    assert!(refused_bytes(&with_size(b"99999999999\0")).contains("not a number"));
}

#[test]
fn pax_sizes_that_lie_are_refused() {
    let with = |value: &str| refused(&[Member::file("f", "four").record("size", value), Member::file("next", "x")]);
    assert!(with("1000000").contains("truncated"));
    assert!(with("18446744073709551615").contains("larger than"));
    assert!(with("18446744073709551616").contains("size"));
    assert!(with("-1").contains("size"));
    assert!(with("0x10").contains("size"));
    // Less than there is: what follows is no header.
    let data = vec![b'x'; 2000];
    let error = refused(&[Member::file("f", data).record("size", "4")]);
    assert!(error.contains("not a tar header at byte"), "{error}");
}

#[test]
fn pax_records_that_lie_about_their_length_are_refused() {
    for records in [&b"99 path=x\n"[..], b"0 path=x\n", b"3 path=x\n", b"-9 path=x\n", b"99999999999999999999 a=b\n"] {
        let mut bytes =
            Member { size: records.len() as u64, data: records.to_vec(), ..Member::new("pax", b'x') }.encode();
        bytes.extend(archive(&[Member::file("f", "x")]));
        let error = refused_bytes(&bytes);
        assert!(error.contains("extension header at byte 0"), "{error}");
    }
    let long = Member { size: 5 << 20, data: vec![b'x'; 5 << 20], ..Member::new("pax", b'x') };
    assert!(refused(&[long]).contains("larger than 4 MiB"));
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    let sparse = |size: &str, map: &str| {
        refused(&[Member::file("s", b"0123456789").record("GNU.sparse.size", size).record("GNU.sparse.map", map)])
    };
    for (size, map, expected) in [
        ("100", "0,10,5,5", "goes backwards"),
        ("100", "0,5", "differ in size"),
        ("100", "0,20", "differ in size"),
        ("100", "95,10", "beyond the file's size"),
        ("100", "18446744073709551615,10", "beyond 2^64"),
        ("100", "0,5,x,5", "something else than numbers"),
        ("100", "0,5,50", "an offset without a length"),
        ("99999999999999999", "0,10", "larger than"),
    ] {
        let error = sparse(size, map);
        assert!(error.contains(expected), "{map}: {error}");
    }
    let count = format!("{}\n", u64::MAX);
    let endless = Member::file("s", count + &"0\n".repeat(600))
        .record("GNU.sparse.major", "1")
        .record("GNU.sparse.minor", "0")
        .record("GNU.sparse.realsize", "10");
    assert!(refused(&[endless]).contains("too many segments"));
}

#[test]
fn of_duplicate_names_the_last_counts_and_costs_no_more() {
    let place = Place::new();
    let mut members: Vec<Member> = (0..500).map(|_| Member::file("same", vec![7; 100])).collect();
    members.push(Member::file("same", "last"));
    let out = rendered(&place, &[&members]);
    assert_eq!(paths(&out), ["same"]);
    assert_eq!(fs::read(out.join("same")).unwrap(), b"last");
    assert_eq!(fs::metadata(out.join("same")).unwrap().nlink(), 1);
}

#[test]
fn a_file_then_a_directory_of_one_name_and_back() {
    let place = Place::new();
    let out = rendered(
        &place,
        &[&[
            Member::file("a", "file"),
            Member::directory("a"),
            Member::file("a/inside", ""),
            Member::file("b/inside", ""),
            Member::file("b", "file"),
            Member::symlink("c", "a"),
            Member::directory("c"),
        ]],
    );
    assert_eq!(paths(&out), ["a", "a/inside", "b", "c"]);
    assert_eq!(fs::read(out.join("b")).unwrap(), b"file");
    assert!(fs::symlink_metadata(out.join("c")).unwrap().is_dir());
}

#[test]
fn entries_under_a_file_are_refused() {
    for member in [Member::file("f", "x"), Member::new("f", b'6'), Member { device: (1, 3), ..Member::new("f", b'3') }]
    {
        let error = refused(&[member, Member::file("f/inside", "")]);
        assert!(error.contains("f/inside: f is not a directory"), "{error}");
    }
}

#[test]
fn names_may_be_of_any_bytes_but_nul() {
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    let names: [&[u8]; 5] = [b"\xff\xfe", b"new\nline", b"tab\tbell\x07", b"\xc3\x28", b" .. "];
    let members: Vec<Member> = names.iter().map(|name| Member::file(name, "x")).collect();
    let out = rendered(&place, &[&members]);
    for name in names {
        assert!(out.join(std::ffi::OsStr::from_bytes(name)).exists(), "{}", name.escape_ascii());
    }
    assert!(refused(&[Member::file("", "").record("path", "a\0b")]).contains("a\\x00b: the name holds a NUL byte"));
    let error = refused(&[Member::symlink("s", "").record("linkpath", "a\0b")]);
    assert!(error.contains("no NUL"), "{error}");
    let error = refused(&[Member::file("evil\x1b[2J\n/..", "")]);
    assert!(!error.contains('\x1b') && !error.contains('\n'), "names are shown harmless");
}

#[test]
fn names_and_paths_beyond_what_linux_takes_are_refused() {
    assert!(refused(&[Member::file("n".repeat(256), "")]).contains("longer than 255 bytes"));
    assert!(refused(&[Member::file("n".repeat(3 << 20), "")]).contains("longer than 4095 bytes"));
    assert!(refused(&[Member::file("", "")]).contains("empty name"));
    assert!(refused(&[Member::symlink("s", "t".repeat(4096))]).contains("1 to 4095 bytes"));
    let place = Place::new();
    let deepest = format!("{}f", "d/".repeat(2047));
    let out = rendered(&place, &[&[Member::file(&deepest, "bottom"), Member::file("n".repeat(255), "")]]);
    // Deeper than any path from the host's root could be: removed by names one after the other.
    assert!(out.join("d/d/d/d").is_dir());
    fs::remove_dir_all(out).unwrap();
}

#[test]
fn ten_thousand_directories_in_one_another_are_refused() {
    assert!(refused(&[Member::directory("d/".repeat(10_000))]).contains("longer than 4095 bytes"));
    // By way of links, each path is short and the tree is deep.
    let mut members = vec![Member::file(format!("{}f", "d/".repeat(1500)), "")];
    members.push(Member::symlink("l", "d/".repeat(1500)));
    members.push(Member::file(format!("l/{}f", "e/".repeat(1500)), ""));
    assert!(refused(&members).contains("longer than 4095 bytes"));
}

#[test]
fn whiteouts_in_odd_places_hide_what_they_may() {
    for name in [".wh..", ".wh...", "a/.wh.."] {
        assert!(refused(&[Member::file(name, "")]).contains("a whiteout of '.' or '..'"), "{name}");
    }
    let place = Place::new();
    let lower = [Member::file("a/x", ""), Member::file("b/x", ""), Member::file("c", "")];
    let upper = [
        // A whiteout of nothing, one that is a directory, one of a name that is all prefix, aufs's own.
        Member::file(".wh.", ""),
        Member::file("none/.wh.gone", ""),
        Member::directory("a/.wh.x"),
        Member::symlink(".wh.c", "/etc/passwd"),
        Member::file(".wh..wh.orph/x", ""),
        Member::file(".wh..wh.aufs", ""),
        Member::file("b/y/.wh..wh..opq", ""),
    ];
    let out = rendered(&place, &[&lower, &upper]);
    assert_eq!(paths(&out), [".wh.", "a", "b", "b/x", "b/y", "none"]);
}

#[test]
fn a_layer_whose_root_is_opaque_hides_all_below() {
    let place = Place::new();
    let out = rendered(
        &place,
        &[&[Member::file("lower", "")], &[Member::file(".wh..wh..opq", ""), Member::file("upper", "")]],
    );
    assert_eq!(paths(&out), ["upper"]);
    // Overlayfs does not obey the mark there: the lower layer is none of the image's to run.
    assert_eq!(place.store.resolve("odd:1").unwrap().layers.len(), 1);
}

#[test]
fn floods_of_attributes_end_soon() {
    let start = Instant::now();
    let flood = |prefix: &str, count: usize| -> Vec<u8> {
        (0..count).flat_map(|n| pax_record(format!("{prefix}{n}").as_bytes(), b"")).collect()
    };
    let header = |kind, data: Vec<u8>| Member { size: data.len() as u64, data, ..Member::new("pax", kind) };
    let error = refused(&[header(b'x', flood("SCHILY.xattr.user.", 120_000)), Member::file("f", "")]);
    assert!(error.contains("extended attributes are too many"), "{error}");
    // Attributes that mean nothing here are not kept, however often they come.
    let nothing = header(b'x', flood("SCHILY.xattr.com.example.", 100_000)).encode();
    let each = |number: u32| [nothing.clone(), Member::file(number.to_string(), "").encode()].concat();
    let place = Place::new();
    let bytes = [(0..20).flat_map(each).collect(), archive(&[])].concat();
    place.import(&place.layout("odd", &layout("1", Packing::Zstd, &[bytes]))).unwrap();
    // A global header is not copied to each of many entries.
    let mut members = vec![header(b'g', pax_record(b"SCHILY.xattr.user.x", &vec![b'x'; 3 << 20]))];
    members.extend((0..20_000).map(|number| Member::hard_link(number.to_string(), "f")));
    members.insert(0, Member::file("f", ""));
    place.import(&place.layout("global", &layout("1", Packing::Zstd, &[archive(&members)]))).unwrap();
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
}

#[test]
fn an_archive_of_images_with_endless_names_is_read_with_bounded_memory() {
    let place = Place::new();
    let mut bytes = Vec::new();
    for number in 0..50 {
        bytes.extend(Member::file(format!("{number}{}", "n".repeat(100_000)), "").encode());
    }
    bytes.extend(archive(&[Member::file("manifest.json", br#"[{"Config":"../../etc/passwd","Layers":[]}]"#)]));
    let error = place.error(&place.file("evil.tar", &bytes));
    assert!(error.contains("../../etc/passwd in ") && error.contains("is missing"), "{error}");
}

#[test]
fn documents_that_lie_are_refused_by_name() {
    let place = Place::new();
    let broken = |name: &str, change: &dyn Fn(&mut serde_json::Value)| {
        let mut layout = Layout::new();
        let mut image = layout.image(host_architecture(), Packing::Plain, &[layer("x")]);
        change(&mut image);
        layout.entry(image, json!({}));
        place.error(&place.layout(name, &layout))
    };
    assert!(broken("size", &|image| image["size"] = json!(u64::MAX)).contains("expected 18446744073709551615"));
    assert!(broken("short", &|image| image["size"] = json!(7)).contains("expected 7"));
    assert!(broken("negative", &|image| image["size"] = json!(-1)).contains("index.json"));
    assert!(broken("digest", &|image| image["digest"] = json!("sha256:../../../etc/passwd")).contains("digest"));
    assert!(broken("other", &|image| image["digest"] = json!("md5:00")).contains("only sha256"));
    // An index of a hundred others, each of them of a hundred others: a million ways to nothing.
    let mut layout = Layout::new();
    let mut descriptor = layout.blob("application/octet-stream", b"\x1b[2J".to_vec());
    descriptor["platform"] = json!({"os": "linux", "architecture": "\u{1b}[2J"});
    for depth in 0..3 {
        descriptor = layout.index(&vec![descriptor; if depth == 0 { 1000 } else { 100 }]);
    }
    layout.entry(descriptor, json!({}));
    let start = Instant::now();
    let error = place.error(&place.layout("indexes", &layout));
    assert!(error.contains("indexes are nested too deeply, or too many"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(30));
    let mut layout = Layout::new();
    let mut other = layout.blob("application/octet-stream", b"x".to_vec());
    other["platform"] = json!({"os": "linux", "architecture": "\u{1b}[2J"});
    let index = layout.index(&vec![other; 5000]);
    layout.entry(index, json!({}));
    let error = place.error(&place.layout("platforms", &layout));
    assert!(error.len() < 1000 && !error.contains('\x1b') && error.contains("no image for"), "{error}");
    let deep = place.path("deep");
    Layout::new().write(&deep);
    fs::write(deep.join("index.json"), "[".repeat(100_000)).unwrap();
    assert!(place.error(&deep).contains("index.json"));
}
