//! Images: references, OCI layouts and archives, the content-addressed EROFS store.

#![forbid(unsafe_code)]

mod acl;
mod decode;
pub mod digest;
pub mod erofs;
pub mod oci;
pub mod reference;
pub mod tar;

pub use digest::Digest;
pub use reference::Reference;
