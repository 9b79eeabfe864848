//! End-to-end tests, a file per feature. How they are run: see the crate's own documentation.

mod lab;
