//! What only a VM has.

mod guest_faults;
mod lab;
mod layers;
mod machine;
