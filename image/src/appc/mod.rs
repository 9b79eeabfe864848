//! App Container images (appc): their names, manifests and archives, and where they are found.
//!
//! | module | subject |
//! |---|---|
//! | [`name`], [`id`] | how images are named |
//! | [`manifest`] | what an image says of itself |
//! | [`archive`] | image and root in one file |
//! | [`whitelist`] | which paths of an image exist |
//! | [`discovery`] | where an image of a name is |

pub mod archive;
pub mod discovery;
pub mod id;
pub mod manifest;
mod meta;
pub mod name;
pub mod whitelist;

pub use archive::ArchiveError;
pub use id::ImageId;
pub use manifest::ImageManifest;
pub use name::{AppcName, Labels};
