//! Each step that changes the disk: the process that comes to it dies there.
//!
//! strace(1) kills it at its nth call of each kind, for every n there is. What dies is this test program, run for one ignored
//! test: the one that is killed.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use super::*;
use crate::store::{RenderOptions, What};
use crate::tar::builder::{Member, archive};

/// The calls that change what is on the disk, and those that order them.
const CALLS: [&str; 11] = [
    "rename",
    "renameat2",
    "mkdir",
    "mkdirat",
    "unlink",
    "unlinkat",
    "rmdir",
    "fsync",
    "ftruncate",
    "pwrite64",
    "flock",
];

/// Runs the ignored test `name` again and again, each time after `prepare`, killed at each of its steps, and calls `check` after
/// each death with what is to be said of it. Returns how many deaths that were; `None`, with the reason on standard output,
/// without strace.
pub fn killed_at_every_step(
    name: &str,
    environment: &[(&str, &Path)],
    prepare: impl Fn(),
    check: impl Fn(&str),
) -> Option<usize> {
    let mut deaths = 0;
    for call in CALLS {
        for number in 1.. {
            prepare();
            let when = format!("inject={call}:signal=SIGKILL:when={number}");
            let status = Command::new("strace")
                .args(["-f", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &when])
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", name, "--ignored", "--test-threads=1"])
                .envs(environment.iter().copied())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            let Ok(status) = status else {
                println!("skipped: strace is not installed; `cargo xtask setup` brings it");
                return None;
            };
            if status.signal() != Some(nix::libc::SIGKILL) {
                assert!(status.success(), "{name} fails before {when}: {status}");
                break;
            }
            deaths += 1;
            check(&format!("killed at {call} number {number}"));
        }
    }
    Some(deaths)
}

impl Place {
    fn assert_verified(&self, when: &str) {
        let problems = self.store.verify(false).unwrap();
        assert!(problems.is_empty(), "{when}: {problems:?}");
    }

    /// Takes away all there is, as a user would.
    fn clear(&self, when: &str) {
        for image in self.images() {
            self.store.remove(&image.id.to_string(), &unused).unwrap();
        }
        self.settle(when);
        assert_eq!(self.blobs(), 0, "{when}");
        let trees = fs::read_dir(self.store.trees()).map_or(0, Iterator::count);
        assert_eq!(trees, 0, "{when}");
        self.assert_empty();
    }

    fn two_layers(&self) -> PathBuf {
        self.layout("app", &layout("1", Packing::Zstd, &[layer("lower"), layer("upper")]))
    }

    fn root_and<'a>(&'a self, path: &'a Path) -> [(&'static str, &'a Path); 2] {
        [("PODVM_TEST_STORE", self.store.root()), ("PODVM_TEST_PATH", path)]
    }
}

/// What the killed tests work with: the store and a path.
fn given() -> (Store, PathBuf) {
    let variable = |name| PathBuf::from(std::env::var_os(name).expect("run by another test"));
    (Store::open(variable("PODVM_TEST_STORE")).unwrap(), variable("PODVM_TEST_PATH"))
}

#[test]
#[ignore = "killed by the test below"]
fn import_that_is_killed() {
    let (store, path) = given();
    store.import(&path, &ImportOptions::default(), &Silent).unwrap();
}

#[test]
fn an_import_may_be_killed_at_every_step() {
    let place = Place::new();
    let path = place.two_layers();
    let name = "store::tests::steps::import_that_is_killed";
    let deaths = killed_at_every_step(
        name,
        &place.root_and(&path),
        || place.clear("before"),
        |when| {
            place.assert_verified(when);
            // By turns the next import goes on where this one ended, and begins anew.
            if when.ends_with(['0', '2', '4', '6', '8']) {
                assert_eq!(place.import(&path).unwrap().layers, 2, "{when}");
                assert_eq!(place.store.resolve("app:1").unwrap().layers.len(), 2, "{when}");
                place.assert_verified(when);
            }
            place.clear(when);
        },
    );
    assert!(deaths.is_none_or(|deaths| deaths > 30), "{deaths:?}");
}

#[test]
fn an_import_of_the_same_image_with_another_manifest_may_be_killed_at_every_step() {
    let place = Place::new();
    let stored = place.two_layers();
    let path = place.layout("other", &layout("1", Packing::Gzip, &[layer("lower"), layer("upper")]));
    let name = "store::tests::steps::import_that_is_killed";
    let prepare = || drop(place.import(&stored).unwrap());
    let deaths = killed_at_every_step(name, &place.root_and(&path), prepare, |when| place.assert_verified(when));
    assert!(deaths.is_none_or(|deaths| deaths > 8), "{deaths:?}");
}

