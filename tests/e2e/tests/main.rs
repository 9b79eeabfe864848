//! End-to-end tests, a file per feature. How they are run: see the crate's own documentation.
//!
//! What is in [`kvm`] or [`ns`] holds for that stage1 alone. All else holds for both, and is run once for each.

mod activation;
mod appc;
mod bad_input;
mod crash;
mod etcd;
mod files;
mod health;
mod kvm;
mod life;
mod limits;
mod network;
mod nginx;
mod ns;
mod observe;
mod output;
mod pods;
mod postgres;
mod redis;
mod registry;
mod rootless;
mod round_trip;
mod run;
mod settings;
mod systemd;
mod trust;
mod volumes;
