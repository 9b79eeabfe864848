//! Images: references, OCI layouts and archives, the content-addressed EROFS store.
//!
//! ```no_run
//! use podvm_image::{ImportOptions, Silent, Store};
//!
//! let store = Store::open("/var/lib/podvm/images")?;
//! store.import("./etcd".as_ref(), &ImportOptions::default(), &Silent)?;
//! let image = store.resolve("etcd")?;
//! for layer in &image.layers {
//!     println!("{} {}", layer.path.display(), layer.size);
//! }
//! # Ok::<(), podvm_image::StoreError>(())
//! ```

#![forbid(unsafe_code)]

mod acl;
pub mod appc;
mod decode;
pub mod digest;
pub mod erofs;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod oci;
pub mod progress;
pub mod reference;
pub mod registry;
pub mod source;
pub mod store;
pub mod tar;
pub mod trust;

pub use appc::AppcName;
pub use digest::Digest;
pub use erofs::Limits;
pub use oci::{Format, ImageConfig, ImageHealthcheck};
pub use progress::{Event, Progress, Silent};
pub use reference::Reference;
pub use registry::{Registries, RegistryError};
pub use source::ImageSource;
pub use store::{
    AppcFetch, AppcOptions, AppcRecord, Collected, Exported, FetchOptions, Image, ImportOptions, Imported, Layer,
    LayerPacking, Listing, Origin, Problem, Removed, RenderOptions, ResolvedImage, Step, Store, StoreError, Uses, What,
};