#[test]
#[ignore = "killed by the test below"]
fn removal_that_is_killed() {
    let (store, _) = given();
    store.remove("app:1", &unused).unwrap();
}

#[test]
fn a_removal_may_be_killed_at_every_step() {
    let place = Place::new();
    let path = place.two_layers();
    let name = "store::tests::steps::removal_that_is_killed";
    let prepare = || drop(place.import(&path).unwrap());
    let deaths = killed_at_every_step(name, &place.root_and(&path), prepare, |when| {
        place.assert_verified(when);
        place.clear(when);
    });
    assert!(deaths.is_none_or(|deaths| deaths > 8), "{deaths:?}");
}

#[test]
#[ignore = "killed by the test below"]
fn collection_that_is_killed() {
    let (store, _) = given();
    store.gc(&unused).unwrap();
}

#[test]
fn a_collection_may_be_killed_at_every_step() {
    let place = Place::new();
    let path = place.two_layers();
    // A tree and layers without an image, and what a crash has left.
    let prepare = || {
        place.import(&path).unwrap();
        let layers: Vec<Digest> =
            place.store.resolve("app:1").unwrap().layers.iter().map(|layer| layer.diff_id).collect();
        place.store.unpacked(&layers[0]).unwrap();
        let importing = place.store.importing().unwrap();
        assert!(place.store.remove("app:1", &unused).unwrap().collected.busy);
        drop(importing);
        fs::write(place.store.tmp().join("left"), "x").unwrap();
        fs::write(place.store.partial().join("left"), "x").unwrap();
    };
    let name = "store::tests::steps::collection_that_is_killed";
    let deaths = killed_at_every_step(name, &place.root_and(&path), prepare, |when| {
        place.assert_verified(when);
        place.clear(when);
    });
    assert!(deaths.is_none_or(|deaths| deaths > 8), "{deaths:?}");
}

#[test]
#[ignore = "killed by the test below"]
fn unpacking_that_is_killed() {
    let (store, _) = given();
    let layer = store.resolve("app:1").unwrap().layers[0].diff_id;
    store.unpacked(&layer).unwrap();
}

#[test]
fn unpacking_may_be_killed_at_every_step() {
    let place = Place::new();
    let members = [Member::file("a/b/c", vec![1; 9000]), Member::file("d", "x"), Member::symlink("l", "d")];
    let path = place.layout("app", &layout("1", Packing::Zstd, &[archive(&members)]));
    let tree = place.store.tree_path(&Digest::of(&archive(&members)));
    let name = "store::tests::steps::unpacking_that_is_killed";
    let prepare = || drop(place.import(&path).unwrap());
    let deaths = killed_at_every_step(name, &place.root_and(&path), prepare, |when| {
        if tree.exists() {
            assert_eq!(fs::read(tree.join("a/b/c")).unwrap().len(), 9000, "{when}");
            assert!(tree.join("l").is_symlink() && tree.join("d").exists(), "{when}");
        }
        place.assert_verified(when);
        place.clear(when);
    });
    assert!(deaths.is_none_or(|deaths| deaths > 8), "{deaths:?}");
}

#[test]
#[ignore = "killed by the test below"]
fn rendering_that_is_killed() {
    let (store, path) = given();
    store.render("app:1", &path, &RenderOptions { what: What::Root, overwrite: true }).unwrap();
}

#[test]
fn rendering_may_be_killed_at_every_step_and_what_was_there_or_all_is_there() {
    let place = Place::new();
    let members = [Member::file("a", "new"), Member::file("b/c", "new")];
    place.import(&place.layout("app", &layout("1", Packing::Zstd, &[archive(&members)]))).unwrap();
    let out = place.path("out");
    let prepare = || {
        let _ = fs::remove_dir_all(&out);
        fs::create_dir(&out).unwrap();
        fs::write(out.join("a"), "old").unwrap();
    };
    let name = "store::tests::steps::rendering_that_is_killed";
    let deaths = killed_at_every_step(name, &place.root_and(&out), prepare, |when| {
        match fs::read(out.join("a")).unwrap().as_slice() {
            b"old" => assert!(!out.join("b").exists(), "{when}"),
            new => {
                assert_eq!((new, fs::read(out.join("b/c")).unwrap().as_slice()), (&b"new"[..], &b"new"[..]), "{when}")
            }
        }
        place.assert_verified(when);
    });
    assert!(deaths.is_none_or(|deaths| deaths > 4), "{deaths:?}");
}
