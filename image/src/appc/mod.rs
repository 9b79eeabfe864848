//! App Container images (appc): their names, manifests and archives, and where they are found.
//!
//! | module | subject |
//! |---|---|
//! | [`name`], [`id`] | how images are named |
//! | [`manifest`] | what an image says of itself |
//! | [`discovery`] | where an image of a name is |

pub mod discovery;
pub mod id;
pub mod manifest;
mod meta;
pub mod name;

pub use id::ImageId;
pub use manifest::ImageManifest;
pub use name::{AppcName, Labels};
