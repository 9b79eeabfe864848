//! End-to-end tests, a file per feature. How they are run: see the crate's own documentation.

mod bad_input;
mod etcd;
mod guest_faults;
mod lab;
mod life;
mod limits;
mod network;
mod nginx;
mod pods;
mod redis;
mod run;
mod volumes;
