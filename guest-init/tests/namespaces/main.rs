//! Pods behind namespaces on the machine at hand: what an app sees and may do, and how it is started and stopped.

#[path = "../pods/mod.rs"]
mod pods;

mod files;
mod life;
mod privileges;
mod streams;
