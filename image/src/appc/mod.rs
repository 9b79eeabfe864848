//! App Container images (appc): names by which they are found.

pub mod discovery;
mod meta;
