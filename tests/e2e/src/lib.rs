//! What the end-to-end tests are written with: podvm as it is installed, run like a user runs it.
//!
//! ```no_run
//! let host = podvm_e2e::Host::new();
//! let busybox = host.image("busybox");
//! host.podvm(["run", &busybox, "--", "echo", "hello"]).run().expect_code(0).expect_stdout("hello");
//! ```
//!
//! The tests run one at a time, each in a process of its own (`cargo xtask test --only e2e [FILTER]`): in the lab for each
//! stage1, and on the host itself for namespaces.
//! A test that cannot run where it is says so by [`skip!`] and returns.

mod derived;
mod differences;
mod host;
mod invocation;
mod private_host;
mod snapshot;
pub mod tree;
mod web;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use host::Host;
pub use invocation::{Finished, Invocation, Running};
pub use private_host::on_private_host;
pub use snapshot::Snapshot;
pub use web::Web;

/// Says why a test does not run here, and ends it. `cargo xtask test` counts it as skipped.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        println!("skipped: {}", format_args!($($reason)*));
        return;
    }};
}

/// The stage1 that pods get in this run of the tests: `kvm`, unless `PODVM_E2E_STAGE1` says `ns`.
pub fn stage1() -> &'static str {
    if std::env::var_os("PODVM_E2E_STAGE1").is_some_and(|stage1| stage1 == "ns") { "ns" } else { "kvm" }
}

/// The checkout.
fn workspace() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().and_then(Path::parent).expect("the tests are two directories below the checkout")
}

/// podvm as it is installed, in the checkout: `target/podvm`.
pub fn prefix() -> PathBuf {
    workspace().join("target/podvm")
}

/// The podvm that can be made to die at every step, in the checkout: `target/podvm-faults`.
pub fn prefix_with_faults() -> PathBuf {
    workspace().join("target/podvm-faults")
}

/// Whether the long forms of tests are wanted: `PODVM_E2E_NIGHTLY`, which `cargo xtask test --nightly` sets.
pub fn is_nightly() -> bool {
    std::env::var_os("PODVM_E2E_NIGHTLY").is_some()
}

/// Whether all takes ten times as long here and more: `PODVM_E2E_EMULATED`, which `cargo xtask test` sets in an emulated lab.
pub fn is_emulated() -> bool {
    std::env::var_os("PODVM_E2E_EMULATED").is_some()
}

/// The OCI layout directory of one of the tests' images (see podvm-lab's catalogue).
pub fn layout(name: &str) -> PathBuf {
    let layout = workspace().join("target/test-images").join(name);
    assert!(layout.join("index.json").exists(), "no image {name}; `cargo xtask images` makes the tests' images");
    layout
}

/// Waits until `check` gives something. Panics after `limit`, naming `what`.
#[track_caller]
pub fn wait_for<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(start.elapsed() < limit, "{what}: not so after {} s", limit.as_secs());
        std::thread::sleep(Duration::from_millis(100));
    }
}
