//! A pod runner with a hardware wall: runs OCI images in micro-VMs of its own.

fn main() {}
